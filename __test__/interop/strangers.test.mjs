// What nodes of ours answer to addresses that proved nothing: little, and yet npm's clients find everything.

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { createSocket } from 'node:dgram'
import { test } from 'node:test'
import { startInterop, undo, until, within } from './support.mjs'

const { default: DHT } = await import('hyperdht')
const { hash } = (await import('hypercore-crypto')).default

const FACTOR = 4
const VALUE_BYTES = 900
const TOPIC_PEERS = 20
const LATE = 3000 // ms, by which everything that is sent of its own accord has come

/** A network of `size` nodes of ours and nobody else. */
async function network(t, size) {
  return (await startInterop(t, ['dht', 'testnet', size]).next('testnet')).nodes
}

/** A client of npm that the network has not heard of. */
async function stranger(nodes, work) {
  const [host, port] = nodes[0].split(':')
  const client = new DHT({ bootstrap: [{ host, port: Number(port) }], host: '127.0.0.1' })
  try {
    await within(client.fullyBootstrapped(), 'a client of npm')
    return await within(work(client), 'its work')
  } finally {
    await client.destroy({ force: true })
  }
}

/** Puts something of every kind into the network; gives where it is. */
async function fill(nodes) {
  const [topic, value, keys] = [randomBytes(32), randomBytes(VALUE_BYTES), DHT.keyPair()]
  const relays = nodes.slice(0, 3).map((node) => ({ host: '127.0.0.1', port: Number(node.split(':')[1]) }))
  for (let n = 0; n < TOPIC_PEERS; n++) {
    await stranger(nodes, (client) => client.announce(topic, DHT.keyPair(), relays).finished())
  }
  await stranger(nodes, (client) => client.announce(hash(keys.publicKey), keys, relays).finished())
  await stranger(nodes, (client) => client.mutablePut(keys, value))
  const immutable = await stranger(nodes, async (client) => (await client.immutablePut(value)).hash)
  return { topic, value, keys, immutable }
}

for (const size of [5, 40]) {
  test(`npm's clients find every value, topic and peer in a network of ${size} nodes of ours`, async (t) => {
    const nodes = await network(t, size)
    const { topic, value, keys, immutable } = await fill(nodes)
    const found = await stranger(nodes, (client) => client.immutableGet(immutable))
    assert.deepEqual(found?.value, value)
    const signed = await stranger(nodes, (client) => client.mutableGet(keys.publicKey))
    assert.deepEqual(signed?.value, value)
    const peers = await stranger(nodes, async (client) => {
      const seen = new Set()
      for await (const reply of client.lookup(topic)) for (const peer of reply.peers) seen.add(peer.publicKey.toString('hex'))
      return seen
    })
    assert.equal(peers.size, TOPIC_PEERS)
    const relays = await stranger(nodes, async (client) => {
      for await (const { peer } of client.findPeer(keys.publicKey)) return peer.relayAddresses
    })
    assert.equal(relays?.length, 3)
  })
}

test('a question under the name of another brings that other at most four times its bytes', async (t) => {
  const nodes = await network(t, 24)
  const { topic, keys, immutable } = await fill(nodes)
  const own = hash(keys.publicKey)
  const seq = Buffer.from([0])
  const questions = {
    ping: { internal: true, command: 0 },
    'ping at another port': { internal: true, command: 1, value: Buffer.from([1, 2]) },
    'find node': { internal: true, command: 2, target: topic },
    'down hint': { internal: true, command: 3, value: Buffer.alloc(6, 1) },
    'delayed ping': { internal: true, command: 4, value: Buffer.alloc(4) },
    handshake: { command: 0, target: own, value: Buffer.concat([Buffer.from([0, 0, 32]), randomBytes(32)]) },
    'find peer': { command: 2, target: own },
    lookup: { command: 3, target: topic },
    'lookup of a peer': { command: 3, target: own },
    'announce with a wrong token': { command: 4, target: topic, token: Buffer.alloc(32) },
    'mutable get': { command: 7, target: own, value: seq },
    'immutable get': { command: 9, target: immutable },
    unknown: { command: 99, target: topic }
  }
  const asked = []
  for (const node of nodes) {
    for (const [name, question] of Object.entries(questions)) {
      const socket = createSocket('udp4')
      undo(t, () => socket.close())
      await new Promise((resolve) => socket.bind(0, '127.0.0.1', resolve))
      const packet = encode(question, Number(node.split(':')[1]))
      const entry = { name, sent: packet.length, received: 0 }
      socket.on('message', (message) => { entry.received += message.length })
      socket.send(packet, Number(node.split(':')[1]), '127.0.0.1')
      asked.push(entry)
    }
  }
  const named = (wanted) => asked.some(({ name, received }) => name === wanted && received > 0)
  await until(() => ['ping', 'find node', 'find peer', 'lookup', 'mutable get', 'immutable get', 'unknown'].every(named), 'answers')
  await new Promise((resolve) => setTimeout(resolve, LATE)) // for what must not come
  for (const { name, sent, received } of asked) {
    assert.ok(received <= FACTOR * sent, `${name}: ${received} bytes for ${sent}`)
  }
})

function encode({ internal = false, command, target, value, token }, port) {
  const flags = (token ? 2 : 0) | (internal ? 4 : 0) | (target ? 8 : 0) | (value ? 16 : 0)
  const parts = [Buffer.from([3, flags, 1, 2, 127, 0, 0, 1, port & 255, port >> 8])]
  if (token) parts.push(token)
  parts.push(Buffer.from([command]))
  if (target) parts.push(target)
  if (value) parts.push(Buffer.from([value.length]), value)
  return Buffer.concat(parts)
}
