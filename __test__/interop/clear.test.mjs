// What npm hypercore cannot do itself with logs of which blocks were cleared, seen between two of npm's. The
// random programs of differential.mjs ask for no more; when one of these fails, they can.

import assert from 'node:assert/strict'
import net from 'node:net'
import { test } from 'node:test'

import NoiseStream from '@hyperswarm/secret-stream'

import { corestore, entries } from './replication.mjs'
import { event, until, within } from './support.mjs'

/** Connects two corestores; the stream of the first. */
async function connect(t, one, other) {
  const server = net.createServer().listen(0, '127.0.0.1')
  await event(server, 'listening')
  const dialed = net.connect(server.address().port, '127.0.0.1')
  const [accepted] = await event(server, 'connection')
  server.close()
  const streams = [new NoiseStream(false, accepted), new NoiseStream(true, dialed)]
  for (const stream of streams) stream.on('error', () => {})
  one.replicate(streams[0])
  other.replicate(streams[1])
  t.after(() => streams[0].destroy())
  return streams[0]
}

test('npm hangs up on who asks for a block next to one that it cleared', async (t) => {
  const [here, there] = [await corestore(t), await corestore(t)]
  const written = here.get({ name: 'feed' })
  await written.append(entries(8))
  await written.clear(5)
  const copy = there.get(written.key)
  await copy.ready()
  const stream = await connect(t, here, there)
  const ended = event(stream, 'error')
  copy.get(4).catch(() => {})
  const [error] = await ended
  assert.match(error.message, /Expected tree node/)
  assert.ok(await written.has(4))
})

test('npm cannot cut a log to a root whose hash it lost when it cleared', async (t) => {
  const written = (await corestore(t)).get({ name: 'feed' })
  await written.append(entries(8))
  await written.clear(5)
  await assert.rejects(written.truncate(5), /Expected tree node/)
})

test("npm's reader follows a fork only by blocks that its peer has", async (t) => {
  const [here, between, there] = [await corestore(t), await corestore(t), await corestore(t)]
  const written = here.get({ name: 'feed' })
  await written.append(entries(6))
  const mirror = between.get(written.key)
  const copy = there.get(written.key)
  await Promise.all([mirror.ready(), copy.ready()])
  const first = await connect(t, here, there)
  await until(() => copy.length === 6, 'the log')
  first.destroy()
  await written.truncate(6)
  await written.append(entries(10, 100))
  await connect(t, here, between)
  await within(mirror.get(0), 'block 0')
  assert.equal(mirror.fork, 1)

  // Below block 0 the reader sees that the first four blocks are the same; then it looks from 4 on.
  await connect(t, between, there)
  const looksFor = () => {
    const want = copy.core.replicator._reorgs[0]?.batch?.want
    return want?.start === 4 && want
  }
  assert.deepEqual(await until(looksFor, 'the place'), { nodes: 2, start: 4, end: 6 })
  assert.equal(copy.fork, 0)
  // Any block there is enough.
  await within(mirror.get(5), 'block 5')
  await until(() => copy.fork === 1 && copy.length === 16, 'the fork')
})
