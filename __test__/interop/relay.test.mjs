// Relays: npm's blind-relay with our clients, and ours with npm's. Punching is refused or put off, so that
// connections come about over the relay. NATs are in tests/nat.

import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import { test as plain } from 'node:test'
import { startInterop, undo, until, within } from './support.mjs'

const { default: DHT } = await import('hyperdht')
const { default: Holepuncher } = await import('hyperdht/lib/holepuncher.js')
const { default: Server } = await import('hyperdht/lib/server.js')
// The version that hyperdht speaks.
const relaying = createRequire(createRequire(import.meta.url).resolve('hyperdht'))('blind-relay')

const skip = process.platform !== 'linux' && 'needs hosts of its own on loopback'

function test(name, body) {
  plain(name, { skip }, body)
}

/** A network with a relay of the given side. */
async function network(t, side, relayOptions = {}) {
  const testnet = startInterop(t, ['dht', 'testnet', 8])
  const { nodes: [bootstrap] } = await testnet.next('testnet')
  const us = startInterop(t, ['dht', 'node', bootstrap, '--firewalled', '--host=127.0.0.2'])
  const { key } = await us.next('ready')
  const them = await npmNode(t, bootstrap, '127.0.0.3')
  const relay = side === 'ours' ? await ourRelay(t, bootstrap, relayOptions) : await npmRelay(t, bootstrap)
  return { bootstrap, us, key, them, ...relay }
}

async function npmNode(t, bootstrap, host) {
  const node = new DHT({ host, bootstrap: [bootstrap], quickFirewall: false })
  undo(t, () => node.destroy())
  await within(node.fullyBootstrapped(), 'a node of npm')
  return node
}

async function ourRelay(t, bootstrap, options) {
  const program = startInterop(t, ['dht', 'node', bootstrap, '--firewalled', '--host=127.0.0.4'])
  await program.next('ready')
  program.send({ do: 'relay', ...options })
  const { key } = await program.next('listening')
  return { relayKey: key, program }
}

async function npmRelay(t, bootstrap) {
  const node = await npmNode(t, bootstrap, '127.0.0.4')
  const relay = new relaying.Server({
    createStream: (options) => node.createRawStream({ ...options, framed: true })
  })
  const server = node.createServer((socket) => {
    socket.on('error', () => {})
    relay.accept(socket, { id: socket.remotePublicKey }).on('error', () => {})
  })
  await within(server.listen(), 'listening')
  return { relayKey: server.publicKey.toString('hex'), relay }
}

/** An npm server that echoes. */
async function npmServer(them, options) {
  const server = them.createServer({ shareLocalAddress: false, ...options }, (socket) => {
    socket.on('error', () => {})
    socket.on('data', (data) => socket.write(data))
    socket.on('end', () => socket.end())
  })
  await within(server.listen(), 'listening')
  return server
}

/** Connects with npm; gives the socket after an echo. */
async function npmClient(t, them, key, options) {
  const socket = them.connect(Buffer.from(key, 'hex'), {
    localConnection: false, fastOpen: false, ...options
  })
  undo(t, () => socket.destroy())
  const echo = new Promise((resolve, reject) => {
    socket.once('error', reject)
    socket.once('data', resolve)
  })
  socket.write('echo')
  await within(echo, 'an echo')
  socket.on('error', () => {})
  return socket
}

const path = (wanted) => (line) => line.event === 'path' && line.path === wanted

for (const side of ['npm', 'ours']) {
  for (const naming of ['client', 'server', 'both']) {
    test(`npm reaches us over a relay of ${side} that is named by ${naming}`, async (t) => {
      const { us, key, them, relayKey } = await network(t, side)
      const through = Buffer.from(relayKey, 'hex')
      us.send({ do: 'listen', through: naming === 'client' ? undefined : relayKey })
      await us.next('listening')
      const relayThrough = naming === 'server' ? null : through
      const socket = await npmClient(t, them, key, { relayThrough, holepunch: () => false })
      const connection = await us.next('connection')
      assert.equal(connection.path, 'relayed')
      assert.equal(socket.rawStream.remoteHost, '127.0.0.4')
    })

    test(`we reach npm over a relay of ${side} that is named by ${naming}`, async (t) => {
      const { us, them, relayKey } = await network(t, side)
      const through = Buffer.from(relayKey, 'hex')
      const relayThrough = naming === 'client' ? null : through
      const server = await npmServer(them, { relayThrough, holepunch: false })
      us.send({
        do: 'hold',
        key: server.publicKey.toString('hex'),
        through: naming === 'server' ? undefined : relayKey
      })
      await us.next('held')
      await us.next(path('relayed'))
    })
  }

  test(`npm and we leave a relay of ${side} when its punch succeeds later`, async (t) => {
    const { us, key, them, relayKey, relay } = await network(t, side)
    us.send({ do: 'listen' })
    await us.next('listening')
    const later = putOff(t, them._router, 'peerHolepunch')
    const socket = await npmClient(t, them, key, { relayThrough: Buffer.from(relayKey, 'hex') })
    await us.next(path('relayed'))
    const echoes = echoing(socket)
    later.go()
    await us.next(path('lan'))
    await until(() => socket.rawStream.remoteHost === '127.0.0.2', 'the direct path')
    await within(echoes.more(10), 'echoes on the direct path')
    if (relay) await until(() => relay.stats.sessions.active === 0, 'an unused relay')
  })

  test(`we and npm leave a relay of ${side} when our punch succeeds later`, async (t) => {
    const { us, them, relayKey, relay } = await network(t, side)
    // What npm answers to a message about the punch, and to the punch itself: on loopback our first packet
    // gets through.
    const later = [
      putOff(t, Server.prototype, '_onpeerholepunch', ({ dht }) => dht === them),
      putOff(t, Holepuncher.prototype, '_onholepunchmessage', ({ dht, isInitiator }) => {
        return dht === them && !isInitiator
      })
    ]
    const server = await npmServer(them, { relayThrough: Buffer.from(relayKey, 'hex') })
    let accepted
    server.on('connection', (socket) => (accepted = socket))
    us.send({ do: 'hold', key: server.publicKey.toString('hex') })
    await us.next(path('relayed'))
    for (const call of later) call.go()
    await us.next(path('lan'))
    await until(() => accepted.rawStream.remoteHost === '127.0.0.2', 'the direct path')
    if (relay) await until(() => relay.stats.sessions.active === 0, 'an unused relay')
  })
}

/** Has calls of a method wait until `go()`, those of the given objects if it is a prototype's. */
function putOff(t, object, method, concerns = () => true) {
  const original = object[method]
  let go
  const gone = new Promise((resolve) => (go = resolve))
  object[method] = async function (...args) {
    if (concerns(this)) await gone
    return original.apply(this, args)
  }
  undo(t, () => {
    go()
    object[method] = original
  })
  return { go }
}

/** Writes one message after the other, each when the one before came back. */
function echoing(socket) {
  let count = 0
  const waiting = []
  socket.on('data', () => {
    count++
    for (const waiter of waiting) if (count >= waiter.count) waiter.resolve()
    setTimeout(() => socket.write('echo'), 10)
  })
  socket.write('echo')
  return { more: (n) => new Promise((resolve) => waiting.push({ count: count + n, resolve })) }
}
