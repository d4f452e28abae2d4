// npm's hyperdht and hyperswarm against ours: finding, connecting, refusing, on networks of either
// kind and of both.

import assert from 'node:assert/strict'
import { test as plain } from 'node:test'

import { event, javascriptTestnet, startInterop, until, within } from './support.mjs'

const { default: DHT } = await import('hyperdht')
const { default: Hyperswarm } = await import('hyperswarm')

const ROUNDS = 20
const LIMIT = 50 // ms, for the median of connections with an echo

/** A test that undoes what it made in reverse: a node that leaves needs its network to be there. */
function test(name, body, options = {}) {
  plain(name, options, async (t) => {
    const undo = []
    t.after(async () => {
      while (undo.length > 0) await undo.pop()()
    })
    await body({ after: (step) => undo.push(step), diagnostic: (text) => t.diagnostic(text) })
  })
}

/** A network of npm's nodes, of ours, or of both: how to find into it. */
const networks = {
  javascript: async (t) => {
    const testnet = await javascriptTestnet(t, 5)
    return port(testnet.bootstrap)
  },
  ours: async (t) => (await ourTestnet(t, 5)).bootstrap,
  mixed: async (t) => {
    const { bootstrap } = await ourTestnet(t, 3)
    for (let i = 0; i < 3; i++) {
      const node = new DHT({
        host: '127.0.0.1',
        ephemeral: false,
        firewalled: false,
        bootstrap: [bootstrap]
      })
      t.after(() => node.destroy())
      await within(node.fullyBootstrapped(), 'a persistent node of npm')
      assert.equal(node.ephemeral, false)
    }
    const more = startInterop(t, ['dht', 'testnet', 3, bootstrap])
    assert.equal((await more.next('testnet')).ephemeral, 0)
    return bootstrap
  }
}

function port([{ host, port }]) {
  return `${host}:${port}`
}

async function ourTestnet(t, size) {
  const program = startInterop(t, ['dht', 'testnet', size])
  const { nodes, ephemeral } = await program.next('testnet')
  assert.equal(ephemeral, 0)
  return { program, nodes, bootstrap: nodes[0] }
}

async function ourNode(t, bootstrap, flags = []) {
  const program = startInterop(t, ['dht', 'node', bootstrap, ...flags])
  const { key, address } = await program.next('ready')
  return { program, key, address }
}

function theirNode(t, bootstrap, options = {}) {
  const node = new DHT({ host: '127.0.0.1', bootstrap: [bootstrap], ...options })
  t.after(() => node.destroy())
  return node
}

function median(times) {
  return times.sort((a, b) => a - b)[times.length >> 1]
}

/** Connects with npm's hyperdht, waits for an echo, ends. Gives the time that took in ms. */
async function connectOnce(node, key, text) {
  const start = performance.now()
  const socket = node.connect(Buffer.from(key, 'hex'))
  try {
    socket.write(text)
    const [data] = await within(
      new Promise((resolve, reject) => {
        socket.once('data', (...values) => resolve(values))
        socket.once('error', reject)
        socket.once('close', () => reject(new Error('closed without an echo')))
      }),
      `the echo of ${text}`
    )
    assert.equal(data.toString(), text)
    return performance.now() - start
  } finally {
    socket.on('error', () => {})
    socket.destroy()
  }
}

function echo(socket) {
  socket.on('error', () => {})
  socket.on('data', (data) => socket.write(data))
  socket.on('end', () => socket.end())
}

for (const [name, start] of Object.entries(networks)) {
  test(`npm's hyperdht connects to us by key, ${name} network`, async (t) => {
    const bootstrap = await start(t)
    const us = await ourNode(t, bootstrap)
    us.program.send({ do: 'listen' })
    await us.program.next('listening')
    const them = theirNode(t, bootstrap)
    await them.fullyBootstrapped()
    const times = []
    for (let round = 0; round < ROUNDS; round++) {
      times.push(await connectOnce(them, us.key, `round ${round}`))
    }
    t.diagnostic(`median ${median(times).toFixed(1)} ms, slowest ${Math.max(...times).toFixed(1)} ms`)
    // npm sends each handshake over two nodes: it must not become two connections.
    for (let round = 0; round < ROUNDS; round++) await us.program.next('connection')
    await assert.rejects(us.program.next('connection', 100), /nothing within/)
    assert.ok(median(times) < LIMIT, `${times}`)
  })

  test(`we connect to npm's hyperdht by key, ${name} network`, async (t) => {
    const bootstrap = await start(t)
    const them = theirNode(t, bootstrap)
    const server = them.createServer(echo)
    await within(server.listen(), 'listening')
    const us = await ourNode(t, bootstrap)
    us.program.send({ do: 'connect', key: server.publicKey.toString('hex'), rounds: ROUNDS })
    const { count, median } = await us.program.next('connected')
    assert.equal(count, ROUNDS, us.program.stderr)
    t.diagnostic(`median ${median.toFixed(1)} ms`)
    assert.ok(median < LIMIT, `${median}`)
  })
}

// A node that nobody has proved reachable yet, or that is not: the local address is the way then.
for (const [we, they] of [[true, true], [true, false], [false, true]]) {
  const who = we && they ? 'both' : we ? 'we' : 'npm'
  test(`connections work while ${who} believe to be firewalled`, async (t) => {
    const { bootstrap } = await ourTestnet(t, 5)
    const us = await ourNode(t, bootstrap, we ? ['--firewalled'] : [])
    us.program.send({ do: 'status' })
    assert.equal((await us.program.next('status')).firewalled, we)
    us.program.send({ do: 'listen' })
    await us.program.next('listening')
    const client = theirNode(t, bootstrap, { quickFirewall: !they })
    await client.fullyBootstrapped()
    // npm's probe may lose against its first query: then it stays firewalled for 20 minutes.
    if (they) assert.equal(client.firewalled, true)
    for (let round = 0; round < 5; round++) await connectOnce(client, us.key, `round ${round}`)

    const server = client.createServer(echo)
    await within(server.listen(), 'listening')
    us.program.send({ do: 'connect', key: server.publicKey.toString('hex'), rounds: 5 })
    const { count, median } = await us.program.next('connected')
    assert.equal(count, 5)
    t.diagnostic(`median ${median.toFixed(1)} ms`)
  })
}

// Two machines of one network, as nodes see them: all of 127.0.0.0/8 is this machine on Linux.
test(
  'peers at different hosts without a NAT connect, both firewalled',
  async (t) => {
    const { bootstrap } = await ourTestnet(t, 5)
    const us = await ourNode(t, bootstrap, ['--firewalled', '--host=127.0.0.2'])
    us.program.send({ do: 'listen' })
    await us.program.next('listening')
    const them = theirNode(t, bootstrap, { host: '127.0.0.3', quickFirewall: false })
    await them.fullyBootstrapped()
    for (let round = 0; round < 5; round++) await connectOnce(them, us.key, `round ${round}`)

    const server = them.createServer(echo)
    await within(server.listen(), 'listening')
    us.program.send({ do: 'connect', key: server.publicKey.toString('hex'), rounds: 5 })
    assert.equal((await us.program.next('connected')).count, 5)

    const other = await ourNode(t, bootstrap, ['--firewalled', '--host=127.0.0.4'])
    other.program.send({ do: 'connect', key: us.key, rounds: 5 })
    assert.equal((await other.program.next('connected')).count, 5)
  },
  { skip: process.platform !== 'linux' && 'needs hosts of its own on loopback' }
)

test('we refuse a key by silence, and are told of it once', async (t) => {
  const { bootstrap } = await ourTestnet(t, 5)
  const us = await ourNode(t, bootstrap)
  us.program.send({ do: 'listen', allow: [] })
  await us.program.next('listening')
  const them = theirNode(t, bootstrap)
  const start = performance.now()
  await assert.rejects(connectOnce(them, us.key, 'let me in'), {
    code: 'PEER_CONNECTION_FAILED'
  })
  const took = performance.now() - start
  t.diagnostic(`npm reports our refusal after ${(took / 1000).toFixed(1)} s`)
  const { key } = await us.program.next('refused')
  assert.equal(key, them.defaultKeyPair.publicKey.toString('hex'))
  us.program.send({ do: 'status' })
  await us.program.next('status')
  await assert.rejects(us.program.next('refused', 100), /nothing within/)
})

test('we report the refusal of an npm server within 12 seconds', async (t) => {
  const bootstrap = await networks.javascript(t)
  const them = theirNode(t, bootstrap)
  const server = them.createServer({ firewall: () => true })
  server.on('connection', () => assert.fail('a refused key got a connection'))
  await within(server.listen(), 'listening')
  const us = await ourNode(t, bootstrap)
  us.program.send({ do: 'connect', key: server.publicKey.toString('hex') })
  const { error, ms } = await us.program.next('connect-failed')
  t.diagnostic(`${error} (after ${(ms / 1000).toFixed(1)} s)`)
  assert.match(error, /did not answer/)
  assert.ok(ms < 12_000)
})

test('an npm hyperswarm and we find each other on a topic and connect', async (t) => {
  const { bootstrap } = await ourTestnet(t, 5)
  const topic = Buffer.alloc(32).fill('alex-reader')
  const us = await ourNode(t, bootstrap)
  us.program.send({ do: 'listen' })
  await us.program.next('listening')
  us.program.send({ do: 'join', topic: topic.toString('hex'), announce: true, lookup: true })
  await us.program.next('joined')

  const swarm = new Hyperswarm({ bootstrap: [bootstrap] })
  t.after(() => swarm.destroy())
  const connection = event(swarm, 'connection')
  const discovery = swarm.join(topic, { server: true, client: true })
  await within(discovery.flushed(), 'the announcement of the swarm')
  const [socket] = await connection
  socket.on('error', () => {})
  assert.equal(socket.remotePublicKey.toString('hex'), us.key)
  socket.write('hello')
  const [data] = await event(socket, 'data')
  assert.equal(data.toString(), 'hello')

  const theirs = swarm.keyPair.publicKey.toString('hex')
  await until(async () => {
    us.program.send({ do: 'lookup', topic: topic.toString('hex') })
    return (await us.program.next('looked-up')).keys.includes(theirs)
  }, 'our finding the swarm')
  socket.destroy()
  swarm.on('connection', echo)
  us.program.send({ do: 'connect', key: theirs })
  assert.equal((await us.program.next('connected')).count, 1)
})
