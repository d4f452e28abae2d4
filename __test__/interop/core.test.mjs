// npm hypercore and our logs, without a network: keys, hashes, signatures and manifests are equal,
// proofs have the same bytes, and each side believes what the other proves and nothing else.

import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { test } from 'node:test'

import Hypercore from 'hypercore'
import crypto from 'hypercore-crypto'

import { startInterop, temporaryDirectory } from './support.mjs'

// The internals of the version under test, with the encoder that it uses itself.
const require = createRequire(import.meta.url)
const fromHypercore = createRequire(require.resolve('hypercore'))
const c = fromHypercore('compact-encoding')
const messages = fromHypercore('./lib/messages.js')
const { MerkleTree } = fromHypercore('./lib/merkle-tree.js')
const multisig = fromHypercore('./lib/multisig.js')
const Verifier = fromHypercore('./lib/verifier.js')
const caps = fromHypercore('./lib/caps.js')

const hex = (bytes) => (bytes ? Buffer.from(bytes).toString('hex') : null)
const seed = (byte) => Buffer.alloc(32, byte)
const keyPair = crypto.keyPair(seed(3))

/** A block of a size of its own; number 9 is empty. */
function block(index) {
  if (index === 9) return Buffer.alloc(0)
  return Buffer.from(`${index}:${'x'.repeat((index * 37) % 300)}`)
}

const blocks = (from, to) => Array.from({ length: to - from }, (_, i) => block(from + i))

/** A generator of numbers below `n` that is the same every time. */
function random(start) {
  let state = BigInt(start) // a linear congruential one: Knuth's constants
  return (n) => {
    state = (state * 6364136223846793005n + 1442695040888963407n) & ((1n << 64n) - 1n)
    return Number((state >> 33n) % BigInt(n))
  }
}

/** Our program: every command is answered in its turn. */
function ours(t) {
  const program = startInterop(t, ['core'])
  return async (command, fields = {}) => {
    program.send({ command, ...fields })
    const answer = await program.next()
    if (answer.event === 'failed') throw new Error(`${command}: ${answer.error}`)
    return answer
  }
}

/** Makes JavaScript cores, each in a storage of its own: the same key may be there twice. */
function javascript(t) {
  const cores = []
  t.after(() => Promise.all(cores.map((core) => core.close())))
  return async (options, key = null) => {
    const core = new Hypercore(await temporaryDirectory(t), key, options)
    cores.push(core)
    await core.ready()
    return core
  }
}

function assertSame(state, core) {
  const { roots } = core.state
  assert.deepEqual(
    state,
    {
      event: 'state',
      key: hex(core.key),
      discoveryKey: hex(core.discoveryKey),
      length: core.length,
      byteLength: core.byteLength,
      contiguousLength: core.contiguousLength,
      fork: core.fork,
      treeHash: hex(crypto.tree(roots)),
      roots: roots.map(({ index, size, hash }) => ({ index, size, hash: hex(hash) })),
      manifest: hex(Verifier.encodeManifest(core.manifest)),
      signature: hex(core.state.signature)
    },
    `length ${core.length}`
  )
}

const encodeData = (proof) => hex(c.encode(messages.wire.data, { request: 1, ...proof }))
const decodeData = (data) => c.decode(messages.wire.data, Buffer.from(data, 'hex'))
const encodeRequest = (request) =>
  hex(c.encode(messages.wire.request, { id: 1, fork: 0, priority: 0, ...request }))

/** What npm hypercore answers to a request (`_getProof` in its replicator), or null. */
async function javascriptProof(core, request) {
  const { block } = request
  if (block && (block.index >= core.length || !(await core.has(block.index)))) return null
  const copy = structuredClone({ block: null, hash: null, seek: null, upgrade: null, ...request })
  const rx = core.state.storage.read()
  const value = block ? rx.getBlock(block.index) : null
  const unsettled = await MerkleTree.proof(core.state, rx, copy).catch(() => null)
  rx.tryFlush()
  const proof = await unsettled?.settle().catch(() => null)
  if (!proof) return null
  if (proof.block) proof.block.value = await value
  if (request.manifest && !core.core.compat) proof.manifest = core.manifest
  const { hash, seek, upgrade, manifest } = proof
  return proof.block || hash || seek || upgrade || manifest ? proof : null
}

async function ourProof(call, core, request) {
  const { data } = await call('prove', { core, request: encodeRequest(request) })
  return data
}

/**
 * A request that may or may not make sense. A seek comes with a block or hash only where npm's answer
 * is meant: below the first root and without an upgrade. Elsewhere it computes with NaN or climbs out
 * of the tree.
 */
function randomRequest(below, length, bytes) {
  const request = {}
  const kind = below(8)
  if (kind < 3) request.block = { index: below(length), nodes: below(7) }
  else if (kind < 5) request.hash = { index: below(2 * length), nodes: below(7) }
  const index = request.block ? 2 * request.block.index : request.hash?.index
  const isBelowFirstRoot = index < 2 ** (1 + Math.floor(Math.log2(length))) - 1
  if (below(2) === 0 || kind >= 5) {
    const start = below(length)
    request.upgrade = { start, length: 1 + below(length - start) }
  }
  if (below(3) === 0 && (index === undefined || (isBelowFirstRoot && !request.upgrade))) {
    request.seek = { bytes: below(bytes + 2), padding: 0 }
  }
  return request
}

for (const [name, options, fields] of [
  ['the default manifest', {}, {}],
  ['a compat core', { compat: true }, { compat: true }],
  [
    'a manifest of version 0',
    manifestOptions({ version: 0, quorum: 1, signers: [signer(3)] }),
    manifestFields({ version: 0, quorum: 1, signers: [signer(3)] })
  ],
  [
    'a manifest of version 3 with all there is',
    manifestOptions(full()),
    manifestFields(full())
  ]
]) {
  test(`${name}: everything is equal at every length, and so is every proof`, async (t) => {
    const call = ours(t)
    const create = javascript(t)
    const core = await create({ keyPair, compat: false, ...options })
    await call('create', { core: 'a', seed: hex(seed(3)), ...fields })
    const below = random(name.length)
    const answered = { proof: 0, nothing: 0 }
    for (let length = 0; length < 70; ) {
      const more = length < 20 ? 1 : 1 + below(9)
      await core.append(blocks(length, length + more))
      const appended = blocks(length, length + more).map(hex)
      length += more
      assertSame(await call('append', { core: 'a', blocks: appended }), core)
      for (let i = 0; i < 40; i++) {
        const request = randomRequest(below, length, core.byteLength)
        const theirs = await javascriptProof(core, request)
        const mine = await ourProof(call, 'a', request)
        const context = JSON.stringify({ length, request })
        assert.equal(mine, theirs && encodeData(theirs), context)
        answered[mine ? 'proof' : 'nothing']++
      }
    }
    assert.ok(answered.proof > 500 && answered.nothing > 50, JSON.stringify(answered))
  })
}

test('a seek with padding is answered as npm does', async (t) => {
  const call = ours(t)
  const core = await javascript(t)({ keyPair, compat: false })
  const padded = Array.from({ length: 23 }, (_, i) => Buffer.alloc(8 + ((i * 5) % 7), i))
  await core.append(padded)
  await call('create', { core: 'a', seed: hex(seed(3)) })
  await call('append', { core: 'a', blocks: padded.map(hex) })
  for (let bytes = 0; bytes < 80; bytes++) {
    const seek = { bytes, padding: 8 }
    for (const request of [
      { seek, upgrade: { start: 0, length: 23 } },
      { seek, upgrade: { start: 5, length: 11 } },
      { seek, hash: { index: 15, nodes: 0 } },
      { seek, hash: { index: 7, nodes: 0 } }
    ]) {
      const theirs = await javascriptProof(core, request)
      const mine = await ourProof(call, 'a', request)
      assert.equal(mine, theirs && encodeData(theirs), JSON.stringify(request))
    }
  }
})

/** Fetches a whole log block by block in an order of its own, growing now and then. */
async function fetchAll(length, below, { upgrade, block }) {
  const order = Array.from({ length }, (_, i) => i).sort(() => below(3) - 1)
  let known = 0
  while (known < length) known = await upgrade(known, Math.min(length - known, 1 + below(30)))
  for (const index of order) await block(index)
}

for (const compat of [false, true]) {
  const kind = compat ? 'compat' : 'default'

  test(`we believe what npm proves of a ${kind} core`, async (t) => {
    const call = ours(t)
    const below = random(7)
    const core = await javascript(t)({ keyPair, compat })
    await core.append(blocks(0, 61))
    await call('open', { core: 'b', key: hex(core.key) })
    const apply = async (request) => {
      const proof = await javascriptProof(core, request)
      const answer = await call('apply', { core: 'b', data: encodeData(proof) })
      assert.equal(answer.event, 'applied', JSON.stringify(answer))
      return answer
    }
    await fetchAll(61, below, {
      upgrade: async (start, length) =>
        (await apply({ upgrade: { start, length }, manifest: true })).upgraded,
      block: async (index) => {
        const { nodes } = await call('missing', { core: 'b', index: 2 * index })
        assert.equal((await apply({ block: { index, nodes } })).block, index)
        const { bytes } = await call('get', { core: 'b', index })
        assert.equal(bytes, hex(block(index)))
      }
    })
    assertSame(await call('state', { core: 'b' }), core)
    const { whole } = await call('verify', { core: 'b' })
    assert.ok(whole)
    for (let bytes = 0; bytes < core.byteLength; bytes += 97) {
      const [index, offset] = await core.seek(bytes)
      const found = await call('seek', { core: 'b', bytes })
      assert.deepEqual(found, { event: 'position', index, offset })
    }
  })

  test(`npm believes what we prove of a ${kind} core`, async (t) => {
    const call = ours(t)
    const below = random(11)
    const { key } = await call('create', { core: 'a', seed: hex(seed(3)), compat })
    await call('append', { core: 'a', blocks: blocks(0, 61).map(hex) })
    const copy = await javascript(t)({}, Buffer.from(key, 'hex'))
    const apply = async (request) => {
      const data = await ourProof(call, 'a', request)
      assert.ok(await copy.applyProof(decodeData(data)), JSON.stringify(request))
    }
    await fetchAll(61, below, {
      upgrade: async (start, length) => {
        await apply({ upgrade: { start, length }, manifest: true })
        return copy.length
      },
      block: async (index) => {
        await apply({ block: { index, nodes: await copy.missingNodes(index) } })
        assert.deepEqual(await copy.get(index, { wait: false }), block(index))
      }
    })
    assertSame(await call('state', { core: 'a' }), copy)
  })
}

test('a block, a hash and a seek come with an upgrade, both ways', async (t) => {
  const call = ours(t)
  const create = javascript(t)
  const core = await create({ keyPair, compat: false })
  await core.append(blocks(0, 21))
  await call('create', { core: 'a', seed: hex(seed(3)) })
  await call('append', { core: 'a', blocks: blocks(0, 21).map(hex) })
  const upgrade = { start: 0, length: 13 }
  let opened = 0
  for (const request of [
    { upgrade, block: { index: 6, nodes: 0 } },
    { upgrade, block: { index: 12, nodes: 0 } },
    { upgrade, hash: { index: 9, nodes: 0 } },
    { upgrade, seek: { bytes: 700, padding: 0 } }
  ]) {
    const theirs = encodeData(await javascriptProof(core, { ...request, manifest: true }))
    const mine = await ourProof(call, 'a', { ...request, manifest: true })
    assert.equal(mine, theirs)
    const name = `reader ${opened++}`
    // A directory each: they are the same core.
    const dir = await temporaryDirectory(t)
    await call('open', { core: name, key: hex(core.key), dir })
    const answer = await call('apply', { core: name, data: theirs })
    const index = request.block?.index ?? null
    assert.deepEqual(answer, { event: 'applied', upgraded: 21, block: index, manifest: true })
    const copy = await javascript(t)({}, core.key)
    assert.ok(await copy.applyProof(decodeData(mine)))
    assert.equal(copy.length, 21)
  }
})

test('a flipped bit in a block, node, signature or manifest is refused by us and by npm', async (t) => {
  const call = ours(t)
  const core = await javascript(t)({ keyPair, compat: false })
  await core.append(blocks(0, 21))
  const request = {
    upgrade: { start: 0, length: 13 },
    block: { index: 6, nodes: 0 },
    manifest: true
  }
  const good = encodeData(await javascriptProof(core, request))
  await call('open', { core: 'b', key: hex(core.key) })
  const copy = await javascript(t)({}, core.key)
  const flip = (bytes) => (bytes[bytes.length >> 1] ^= 8)
  const changes = [
    ({ block }) => flip(block.value),
    ({ upgrade }) => flip(upgrade.signature),
    ({ manifest }) => flip(manifest.signers[0].publicKey),
    ({ manifest }) => flip(manifest.signers[0].namespace),
    ...Array.from(decodeData(good).block.nodes, (_, i) => ({ block }) => flip(block.nodes[i].hash)),
    ...Array.from(decodeData(good).upgrade.nodes, (_, i) => [
      ({ upgrade }) => flip(upgrade.nodes[i].hash),
      ({ upgrade }) => (upgrade.nodes[i].size += 1)
    ]).flat(),
    ...Array.from(decodeData(good).upgrade.additionalNodes, (_, i) => ({ upgrade }) =>
      flip(upgrade.additionalNodes[i].hash)
    )
  ]
  assert.ok(changes.length > 8)
  for (const change of changes) {
    const bad = decodeData(good)
    change(bad)
    const answer = await call('apply', { core: 'b', data: encodeData(bad) })
    assert.equal(answer.event, 'refused', change.toString())
    assert.equal(answer.violation, true)
    await assert.rejects(() => copy.applyProof(bad), change.toString())
  }
  assert.equal((await call('state', { core: 'b' })).length, 0)
  assert.equal((await call('apply', { core: 'b', data: good })).event, 'applied')
})

for (const size of [1, 65_536, 65_537, 1_000_000]) {
  test(`a file of ${size} bytes has the key that npm makes of it, and its proofs`, async (t) => {
    const call = ours(t)
    const create = javascript(t)
    const path = join(await temporaryDirectory(t), 'book.epub')
    const bytes = book(size)
    await writeFile(path, bytes)
    const chunks = []
    for (let at = 0; at < size; at += 65_536) chunks.push(bytes.subarray(at, at + 65_536))
    const source = await create({ keyPair })
    await source.append(chunks)
    const prologue = { hash: crypto.tree(source.state.roots), length: source.length }
    const manifest = { prologue, signers: [], quorum: 0 }
    const fixed = await create({ manifest })
    const mine = await call('static', { core: 'book', path })
    assert.equal(mine.key, hex(fixed.key))
    assert.equal(mine.contiguousLength, chunks.length)
    // npm has nothing but the key, and takes ours.
    const fetched = await create({}, fixed.key)
    const take = async (request) =>
      fetched.applyProof(decodeData(await ourProof(call, 'book', request)))
    assert.ok(await take({ upgrade: { start: 0, length: 1 }, manifest: true }))
    for (let index = 0; index < chunks.length; index++) {
      assert.ok(await take({ block: { index, nodes: await fetched.missingNodes(index) } }))
      assert.deepEqual(await fetched.get(index, { wait: false }), chunks[index])
    }
    assertSame(mine, fetched)
    // We have nothing but the key, and take npm's, into a file.
    const dir = await temporaryDirectory(t)
    const copy = { core: 'copy', key: mine.key, dir, file: join(dir, 'copy.epub') }
    await call('open', copy)
    const give = async (request) => {
      const proof = await javascriptProof(fetched, request)
      return call('apply', { core: 'copy', data: encodeData(proof) })
    }
    const { upgraded } = await give({ upgrade: { start: 0, length: 1 }, manifest: true })
    assert.equal(upgraded, chunks.length)
    for (let index = chunks.length - 1; index >= 0; index--) {
      const { nodes } = await call('missing', { core: 'copy', index: 2 * index })
      assert.equal((await give({ block: { index, nodes } })).block, index)
    }
    assert.deepEqual(await call('verify', { core: 'copy' }), {
      event: 'verified',
      good: chunks.length,
      bad: [],
      whole: true
    })
  })
}

test('manifests have the same key here and there', async (t) => {
  const call = ours(t)
  const prologue = { hash: seed(9), length: 1234567 }
  for (const manifest of [
    { version: 0, quorum: 1, signers: [signer(1)] },
    { version: 0, quorum: 2, signers: [signer(1), signer(2), signer(3)] },
    { version: 0, allowPatch: true, quorum: 1, signers: [signer(1)] },
    { version: 0, quorum: 0, signers: [], prologue: { hash: seed(9), length: 0 } },
    { version: 1, quorum: 1, signers: [signer(1)] },
    { version: 1, quorum: 300, allowPatch: true, signers: [signer(1), signer(2)] },
    { version: 1, quorum: 0, signers: [], prologue },
    { version: 2, quorum: 1, signers: [signer(1)], prologue, linked: [seed(4), seed(5)] },
    { version: 2, quorum: 1, signers: [signer(1)], userData: Buffer.alloc(0) },
    { version: 3, quorum: 1, signers: [signer(1)], linked: [], userData: Buffer.alloc(300, 1) }
  ]) {
    const whole = { hash: 'blake2b', allowPatch: false, linked: null, userData: null, ...manifest }
    const bytes = hex(Verifier.encodeManifest(whole))
    const answer = await call('manifest', { bytes })
    assert.deepEqual(answer, { event: 'manifest', key: hex(Verifier.manifestHash(whole)), bytes })
  }
})

for (const [version, allowPatch] of [
  [0, false],
  [0, true],
  [1, false],
  [1, true]
]) {
  test(`two of three signers, version ${version}${allowPatch ? ' with patches' : ''}`, async (t) => {
    const call = ours(t)
    const create = javascript(t)
    const pairs = [1, 2, 3].map((byte) => crypto.keyPair(seed(byte)))
    const signers = pairs.map(({ publicKey }) => ({ publicKey }))
    const manifest = Verifier.createManifest({ version, quorum: 2, allowPatch, signers })
    const core = await create({ manifest })
    // The log of a signer that is two blocks ahead.
    const ahead = await create({ keyPair })
    await ahead.append(blocks(0, 11))
    const batch = ahead.state.createTreeBatch()
    const sign = (index, tree) => Verifier.fromManifest(manifest).signers[index].sign(tree, pairs[index])
    const part = async (signer, tree, length) => {
      const patched = tree.length > length
      const whole = patched ? await multisig.partialSignature(ahead, signer, length) : null
      const nodes = whole ? whole.nodes : null
      return { signer, signature: sign(signer, tree), patch: tree.length - length, nodes }
    }
    const nine = await create({ keyPair: crypto.keyPair(seed(8)) })
    await nine.append(blocks(0, 9))
    const short = nine.state.createTreeBatch()
    const parts = [
      await part(2, short, 9),
      await part(0, allowPatch ? batch : short, 9)
    ]
    const signature = version === 0 ? multisig.assemblev0(parts) : multisig.assemble(parts)
    await core.append(blocks(0, 9), { signature, writable: true })
    assert.equal(core.length, 9)
    const request = { upgrade: { start: 0, length: 9 }, manifest: true }
    const proof = await javascriptProof(core, request)
    await call('open', { core: 'b', key: hex(core.key) })
    const alone = version === 0 ? multisig.assemblev0(parts.slice(1)) : multisig.assemble(parts.slice(1))
    const twice = version === 0 ? multisig.assemblev0([parts[0], parts[0]]) : multisig.assemble([parts[0], parts[0]])
    for (const signature of [alone, twice]) {
      const upgrade = { ...proof.upgrade, signature }
      const refused = await call('apply', { core: 'b', data: encodeData({ ...proof, upgrade }) })
      assert.equal(refused.event, 'refused')
    }
    const answer = await call('apply', { core: 'b', data: encodeData(proof) })
    assert.equal(answer.upgraded, 9, JSON.stringify(answer))
    assert.equal(await ourProof(call, 'b', request), encodeData(proof))
  })
}

test('a log that was written twice is told from one that was not', async (t) => {
  const call = ours(t)
  const core = await javascript(t)({ keyPair, compat: false })
  await core.append(blocks(0, 8))
  await call('create', { core: 'a', seed: hex(seed(3)) })
  await call('append', { core: 'a', blocks: blocks(0, 6).map(hex) })
  const proof = (start, length) => javascriptProof(core, { upgrade: { start, length } })
  const ask = async (length) =>
    (await call('contradicts', { core: 'a', data: encodeData(await proof(0, length)) })).value
  assert.equal(await ask(6), false)
  const refused = await call('apply', { core: 'a', data: encodeData(await proof(6, 2)) })
  assert.match(refused.error, /written elsewhere/)
  await call('append', { core: 'a', blocks: [hex(block(50)), hex(block(51))] })
  assert.equal(await ask(6), false)
  assert.equal(await ask(8), true)
})

test('every append that was acknowledged is there after kill -9', async (t) => {
  const dir = await temporaryDirectory(t)
  let acknowledged = 0
  for (let round = 0; round < 5; round++) {
    const program = startInterop(t, ['core'])
    const how = round === 0 ? 'create' : 'open'
    const key = Verifier.manifestHash(Verifier.defaultSignerManifest(keyPair.publicKey))
    program.send({ command: how, core: 'a', seed: hex(seed(3)), key: hex(key), dir })
    const opened = await program.next('state')
    assert.ok(opened.length >= acknowledged, `${opened.length} < ${acknowledged}`)
    assert.equal(opened.contiguousLength, opened.length)
    assert.equal(opened.length % 3, 0, 'an append is whole or absent')
    program.send({ command: 'verify', core: 'a' })
    const verified = await program.next('verified')
    assert.deepEqual(verified.bad, [])
    assert.ok(verified.whole)
    program.send({ command: 'write', core: 'a', count: 100_000, size: 200 })
    for (let i = 0; i < 20 + 7 * round; i++) acknowledged = (await program.next('state')).length
    await program.kill()
  }
  assert.ok(acknowledged > 100)
})

/** Bytes that look random and are the same every time. */
function book(size) {
  const out = Buffer.alloc(size)
  for (let at = 0, i = 0; at < size; at += 32, i++) {
    createHash('sha256').update(`${size}:${i}`).digest().copy(out, at)
  }
  return out
}

function signer(byte) {
  return {
    signature: 'ed25519',
    namespace: caps.DEFAULT_NAMESPACE,
    publicKey: crypto.keyPair(seed(byte)).publicKey
  }
}

function full() {
  return {
    version: 3,
    quorum: 1,
    signers: [{ ...signer(3), namespace: seed(77) }],
    linked: [seed(4)],
    userData: Buffer.from('hello')
  }
}

function manifestOptions(manifest) {
  return { manifest }
}

function manifestFields(manifest) {
  return { manifest: hex(Verifier.encodeManifest(Verifier.createManifest(manifest))) }
}
