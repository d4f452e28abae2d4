// What is measured. A group takes one measurement of one side and gives the value of each of its rows.

import { existsSync } from 'node:fs'
import { randomFillSync } from 'node:crypto'
import { open, readdir, readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { root } from '../scripts/toolchain.mjs'
import { entries, realEntries } from './entries.mjs'
import { withPeers } from './streams.mjs'

const MB = 1e6

export const groups = [
  {
    rows: [{ id: 'connect', unit: 'ms', better: 'low' }],
    // From knowing a server's key to an open channel with it; a fresh client each time.
    async measure(side) {
      const { bootstrap } = await side.testnet()
      const server = await side.start()
      const { key } = await server.open({ bootstrap, name: 'server' })
      const client = await side.start()
      const times = []
      for (let n = 0; n < 10; n++) {
        const { key: own } = await client.open({ bootstrap, name: `client-${n}` })
        await server.admit({ key: own })
        times.push(await client.connect({ key }))
        await client.close()
      }
      return { connect: times.toSorted((a, b) => a - b)[times.length >> 1] }
    }
  },
  ...[
    ['sync-10k', 10_000],
    ['sync-100k', 100_000]
  ].map(([id, count]) => ({
    rows: [{ id, unit: 'entries/s', better: 'high' }],
    // From knowing a server's key to its whole catalog on this disk; a peer that has nothing yet.
    async measure(side) {
      const [writer, reader] = await pair(side)
      const share = await writer.publish({ count })
      const ms = await reader.sync({ key: writer.key, share, count })
      return { [id]: count / (ms / 1000) }
    }
  })),
  {
    oursOnly: true,
    once: true,
    skip: () => (existsSync(realEntries) ? null : `there is no ${realEntries}`),
    rows: [
      { id: 'search-1m-p99', unit: 'ms', better: 'low' },
      { id: 'reopen-1m', unit: 'ms', better: 'low' }
    ],
    // Of what people type, with filters and orders; and from opening to the first page.
    async measure(side) {
      const node = await side.start()
      await node.fill({ count: 1_000_000 })
      const reopen = await node.reopen()
      return { 'search-1m-p99': await node.searches(), 'reopen-1m': reopen }
    }
  },
  {
    oursOnly: true,
    rows: [{ id: 'sync-100k-unchanged', unit: 'ms', better: 'low' }],
    // The whole library once more, of which nothing changed.
    async measure(side) {
      const { bootstrap } = await side.testnet()
      const node = await side.start()
      await node.open({ bootstrap, name: 'library' })
      await node.publish({ count: 100_000 })
      return { 'sync-100k-unchanged': await node.syncUnchanged({ count: 100_000 }) }
    }
  },
  {
    rows: [{ id: 'append-1', unit: 'entries/s', better: 'high' }],
    // One by one, each acknowledged when it survives the end of the process: JavaScript syncs nothing.
    measure: async (side) => ({ 'append-1': await append(side, { atOnce: 1, survives: 'process' }) })
  },
  {
    oursOnly: true,
    rows: [{ id: 'append-1-fsync', unit: 'entries/s', better: 'high' }],
    // One by one, each acknowledged when it survives the loss of power.
    measure: async (side) => ({
      'append-1-fsync': await append(side, { atOnce: 1, survives: 'power', count: 10_000 })
    })
  },
  {
    rows: [{ id: 'append-batch', unit: 'entries/s', better: 'high' }],
    // All at once; ours is synced.
    measure: async (side) => ({ 'append-batch': await append(side, { atOnce: 100_000, survives: 'power' }) })
  },
  {
    once: true,
    rows: [{ id: 'sync-1m-rss', unit: 'MB', better: 'low' }],
    // The largest catalog there can be, arriving at a peer that has nothing yet: the peer's peak.
    async measure(side) {
      const count = 1_000_000
      const [writer, reader] = await pair(side)
      const share = await writer.publish({ count })
      await reader.sync({ key: writer.key, share, count })
      return { 'sync-1m-rss': (await reader.usage()).peakRss / MB }
    }
  },
  {
    oursOnly: true,
    once: true,
    rows: [{ id: 'hold-64x10k-rss', unit: 'MB', better: 'low' }],
    // As many peers as may be connected, 10,000 books each, all arriving at once: the peak.
    async measure(side) {
      const { bootstrap } = await side.testnet()
      const node = await side.start()
      const { key } = await node.open({ bootstrap, name: 'holds' })
      const others = await side.start()
      const keys = await others.crowd({ bootstrap, nodes: 64, count: 10_000, key })
      await node.hold({ keys, count: 10_000 })
      return { 'hold-64x10k-rss': (await node.usage()).peakRss / MB }
    }
  },
  largeBook('file-256m', 256 * 1024 * 1024, 3),
  largeBook('book-1g', 1024 * 1024 * 1024, 5),
  {
    runs: 5,
    // ext4 takes a fifth longer to make files for a minute after many were deleted.
    keepsFiles: true,
    rows: [{ id: 'books-200', unit: 'ms', better: 'low' }],
    // From asking for all of them, over a connection that stands, until all are on disk.
    async measure(side) {
      const [sender, receiver] = await pair(side)
      const paths = Array.from({ length: 200 }, (_, n) => join(side.directory, `book-${n}.epub`))
      for (const path of paths) await randomFile(path, 100_000)
      const share = await sender.shareAll({ paths })
      await receiver.follow({ key: sender.key, share, count: paths.length })
      const to = join(side.directory, 'received')
      const ms = await receiver.fetchAll({ key: sender.key, to, count: paths.length })
      const received = await folderSize(to)
      if (received !== paths.length * 100_000) throw new Error(`received ${received} bytes`)
      return { 'books-200': ms }
    }
  },
  {
    rows: [{ id: 'idle-rss', unit: 'MB', better: 'low' }],
    // A Node process with an open node that knows nobody, once it has settled.
    async measure(side) {
      const { bootstrap } = await side.testnet()
      const node = await side.start()
      await node.open({ bootstrap, name: 'idle' })
      await new Promise((resolve) => setTimeout(resolve, 5_000))
      return { 'idle-rss': (await node.usage()).rss / MB }
    }
  },
  {
    once: true,
    rows: [{ id: 'install-size', unit: 'MB', better: 'low' }],
    // What `npm install` brings: our package with one platform's addon; theirs with what they need.
    async measure(side) {
      const size = side.kind === 'ours' ? await packageSize() : await dependenciesSize()
      return { 'install-size': size / MB }
    }
  }
]

/** One book of `size` bytes: how fast, what it takes of memory (the larger side) and processor (both). */
function largeBook(id, size, runs) {
  return {
    runs,
    rows: [
      { id, unit: 'MB/s', better: 'high' },
      { id: `${id}-rss`, unit: 'MB', better: 'low' },
      { id: `${id}-cpu`, unit: 's', better: 'low' }
    ],
    // From the request, over a connection that stands, to the whole file on disk.
    async measure(side) {
      const path = join(side.directory, 'book.epub')
      await randomFile(path, size)
      // As a book that has lain there for a while: what changed within two seconds is hashed again.
      await new Promise((resolve) => setTimeout(resolve, 2_500))
      const [sender, receiver] = await pair(side)
      const share = await sender.share({ path })
      await receiver.follow({ key: sender.key, share, count: 1 })
      const before = await Promise.all([sender.usage(), receiver.usage()])
      const to = join(side.directory, 'received.epub')
      const ms = await receiver.fetch({ key: sender.key, share, to })
      const after = await Promise.all([sender.usage(), receiver.usage()])
      const received = (await stat(to)).size
      if (received !== size) throw new Error(`received ${received} of ${size} bytes`)
      return {
        [id]: size / MB / (ms / 1000),
        [`${id}-rss`]: Math.max(...after.map((usage) => usage.peakRss)) / MB,
        [`${id}-cpu`]: after.reduce((sum, usage, i) => sum + usage.cpu - before[i].cpu, 0)
      }
    }
  }
}

/** Entries a second that are appended to a new log, `atOnce` at a time. */
async function append(side, { atOnce, survives, count = 100_000 }) {
  const ms =
    side.kind === 'js'
      ? await (await side.start()).append({ count, atOnce })
      : await withPeers((peers) =>
          peers.start('ours').append({ directory: side.directory, blocks: entries(count), atOnce, survives })
        )
  return count / (ms / 1000)
}

/** Two open nodes that admit each other, in a process each: the first offers, the second takes. */
async function pair(side) {
  const { bootstrap } = await side.testnet()
  const first = await side.start()
  const second = await side.start()
  first.key = (await first.open({ bootstrap, name: 'first' })).key
  second.key = (await second.open({ bootstrap, name: 'second' })).key
  await first.admit({ key: second.key })
  return [first, second]
}

async function randomFile(path, size) {
  const file = await open(path, 'w')
  const chunk = Buffer.alloc(Math.min(size, 4 * 1024 * 1024))
  for (let left = size; left > 0; left -= chunk.length) await file.write(randomFillSync(chunk))
  // Or writing it to disk would be measured along with what follows.
  await file.sync()
  await file.close()
}

async function packageSize() {
  const names = (await readdir(root)).filter((name) => name.endsWith('.node'))
  const files = ['package.json', 'README.md', 'index.js', 'index.d.ts', ...names]
  return (await Promise.all(files.map((name) => stat(join(root, name))))).reduce((n, s) => n + s.size, 0)
}

// The packages that do this job in JavaScript, and everything they depend on.
async function dependenciesSize() {
  const waiting = ['hyperswarm', 'corestore', 'hyperdrive', 'protomux']
  const found = new Set()
  let size = 0
  while (waiting.length > 0) {
    const name = waiting.pop()
    if (found.has(name)) continue
    found.add(name)
    const folder = join(root, 'node_modules', name)
    const text = await readFile(join(folder, 'package.json'), 'utf8').catch(() => null)
    if (text === null) continue // an optional one that is not for this platform
    const manifest = JSON.parse(text)
    waiting.push(...Object.keys({ ...manifest.dependencies, ...manifest.optionalDependencies }))
    size += await folderSize(folder)
  }
  return size
}

async function folderSize(folder) {
  let size = 0
  for (const entry of await readdir(folder, { withFileTypes: true, recursive: true })) {
    if (entry.isFile()) size += (await stat(join(entry.parentPath ?? entry.path, entry.name))).size
  }
  return size
}
