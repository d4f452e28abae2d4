// Random programs over one log, run by npm hypercore and by ours in the same state: after every step the
// logs that are written must be equal in length, fork, tree hash, signature and blocks; and whenever a
// program says so, each side's copy of the other's log must become equal, too.
//
// A program is a list of steps whose numbers are fractions of what is there, so that it still makes sense
// when steps are left out: that is how a failing program is made short.

import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import b4a from 'b4a'
import Corestore from 'corestore'
import crypto from 'hypercore-crypto'
import NoiseStream from '@hyperswarm/secret-stream'
import sodium from 'sodium-universal'

import { Program, interopProgram, until, within } from './support.mjs'

const hex = (bytes) => (bytes ? b4a.toString(bytes, 'hex') : null)

/** A generator of numbers from 0 to 1 that is the same every time (mulberry32). */
function random(seed) {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

const kinds = [
  ['append', 5],
  ['batch', 4],
  ['truncate', 4],
  ['clear', 1],
  ['disconnect', 1],
  ['connect', 2],
  ['reopen', 1],
  ['reopenReader', 1],
  ['sync', 2]
]

/** The program of a seed. */
export function programOf(seed) {
  const next = random(seed)
  const all = kinds.flatMap(([kind, weight]) => Array(weight).fill(kind))
  const step = () => ({
    kind: all[Math.floor(next() * all.length)],
    a: next(),
    b: next(),
    c: next(),
    side: next() < 0.5 ? 'writer' : 'reader'
  })
  return Array.from({ length: 4 + Math.floor(next() * 14) }, step)
}

/** One side's corestore, which is connected to ours or not. */
class Store {
  constructor(dir, port) {
    this.dir = dir
    this.port = port
    this.store = new Corestore(dir)
    this.stream = null
    this.connects = 0
    this.core = null
  }

  async start(options) {
    this.options = options
    this.core = this.store.get(options)
    await this.core.ready()
  }

  async connect() {
    if (this.stream) return
    const socket = net.connect(this.port, '127.0.0.1')
    socket.setNoDelay(true)
    const stream = new NoiseStream(true, socket)
    stream.on('error', () => {})
    stream.once('close', () => {
      if (this.stream === stream) this.stream = null
    })
    this.store.replicate(stream)
    this.stream = stream
    this.connects++
    await within(stream.opened, 'the secret stream')
  }

  async disconnect() {
    const stream = this.stream
    if (!stream) return
    const closed = new Promise((resolve) => stream.once('close', resolve))
    stream.destroy()
    await within(closed, 'the end of a connection')
  }

  /** Closes the log; `whole` also closes the database that it is in. */
  async reopen(whole) {
    await this.core.close()
    if (whole) {
      await this.disconnect()
      await this.store.close()
      this.store = new Corestore(this.dir)
    }
    await this.start(this.options)
  }

  async close() {
    await this.disconnect()
    await this.store.close()
  }
}

/** Everything that programs run on: our program, and two corestores of npm's. */
export class Bench {
  static async open() {
    const bench = new Bench()
    bench.dir = await mkdtemp(join(tmpdir(), 'alex-p2p-differential-'))
    bench.ours = new Program(interopProgram(), ['differential', bench.dir])
    const { writer, reader } = await bench.ours.next('listening')
    /** How often npm's reader had to be connected anew. */
    bench.paused = 0
    /** How many cuts were left out because npm could not make them. */
    bench.uncut = 0
    /** How often our reader was not asked for, because npm's writer had lost hashes. */
    bench.torn = 0
    /** How often npm's reader could not follow a fork behind cleared blocks. */
    bench.blind = 0
    // npm's reader gets what we write, and our reader what npm writes
    bench.writer = new Store(join(bench.dir, 'writer'), reader)
    bench.reader = new Store(join(bench.dir, 'reader'), writer)
    return bench
  }

  async close() {
    await Promise.allSettled([this.writer.close(), this.reader.close()])
    await this.ours.end()
    await rm(this.dir, { recursive: true, force: true, maxRetries: 5 })
  }

  async call(command, fields = {}) {
    this.ours.send({ command, ...fields })
    const answer = await this.ours.next((line) => ['state', 'done', 'failed'].includes(line.event))
    if (answer.event === 'failed') throw new Error(`${command}: ${answer.error}`)
    return answer
  }

  /**
   * Runs a program. A failure has `step`, the number of the step that failed; then this bench is to be
   * closed.
   */
  async run(program, seed) {
    let at = -1
    try {
      const pair = crypto.keyPair(b4a.from(seed.padStart(64, '0'), 'hex'))
      await this.writer.start({ keyPair: pair })
      await this.reader.start({ key: this.writer.core.key })
      const ours = await this.call('start', { seed: seed.padStart(64, '0') })
      assert.equal(ours.key, hex(this.writer.core.key))
      for (const step of program) {
        at++
        await this.step(step)
      }
      at = program.length
      await this.sync()
      await this.writer.core.close()
      await this.reader.core.close()
      await this.call('end')
    } catch (error) {
      error.step = at
      throw error
    }
  }

  async step({ kind, a, b, c, side }) {
    const core = this.writer.core
    const block = (i) => Buffer.alloc(Math.floor(((c * (i + 7)) % 1) * (a > 0.95 ? 20_000 : 120)), `${b}${i}`)
    switch (kind) {
      case 'append':
      case 'batch': {
        const count = 1 + Math.floor(a * (kind === 'append' ? 4 : 25))
        const blocks = Array.from({ length: count }, (_, i) => block(i))
        const batches = kind === 'batch' ? [blocks] : blocks.map((block) => [block])
        for (const blocks of batches) {
          await core.append(blocks)
          await this.call('append', { blocks: blocks.map(hex), survives: b < 0.5 ? 'process' : 'power' })
        }
        break
      }
      case 'truncate': {
        // mostly near the end
        const length = Math.floor(core.length * (a < 0.6 ? 1 - b * b * b : b))
        const fork = c > 0.9 ? core.fork + 1 + Math.floor(c * 1000) : core.fork + 1
        try {
          await core.truncate(length, fork)
        } catch (error) {
          // The hash of a root that the shorter log would have is not there any more.
          if (await isWhole(core)) throw error
          this.uncut++
          return
        }
        await this.call('truncate', { length, fork })
        break
      }
      case 'clear': {
        if (core.length === 0) return
        const start = Math.floor(core.length * a)
        const end = Math.min(core.length, start + 1 + Math.floor(b * 5))
        await core.clear(start, end)
        await this.call('clear', { start, end })
        break
      }
      case 'disconnect':
        if (a < 0.5) await this[side].disconnect()
        else if (this[side].stream) {
          const closed = new Promise((resolve) => this[side].stream.once('close', resolve))
          await this.call('disconnect', { reader: side === 'writer', count: this[side].connects })
          await within(closed, 'the end of a connection that we have ended')
        }
        return
      case 'connect':
        return this[side].connect()
      case 'reopen':
        await this.writer.reopen(a < 0.3)
        await this.call('reopen')
        break
      case 'reopenReader':
        await this.reader.reopen(a < 0.3)
        await this.call('reopen-reader')
        return
      case 'sync':
        return this.sync()
    }
    assert.deepEqual(await this.call('state'), await stateOf(this.writer.core))
  }

  /** Both copies become equal to what is written. */
  async sync() {
    await this.writer.connect()
    await this.reader.connect()
    const written = await stateOf(this.writer.core)
    const { fork, length, blocks } = written
    assert.deepEqual(await this.call('state'), written)
    // Nobody is told of a cut to nothing, by npm or by us, before something is written again.
    if (length === 0) return
    if (await isWhole(this.writer.core)) {
      assert.deepEqual(await this.call('synced', { fork, length, blocks }), written)
    } else {
      this.torn++
    }
    if (await this.followed(written)) assert.deepEqual(await stateOf(this.reader.core, blocks), written)
  }

  /** Waits until npm's reader has what we have written. False when that cannot be. */
  async followed({ fork, length, blocks }) {
    const theirs = this.reader.core
    const isThere = () => theirs.fork === fork && theirs.length === length
    // Where a fork leaves its own log, it finds by the hashes above blocks that the peer has. Where all that
    // it would ask for were cleared, it stays, though the peer has the hashes (clear.test.mjs). Which these
    // are depends on the block it picked before, by chance.
    const isBlind = () => {
      const want = theirs.core.replicator._reorgs.find((reorg) => reorg.fork === fork)?.batch?.want
      return want && !blocks.some((index) => index >= want.start && index < want.end)
    }
    const ended = () => isThere() || isBlind()
    // When a log is cut twice within moments, npm's reader may ask for one fork twice; the second proof comes
    // when it has followed, is taken for an upgrade, and pauses the peer for ever (`_handleData` in its
    // replicator). Only a new connection helps, between two of npm's as well.
    const anew = async () => {
      this.paused++
      await this.reader.disconnect()
      await this.reader.connect()
    }
    const inTime = await until(ended, '', 4_000).catch(() => null)
    if (inTime === null) await anew()
    const where = () => `npm's reader at fork ${fork}, length ${length}; it is at ${theirs.fork}, ${theirs.length}`
    await until(ended, { toString: where }, 20_000)
    if (!isThere()) {
      this.blind++
      return false
    }
    // It may have paused the peer just when it had followed.
    const isPaused = () => theirs.core.replicator.peers.some((peer) => peer.paused)
    for (const index of blocks) {
      if (await theirs.has(index)) continue
      const block = theirs.get(index)
      const late = await within(block, '', 4_000).then(() => false, () => true)
      if (late && isPaused()) await anew()
      await within(block, `block ${index}`, 20_000)
    }
    return true
  }
}

/**
 * Whether npm has all hashes of a log. Its `clear` drops those of blocks that stay, too (`clear` in its
 * session-state.js takes a sibling on the left for cleared). With them gone it hangs up on whoever asks for
 * those blocks, and cannot cut the log where they are roots (clear.test.mjs): nobody gets far with it then.
 */
async function isWhole(core) {
  const reader = core.state.storage.read()
  const nodes = []
  for (let size = 1; size <= core.length; size *= 2) {
    for (let start = 0; start + size <= core.length; start += size) {
      nodes.push(reader.getTreeNode(2 * start + size - 1))
    }
  }
  reader.tryFlush()
  return (await Promise.all(nodes)).every((node) => node !== null)
}

/** What our program says of a log, of one of npm's; with those of its blocks that are among `only`. */
async function stateOf(core, only) {
  const blocks = []
  const bytes = []
  for (let index = 0; index < core.length; index++) {
    if (!(await core.has(index)) || (only && !only.includes(index))) continue
    blocks.push(index)
    bytes.push(await core.get(index, { wait: false }))
  }
  const digest = b4a.alloc(32)
  sodium.crypto_generichash(digest, b4a.concat(bytes), b4a.alloc(32))
  return {
    event: 'state',
    key: hex(core.key),
    length: core.length,
    byteLength: core.byteLength,
    fork: core.fork,
    treeHash: hex(crypto.tree(core.state.roots)),
    signature: hex(core.state.signature),
    blocks,
    digest: hex(digest)
  }
}

/** The shortest program that was found to fail as `program` does, with its failure. */
export async function shorten(program, failure, seed) {
  let shortest = { program: program.slice(0, failure.step + 1), failure }
  let attempt = 0
  for (let again = true; again; ) {
    again = false
    for (let at = shortest.program.length - 1; at >= 0; at--) {
      const fewer = shortest.program.toSpliced(at, 1)
      const bench = await Bench.open()
      try {
        await bench.run(fewer, `${seed}ff${++attempt}`.replace(/[^0-9a-f]/g, '').slice(0, 60).padEnd(60, '0'))
      } catch (failure) {
        shortest = { program: fewer, failure }
        again = true
      } finally {
        await bench.close()
      }
      if (attempt > 200) return shortest
    }
  }
  return shortest
}
