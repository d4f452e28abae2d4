// Hole punching between npm's hyperdht and ours, message by message. Nothing needs punching on loopback,
// but both sides do it all the same when they are at different hosts and nobody has proved them reachable.
// NATs are in tests/nat.

import assert from 'node:assert/strict'
import { test as plain } from 'node:test'

import { startInterop, undo, within } from './support.mjs'

const { default: DHT } = await import('hyperdht')

const skip = process.platform !== 'linux' && 'needs hosts of its own on loopback'

function test(name, body) {
  plain(name, { skip }, body)
}

async function network(t) {
  const testnet = startInterop(t, ['dht', 'testnet', 8])
  const { nodes: [bootstrap] } = await testnet.next('testnet')
  const us = startInterop(t, ['dht', 'node', bootstrap, '--firewalled', '--host=127.0.0.2'])
  const { key } = await us.next('ready')
  const them = new DHT({ host: '127.0.0.3', bootstrap: [bootstrap], quickFirewall: false })
  undo(t, () => them.destroy())
  await within(them.fullyBootstrapped(), 'a node of npm')
  return { us, key, them }
}

async function listen(us) {
  us.send({ do: 'listen' })
  await us.next('listening')
}

/** Connects with npm and waits for an echo; gives the client's error, if any. */
async function connect(them, key, options) {
  const socket = them.connect(Buffer.from(key, 'hex'), { localConnection: false, ...options })
  const outcome = new Promise((resolve) => {
    socket.once('error', resolve)
    socket.once('data', () => resolve())
  })
  socket.write('echo')
  const error = await within(outcome, 'an echo or an error')
  socket.on('error', () => {})
  socket.destroy()
  return error
}

test('npm gets through with the packet that we send as soon as it asks', async (t) => {
  const { us, key, them } = await network(t)
  await listen(us)
  assert.equal(await connect(them, key), undefined)
  await us.next('connection')
})

test('npm and we go through all rounds when it has not opened its NAT before', async (t) => {
  const { us, key, them } = await network(t)
  await listen(us)
  assert.equal(await connect(them, key, { fastOpen: false }), undefined)
  // Counted when both sides know each other's NATs and start to send.
  assert.equal(them.stats.punches.consistent, 1)
  await us.next('connection')
})

test('npm that gives a punch up leaves nothing that keeps it from the next', async (t) => {
  const { us, key, them } = await network(t)
  await listen(us)
  let seen
  const holepunch = (...args) => {
    seen = args
    return false
  }
  const error = await connect(them, key, { fastOpen: false, holepunch })
  assert.equal(error.code, 'HOLEPUNCH_ABORTED')
  // Firewalls of both: 2 is consistent. And where we said that we are.
  assert.deepEqual(seen.slice(0, 2), [2, 2])
  assert.equal(seen[2][0].host, '127.0.0.2')
  assert.equal(await connect(them, key, { fastOpen: false }), undefined)
})

test('we get through to an npm server that shares no local address', async (t) => {
  const { us, them } = await network(t)
  let asked = 0
  const server = them.createServer({
    shareLocalAddress: false,
    holepunch: () => {
      asked++
      return true
    }
  })
  server.on('connection', (socket) => {
    socket.on('error', () => {})
    socket.on('data', (data) => socket.write(data))
    socket.on('end', () => socket.end())
  })
  await within(server.listen(), 'listening')
  us.send({ do: 'connect', key: server.publicKey.toString('hex'), rounds: 5 })
  const { count } = await us.next('connected')
  assert.equal(count, 5, us.stderr)
  t.diagnostic(`${asked} of 5 needed a second round`)
})
