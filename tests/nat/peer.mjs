// JavaScript's side of the NAT laboratory: a program that talks the JSON lines of `interop dht`.
//
//   node peer.mjs testnet <size> <host>   a public network
//   node peer.mjs node <bootstrap>        {"do": "listen"}, {"do": "connect", "key"}

import { createInterface } from 'node:readline'
import HyperDHT from 'hyperdht'
import createTestnet from 'hyperdht/testnet.js'

const print = (message) => console.log(JSON.stringify(message))
const [command, ...args] = process.argv.slice(2)
const dht = command === 'testnet' ? await testnet() : await node()
for await (const line of createInterface({ input: process.stdin })) {
  const { do: action, key } = JSON.parse(line)
  if (action === 'listen') await listen()
  else if (action === 'connect') await connect(Buffer.from(key, 'hex'))
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

async function listen() {
  const server = dht.createServer((socket) => {
    socket.on('error', () => {})
    socket.on('data', (message) => socket.write(message))
    socket.on('end', () => socket.end())
  })
  await server.listen()
  print({ event: 'listening', key: server.publicKey.toString('hex') })
}

async function connect(key) {
  const start = performance.now()
  const socket = dht.connect(key)
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
