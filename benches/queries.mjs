// How npm's clients get on in a network of our nodes, which answer strangers briefly, and in one of npm's own,
// which answer everybody in full:
//
//   cargo build --example interop && node benches/queries.mjs [size] [rounds]
//
// Every round is a client that the network has not heard of. `closest` says how many of the nodes at which
// something was stored are the 20 closest of the whole network.

import { randomBytes } from 'node:crypto'
import { startInterop, undo, within } from '../__test__/interop/support.mjs'

const { default: DHT } = await import('hyperdht')
const { hash } = await import('hypercore-crypto').then((module) => module.default)

const size = Number(process.argv[2] ?? 50)
const rounds = Number(process.argv[3] ?? 30)
const VALUE_BYTES = 900
const TOPIC_PEERS = 20

for (const [name, start] of Object.entries({ ours, npm })) {
  const ends = []
  const scope = { after: (end) => ends.push(end) }
  try {
    const nodes = await start(scope)
    console.log(JSON.stringify({ network: name, size, rounds, ...(await measure(nodes)) }))
  } finally {
    for (const end of ends) await end()
  }
}

async function ours(scope) {
  const program = startInterop(scope, ['dht', 'testnet', size])
  return (await program.next('testnet', 120_000)).nodes
}

async function npm(scope) {
  const nodes = []
  for (let n = 0; n < size; n++) {
    const bootstrap = nodes.slice(0, 1)
    const node = n === 0 ? DHT.bootstrapper(49_000 + (process.pid % 10_000), '127.0.0.1') : new DHT({
      bootstrap, host: '127.0.0.1', ephemeral: false, firewalled: false
    })
    undo(scope, () => node.destroy({ force: true }))
    await node.fullyBootstrapped()
    nodes.push(`127.0.0.1:${node.io.serverSocket.address().port}`)
  }
  return nodes
}

async function measure(nodes) {
  const figures = {}
  const topic = randomBytes(32)
  for (let n = 0; n < TOPIC_PEERS; n++) {
    await asStranger(nodes, (client) => client.announce(topic, DHT.keyPair(), []).finished())
  }
  for (let round = 0; round < rounds; round++) {
    const value = randomBytes(VALUE_BYTES)
    const keys = DHT.keyPair()
    let target
    await count('immutablePut', async (client) => {
      const { hash, closestNodes } = await client.immutablePut(value)
      target = hash
      return closest(nodes, target, closestNodes)
    })
    await count('immutableGet', async (client) => (await client.immutableGet(target))?.value.equals(value))
    await count('mutablePut', async (client) => {
      const { closestNodes } = await client.mutablePut(keys, value)
      return closest(nodes, hash(keys.publicKey), closestNodes)
    })
    await count('mutableGet', async (client) => (await client.mutableGet(keys.publicKey))?.value.equals(value))
    const own = hash(keys.publicKey)
    await count('announce', async (client) => {
      const query = client.announce(own, keys, [])
      await query.finished()
      return closest(nodes, own, query.closestNodes)
    })
    await count('findPeer', async (client) => {
      for await (const { peer } of client.findPeer(keys.publicKey)) if (peer.publicKey.equals(keys.publicKey)) return true
      return false
    })
    await count('lookup', async (client) => {
      const found = new Set()
      for await (const { peers } of client.lookup(topic)) for (const peer of peers) found.add(peer.publicKey.toString('hex'))
      return found.size === TOPIC_PEERS
    })
  }
  return Object.fromEntries(Object.entries(figures).map(([name, rows]) => [name, summary(rows)]))

  async function count(name, work) {
    await asStranger(nodes, async (client) => {
      const [before, start] = [client.stats.requests.total, performance.now()]
      const outcome = await within(work(client), name, 60_000)
      const row = { ms: performance.now() - start, requests: client.stats.requests.total - before, outcome }
      ;(figures[name] ??= []).push(row)
    })
  }
}

async function asStranger(nodes, work) {
  const [host, port] = nodes[0].split(':')
  const client = new DHT({ bootstrap: [{ host, port: Number(port) }], host: '127.0.0.1' })
  await client.fullyBootstrapped()
  try {
    return await work(client)
  } finally {
    await client.destroy({ force: true })
  }
}

/** How many of `chosen` are among the 20 closest of all. */
function closest(nodes, target, chosen) {
  const distance = (node) => {
    const [host, port] = node.split(':')
    const address = Buffer.from([...host.split('.').map(Number), Number(port) & 255, Number(port) >> 8])
    return Buffer.from(hash(address)).map((byte, at) => byte ^ target[at])
  }
  const sorted = nodes.map((node) => [distance(node), node]).sort(([a], [b]) => Buffer.compare(a, b))
  const best = new Set(sorted.slice(0, 20).map(([, node]) => node))
  return chosen.filter(({ host, port }) => best.has(`${host}:${port}`)).length
}

function summary(rows) {
  const median = (values) => values.sort((a, b) => a - b)[values.length >> 1]
  const outcomes = rows.map(({ outcome }) => outcome)
  const mean = outcomes.reduce((sum, value) => sum + Number(value ?? 0), 0) / rows.length
  return {
    ms: Number(median(rows.map(({ ms }) => ms)).toFixed(1)),
    requests: median(rows.map(({ requests }) => requests)),
    [typeof outcomes[0] === 'number' ? 'closest' : 'found']: Number(mean.toFixed(2))
  }
}
