// npm hypercore and our replicator, over plain TCP with a secret stream: whole logs and live ones,
// many at once, static cores by their key alone, and peers that lie.

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import net from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'

import b4a from 'b4a'
import c from 'compact-encoding'
import hypercoreCrypto from 'hypercore-crypto'
import Hypercore from 'hypercore'
import Protomux from 'protomux'
import NoiseStream from '@hyperswarm/secret-stream'
import sodium from 'sodium-universal'

import { corestore, dial, digestOf, download, entries, ours } from './replication.mjs'
import { root, temporaryDirectory, until, within } from './support.mjs'

/** A book from the shared library, or random bytes of about the same size. */
async function book(t) {
  const shared = join(root, '../shared/library/mary-shelley_frankenstein.epub')
  if (existsSync(shared)) return shared
  t.diagnostic('no shared library: a file of random bytes instead of a book')
  const path = join(await temporaryDirectory(t), 'book.epub')
  await writeFile(path, randomBytes(600_000))
  return path
}

/** A core whose key is its signer's key, as before manifests. */
async function compatCore(t) {
  const options = { keyPair: hypercoreCrypto.keyPair(), compat: true }
  const core = new Hypercore(await temporaryDirectory(t), options)
  t.after(() => core.close())
  return core
}

for (const compat of [false, true]) {
  const kind = compat ? 'a compat' : 'a default'

  test(`npm replicates ${kind} core of ours: 5,000 entries, 100 live, a reconnect`, async (t) => {
    const us = await ours(t)
    const { key } = await us.core('create', 'feed', { compat })
    await us.append('feed', 5000)
    const store = await corestore(t)
    const core = store.get(b4a.from(key, 'hex'))
    await core.ready()

    const first = await dial(t, store, us.port)
    await download(core, 5000)
    for (let i = 0; i < 100; i++) {
      const { length } = await us.append('feed', 1)
      assert.equal(length, 5001 + i)
    }
    await download(core, 5100)
    assert.equal(await digestOf(core), (await us.digest('feed')).digest)

    await first.end()
    await us.append('feed', 50)
    await dial(t, store, us.port)
    await download(core, 5150)
    await us.append('feed', 1)
    await download(core, 5151)
    assert.equal(await digestOf(core), (await us.digest('feed')).digest)
  })

  test(`we replicate ${kind} core of npm's: 5,000 entries, 100 live, a reconnect`, async (t) => {
    const us = await ours(t)
    const store = compat ? await compatCore(t) : await corestore(t)
    const core = compat ? store : store.get({ name: 'feed' })
    await core.ready()
    if (compat) assert.ok(b4a.equals(core.key, core.keyPair.publicKey))
    await core.append(entries(5000))
    await us.core('open', 'feed', { key: b4a.toString(core.key, 'hex') })

    const first = await dial(t, store, us.port)
    await us.synced('feed', 5000)
    for (let i = 0; i < 100; i++) await core.append(entries(1, 5000 + i))
    await us.synced('feed', 5100)
    assert.equal((await us.digest('feed')).digest, await digestOf(core))

    await first.end()
    await core.append(entries(50, 5100))
    await dial(t, store, us.port)
    await us.synced('feed', 5150)
    await core.append(entries(1, 5150))
    await us.synced('feed', 5151)
    assert.equal((await us.digest('feed')).digest, await digestOf(core))
  })
}

test('we dial and npm answers', async (t) => {
  const us = await ours(t)
  const store = await corestore(t)
  const theirs = store.get({ name: 'feed' })
  await theirs.append(entries(100))
  const { key } = await us.core('create', 'ours')
  await us.append('ours', 100)
  await us.core('open', 'theirs', { key: b4a.toString(theirs.key, 'hex') })
  const mirror = store.get(b4a.from(key, 'hex'))
  await mirror.ready()
  const server = net.createServer((socket) => {
    const stream = new NoiseStream(false, socket)
    stream.on('error', () => {})
    store.replicate(stream)
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  t.after(() => server.close())
  us.command('connect', { port: server.address().port })
  await us.synced('theirs', 100)
  await download(mirror, 100)
  us.command('disconnect')
})

test('30 cores each way on one connection', async (t) => {
  const us = await ours(t)
  const store = await corestore(t)
  const [theirs, mirrors] = [[], []]
  for (let i = 0; i < 30; i++) {
    const core = store.get({ name: `core-${i}` })
    await core.append(entries(50 + i))
    theirs.push(core)
    await us.core('open', `theirs-${i}`, { key: b4a.toString(core.key, 'hex') })
    const { key } = await us.core('create', `ours-${i}`)
    await us.append(`ours-${i}`, 50 + i)
    const mirror = store.get(b4a.from(key, 'hex'))
    await mirror.ready()
    mirrors.push(mirror)
  }
  await dial(t, store, us.port)
  for (let i = 0; i < 30; i++) {
    await us.synced(`theirs-${i}`, 50 + i)
    await download(mirrors[i], 50 + i)
  }
  for (const i of [0, 7, 29]) {
    assert.equal((await us.digest(`theirs-${i}`)).digest, await digestOf(theirs[i]))
    assert.equal(await digestOf(mirrors[i]), (await us.digest(`ours-${i}`)).digest)
  }
  // and all of them are live
  for (let i = 0; i < 30; i++) await theirs[i].append('more')
  for (let i = 0; i < 30; i++) await us.append(`ours-${i}`, 1)
  for (let i = 0; i < 30; i++) {
    await us.synced(`theirs-${i}`, 51 + i)
    await download(mirrors[i], 51 + i)
  }
})

test("we pass npm's core on to another npm", async (t) => {
  const us = await ours(t)
  const [first, second] = [await corestore(t), await corestore(t)]
  const core = first.get({ name: 'feed' })
  await core.append(entries(300))
  await us.core('open', 'feed', { key: b4a.toString(core.key, 'hex') })
  const mirror = second.get(core.key)
  await mirror.ready()
  await dial(t, second, us.port)
  const { end } = await dial(t, first, us.port)
  await download(mirror, 300)
  await core.append(entries(10, 300))
  await download(mirror, 310)
  await us.synced('feed', 310)
  await end()
  assert.equal(await digestOf(mirror), (await us.digest('feed')).digest)
})

test('npm seeks and reads here and there in a core of ours', async (t) => {
  const us = await ours(t)
  const { key } = await us.core('create', 'feed')
  await us.append('feed', 1000)
  const store = await corestore(t)
  const core = store.get(b4a.from(key, 'hex'))
  await core.ready()
  await dial(t, store, us.port)
  await until(() => core.length === 1000, 'length 1000')
  for (const offset of [0, 150, 99_999, 31_415, 64_000]) {
    const expected = [Math.floor(offset / 100), offset % 100]
    assert.deepEqual(await within(core.seek(offset), `seek to ${offset}`), expected)
  }
  for (const index of [999, 3, 512]) {
    assert.ok(b4a.equals(await core.get(index), entries(1, index)[0]))
  }
})

test('a peer that has some blocks gives those, and the next one the rest', async (t) => {
  const us = await ours(t)
  const [first, second] = [await corestore(t), await corestore(t)]
  const core = first.get({ name: 'feed' })
  await core.append(entries(1000))
  const sparse = second.get(core.key)
  await sparse.ready()
  const [one, other] = [first.replicate(true), second.replicate(false)]
  one.pipe(other).pipe(one)
  await until(() => sparse.length === 1000, 'length 1000')
  await sparse.download({ start: 100, end: 200 }).done()
  await sparse.download({ start: 700, end: 701 }).done()
  one.destroy()
  await us.core('open', 'feed', { key: b4a.toString(core.key, 'hex') })
  await dial(t, second, us.port)
  const peers = async () => {
    us.command('peers', { name: 'feed' })
    return (await us.program.next('peers')).peers
  }
  await until(async () => (await peers())[0]?.downloadedBlocks === 101, '101 blocks')
  await dial(t, first, us.port)
  await us.synced('feed', 1000)
  const blocks = (await peers()).map((peer) => peer.downloadedBlocks)
  assert.deepEqual(blocks.sort(), [101, 899])
})

test('cores that either side adds later open on the live connection', async (t) => {
  const us = await ours(t)
  const store = await corestore(t)
  const { key } = await us.core('create', 'early')
  await us.append('early', 10)
  await dial(t, store, us.port)
  // npm has not loaded it: rejected at first
  const early = store.get(b4a.from(key, 'hex'))
  await early.ready()
  await download(early, 10)
  // we have not added it: rejected at first
  const late = await us.core('create', 'late', { later: true })
  await us.append('late', 10)
  const mirror = store.get(b4a.from(late.key, 'hex'))
  await mirror.ready()
  await mirror.update({ wait: false })
  us.command('add', { name: 'late' })
  await download(mirror, 10)
  const theirs = store.get({ name: 'theirs' })
  await theirs.append(entries(10))
  await us.core('open', 'theirs', { key: b4a.toString(theirs.key, 'hex') })
  await us.synced('theirs', 10)
})

test('npm downloads a book of ours from its key alone', async (t) => {
  const us = await ours(t)
  const path = await book(t)
  const bytes = await readFile(path)
  const { key, length } = await us.core('static', 'book', { path })
  const store = await corestore(t)
  const core = store.get(b4a.from(key, 'hex'))
  await core.ready()
  await dial(t, store, us.port)
  await download(core, length)
  const blocks = []
  for (let i = 0; i < length; i++) blocks.push(await core.get(i))
  assert.ok(b4a.equals(b4a.concat(blocks), bytes))
  assert.equal(core.manifest.signers.length, 0)
})

test("we download npm's static core from its key alone, into a file", async (t) => {
  const us = await ours(t)
  const bytes = await readFile(await book(t))
  const blocks = []
  for (let at = 0; at < bytes.length; at += 65536) blocks.push(bytes.subarray(at, at + 65536))
  const store = await corestore(t)
  const draft = store.get({ name: 'draft' })
  await draft.append(blocks)
  const prologue = { hash: await draft.treeHash(), length: draft.length }
  const core = store.get({ manifest: { version: 1, quorum: 0, signers: [], prologue } })
  await core.ready()
  await core.core.copyPrologue(draft.state)
  assert.equal(core.length, blocks.length)

  const path = join(await temporaryDirectory(t), 'copy.epub')
  await us.core('open', 'book', { key: b4a.toString(core.key, 'hex'), path })
  await dial(t, store, us.port)
  await us.synced('book', blocks.length)
  assert.equal((await us.digest('book')).bytes, bytes.length)
  await until(async () => bytes.equals(await readFile(path)), 'the file')
})

test('a peer without permission gets no block, and gets them once it has it', async (t) => {
  const us = await ours(t)
  const path = await book(t)
  const { key, length } = await us.core('static', 'book', { path, upload: false })
  const store = await corestore(t)
  const core = store.get(b4a.from(key, 'hex'))
  await core.ready()
  await dial(t, store, us.port)
  await assert.rejects(core.get(0, { timeout: 500 }))
  assert.equal(core.contiguousLength, 0)
  us.command('allow', { name: 'book', upload: true })
  await download(core, length)
})

test('downloading stops and goes on while connected', async (t) => {
  const us = await ours(t)
  const store = await corestore(t)
  const [core, other] = [store.get({ name: 'feed' }), store.get({ name: 'other' })]
  await core.append(entries(10))
  await other.append(entries(10))
  await us.core('open', 'feed', { key: b4a.toString(core.key, 'hex'), download: false })
  await us.core('open', 'other', { key: b4a.toString(other.key, 'hex') })
  await dial(t, store, us.port)
  // It had as much time as another that is downloaded.
  await us.synced('other', 10)
  assert.equal((await us.digest('feed')).length, 0)
  us.command('download', { name: 'feed', all: true })
  await us.synced('feed', 10)
})

/** Changes every data message that npm sends for `core` before it goes out. */
function corrupt(core, change) {
  core.on('peer-add', (peer) => {
    const send = peer.wireData.send.bind(peer.wireData)
    peer.wireData.send = (message) => {
      const copy = structuredClone(message)
      change(copy)
      return send(copy)
    }
  })
}

const flip = (bytes) => {
  bytes[bytes.length >> 1] ^= 4
}

for (const [what, change] of [
  ['a block', (data) => data.block && flip(data.block.value)],
  ['a node of a proof', (data) => data.block?.nodes.length && flip(data.block.nodes[0].hash)],
  ['a node of an upgrade', (data) => data.upgrade && flip(data.upgrade.nodes[0].hash)],
  ['a signature', (data) => data.upgrade && flip(data.upgrade.signature)],
  ['a manifest', (data) => data.manifest && flip(data.manifest.signers[0].publicKey)]
]) {
  test(`a flipped bit in ${what} is refused and the connection closed`, async (t) => {
    const us = await ours(t)
    const store = await corestore(t)
    const core = store.get({ name: 'feed' })
    await core.append(entries(300))
    corrupt(core, change)
    await us.core('open', 'feed', { key: b4a.toString(core.key, 'hex') })
    const { closed } = await dial(t, store, us.port)
    const violation = await us.program.next('violation')
    assert.match(violation.reason, /does not verify/)
    assert.match((await us.program.next('closed')).reason, /does not verify/)
    await within(closed, 'the end of the connection')
    // what had been verified before stays, and nothing else
    const { length, digest } = await us.digest('feed')
    assert.ok(length < 300)
    let expected = b4a.alloc(32)
    for (let i = 0; i < length; i++) {
      const next = b4a.alloc(32)
      sodium.crypto_generichash(next, await core.get(i), expected)
      expected = next
    }
    assert.equal(digest, b4a.toString(expected, 'hex'))
  })
}

test('who knows a discovery key but not the key gets nothing, added or not', async (t) => {
  const us = await ours(t)
  const { key } = await us.core('create', 'secret', { later: true })
  await us.append('secret', 3)
  const discoveryKey = hypercoreCrypto.discoveryKey(b4a.from(key, 'hex'))
  const open = async () => {
    const stream = new NoiseStream(true, net.connect(us.port, '127.0.0.1'))
    stream.on('error', () => {})
    t.after(() => stream.destroy())
    await within(stream.opened, 'the secret stream')
    const mux = new Protomux(stream)
    let messages = 0
    const channel = mux.createChannel({
      protocol: 'hypercore/alpha',
      id: discoveryKey,
      handshake: c.raw,
      messages: Array.from({ length: 10 }, () => ({ encoding: c.raw, onmessage: () => messages++ }))
    })
    channel.open(b4a.concat([b4a.from([1]), randomBytes(32)]))
    await within(new Promise((resolve) => stream.once('close', resolve)), 'the end').catch(() => {})
    return messages
  }
  us.command('add', { name: 'secret' })
  await us.program.next((line) => line.event === 'core')
  assert.equal(await open(), 0)
  assert.match((await us.program.next('violation')).reason, /key it does not know/)
})
