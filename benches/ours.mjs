// The job as this library does it.

import { createRequire } from 'node:module'
import { join } from 'node:path'
import { books, searches, variedBooks } from './entries.mjs'

const { P2PNode, Testnet } = createRequire(import.meta.url)('../index.js')
const patience = () => ({ signal: AbortSignal.timeout(15 * 60_000) })

export class Worker {
  #directory

  constructor(directory) {
    this.#directory = directory
  }

  async testnet() {
    this.net = await Testnet.start(3)
    return this.net.bootstrap
  }

  async open({ bootstrap, name, dataDir = join(this.#directory, name) }) {
    this.node = await P2PNode.open({
      dataDir,
      bootstrap,
      host: '127.0.0.1',
      port: 0,
      policy: 'auto-accept'
    })
    while (!this.node.status().layers[0].works) await new Promise((resolve) => setTimeout(resolve, 5))
    return { key: this.node.identity.publicKey }
  }

  async admit({ key }) {
    await this.node.peers.add(key)
  }

  async connect({ key }) {
    const start = performance.now()
    await this.#join(key)
    return performance.now() - start
  }

  async close() {
    await this.node.close()
  }

  /** Publishes books of ids and paths; gives the feed. */
  async offer({ sources }) {
    const book = ([id, source]) => ({ id, title: `The book ${id}`, format: 'epub', source })
    await this.node.catalog.publish(Object.entries(sources).map(book))
    return { feedKey: this.node.catalog.key, feedLength: this.node.catalog.length }
  }

  /** Blocks a peer; how long until the call returned, and until its connection was gone here (ms). */
  async block({ key }) {
    const isOnline = async () => (await this.node.peers.get(key))?.isOnline ?? false
    const wasOnline = await isOnline()
    const at = Date.now()
    const start = performance.now()
    await this.node.peers.block(key)
    const returned = performance.now() - start
    while (await isOnline()) await new Promise((resolve) => setTimeout(resolve, 1))
    return { at, returned, gone: performance.now() - start, wasOnline }
  }

  async publish({ count }) {
    for (let at = 0; at < count; at += 1000) await this.node.catalog.publish(books(Math.min(1000, count - at), at))
    return this.node.catalog.key
  }

  /** Opens many nodes with books of their own, and lets `key` follow them. */
  async crowd({ bootstrap, nodes, count, key }) {
    const keys = []
    for (let n = 0; n < nodes; n++) {
      keys.push((await this.open({ bootstrap, name: `node-${n}` })).key)
      await this.admit({ key })
      for (let at = 0; at < count; at += 1000) await this.node.catalog.publish(books(1000, n * count + at))
    }
    return keys
  }

  /** Follows all of these servers until their catalogs are here. */
  async hold({ keys, count }) {
    for (const key of keys) await this.node.peers.add(key)
    const isWhole = async (key) => (await this.node.catalog.of(key).status())?.books === count
    for (const key of keys) while (!(await isWhole(key))) await new Promise((resolve) => setTimeout(resolve, 20))
  }

  async sync({ key, count }) {
    const start = performance.now()
    const events = this.node.events(patience())
    await this.node.peers.add(key)
    for await (const event of events) {
      if (event.type !== 'catalog-updated' && event.type !== 'gap') continue
      if ((await this.node.catalog.of(key).status())?.books === count) break
    }
    return performance.now() - start
  }

  async syncUnchanged({ count }) {
    const list = books(count)
    const { length } = this.node.catalog
    const start = performance.now()
    await this.node.catalog.sync(list)
    const ms = performance.now() - start
    if (this.node.catalog.length !== length) throw new Error('it appended something')
    return ms
  }

  async fill({ count }) {
    const book = variedBooks()
    await this.#open()
    for (let at = 0; at < count; at += 5000) {
      const some = Array.from({ length: Math.min(5000, count - at) }, (_, n) => book(at + n))
      await this.node.catalog.publish(some)
    }
  }

  async reopen() {
    await this.node.close()
    const start = performance.now()
    await this.#open()
    await this.node.catalog.list()
    return performance.now() - start
  }

  async searches() {
    const times = []
    for (let round = 0; round < 5; round++) {
      for (const options of searches()) {
        const start = performance.now()
        await this.node.catalog.search(options)
        times.push(performance.now() - start)
      }
    }
    return times.toSorted((a, b) => a - b)[Math.floor(times.length * 0.99)]
  }

  /** A node on its own. */
  async #open() {
    const dataDir = join(this.#directory, 'alone')
    this.node = await P2PNode.open({ dataDir, bootstrap: [], host: '127.0.0.1', port: 0 })
  }

  async share({ path }) {
    await this.node.catalog.publish([{ id: 'book', title: 'A large book', format: 'epub', source: path }])
    return 'book'
  }

  async shareAll({ paths }) {
    const book = (source, n) => ({ id: `book-${n}`, title: `Book ${n}`, format: 'epub', source })
    await this.node.catalog.publish(paths.map(book))
  }

  async follow({ key, count }) {
    await this.#join(key)
    const catalog = this.node.catalog.of(key)
    while ((await catalog.status())?.books !== count) await new Promise((resolve) => setTimeout(resolve, 5))
  }

  async fetch({ key, share, to }) {
    const start = performance.now()
    const transfer = await this.node.transfers.request({ peer: key, bookId: share, saveTo: to })
    await transfer.done(patience())
    return performance.now() - start
  }

  async fetchAll({ key, to, count }) {
    const start = performance.now()
    const fetch = async (_, n) => {
      const transfer = await this.node.transfers.request({ peer: key, bookId: `book-${n}`, saveTo: `${to}/` })
      await transfer.done(patience())
    }
    await Promise.all(Array.from({ length: count }, fetch))
    return performance.now() - start
  }

  async #join(key) {
    const events = this.node.events(patience())
    await this.node.peers.add(key)
    for await (const event of events) if (event.type === 'peer-online' && event.peer === key) break
  }
}
