// Peers that were approved and then send garbage, oversized lengths or nothing at all: they are dropped,
// memory stays flat, and others are served.

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { createSocket } from 'node:dgram'
import { test } from 'node:test'
import c from 'compact-encoding'
import DHT from 'hyperdht'
import { announced, books, offered, online, openNode, startServer, temporaryDirectory, testnet, undo } from '../nodes.mjs'
import { within } from './support.mjs'

const MB = 1e6

/** A server of ours in a process of its own, and a way to connect to it as an approved JavaScript peer. */
async function victim(t) {
  const network = await testnet(t)
  const server = await startServer(t, network, { dataDir: await temporaryDirectory(t), policy: 'auto-accept' })
  await server.call('catalog.publish', books)
  const [host, port] = network.bootstrap[0].split(':')
  const dht = new DHT({
    bootstrap: [{ host, port: Number(port) }],
    host: '127.0.0.1',
    connectionKeepAlive: false // what a peer says, it says here
  })
  undo(t, () => dht.destroy())
  const { decode } = await import('z32').then((module) => module.default)
  return {
    network,
    server,
    /** A connection with a key of its own; `closed` settles when the server ends it. */
    async connect() {
      const keyPair = DHT.keyPair()
      await server.call('peers.add', keyPair.publicKey.toString('hex'))
      await announced({ status: () => server.call('status') })
      const socket = dht.connect(decode(server.key), { keyPair })
      socket.on('error', () => {})
      socket.on('data', () => {}) // without a reader the end would not be seen
      const closed = new Promise((resolve) => socket.once('close', resolve))
      await within(new Promise((resolve) => socket.once('open', resolve)), 'a connection')
      undo(t, () => socket.destroy())
      return { socket, closed, key: keyPair.publicKey.toString('hex') }
    }
  }
}

/** Whether the server still does its work: another server of ours gets a book. */
async function stillServes(t, { network, server }) {
  const friend = await openNode(t, network)
  await friend.peers.add(server.key)
  await server.call('peers.add', friend.identity.publicKey)
  await online(friend, server.key)
  await offered(friend, server.key, books.length)
  const transfer = await friend.transfers.request({ peer: server.key, bookId: 'dracula' })
  assert.equal((await transfer.done()).state, 'completed')
}

/** A protomux message made of numbers and buffers. */
function message(...parts) {
  const state = c.state()
  for (const part of parts) (typeof part === 'number' ? c.uint : c.raw).preencode(state, part)
  state.buffer = Buffer.alloc(state.end)
  for (const part of parts) (typeof part === 'number' ? c.uint : c.raw).encode(state, part)
  return state.buffer
}

const huge = Buffer.from([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x00]) // a length of 2^52
const text = (value) => message(value.length, Buffer.from(value))
const open = (id, protocol, ...rest) => message(0, 1, id, text(protocol), 0, ...rest)

/** Messages that no peer sends by mistake. */
const oversized = {
  'a batch with a message of 2^52 bytes': message(0, 0, 1, huge),
  'an open of a channel with id 2^52': message(0, 1, huge, text('alex/p2p'), 0),
  'an open with a protocol of 2^52 bytes': message(0, 1, 1, huge),
  'an open with an id of 2^52 bytes': message(0, 1, 1, text('hypercore/alpha'), huge),
  'a message on a channel that was never opened': message(77, 0, randomBytes(100)),
  'a hello of 100,000 bytes': Buffer.concat([open(1, 'alex/p2p'), Buffer.alloc(100_000, '{')])
}

test('oversized lengths end a connection and take no memory', async (t) => {
  const target = await victim(t)
  const before = await target.server.call('memory')
  for (const [name, bytes] of Object.entries(oversized)) {
    const { socket, closed } = await target.connect()
    for (let n = 0; n < 100; n++) socket.write(bytes)
    await within(closed, `the end after ${name}`)
  }
  await stillServes(t, target)
  const grown = (await target.server.call('memory')) - before
  t.diagnostic(`grown by ${(grown / MB).toFixed(1)} MB`)
  assert.ok(grown < 64 * MB, `${grown} bytes`)
})

test('a peer that sends garbage is dropped', async (t) => {
  const target = await victim(t)
  const before = await target.server.call('memory')
  for (let n = 0; n < 5; n++) {
    const { socket, closed } = await target.connect()
    const flood = setInterval(() => socket.write(randomBytes(60_000)), 5)
    await within(closed, 'the end of the connection').finally(() => clearInterval(flood))
  }
  await stillServes(t, target)
  const grown = (await target.server.call('memory')) - before
  t.diagnostic(`grown by ${(grown / MB).toFixed(1)} MB`)
  assert.ok(grown < 64 * MB, `${grown} bytes`)
})

test('peers that say nothing are dropped', async (t) => {
  const target = await victim(t)
  const silent = await Promise.all(Array.from({ length: 10 }, () => target.connect()))
  await Promise.all(silent.map(({ closed }, n) => within(closed, `the end of connection ${n}`, 60_000)))
  await stillServes(t, target)
})

test('a flood of random datagrams changes nothing', async (t) => {
  const target = await victim(t)
  const before = await target.server.call('memory')
  const { addresses } = await target.server.call('status')
  const port = Number(addresses[0].split(':').at(-1))
  const socket = createSocket('udp4')
  undo(t, () => socket.close())
  for (let n = 0; n < 20_000; n++) {
    const datagram = randomBytes(1 + (n % 1400))
    if (n % 2) datagram[0] = 0xff // as a UDX packet begins
    if (n % 4 === 3) datagram[1] = 1
    await new Promise((resolve) => socket.send(datagram, port, '127.0.0.1', resolve))
  }
  await stillServes(t, target)
  const grown = (await target.server.call('memory')) - before
  t.diagnostic(`grown by ${(grown / MB).toFixed(1)} MB`)
  assert.ok(grown < 64 * MB, `${grown} bytes`)
})
