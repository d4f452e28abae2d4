// Streams over bad networks: two namespaces with an emulated link between them (examples/link).
//
// The link's rate counts whole IP packets; goodput counts what the program sent. A packet of 1,500
// bytes carries 1,452 bytes of a stream, so that 96.8 Mbit/s is all that fits through 100.

import { ends, linkIsImpossible } from './peers.mjs'
import { withPeers } from './streams.mjs'

const MB = 1e6
const seconds = 8
const [near, far] = ends.map(({ host }) => host)
const limited = { 'delay-ms': 10, 'rate-mbit': 100, queue: 200 }

const common = { set: 'links', runs: 5, skip: linkIsImpossible }

export const links = [
  ...[
    ['link-50ms', { 'delay-ms': 25, queue: 10_000 }],
    ['link-50ms-1', { 'delay-ms': 25, queue: 10_000, loss: 0.01 }],
    ['link-100ms-5', { 'delay-ms': 50, queue: 10_000, loss: 0.05 }]
  ].map(([id, link]) => ({
    ...common,
    rows: [{ id, unit: 'MB/s', better: 'high' }],
    // For eight seconds, and until everything has arrived.
    async measure(side) {
      return overLink(side.kind, link, async ({ open }) => {
        const { bytes, ms } = await (await open()).push({ seconds })
        return { [id]: bytes / MB / (ms / 1000) }
      })
    }
  })),
  {
    ...common,
    rows: [{ id: 'link-100mbit', unit: '% of it', better: 'high' }],
    // Goodput as a share of the link's rate.
    async measure(side) {
      return overLink(side.kind, limited, async ({ open }) => {
        const { bytes, ms } = await (await open()).push({ seconds })
        return { 'link-100mbit': share(bytes, ms) }
      })
    }
  },
  {
    ...common,
    rows: [{ id: 'link-bloat', unit: 'ms', better: 'low' }],
    // The median round trip of a single UDP packet beside a transfer; 20 ms on the idle link.
    async measure(side) {
      return overLink(side.kind, { ...limited, queue: 2000 }, async ({ open, ping }) => {
        const client = await open()
        const [{ median }] = await Promise.all([ping(), client.push({ seconds })])
        return { 'link-bloat': median }
      })
    }
  },
  {
    ...common,
    rows: [{ id: 'link-fair', unit: '% of it', better: 'high' }],
    // Two transfers at once: the share of the slower one.
    async measure(side) {
      return overLink(side.kind, limited, async ({ open }) => {
        const clients = [await open(), await open()]
        const done = await Promise.all(clients.map((client) => client.push({ seconds })))
        return { 'link-fair': Math.min(...done.map(({ bytes, ms }) => share(bytes, ms))) }
      })
    }
  }
]

/** Percent of the limited link. */
function share(bytes, ms) {
  return (bytes * 8) / (ms / 1000) / (limited['rate-mbit'] * 10_000)
}

/** Measures with a server of `kind` at the far end, and a client at the near end for each `open`. */
function overLink(kind, link, measure) {
  return withPeers(async (peers) => {
    const [here, there] = await peers.link(link)
    const bootstrap = await peers.start(kind, there).testnet({ host: far })
    const key = await peers.start(kind, there).listen({ host: far, bootstrap })
    const open = async () => {
      const client = peers.start(kind, here)
      const connection = await client.open({ host: near, bootstrap, key })
      return { push: (argument) => client.push({ connection, ...argument }) }
    }
    const to = await peers.start('ours', there).echo({ host: far })
    const ping = () => peers.start('ours', here).ping({ host: near, to, seconds })
    return measure({ open, ping })
  })
}
