// node.events() and node.on().

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { eventOf, failure, openNode, pair, testnet, until, within } from './nodes.mjs'

const someKey = '1m1ewdyh4bufibabw4d6ckjhfmddthpikyzok4qqe1ozn916q16y'

async function take(events, count) {
  const seen = []
  for await (const event of events) if (seen.push(event) === count) break
  return seen
}

test('events are numbered, and a reader goes on where it was', async (t) => {
  const node = await openNode(t, await testnet(t, 1))
  const events = node.events()
  await node.peers.add(someKey)
  await node.peers.update(someKey, { nickname: 'Bo' })
  await node.peers.remove(someKey)
  const changed = (event) => event.type === 'peer-changed'
  const seen = []
  for await (const event of events) {
    if (changed(event) && seen.push(event) === 3) break
  }
  assert.deepEqual(seen.map((event) => event.change), ['approved', 'updated', 'removed'])
  assert.ok(seen.every((event) => event.peer === someKey && Math.abs(event.at - Date.now()) < 60_000))
  assert.ok(seen[0].id < seen[1].id && seen[1].id < seen[2].id)
  const again = await eventOf(node, changed, seen[0].id)
  assert.deepEqual(again, seen[1])
})

test('the end of an iteration is final, however it comes', async (t) => {
  const node = await openNode(t, await testnet(t, 1))
  const broken = node.events()
  await node.peers.add(someKey)
  await take(broken, 1) // break
  assert.deepEqual(await broken.next(), { done: true })

  const returned = node.events()
  const waiting = returned.next()
  assert.equal((await returned.return()).done, true)
  assert.equal((await within(waiting, 'the pending next')).done, true)
  assert.equal((await returned.next()).done, true)

  const closed = node.events()
  const loop = take(closed, 1_000)
  await node.close()
  await within(loop, 'the loop after close()')
})

test('overlapping calls of next() are answered in their order', async (t) => {
  const node = await openNode(t, await testnet(t, 1))
  const events = node.events()
  const asked = [events.next(), events.next(), events.next()]
  await node.peers.add(someKey)
  await node.peers.block(someKey)
  await node.peers.remove(someKey)
  const ids = (await Promise.all(asked)).map(({ value }) => value.id)
  assert.deepEqual(ids, ids.toSorted((a, b) => a - b))
})

test('a signal ends an iteration with its reason', async (t) => {
  const node = await openNode(t, await testnet(t, 1))
  const controller = new AbortController()
  const loop = failure(take(node.events({ signal: controller.signal }), 1_000))
  controller.abort('gone')
  const error = await within(loop, 'the aborted loop')
  assert.deepEqual([error.code, error.cause], ['ERR_ABORTED', 'gone'])
})

test('listeners hear their kind until they are taken off', async (t) => {
  const node = await openNode(t, await testnet(t, 1))
  const heard = []
  const listener = (event) => heard.push(event.change)
  const other = () => heard.push('other')
  assert.equal(node.on('peer-changed', listener).on('status', other), node)
  await node.peers.add(someKey)
  await until(() => heard.length === 1, 'the first event')
  assert.equal(node.off('peer-changed', other).off('peer-changed', listener), node)
  await node.peers.block(someKey)
  const last = await node.peers.remove(someKey)
  assert.equal(last, true)
  await eventOf(node, (event) => event.change === 'removed', 0)
  assert.deepEqual(heard.filter((what) => what !== 'other'), ['approved'])
})

test('a listener that throws is an uncaught exception, and the next event still comes', async (t) => {
  const node = await openNode(t, await testnet(t, 1))
  const heard = []
  const caught = []
  const handler = (error) => caught.push(error.message)
  process.setUncaughtExceptionCaptureCallback(handler)
  t.after(() => process.setUncaughtExceptionCaptureCallback(null))
  node.on('peer-changed', (event) => {
    heard.push(event.change)
    throw new Error(`no ${event.change}`)
  })
  await node.peers.add(someKey)
  await node.peers.remove(someKey)
  await until(() => caught.length === 2, 'both exceptions')
  assert.deepEqual(heard, ['approved', 'removed'])
  assert.deepEqual(caught, ['no approved', 'no removed'])
})

test('two nodes hear of each other', async (t) => {
  const network = await testnet(t)
  const a = await openNode(t, network, { nickname: 'Ada' })
  const b = await openNode(t, network, { nickname: 'Ben' })
  const [fromA, fromB] = [a.events(), b.events()]
  await pair(a, b)
  const online = async (events) => {
    for await (const event of events) if (event.type === 'peer-online') return event.peer
  }
  assert.equal(await within(online(fromA), 'b at a'), b.identity.publicKey)
  assert.equal(await within(online(fromB), 'a at b'), a.identity.publicKey)
  const gone = eventOf(a, (event) => event.type === 'peer-offline')
  await b.close()
  assert.equal((await gone).peer, b.identity.publicKey)
})
