// Where peers are: given addresses, a node without the DHT, suspended nodes, and what status() says.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import DHT from 'hyperdht'
import z32 from 'z32'
import { eventOf, failure, online, openNode, pair, testnet, undo, until } from './nodes.mjs'

/** No network to ask: peers are where a person says they are. */
const alone = { bootstrap: [], discovery: { dht: false } }
const address = (node) => node.status().addresses[0]

test('servers without the DHT connect at a given address, and the peer says how', async (t) => {
  const [a, b] = [await openNode(t, alone, alone), await openNode(t, alone, alone)]
  await b.peers.add(a.identity.publicKey)
  const peer = await a.peers.add(b.identity.publicKey, { address: address(b) })
  assert.equal(peer.address, address(b))
  assert.deepEqual(peer.addresses.map(({ address, source }) => ({ address, source })), [
    { address: address(b), source: 'manual' }
  ])
  await Promise.all([online(a, b), online(b, a)])
  const { connection } = await a.peers.get(b.identity.publicKey)
  assert.equal(connection.path, 'lan')
  assert.equal(connection.address, address(b))
  for (const name of ['roundTripMs', 'bytesPerSecond', 'bytesSent', 'bytesReceived']) {
    assert.equal(typeof connection[name], 'number', name)
  }
  assert.ok(connection.bytesSent > 0)
  const updated = await a.peers.update(b.identity.publicKey, { address: null })
  assert.equal(updated.address, null)
  assert.ok(updated.isOnline)
})

test('an address that is none is refused', async (t) => {
  const [a, b] = [await openNode(t, alone, alone), await openNode(t, alone, alone)]
  const key = b.identity.publicKey
  const error = await failure(a.peers.add(key, { address: 'http://nowhere' }))
  assert.equal(error.code, 'ERR_INVALID_ARGUMENT')
  assert.match(error.message, /host:port/)
  assert.deepEqual(await a.peers.list(), [])
  await a.peers.add(key)
  assert.equal((await failure(a.peers.update(key, { address: 'nas' }))).code, 'ERR_INVALID_ARGUMENT')
})

test('a node without the DHT serves a JavaScript peer that knows its address', async (t) => {
  const node = await openNode(t, alone, alone)
  const dht = new DHT({ bootstrap: [], host: '127.0.0.1' })
  undo(t, () => dht.destroy())
  await node.peers.add(z32.encode(dht.defaultKeyPair.publicKey))
  const [host, port] = address(node).split(':')
  const socket = dht.connect(node.identity.bytes, { relayAddresses: [{ host, port: Number(port) }] })
  undo(t, () => socket.destroy())
  socket.on('error', () => {}).on('data', () => {})
  await online(node, z32.encode(dht.defaultKeyPair.publicKey))
})

test('a node without the DHT connects to a JavaScript server at a given address', async (t) => {
  const node = await openNode(t, alone, alone)
  const dht = new DHT({ bootstrap: [], host: '127.0.0.1' })
  undo(t, () => dht.destroy())
  const accepted = new Set()
  const server = dht.createServer((socket) => {
    socket.on('error', () => {}).on('data', () => {})
    accepted.add(z32.encode(socket.remotePublicKey))
  })
  await server.listen()
  undo(t, () => server.close())
  const { host, port } = dht.address()
  await node.peers.add(z32.encode(server.publicKey), { address: `${host === '0.0.0.0' ? '127.0.0.1' : host}:${port}` })
  await online(node, z32.encode(server.publicKey))
  assert.ok(accepted.has(node.identity.publicKey))
})

test('a suspended node is offline, says so, works on, and is back when it resumes', async (t) => {
  const network = await testnet(t)
  const [a, b] = [await openNode(t, network), await openNode(t, network)]
  await pair(a, b)
  const before = address(a)
  const told = eventOf(a, (event) => event.type === 'status' && event.layer === 'network')
  await a.suspend()
  await a.suspend()
  assert.equal((await told).ok, false)
  const status = a.status()
  assert.equal(status.isSuspended, true)
  assert.deepEqual(status.addresses, [])
  assert.ok(status.advice.some((advice) => advice.includes('resume()')))
  await until(async () => !(await b.peers.get(a.identity.publicKey)).isOnline, 'it is gone for its peer')
  await a.catalog.publish([{ id: '1', title: 'Frankenstein' }])

  await a.resume()
  assert.equal(a.status().isSuspended, false)
  assert.equal(address(a), before)
  await Promise.all([online(a, b), online(b, a)])
  await a.close()
  assert.equal((await failure(a.suspend())).code, 'ERR_CLOSED')
  assert.equal((await failure(a.resume())).code, 'ERR_CLOSED')
})

test('closing a suspended node closes it', async (t) => {
  const node = await openNode(t, alone, alone)
  await node.suspend()
  await node.close()
  assert.equal((await failure(() => node.status())).code, 'ERR_CLOSED')
})

test('status() names every layer and why a peer is missing', async (t) => {
  const network = await testnet(t)
  const [a, b] = [await openNode(t, network), await openNode(t, network)]
  await a.peers.add(b.identity.publicKey, { nickname: 'Ben' })
  // From the first moment on there is a reason.
  assert.equal(a.status().peers[0].problem.code, 'ERR_PEER_OFFLINE')
  const find = (status, name) => status.layers.find((layer) => layer.name === name)
  const says = ({ advice }) => advice.some((advice) => advice.startsWith('Ben: '))
  const status = await until(() => {
    const status = a.status()
    return find(status, 'dht').works && says(status) && status
  }, 'the reason')
  assert.deepEqual(status.layers.map(({ name }) => name), ['dht', 'lan', 'topic', 'relay', 'catalog'])
  // It listens on this machine only.
  assert.equal(find(status, 'lan').isEnabled, false)
  assert.equal(find(status, 'topic').isEnabled, false)
  assert.match(status.seenAddress, /^127\.0\.0\.1:\d+$/)
})
