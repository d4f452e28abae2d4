// Logs that are cut and written differently, between npm hypercore and ours: each side follows the other
// to the new fork, keeps what both have, and believes nobody else.

import assert from 'node:assert/strict'
import { test } from 'node:test'

import b4a from 'b4a'
import hypercoreCrypto from 'hypercore-crypto'
import Hypercore from 'hypercore'

import { corestore, dial, digestOf, download, entries, ours } from './replication.mjs'
import { temporaryDirectory, until, within } from './support.mjs'

/** Waits until a JavaScript core is at `fork` and `length` and has all of it. */
async function forked(core, fork, length) {
  const where = () => `fork ${fork} of length ${length}, at fork ${core.fork} of length ${core.length}`
  await until(() => core.fork === fork && core.length === length, where())
  await download(core, length)
}

for (const compat of [false, true]) {
  const kind = compat ? 'a compat' : 'a default'

  test(`npm follows ${kind} core of ours to new forks`, async (t) => {
    const us = await ours(t)
    const { key } = await us.core('create', 'feed', { compat })
    await us.append('feed', 1000)
    const store = await corestore(t)
    const core = store.get(b4a.from(key, 'hex'))
    await core.ready()
    const { end } = await dial(t, store, us.port)
    await download(core, 1000)
    const truncations = []
    core.on('truncate', (length, fork) => truncations.push([length, fork]))
    let fork = 0
    for (const [cut, more] of [[990, 30], [512, 0], [511, 700], [3, 1], [3, 100]]) {
      await us.truncate('feed', cut)
      if (more > 0) await us.append('feed', more, { prefix: `fork ${++fork}` })
      else fork++
      await forked(core, fork, cut + more)
      assert.equal(await digestOf(core), (await us.digest('feed')).digest)
    }
    // what both forks have was kept
    assert.deepEqual(truncations, [[990, 1], [512, 2], [511, 3], [3, 4], [3, 5]])

    // and while nobody listens
    await end()
    await us.truncate('feed', 50)
    await us.append('feed', 20, { prefix: 'away' })
    await us.truncate('feed', 60)
    await us.append('feed', 1, { prefix: 'away' })
    await dial(t, store, us.port)
    await forked(core, 7, 61)
    assert.equal(await digestOf(core), (await us.digest('feed')).digest)
    await us.append('feed', 5)
    await download(core, 66)
  })

  test(`we follow ${kind} core of npm's to new forks`, async (t) => {
    const us = await ours(t)
    const keyPair = hypercoreCrypto.keyPair()
    const core = new Hypercore(await temporaryDirectory(t), { keyPair, compat })
    t.after(() => core.close())
    await core.append(entries(1000))
    await us.core('open', 'feed', { key: b4a.toString(core.key, 'hex') })
    const { end } = await dial(t, core, us.port)
    await us.synced('feed', 1000)
    for (const [cut, more] of [[990, 30], [512, 0], [511, 700], [3, 1], [3, 100]]) {
      await core.truncate(cut)
      if (more > 0) await core.append(entries(more, 10_000 * core.fork))
      await us.forked('feed', core.fork, core.length)
      assert.equal((await us.digest('feed')).digest, await digestOf(core))
    }

    await end()
    await core.truncate(50)
    await core.append(entries(20, 70_000))
    await core.truncate(60, 40)
    await core.append(entries(1, 80_000))
    await dial(t, core, us.port)
    await us.forked('feed', 40, 61)
    assert.equal((await us.digest('feed')).digest, await digestOf(core))
    await core.append(entries(5))
    await us.synced('feed', 66)
  })
}

test('npm does not give up on a writer of ours that cuts its log again and again', async (t) => {
  const us = await ours(t)
  const { key } = await us.core('create', 'feed')
  await us.append('feed', 200)
  const store = await corestore(t)
  const core = store.get(b4a.from(key, 'hex'))
  await core.ready()
  await dial(t, store, us.port)
  // Blocks are always being asked for when the log is cut.
  core.download({ start: 0, end: -1 })
  await until(() => core.length === 200, 'length 200')
  for (let fork = 1; fork <= 60; fork++) {
    await us.truncate('feed', 150 - fork)
    await us.append('feed', 60, { prefix: `fork ${fork}` })
    // It follows one fork at a time: see sync() in differential.mjs.
    await until(() => core.fork === fork && core.length === 210 - fork, `fork ${fork}`)
  }
  await forked(core, 60, 150)
  assert.equal(await digestOf(core), (await us.digest('feed')).digest)
})

test('a fork goes from npm through us to npm, and back', async (t) => {
  const us = await ours(t)
  const store = await corestore(t)
  const core = store.get({ name: 'feed' })
  await core.append(entries(300))
  await us.core('open', 'feed', { key: b4a.toString(core.key, 'hex') })
  const other = await corestore(t)
  const mirror = other.get(core.key)
  await mirror.ready()
  await dial(t, other, us.port)
  await dial(t, store, us.port)
  await download(mirror, 300)
  await core.truncate(120)
  await core.append(entries(60, 1000))
  await forked(mirror, 1, 180)
  await us.forked('feed', 1, 180)
  assert.equal(await digestOf(mirror), (await us.digest('feed')).digest)
})

test('a reader that was never connected before gets the fork that counts now', async (t) => {
  const us = await ours(t)
  const { key } = await us.core('create', 'ours')
  await us.append('ours', 30)
  await us.truncate('ours', 10)
  await us.append('ours', 3, { prefix: 'new' })
  const store = await corestore(t)
  const theirs = store.get({ name: 'feed' })
  await theirs.append(entries(30))
  await theirs.truncate(10, 5)
  await theirs.append(entries(3, 500))
  await us.core('open', 'theirs', { key: b4a.toString(theirs.key, 'hex') })
  const mirror = store.get(b4a.from(key, 'hex'))
  await mirror.ready()
  await dial(t, store, us.port)
  await us.forked('theirs', 5, 13)
  await forked(mirror, 1, 13)
  assert.equal((await us.digest('theirs')).digest, await digestOf(theirs))
  assert.equal((await us.digest('ours')).digest, await digestOf(mirror))
})

/** npm's side of a core that says it is at another fork than it is. */
function pretend(core, fork) {
  core.on('peer-add', (peer) => {
    const sync = peer.wireSync.send.bind(peer.wireSync)
    peer.wireSync.send = (message) => sync({ ...message, fork: fork() })
    const onrequest = peer.onrequest.bind(peer)
    peer.onrequest = (message) => onrequest({ ...message, fork: core.fork })
    const data = peer.wireData.send.bind(peer.wireData)
    peer.wireData.send = (message) => data({ ...message, fork: fork() })
    peer.sendSync() // the first one went out before
  })
}

/** A core of npm's that we have, of 100 blocks, while nobody is connected. */
async function known(t) {
  const us = await ours(t)
  const store = await corestore(t)
  const core = store.get({ name: 'feed' })
  await core.append(entries(100))
  await us.core('open', 'feed', { key: b4a.toString(core.key, 'hex') })
  const honest = await dial(t, store, us.port)
  await us.synced('feed', 100)
  await honest.end()
  return { us, store, core }
}

for (const fork of [1, 2 ** 53 - 1]) {
  test(`fork ${fork} that nobody signed is refused and the connection closed`, async (t) => {
    const { us, store, core } = await known(t)
    pretend(core, () => fork)
    const { closed } = await dial(t, store, us.port)
    assert.match((await us.program.next('violation')).reason, /signature is not valid/)
    await within(closed, 'the end of the connection')
    assert.equal((await us.digest('feed')).length, 100)
  })
}

test('a peer that says a new fork a thousand times is asked once for each, and nothing is kept', async (t) => {
  const { us, store, core } = await known(t)
  let fork = 1
  let asked = 0
  pretend(core, () => fork)
  core.on('peer-add', (peer) => {
    // answers nothing but another fork
    peer.onrequest = (message) => {
      asked++
      peer.wireNoData.send({ request: message.id, reason: 1 })
      fork++
      if (fork < 1000) peer.sendSync()
    }
  })
  const started = performance.now()
  await dial(t, store, us.port)
  // 64 at once, and from then on one a second.
  await until(() => asked >= 66, '66 requests')
  const seconds = (performance.now() - started) / 1000
  assert.ok(asked <= 64 + seconds, `${asked} requests in ${seconds} s`)
  assert.equal((await us.digest('feed')).length, 100)
})
