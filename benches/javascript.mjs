// The job as npm's packages do it: corestore and hyperswarm for the catalog, hyperdrive for the book.

import { createReadStream, createWriteStream } from 'node:fs'
import { once } from 'node:events'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import Corestore from 'corestore'
import DHT from 'hyperdht'
import createTestnet from 'hyperdht/testnet.js'
import Hyperdrive from 'hyperdrive'
import Hyperswarm from 'hyperswarm'
import Protomux from 'protomux'
import { entries } from './entries.mjs'

export class Worker {
  #directory

  constructor(directory) {
    this.#directory = directory
  }

  async testnet() {
    this.net = await createTestnet(3, { host: '127.0.0.1' })
    return this.net.bootstrap
  }

  async open({ bootstrap, name }) {
    this.store = new Corestore(join(this.#directory, name))
    await this.store.ready()
    const dht = new DHT({ bootstrap, host: '127.0.0.1' })
    this.swarm = new Hyperswarm({ dht })
    this.swarm.on('connection', (connection) => {
      connection.on('error', () => {})
      this.store.replicate(connection)
      // The channel of an application, as alex/p2p is one.
      Protomux.from(connection).createChannel({ protocol: 'bench', onopen: () => this.onchannel?.() })?.open()
    })
    await this.swarm.listen()
    await dht.fullyBootstrapped()
    return { key: this.swarm.keyPair.publicKey.toString('hex') }
  }

  async admit() {} // Hyperswarm admits everybody

  async connect({ key }) {
    const start = performance.now()
    await this.#join(key)
    return performance.now() - start
  }

  async close() {
    this.onchannel = undefined
    await this.swarm.destroy()
    await this.store.close()
  }

  async publish({ count }) {
    const core = this.store.get({ name: 'catalog' })
    await core.ready()
    const blocks = entries(count).map((entry) => Buffer.from(entry))
    for (let at = 0; at < blocks.length; at += 1000) await core.append(blocks.slice(at, at + 1000))
    return core.key.toString('hex')
  }

  /** Appends to a new log, `atOnce` entries at a time; gives the milliseconds. */
  async append({ count, atOnce }) {
    const store = new Corestore(join(this.#directory, 'log'))
    const core = store.get({ name: 'log' })
    await core.ready()
    const blocks = entries(count).map((entry) => Buffer.from(entry))
    const start = performance.now()
    for (let at = 0; at < count; at += atOnce) await core.append(atOnce === 1 ? blocks[at] : blocks.slice(at, at + atOnce))
    const ms = performance.now() - start
    if (core.length !== count) throw new Error(`${core.length} of ${count} entries are there`)
    await store.close()
    return ms
  }

  async sync({ key, share, count }) {
    const start = performance.now()
    const core = this.store.get({ key: Buffer.from(share, 'hex') })
    await core.ready()
    this.swarm.joinPeer(Buffer.from(key, 'hex'))
    // A range without an end is fastest by far: one that ends waits for the length, block by block.
    core.download({ start: 0, end: -1 })
    while (core.contiguousLength < count) await new Promise((resolve) => setTimeout(resolve, 5))
    return performance.now() - start
  }

  async share({ path }) {
    const drive = new Hyperdrive(this.store.namespace('library'))
    await drive.ready()
    await pipeline(createReadStream(path), drive.createWriteStream('/book.epub'))
    return drive.key.toString('hex')
  }

  async shareAll({ paths }) {
    const drive = new Hyperdrive(this.store.namespace('library'))
    await drive.ready()
    for (const [n, path] of paths.entries()) {
      await pipeline(createReadStream(path), drive.createWriteStream(`/book-${n}.epub`))
    }
    return drive.key.toString('hex')
  }

  async follow({ key, share }) {
    this.drive = new Hyperdrive(this.store.namespace('other'), Buffer.from(share, 'hex'))
    await this.drive.ready()
    await this.#join(key)
  }

  async fetch({ to }) {
    const start = performance.now()
    await this.drive.update({ wait: true })
    const file = createWriteStream(to)
    await pipeline(this.drive.createReadStream('/book.epub'), file)
    if (!file.closed) await once(file, 'close')
    return performance.now() - start
  }

  async fetchAll({ to, count }) {
    const start = performance.now()
    await mkdir(to, { recursive: true })
    await this.drive.update({ wait: true })
    const fetch = async (_, n) => {
      const file = createWriteStream(join(to, `book-${n}.epub`))
      await pipeline(this.drive.createReadStream(`/book-${n}.epub`), file)
      if (!file.closed) await once(file, 'close')
    }
    await Promise.all(Array.from({ length: count }, fetch))
    return performance.now() - start
  }

  #join(key) {
    const opened = new Promise((resolve) => {
      this.onchannel = resolve
    })
    this.swarm.joinPeer(Buffer.from(key, 'hex'))
    return opened
  }
}
