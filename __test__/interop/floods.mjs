// Peers that send as much as they can of one kind of message, with npm's stack: for hostile-floods.test.mjs and the
// rows of benches/floods.mjs.
//
// When the server hangs up, the peer connects again at once and continues: what limits a single connection
// does not end a flood.

import { randomBytes } from 'node:crypto'
import c from 'compact-encoding'
import DHT from 'hyperdht'
import crypto from 'hypercore-crypto'
import caps from 'hypercore/lib/caps.js'
import { wire } from 'hypercore/lib/messages.js'
import Protomux from 'protomux'
import z32 from 'z32'

/** Books that the server has to publish; a large one with many blocks, and a small one. */
export const bookIds = { small: 'small', large: 'large' }

const feedKeys = Array.from({ length: 64 }, () => z32.encode(randomBytes(32)))
const filler = 'x'.repeat(60_000)
const bytes = randomBytes(60_000)
const nothing = Buffer.alloc(0)
const rounds = 1 << 20

/**
 * The kinds of flood. `peers` is how many attack at once, `width` how many connections each makes at once (1 unless
 * said); with `stranger` each connection has a key of its own that nobody approved.
 */
export const kinds = {
  // alex/p2p
  hellos: { run: (peer) => peer.reopen((n) => hello(n)) },
  'hellos-blind': {
    run: (peer) => peer.repeat((n) => (peer.write(open(1, 'alex/p2p', null, json(hello(n)))), peer.write(close(1))))
  },
  'hellos-large': {
    run: (peer) => peer.repeat((n) => peer.write(open(1 + n % 4, 'alex/p2p', null, json({ ...hello(n), filler }))), 4)
  },
  'cancels-unknown': { run: (peer) => peer.speak((alex, n) => alex.cancel(`c${n}`)) },
  'dones-unknown': { run: (peer) => peer.speak((alex, n) => alex.done(`d${n}`)) },
  'requests-unknown': { run: (peer) => peer.speak((alex, n) => alex.request(`u${n}`, 'nope')) },
  'requests-unknown-8': { peers: 8, run: (peer) => kinds['requests-unknown'].run(peer) },
  'requests-unknown-large': {
    run: (peer) => peer.speak((alex, n) => alex.request(`u${n}`.padEnd(64, '.'), 'n'.repeat(500)))
  },
  'pairs-unknown': {
    run: (peer) => peer.speak((alex, n) => (alex.request(`p${n}`, 'nope'), alex.cancel(`p${n}`)))
  },
  'pairs-known': {
    run: (peer) => peer.speak((alex, n) => (alex.request(`q${n}`, bookIds.small), alex.cancel(`q${n}`)))
  },
  'request-same': { run: (peer) => peer.speak((alex) => alex.request('same', bookIds.small)) },
  'requests-done': {
    run: (peer) => peer.speak((alex, n) => (alex.request(`r${n}`, bookIds.small), alex.done(`r${n}`)))
  },
  'requests-known': { run: (peer) => peer.speak((alex, n) => alex.request(`k${n}`, bookIds.large)) },
  'requests-known-8': { peers: 8, run: (peer) => kinds['pairs-known'].run(peer) },
  'replies-unasked': {
    run: (peer) => peer.speak((alex, n) => alex.reply({ id: `a${n}`, status: 'denied', reason: 'no' }))
  },
  'kinds-unknown': { run: (peer) => peer.speak((alex, n) => alex.raw(5 + (n % 100), bytes), 8) },
  nonsense: { run: (peer) => peer.speak((alex, n) => alex.raw(n % 4, Buffer.from('['.repeat(60_000))), 8) },
  'unread-replies': {
    run: (peer) => (peer.stopReading(), peer.speak((alex, n) => alex.request(`u${n}`, 'nope')))
  },

  // protomux
  'opens-unknown': { run: (peer) => peer.repeat((n) => peer.write(open(n + 1, `unknown/${n}`, null, nothing))) },
  'opens-cores': {
    run: (peer) => peer.repeat((n) => peer.write(open(n + 1, 'hypercore/alpha', randomBytes(32), capability())))
  },
  'opens-large': {
    run: (peer) => peer.repeat((n) => peer.write(open(n + 1, `unknown/${n}`, null, bytes)), 8)
  },
  'opens-closes': {
    run: (peer) => peer.repeat((n) => (peer.write(open(1, `unknown/${n}`, null, nothing)), peer.write(close(1))))
  },
  'opens-messages': {
    run: (peer) =>
      peer.repeat((n) => (peer.write(open(n + 1, `unknown/${n}`, null, nothing)), peer.write(message(n + 1, 0, bytes))), 8)
  },
  strays: { run: (peer) => peer.repeat((n) => peer.write(message(100 + (n % 1000), 0, bytes.subarray(0, 100)))) },
  'batches-empty': { run: (peer) => peer.repeat(() => peer.write(message(0, 0))) },
  'batches-of-nothing': {
    run: (peer) => peer.repeat(() => peer.write(message(0, 0, 1, Buffer.alloc(500_000))), 4)
  },
  'keep-alives': { run: (peer) => peer.repeat(() => peer.write(nothing)) },
  'frames-large': { run: (peer) => peer.repeat(() => peer.write(message(0, 0, 1, largest())), 1) },
  'frames-large-8': { peers: 8, run: (peer) => kinds['frames-large'].run(peer) },
  'frames-unfinished-8': { peers: 8, run: (peer) => peer.writeUnfinished() },

  // hypercore/alpha, the server's own feed
  'feed-syncs': {
    run: (peer) =>
      peer.replicate('feed', (core, n) =>
        core.sync({ fork: 0, length: n % rounds, remoteLength: n % 7, canUpgrade: true, uploading: true, downloading: n % 2 > 0, hasManifest: true })
      )
  },
  'feed-same-block': { run: (peer) => peer.replicate('feed', (core, n) => core.request({ id: n + 1, ...block(7) })) },
  'feed-same-block-unread': {
    run: (peer) => peer.replicate('feed', (core, n) => core.request({ id: n + 1, ...block(7) }), { reads: false })
  },
  'feed-requests-cancels': {
    run: (peer) =>
      peer.replicate('feed', (core, n) => (core.request({ id: n + 1, ...block(n % 1000) }), core.cancel({ request: n + 1 })))
  },
  'feed-wants': {
    run: (peer) => peer.replicate('feed', (core, n) => core.want({ start: (n % rounds) * 64, length: rounds }))
  },
  'feed-wants-unwants': {
    run: (peer) =>
      peer.replicate('feed', (core, n) => {
        core.want({ start: n % 1000, length: rounds })
        core.unwant({ start: n % 1000, length: rounds })
      })
  },
  'feed-ranges': {
    run: (peer) =>
      peer.replicate('feed', (core, n) => core.range({ drop: n % 3 === 0, start: 5 + n * 98_304, length: 65_536 }))
  },
  'feed-bitfields': {
    run: (peer) =>
      peer.replicate('feed', (core, n) => core.bitfield({ start: n * 32_768, bitfield: new Uint32Array(1024).fill(n) }), { each: 8 })
  },
  'feed-bitfields-8': { peers: 8, run: (peer) => kinds['feed-bitfields'].run(peer) },
  'feed-extensions': {
    run: (peer) => peer.replicate('feed', (core, n) => core.extension({ name: `x${n}`, message: bytes }), { each: 8 })
  },
  'feed-seeks': {
    run: (peer) =>
      peer.replicate('feed', (core, n) =>
        core.request({ id: n + 1, fork: 0, seek: { bytes: n % 500_000, padding: 0 }, hash: { index: 0, nodes: 0 } })
      )
  },
  'feed-upgrades': {
    run: (peer) =>
      peer.replicate('feed', (core, n) =>
        core.request({ id: n + 1, fork: 0, upgrade: { start: 0, length: peer.target.feedLength }, manifest: true })
      )
  },
  'feed-hashes': {
    run: (peer) => peer.replicate('feed', (core, n) => core.request({ id: n + 1, fork: 0, hash: { index: 2 * (n % 1000), nodes: 0 } }))
  },
  'feed-reopened': { run: (peer) => peer.replicateAgain('feed') },

  // hypercore/alpha, a book that was granted
  'book-blocks': { run: (peer) => peer.replicate('book', (core, n) => core.request({ id: n + 1, ...block(n % 1500) })) },
  'book-blocks-unread': {
    run: (peer) => peer.replicate('book', (core, n) => core.request({ id: n + 1, ...block(n % 1500) }), { reads: false })
  },
  'book-blocks-unread-8': { peers: 8, run: (peer) => kinds['book-blocks-unread'].run(peer) },
  'book-blocks-8': { peers: 8, run: (peer) => kinds['book-blocks'].run(peer) },
  // As many requests as are allowed, and no reader.
  'book-blocks-held-8': {
    peers: 8,
    async run(peer) {
      await peer.grant()
      const core = peer.core('book')
      peer.stopReading()
      for (let n = 0; n < 2000; n++) core.request({ id: n + 1, ...block(n % 1500) })
      await peer.closed
    }
  },
  'book-requests-cancels': {
    run: (peer) =>
      peer.replicate('book', (core, n) => (core.request({ id: n + 1, ...block(n % 1500) }), core.cancel({ request: n + 1 })))
  },

  // Connections
  everything: {
    async run(peer) {
      peer.stopReading()
      const alex = peer.alex()
      const feed = peer.core('feed')
      await peer.repeat((n) => {
        alex.request(`e${n}`, bookIds.small)
        alex.cancel(`e${n}`)
        feed.request({ id: n + 1, ...block(n % 1000) })
        feed.want({ start: n % 1000, length: rounds })
        peer.write(open(n + 10, `unknown/${n}`, null, nothing))
      }, 40)
    }
  },
  reconnects: { run: (peer) => peer.socket.destroy() },
  'reconnects-hello': {
    run: async (peer) => {
      const alex = peer.alex()
      await peer.either(alex.channel.fullyOpened())
      peer.socket.destroy()
    }
  },
  'reconnects-8': { peers: 8, run: (peer) => kinds['reconnects-hello'].run(peer) },
  'handshakes-unused': { width: 16, halfOpen: true },
  knocks: { width: 16, halfOpen: true, stranger: true }
}

/** Many peers in one process, for as long as [`Floods.stop`] is not called. */
export class Floods {
  #dht
  #running = []
  #stopped = false

  /** `target` is `{ key, feedKey, feedLength }` of the server, as z32 words. */
  constructor(bootstrap, target) {
    const [host, port] = bootstrap[0].split(':')
    this.#dht = new DHT({
      bootstrap: [{ host, port: Number(port) }],
      host: '127.0.0.1',
      connectionKeepAlive: false // what a peer says, it says here
    })
    this.target = { ...target }
  }

  /** What an honest peer does first: connects, says hello, gets a book granted, and reads a block of each core. */
  async visit(keyPair) {
    const peer = await this.#connect(keyPair)
    if (!peer) throw new Error('no connection')
    const alex = peer.alex()
    for (const id of Object.values(bookIds)) {
      alex.request(id, id)
      const reply = await peer.either(alex.reply((reply) => reply.id === id && reply.status === 'granted'))
      if (!reply) throw new Error(`the server hung up before it granted ${id}`)
      if (id === bookIds.large) this.target.bookKey = reply.key
    }
    for (const which of ['feed', 'book']) {
      const core = peer.core(which)
      core.request({ id: 1, ...block(0) })
      if (!(await peer.either(core.answer))) throw new Error(`no block of the ${which}`)
    }
    alex.done(bookIds.small)
    return peer
  }

  /** Floods with one kind from every key, each on a connection of its own. */
  start(kind, keyPairs) {
    this.counts = { messages: 0, connections: 0, refused: 0 }
    this.lastEnd = new Map()
    const { width = 1, stranger, halfOpen } = kinds[kind]
    for (const keyPair of keyPairs) {
      for (let n = 0; n < width; n++) {
        const key = () => (stranger ? DHT.keyPair() : keyPair)
        this.#running.push(halfOpen ? this.#halfOpen(key) : this.#flood(kind, key))
      }
    }
  }

  /** Ends all floods and connections. */
  async stop() {
    this.#stopped = true
    for (const socket of this.#sockets) socket.destroy()
    await Promise.all(this.#running.splice(0))
    this.#stopped = false
    return this.counts
  }

  async end() {
    await this.stop()
    await this.#dht.destroy()
  }

  #sockets = new Set()

  async #flood(kind, key) {
    while (!this.#stopped) {
      const peer = await this.#connect(key())
      if (!peer) {
        this.counts.refused++
        await turn()
        continue
      }
      this.counts.connections++
      try {
        await kinds[kind].run(peer)
      } catch (error) {
        // What was begun while the connection ended.
        if (peer.isOpen) throw error
      }
      await peer.closed
      this.lastEnd.set(z32.encode(peer.socket.publicKey), Date.now())
    }
  }

  /** Begins connections and leaves them before they are used. */
  async #halfOpen(key) {
    while (!this.#stopped) {
      const socket = this.#socket(key())
      const gone = new Promise((resolve) => socket.once('close', resolve))
      const opened = new Promise((resolve) => socket.once('connect', resolve))
      await Promise.race([opened, gone, turn(100)])
      this.counts.connections++
      socket.destroy()
      await gone
    }
  }

  #socket(keyPair) {
    const socket = this.#dht.connect(z32.decode(this.target.key), { keyPair })
    socket.on('error', () => {})
    this.#sockets.add(socket)
    socket.once('close', () => this.#sockets.delete(socket))
    return socket
  }

  async #connect(keyPair) {
    const socket = this.#socket(keyPair)
    const closed = new Promise((resolve) => socket.once('close', resolve))
    const isOpen = await Promise.race([
      new Promise((resolve) => socket.once('open', () => resolve(true))),
      closed.then(() => false)
    ])
    return isOpen ? new Flooder(this, socket, closed) : null
  }
}

/** One connection of one peer. */
class Flooder {
  #floods

  constructor(floods, socket, closed) {
    this.#floods = floods
    this.socket = socket
    this.closed = closed
    this.mux = Protomux.from(socket)
    // More listeners than one for the end are no leak here.
    socket.setMaxListeners(0)
  }

  get target() {
    return this.#floods.target
  }

  get isOpen() {
    return !this.socket.destroying
  }

  /** What comes of `work`, or nothing when the connection ends before. */
  either(work) {
    return Promise.race([work, this.closed.then(() => undefined)])
  }

  /** Calls `step` again and again, as fast as the connection takes it. */
  async repeat(step, each = 200) {
    for (let n = 0; this.isOpen; ) {
      for (let i = 0; i < each && this.isOpen; i++) step(n++)
      if (this.#floods.counts) this.#floods.counts.messages += each
      if (!this.mux.drained) await this.#drained()
      await turn()
    }
  }

  /** Writes a protomux message as it is. */
  write(bytes) {
    this.mux.drained = this.socket.write(bytes)
  }

  /** Announces a message of 16 MB, sends all but its end, and waits. */
  async writeUnfinished() {
    const raw = this.socket.rawStream
    raw.write(Buffer.from([0xff, 0xff, 0xff]))
    for (let sent = 0; sent < 0xffff00 && this.isOpen; sent += bytes.length) {
      if (!raw.write(bytes)) await this.either(new Promise((resolve) => raw.once('drain', resolve)))
    }
    await this.closed
  }

  stopReading() {
    this.socket.pause()
    this.mux.stream.on('data', () => this.socket.pause())
  }

  /** The channel `alex/p2p`. */
  alex(words = hello(0)) {
    const waiting = []
    const channel = this.mux.createChannel({
      protocol: 'alex/p2p',
      handshake: c.raw.json,
      messages: [
        { encoding: c.raw },
        {
          encoding: c.raw.json,
          onmessage: (reply) => {
            for (const { matches, resolve } of waiting) if (matches(reply)) resolve(reply)
          }
        },
        { encoding: c.raw },
        { encoding: c.raw }
      ]
    })
    if (!channel) throw new Error('alex/p2p cannot be opened')
    channel.open(words)
    const raw = (kind, data) => {
      while (channel.messages.length <= kind) channel.addMessage({ encoding: c.raw })
      channel.messages[kind].send(data)
    }
    return {
      channel,
      raw,
      request: (id, bookId) => raw(0, json({ id, bookId })),
      reply: (reply) =>
        typeof reply === 'function'
          ? new Promise((resolve) => waiting.push({ matches: reply, resolve }))
          : raw(1, json(reply)),
      cancel: (id) => raw(2, json({ id })),
      done: (id) => raw(3, json({ id }))
    }
  }

  /** Repeats something on `alex/p2p`. */
  async speak(step, each) {
    const alex = this.alex()
    await this.repeat((n) => step(alex, n), each)
  }

  /** Opens and closes `alex/p2p` again and again, when the server has opened it too. */
  async reopen(words) {
    for (let n = 0; this.isOpen; n++) {
      const { channel } = this.alex(words(n))
      await this.either(Promise.race([channel.fullyOpened(), turn(200)]))
      channel.close()
      this.#floods.counts.messages++
      await turn()
    }
  }

  /** Gets the large book granted. */
  async grant() {
    const alex = this.alex()
    alex.request(bookIds.large, bookIds.large)
    await this.either(alex.reply((reply) => reply.id === bookIds.large && reply.status === 'granted'))
  }

  /** A channel of the server's feed or of the book that was granted. */
  core(which) {
    const key = z32.decode(which === 'feed' ? this.target.feedKey : this.target.bookKey)
    let resolve
    const answer = new Promise((settle) => (resolve = settle))
    const names = ['sync', 'request', 'cancel', 'data', 'noData', 'want', 'unwant', 'bitfield', 'range', 'extension']
    const channel = this.mux.createChannel({
      protocol: 'hypercore/alpha',
      id: crypto.discoveryKey(key),
      handshake: wire.handshake,
      messages: names.map((name) => {
        const decode = { ...wire[name], decode: (state) => ((state.start = state.end), true) }
        return { encoding: decode, onmessage: name === 'data' ? resolve : () => {} }
      })
    })
    if (!channel) throw new Error(`the ${which} cannot be opened`)
    channel.open({ seeks: true, capability: caps.replicate(this.socket.isInitiator, key, this.socket.handshakeHash) })
    channel.messages[0].send({ fork: 0, length: 0, remoteLength: 0, canUpgrade: true, uploading: true, downloading: true, hasManifest: false })
    return {
      channel,
      answer,
      ...Object.fromEntries(names.map((name, kind) => [name, (value) => channel.messages[kind].send(value)]))
    }
  }

  /** Repeats something about a core. */
  async replicate(which, step, { reads = true, each } = {}) {
    if (which === 'book') await this.grant()
    const core = this.core(which)
    if (!reads) this.stopReading()
    await this.repeat((n) => step(core, n), each)
  }

  /** Opens and closes a core's channel again and again. */
  async replicateAgain(which) {
    while (this.isOpen) {
      const { channel } = this.core(which)
      await this.either(Promise.race([channel.fullyOpened(), turn(200)]))
      channel.close()
      this.#floods.counts.messages++
      await turn()
    }
  }

  async #drained() {
    await this.either(new Promise((resolve) => this.socket.once('drain', resolve)))
  }
}

function hello(n) {
  return { version: 1, nickname: `evil ${n}`, features: [], ...(n > 0 && { feedKey: feedKeys[n % feedKeys.length] }) }
}

function block(index) {
  return { fork: 0, block: { index, nodes: 0 } }
}

function capability() {
  return c.encode(wire.handshake, { seeks: true, capability: bytes.subarray(0, 32) })
}

let large
function largest() {
  return (large ??= Buffer.alloc(16_700_000))
}

function json(value) {
  return Buffer.from(JSON.stringify(value))
}

/** A protomux message made of numbers and buffers. */
export function message(...parts) {
  const state = c.state()
  for (const part of parts) (typeof part === 'number' ? c.uint : c.raw).preencode(state, part)
  state.buffer = Buffer.alloc(state.end)
  for (const part of parts) (typeof part === 'number' ? c.uint : c.raw).encode(state, part)
  return state.buffer
}

function open(id, protocol, coreId, handshake) {
  const prefixed = (bytes) => [bytes.length, bytes]
  return message(0, 1, id, ...prefixed(Buffer.from(protocol)), ...(coreId ? prefixed(coreId) : [0]), handshake)
}

function close(id) {
  return message(0, 3, id)
}

function turn(ms) {
  return new Promise((resolve) => (ms ? setTimeout(resolve, ms).unref() : setImmediate(resolve)))
}
