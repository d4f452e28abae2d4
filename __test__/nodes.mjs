// Nodes for tests: on a DHT of their own, in directories of their own, closed with the test.

import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { isAbsolute, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { root, startProgram, temporaryDirectory, undo, until, within } from './interop/support.mjs'

export { root, temporaryDirectory, undo, until, within }

/** The addon as a program gets it. */
export const p2p = createRequire(import.meta.url)('../index.js')
const { P2PNode, Testnet } = p2p

/** Two small books that are always there, as `publish` takes them. */
export const books = [
  {
    id: 'frankenstein',
    title: 'Frankenstein',
    author: 'Mary Shelley',
    format: 'epub',
    source: join(root, 'examples/library/mary-shelley_frankenstein.epub')
  },
  {
    id: 'dracula',
    title: 'Dracula',
    author: 'Bram Stoker',
    format: 'epub',
    source: join(root, 'examples/library/bram-stoker_dracula.epub')
  }
]

/** A private DHT. */
export async function testnet(t, size = 3) {
  const network = await Testnet.start(size)
  undo(t, () => network.close())
  return network
}

/** An open node in the network, in a new directory unless told. */
export async function openNode(t, network, options = {}) {
  const dataDir = options.dataDir ?? (await temporaryDirectory(t))
  const node = await P2PNode.open({
    bootstrap: network.bootstrap,
    host: '127.0.0.1',
    port: 0,
    ...options,
    dataDir
  })
  undo(t, () => node.close())
  return node
}

/** Waits until the DHT knows where the node is. Nodes try again by themselves; npm's hyperdht does not. */
export function announced(node) {
  return until(async () => (await node.status()).layers.find(({ name }) => name === 'dht').works, 'announced')
}

/** Lets two nodes approve each other, and waits until both are online. */
export async function pair(a, b) {
  await a.peers.add(b.identity.publicKey)
  await b.peers.add(a.identity.publicKey)
  await Promise.all([online(a, b), online(b, a)])
}

/** Waits until `node` is connected to `peer`. */
export function online(node, peer) {
  const key = peer.identity?.publicKey ?? peer
  return until(async () => (await node.peers.get(key))?.isOnline, `${key} is online`)
}

/** A sender with books and a receiver that sees them. */
export async function sharing(t, { policy = 'auto-accept', list = books, sender: more } = {}) {
  const network = await testnet(t)
  const sender = await openNode(t, network, { policy, nickname: 'Ada', ...more })
  const receiver = await openNode(t, network, { nickname: 'Ben' })
  await sender.catalog.publish(list)
  await pair(sender, receiver)
  await offered(receiver, sender, list.length)
  return { network, sender, receiver, peer: sender.identity.publicKey }
}

/** Waits until the sender's whole catalog is at the receiver. */
export function offered(receiver, sender, count) {
  const catalog = receiver.catalog.of(sender.identity?.publicKey ?? sender)
  return until(async () => (await catalog.list({ limit: 1 })).total === count, 'the catalog')
}

/** The first event that matches, among those after `after` or new ones. */
export async function eventOf(node, matches, after) {
  const events = node.events({ after })
  try {
    const search = async () => {
      for await (const event of events) if (matches(event)) return event
    }
    return await within(search(), `an event that matches ${matches}`)
  } finally {
    await events.return()
  }
}

/** A node in a process of its own that does what it is told; see server.mjs. `env` is added to the process's. */
export async function startServer(t, network, options, { env } = {}) {
  const args = [
    fileURLToPath(new URL('server.mjs', import.meta.url)),
    JSON.stringify({ bootstrap: network.bootstrap, host: '127.0.0.1', port: 0, ...options })
  ]
  const program = startProgram(t, process.execPath, args, { env })
  const { key } = await program.next('open')
  let last = 0
  return {
    key,
    program,
    kill: (signal) => program.kill(signal),
    /** `call('peers.add', key)` is `node.peers.add(key)`; rejects with the error's code. */
    async call(method, ...args) {
      const id = ++last
      program.send({ id, method, args })
      const { value, error } = await program.next((line) => line.id === id)
      if (error) throw Object.assign(new Error(error.message), { code: error.code })
      return value
    }
  }
}

/** A file of the folder with more samples (`ALEX_P2P_SHARED`); skips the test when it is not there. */
export function shared(t, ...names) {
  const folder = process.env.ALEX_P2P_SHARED ?? '../shared'
  const path = join(isAbsolute(folder) ? folder : resolve(root, folder), ...names)
  if (existsSync(path)) return path
  t.skip(`no ${names.join('/')} in ${folder}: set ALEX_P2P_SHARED to the folder with the samples`)
}

/** `promise`'s error, or a failure when it has none. */
export async function failure(work) {
  let value
  try {
    value = await (typeof work === 'function' ? work() : work)
  } catch (error) {
    return error
  }
  throw new Error(`no failure, but ${JSON.stringify(value)}`)
}
