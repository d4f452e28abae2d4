// Raw encrypted streams on loopback: one sends 64 KiB messages, the other counts them.

import { Peers } from './peers.mjs'

const MB = 1e6
const size = 512 * 1024 * 1024
const host = '127.0.0.1'

export const streams = [
  {
    set: 'streams',
    runs: 5,
    rows: [
      { id: 'stream', unit: 'MB/s', better: 'high' },
      { id: 'stream-to-js', unit: 'MB/s', better: 'high' },
      { id: 'stream-from-js', unit: 'MB/s', better: 'high' }
    ],
    // From the first write until the receiver has said how much came. JavaScript's column is always
    // JavaScript to JavaScript.
    async measure(side) {
      if (side.kind === 'js') {
        const rate = await push('js', 'js')
        return { stream: rate, 'stream-to-js': rate, 'stream-from-js': rate }
      }
      return {
        stream: await push('ours', 'ours'),
        'stream-to-js': await push('ours', 'js'),
        'stream-from-js': await push('js', 'ours')
      }
    }
  },
  {
    set: 'streams',
    runs: 5,
    rows: [{ id: 'first-byte', unit: 'ms', better: 'low' }],
    // From knowing a key, on a node that knows its network, until a byte was there and back.
    async measure(side) {
      return withPeers(async (peers) => {
        const { key, bootstrap } = await serving(peers, side.kind, side.kind)
        const client = peers.start(side.kind)
        return { 'first-byte': await client.firstByte({ host, bootstrap, key, rounds: 20 }) }
      })
    }
  }
]

/** Megabytes a second from a process of one kind to one of the other. */
function push(from, to) {
  return withPeers(async (peers) => {
    const { key, bootstrap } = await serving(peers, to, to)
    const client = peers.start(from)
    const connection = await client.open({ host, bootstrap, key })
    const { bytes, ms } = await client.push({ connection, bytes: size })
    return bytes / MB / (ms / 1000)
  })
}

async function serving(peers, kind, network) {
  const bootstrap = await peers.start(network).testnet({ host })
  const key = await peers.start(kind).listen({ host, bootstrap })
  return { key, bootstrap }
}

/** Calls `measure` and ends what it started, whatever happens. */
export async function withPeers(measure) {
  const peers = new Peers()
  try {
    return await measure(peers)
  } finally {
    await peers.end()
  }
}
