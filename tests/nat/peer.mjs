// JavaScript's side of the NAT laboratory: a program that talks the JSON lines of `interop dht`.
//
//   node peer.mjs testnet <size> <host>   a public network
//   node peer.mjs node <bootstrap>        {"do": "listen", "through"}, {"do": "connect", "key", "through"},
//                                         {"do": "relay"}

import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'
import HyperDHT from 'hyperdht'
import createTestnet from 'hyperdht/testnet.js'

// The version that hyperdht speaks.
const relaying = createRequire(createRequire(import.meta.url).resolve('hyperdht'))('blind-relay')

const print = (message) => console.log(JSON.stringify(message))
const [command, ...args] = process.argv.slice(2)
const dht = command === 'testnet' ? await testnet() : await node()
for await (const line of createInterface({ input: process.stdin })) {
  const { do: action, key, through } = JSON.parse(line)
  const relayThrough = through ? Buffer.from(through, 'hex') : null
  if (action === 'listen') await listen(relayThrough)
  else if (action === 'connect') await connect(Buffer.from(key, 'hex'), relayThrough)
  else if (action === 'relay') await relay()
}
await dht.destroy()
process.exit()

async function testnet() {
  const [size, host] = args
  const network = await createTestnet(Number(size), { host })
  print({ event: 'testnet', nodes: network.nodes.map((node) => `${host}:${node.address().port}`) })
  return network
}

async function node() {
  const [host, port] = args[0].split(':')
  const dht = new HyperDHT({ bootstrap: [{ host, port: Number(port) }] })
  await dht.fullyBootstrapped()
  print({ event: 'ready', key: dht.defaultKeyPair.publicKey.toString('hex') })
  return dht
}

async function listen(relayThrough) {
  const server = dht.createServer({ relayThrough }, (socket) => {
    socket.on('error', () => {})
    socket.on('data', (message) => socket.write(message))
    socket.on('end', () => socket.end())
  })
  await server.listen()
  print({ event: 'listening', key: server.publicKey.toString('hex') })
}

async function relay() {
  const relay = new relaying.Server({ createStream: (options) => dht.createRawStream({ ...options, framed: true }) })
  const server = dht.createServer((socket) => {
    socket.on('error', () => {})
    relay.accept(socket, { id: socket.remotePublicKey }).on('error', () => {})
  })
  await server.listen()
  print({ event: 'listening', key: server.publicKey.toString('hex') })
}

async function connect(key, relayThrough) {
  const start = performance.now()
  const socket = dht.connect(key, { relayThrough })
  try {
    await new Promise((resolve, reject) => {
      socket.on('error', reject)
      socket.once('data', resolve)
      socket.write(Buffer.from('echo'))
    })
    print({ event: 'connected', count: 1, median: performance.now() - start })
  } catch (error) {
    print({ event: 'connect-failed', error: error.message, ms: performance.now() - start })
    print({ event: 'connected', count: 0 })
  }
  socket.on('error', () => {})
  socket.end()
}
