// JavaScript's side of the stream measurements: what examples/bench does, with npm's hyperdht.

import { createInterface } from 'node:readline'
import DHT from 'hyperdht'
import createTestnet from 'hyperdht/testnet.js'

const chunk = Buffer.alloc(64 * 1024, 7)
const connections = []

const methods = {
  async testnet({ host }) {
    const { bootstrap } = await createTestnet(3, { host })
    return `${host}:${bootstrap[0].port}`
  },

  async listen(argument) {
    const dht = await node(argument)
    const server = dht.createServer(serve)
    await server.listen()
    return server.publicKey.toString('hex')
  },

  async open(argument) {
    const dht = await node(argument)
    return connections.push(await connect(dht, argument.key)) - 1
  },

  async push({ connection, bytes = Infinity, seconds = Infinity }) {
    const socket = connections[connection]
    const start = performance.now()
    let sent = 0
    while (sent < bytes && performance.now() - start < seconds * 1000) {
      const length = Math.min(bytes - sent, chunk.length)
      sent += length
      if (!socket.write(length === chunk.length ? chunk : chunk.subarray(0, length))) {
        await new Promise((resolve) => socket.once('drain', resolve))
      }
    }
    const counted = new Promise((resolve, reject) => {
      socket.once('data', resolve)
      socket.once('error', reject)
    })
    socket.end()
    const arrived = Number((await counted).readBigUInt64LE())
    const ms = performance.now() - start
    if (arrived !== sent + 1) throw new Error(`${arrived} of ${sent + 1} bytes arrived`)
    return { bytes: sent, ms }
  },

  async firstByte({ rounds, ...argument }) {
    const times = []
    for (let n = 0; n < rounds; n++) {
      const dht = await node(argument)
      const start = performance.now()
      const socket = await connect(dht, argument.key)
      times.push(performance.now() - start)
      socket.destroy()
      await dht.destroy()
    }
    return times.toSorted((a, b) => a - b)[times.length >> 1]
  }
}

async function node({ bootstrap, host }) {
  // Not behind a NAT: no hole has to be punched.
  const dht = new DHT({ bootstrap: [bootstrap], host, firewalled: false })
  await dht.fullyBootstrapped()
  return dht
}

/** Connects and waits until a byte came back. */
function connect(dht, key) {
  const socket = dht.connect(Buffer.from(key, 'hex'))
  socket.write(Buffer.of(1))
  return new Promise((resolve, reject) => {
    socket.once('error', reject)
    socket.once('data', () => {
      socket.off('error', reject)
      socket.on('error', () => {})
      resolve(socket)
    })
  })
}

function serve(socket) {
  let arrived = 0
  socket.on('error', () => {})
  socket.on('data', (data) => {
    arrived += data.length
    if (data.length === 1) socket.write(data)
  })
  socket.on('end', () => {
    const count = Buffer.alloc(8)
    count.writeBigUInt64LE(BigInt(arrived))
    socket.end(count)
  })
}

const lines = createInterface({ input: process.stdin })
lines.on('line', async (line) => {
  const { id, method, argument } = JSON.parse(line)
  try {
    const value = await methods[method](argument)
    console.log(JSON.stringify({ id, value }))
  } catch (error) {
    console.log(JSON.stringify({ id, error: error?.stack ?? String(error) }))
  }
})
lines.on('close', () => process.exit())
