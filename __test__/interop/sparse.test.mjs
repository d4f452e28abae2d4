// Parts of cores between npm hypercore and ours: single blocks, ranges and bytes, blocks given up, several
// peers for one core, slow ones, and cores with other manifests than the default one.

import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import { test } from 'node:test'

import b4a from 'b4a'
import Hypercore from 'hypercore'
import hypercoreCrypto from 'hypercore-crypto'

import { corestore, dial, digestOf, download, entries, ours } from './replication.mjs'
import { temporaryDirectory, until, within } from './support.mjs'

const require = createRequire(import.meta.url)
const fromHypercore = createRequire(require.resolve('hypercore'))
const multisig = fromHypercore('./lib/multisig.js')
const Verifier = fromHypercore('./lib/verifier.js')

const hex = (bytes) => b4a.toString(bytes, 'hex')

/** Blocks whose sizes differ. */
const uneven = (count) =>
  Array.from({ length: count }, (_, i) => b4a.from(`block ${i} `.padEnd(20 + (i % 77), '.')))

/** Our program, with a call for parts of a core. */
async function parts(t) {
  const us = await ours(t)
  return {
    ...us,
    async part(command, name, fields) {
      us.command(command, { name, ...fields })
      return us.program.next((line) => line.event === 'part' && line.name === name)
    },
    async peers(name) {
      us.command('peers', { name })
      return (await us.program.next((line) => line.event === 'peers')).peers
    }
  }
}

/** A JavaScript core outside of a corestore. */
async function hypercore(t, key, options) {
  const core = new Hypercore(await temporaryDirectory(t), key, options)
  t.after(() => core.close())
  await core.ready()
  return core
}

test("we fetch single blocks, ranges and bytes of npm's core, and nothing else", async (t) => {
  const us = await parts(t)
  const store = await corestore(t)
  const core = store.get({ name: 'feed' })
  const blocks = uneven(5000)
  await core.append(blocks)
  await us.core('open', 'feed', { key: hex(core.key), onDemand: true })
  await dial(t, store, us.port)
  assert.equal((await us.part('get', 'feed', { index: 4321 })).bytes, hex(blocks[4321]))
  assert.equal((await us.part('range', 'feed', { start: 100, end: 200 })).blocks, 101)
  for (const offset of [0, 1, 5000, 123_456, core.byteLength - 1]) {
    const { index, offset: into } = await us.part('seek', 'feed', { offset })
    assert.deepEqual([index, into], await core.seek(offset), `offset ${offset}`)
  }
  assert.equal((await us.part('range', 'feed', { start: 0, end: 1 })).blocks, 102)
  // One that does not exist yet.
  const waiting = us.part('get', 'feed', { index: 5000 })
  await core.append('the next')
  assert.equal((await waiting).bytes, hex(b4a.from('the next')))
})

test('npm fetches single blocks, ranges and bytes of our core', async (t) => {
  const us = await parts(t)
  const { key } = await us.core('create', 'feed')
  await us.append('feed', 3000, { size: 57 })
  const store = await corestore(t)
  const core = store.get(b4a.from(key, 'hex'))
  await core.ready()
  await dial(t, store, us.port)
  const block = await within(core.get(2222), 'a block')
  assert.ok(b4a.toString(block).startsWith('entry 2222 '))
  await within(core.download({ start: 500, end: 600 }).done(), 'a range')
  assert.deepEqual(await within(core.seek(57 * 1234 + 5), 'a byte'), [1234, 5])
  assert.equal(core.contiguousLength, 0)
  assert.equal((await us.peers('feed'))[0].uploadedBlocks, 101)
})

test('blocks that we give up are known to be gone by npm, and the other way round', async (t) => {
  const us = await parts(t)
  const { key } = await us.core('create', 'ours')
  await us.append('ours', 200)
  const store = await corestore(t)
  const copy = store.get(b4a.from(key, 'hex'))
  const theirs = store.get({ name: 'theirs' })
  await copy.ready()
  await theirs.append(entries(200))
  await us.core('open', 'theirs', { key: hex(theirs.key), onDemand: true })
  await dial(t, store, us.port)
  await within(copy.get(199), 'a block')
  assert.equal((await us.part('clear', 'ours', { start: 50, end: 150 })).cleared, 100)
  const [peer] = copy.peers
  await until(() => !peer._remoteHasBlock(50) && !peer._remoteHasBlock(149), 'npm to hear of it')
  assert.ok(peer._remoteHasBlock(49) && peer._remoteHasBlock(150))
  await assert.rejects(copy.get(60, { timeout: 200 }))
  await within(copy.download({ start: 0, end: 50 }).done(), 'what is left')

  // A whole copy elsewhere, before the blocks are given up at npm.
  const mirrors = await corestore(t)
  const mirror = mirrors.get(theirs.key)
  await mirror.ready()
  const [one, other] = [store.replicate(true), mirrors.replicate(false)]
  one.on('error', () => {})
  other.on('error', () => {})
  one.pipe(other).pipe(one)
  await download(mirror, 200)
  await us.part('get', 'theirs', { index: 0 })
  await theirs.clear(50, 150)
  await us.part('get', 'theirs', { index: 1 })
  const waiting = us.part('get', 'theirs', { index: 60 })
  await dial(t, mirrors, us.port)
  assert.equal((await waiting).bytes, hex(entries(1, 60)[0]))
})

/** Two npm peers that have what `ranges` say of one core of 2,000 entries. */
async function holders(t, ranges) {
  const writers = await corestore(t)
  const source = writers.get({ name: 'feed' })
  await source.append(entries(2000))
  const stores = []
  for (const [start, end] of ranges) {
    const store = await corestore(t)
    const core = store.get(source.key)
    await core.ready()
    const [one, other] = [writers.replicate(true), store.replicate(false)]
    for (const stream of [one, other]) stream.on('error', () => {})
    one.pipe(other).pipe(one)
    await within(core.download({ start, end }).done(), 'a holder')
    const closed = new Promise((resolve) => other.once('close', resolve))
    one.destroy()
    await closed
    stores.push(store)
  }
  return { source, stores }
}

test('npm peers that have parts of a core give us the whole together', async (t) => {
  const us = await parts(t)
  const ranges = [[0, 1000], [1000, 2000]]
  const { source, stores } = await holders(t, ranges)
  await us.core('open', 'feed', { key: hex(source.key) })
  for (const store of stores) await dial(t, store, us.port)
  await us.synced('feed', 2000)
  assert.equal((await us.digest('feed')).digest, await digestOf(source))
  const shares = (await us.peers('feed')).map(({ downloadedBlocks }) => downloadedBlocks)
  assert.deepEqual(shares, [1000, 1000])
})

test('an npm peer that is mute is left for one that answers', async (t) => {
  const us = await parts(t)
  const { source, stores } = await holders(t, [[0, 2000], [0, 2000]])
  const mute = stores[0].get(source.key)
  await mute.ready()
  let asked = 0
  let cancelled = 0
  mute.on('peer-add', (peer) => {
    const answer = peer.onrequest.bind(peer)
    peer.onrequest = async (request) => {
      // the log's length is told, blocks are not
      if (!request.block || request.upgrade) return answer(request)
      asked++
    }
    peer.oncancel = () => cancelled++
  })
  await us.core('open', 'feed', { key: hex(source.key) })
  await dial(t, stores[0], us.port)
  await until(() => asked > 100, 'requests at the mute one')
  await dial(t, stores[1], us.port)
  await within(us.synced('feed', 2000), 'the log', 12_000) // a silent peer is given up only after 15 s
  const hotswaps = (await us.peers('feed')).map((peer) => peer.hotswaps)
  assert.ok(Math.max(...hotswaps) > 100, `${hotswaps}`)
  await until(() => cancelled > 100, 'requests taken back')
})

test('npm gets a core through us while we are getting it from npm', async (t) => {
  const us = await parts(t)
  const writers = await corestore(t)
  const source = writers.get({ name: 'feed' })
  await source.append(entries(3000))
  const readers = await corestore(t)
  const copy = readers.get(source.key)
  await copy.ready()
  await us.core('open', 'feed', { key: hex(source.key) })
  await dial(t, readers, us.port)
  await dial(t, writers, us.port)
  await download(copy, 3000)
  await source.append(entries(10, 3000))
  await download(copy, 3010)
  assert.equal(await digestOf(copy), await digestOf(source))
})

/** What `parts` sign of a log of `length`: each by its number, with its keys, over the log as it has it. */
async function signed(manifest, length, parts) {
  const inputs = []
  for (const [signer, keyPair, log] of parts) {
    const tree = log.state.createTreeBatch()
    const signature = Verifier.fromManifest(manifest).signers[signer].sign(tree, keyPair)
    const patch = log.length - length
    const ahead = patch ? await multisig.partialSignature(log, signer, length) : null
    inputs.push({ signer, signature, patch, nodes: ahead && ahead.nodes })
  }
  return manifest.version === 0 ? multisig.assemblev0(inputs) : multisig.assemble(inputs)
}

for (const [version, allowPatch] of [[0, false], [0, true], [1, false], [1, true]]) {
  const what = `version ${version}${allowPatch ? ' with patches' : ''}`
  test(`a core that two of three sign, ${what}, goes from npm to us and on to npm`, async (t) => {
    const us = await parts(t)
    const pairs = [1, 2, 3].map((byte) => hypercoreCrypto.keyPair(b4a.alloc(32, byte)))
    const signers = pairs.map(({ publicKey }) => ({ publicKey }))
    const manifest = Verifier.createManifest({ version, quorum: 2, allowPatch, signers })
    const drafts = [
      await hypercore(t, null, { keyPair: pairs[0] }),
      await hypercore(t, null, { keyPair: pairs[2] })
    ]
    const blocks = uneven(300)
    const core = await hypercore(t, null, { manifest })
    await us.core('open', 'feed', { key: hex(core.key) })
    await dial(t, core, us.port)
    const copy = await hypercore(t, core.key)
    await dial(t, copy, us.port)
    for (const [start, end] of [[0, 100], [100, 290]]) {
      const ahead = allowPatch ? 10 : 0
      await drafts[0].append(blocks.slice(drafts[0].length, end + ahead))
      await drafts[1].append(blocks.slice(start, end))
      const signature = await signed(manifest, end, [
        [2, pairs[2], drafts[1]],
        [0, pairs[0], drafts[0]]
      ])
      await core.append(blocks.slice(start, end), { signature, writable: true })
      await us.synced('feed', end)
      await download(copy, end)
    }
    assert.equal((await us.digest('feed')).digest, await digestOf(core))
    assert.equal(await digestOf(copy), await digestOf(core))
  })
}

test('a core that begins with a prologue and goes on signed comes from npm and grows', async (t) => {
  const us = await parts(t)
  const keyPair = hypercoreCrypto.keyPair(b4a.alloc(32, 1))
  const draft = await hypercore(t, null, { keyPair })
  await draft.append(uneven(100))
  const prologue = { hash: await draft.treeHash(), length: 100 }
  const signers = [{ publicKey: keyPair.publicKey }]
  const core = await hypercore(t, null, {
    keyPair,
    manifest: { version: 1, quorum: 1, signers, prologue }
  })
  await core.core.copyPrologue(draft.state)
  assert.equal(core.length, 100)
  await us.core('open', 'feed', { key: hex(core.key) })
  await dial(t, core, us.port)
  await us.synced('feed', 100)
  await core.append(uneven(20))
  await us.synced('feed', 120)
  assert.equal((await us.digest('feed')).digest, await digestOf(core))
})

test('an encrypted core passes through us unread', async (t) => {
  const us = await parts(t)
  const encryption = { key: b4a.alloc(32, 7) }
  const core = await hypercore(t, null, { encryption })
  await core.append(['a secret', 'another'])
  await us.core('open', 'feed', { key: hex(core.key) })
  await dial(t, core, us.port)
  await us.synced('feed', 2)
  const { bytes } = await us.part('get', 'feed', { index: 0 })
  assert.equal(bytes.length / 2, 8 + 'a secret'.length)
  assert.ok(!bytes.includes(hex(b4a.from('secret'))))
  const copy = await hypercore(t, core.key, { encryption })
  await dial(t, copy, us.port)
  assert.equal(b4a.toString(await within(copy.get(1), 'a block')), 'another')
})
