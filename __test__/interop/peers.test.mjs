// Whole nodes and npm's stack: who is refused, who is found, and a catalog replicated over the DHT.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import Corestore from 'corestore'
import DHT from 'hyperdht'
import Hyperswarm from 'hyperswarm'
import z32 from 'z32'
import { announced, eventOf, openNode, testnet } from '../nodes.mjs'
import { temporaryDirectory, undo, until, within } from './support.mjs'

const TOPIC = Buffer.alloc(32).fill('alex-reader')

function javascriptDht(t, network) {
  const [host, port] = network.bootstrap[0].split('@').at(-1).split(':')
  const dht = new DHT({ bootstrap: [{ host, port: Number(port) }], host: '127.0.0.1' })
  undo(t, () => dht.destroy())
  return dht
}

test('a JavaScript peer that is not approved gets no connection, and its knock is listed', async (t) => {
  const network = await testnet(t)
  const node = await openNode(t, network)
  const dht = javascriptDht(t, network)
  await announced(node)
  const socket = dht.connect(node.identity.bytes)
  undo(t, () => socket.destroy())
  let opened = false
  socket.on('open', () => (opened = true))
  const closed = new Promise((resolve) => socket.on('error', () => {}).on('close', resolve))

  const key = z32.encode(dht.defaultKeyPair.publicKey)
  const [knock] = await until(async () => {
    const pending = await node.peers.pending()
    return pending.length > 0 && pending
  }, 'the knock')
  assert.equal(knock.key, key)
  assert.equal((await node.peers.get(key)).status, 'pending')
  await within(closed, 'the refusal')
  assert.equal(opened, false)

  await node.peers.approve(key)
  const again = dht.connect(node.identity.bytes)
  undo(t, () => again.destroy())
  again.on('error', () => {}).on('data', () => {})
  await within(new Promise((resolve) => again.once('open', resolve)), 'the connection')
  await until(async () => (await node.peers.get(key)).isOnline, 'the peer is online')
})

test('a JavaScript server that refuses is reported with a code and words', async (t) => {
  const network = await testnet(t)
  const node = await openNode(t, network)
  const dht = javascriptDht(t, network)
  const server = dht.createServer({ firewall: () => true })
  await server.listen()
  const key = z32.encode(server.publicKey)
  await node.peers.add(key)
  const { problem } = await until(async () => {
    const peer = await node.peers.get(key)
    return peer.problem && peer
  }, 'the refusal')
  assert.match(problem.code, /^ERR_(NOT_APPROVED|PEER_UNREACHABLE)$/)
  assert.ok(problem.message.length > 20)
})

test('a JavaScript hyperswarm is discovered on the topic, and not added', async (t) => {
  const network = await testnet(t)
  const node = await openNode(t, network, { discovery: { topic: true } })
  const swarm = new Hyperswarm({ dht: javascriptDht(t, network), firewall: () => true })
  undo(t, () => swarm.destroy())
  const found = eventOf(node, (event) => event.type === 'peer-discovered')
  await swarm.join(TOPIC, { server: true, client: false }).flushed()
  const key = z32.encode(swarm.keyPair.publicKey)
  assert.equal((await found).peer, key)
  assert.deepEqual((await node.peers.discovered()).map((peer) => peer.key), [key])
  assert.deepEqual(await node.peers.list(), [])
})

test('npm hypercore follows a node\'s catalog over the DHT: 5,000 books, 100 live, a reconnect', async (t) => {
  const network = await testnet(t)
  const node = await openNode(t, network)
  const dht = javascriptDht(t, network)
  await node.peers.add(z32.encode(dht.defaultKeyPair.publicKey))
  const book = (n) => ({ id: `book-${n}`, title: `Book ${n}`, author: 'Somebody', format: 'epub' })
  await node.catalog.publish(Array.from({ length: 5_000 }, (_, n) => book(n)))

  const store = new Corestore(await temporaryDirectory(t))
  undo(t, () => store.close())
  const core = store.get({ key: z32.decode(node.catalog.key) })
  const connect = () => {
    const socket = dht.connect(node.identity.bytes)
    undo(t, () => socket.destroy())
    store.replicate(socket.on('error', () => {}))
    return socket
  }
  const whole = (length) =>
    until(async () => {
      await core.update()
      if (core.length < length) return false
      await core.download({ start: 0, end: length }).done()
      return core.contiguousLength >= length
    }, `${length} entries`)

  await announced(node)
  const socket = connect()
  await core.ready()
  await whole(5_000)
  for (let n = 5_000; n < 5_100; n++) await node.catalog.publish([book(n)])
  await whole(5_100)
  const closed = new Promise((resolve) => socket.once('close', resolve))
  socket.destroy()
  await closed
  await node.catalog.publish([book(5_100)])
  connect()
  await whole(5_101)
  for (const n of [0, 4_999, 5_050, 5_100]) {
    const { type, id, title } = JSON.parse(await core.get(n))
    assert.deepEqual({ type, id, title }, { type: 'book-added', id: `book-${n}`, title: `Book ${n}` })
  }
})
