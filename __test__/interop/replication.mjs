// What tests of replication need: our `interop replicate` with an answer for every command, corestores,
// connections between both, and digests of whole logs.

import net from 'node:net'

import b4a from 'b4a'
import Corestore from 'corestore'
import NoiseStream from '@hyperswarm/secret-stream'
import sodium from 'sodium-universal'

import { startInterop, temporaryDirectory, until, within } from './support.mjs'

/** Our program, listening. */
export async function ours(t) {
  const program = startInterop(t, ['replicate'])
  const { port } = await program.next('listening')
  const command = (command, fields = {}) => program.send({ command, ...fields })
  return {
    program,
    port,
    async core(how, name, fields = {}) {
      command(how, { name, ...fields })
      return program.next((line) => line.event === 'core' && line.name === name)
    },
    async append(name, count, fields = {}) {
      command('append', { name, count, ...fields })
      return program.next((line) => line.event === 'appended' && line.name === name)
    },
    async truncate(name, length) {
      command('truncate', { name, length })
      return program.next((line) => line.event === 'truncated' && line.name === name)
    },
    async forked(name, fork, length) {
      command('wait-fork', { name, fork, length })
      return program.next((line) => line.event === 'forked' && line.name === name)
    },
    async synced(name, length) {
      command('wait', { name, length })
      return program.next((line) => line.event === 'synced' && line.name === name)
    },
    async digest(name) {
      command('digest', { name })
      return program.next((line) => line.event === 'digest' && line.name === name)
    },
    command
  }
}

/** A corestore on disk that ends with the test. */
export async function corestore(t) {
  const store = new Corestore(await temporaryDirectory(t))
  await store.ready()
  t.after(() => store.close())
  return store
}

/** Replicates `store`, or one core, with the program on `port`; `end()` cuts the connection. */
export async function dial(t, store, port, initiator = true) {
  const socket = net.connect(port, '127.0.0.1')
  socket.setNoDelay(true)
  const stream = new NoiseStream(initiator, socket)
  stream.on('error', () => {})
  const closed = new Promise((resolve) => stream.once('close', resolve))
  store.replicate(stream)
  await within(stream.opened, 'the secret stream')
  const end = () => {
    stream.destroy()
    return closed
  }
  t.after(end)
  return { stream, closed, end }
}

/** What `digest` of our program prints, over a JavaScript core. */
export async function digestOf(core) {
  let digest = b4a.alloc(32)
  for (let i = 0; i < core.length; i++) {
    const next = b4a.alloc(32)
    sodium.crypto_generichash(next, await core.get(i), digest)
    digest = next
  }
  return b4a.toString(digest, 'hex')
}

/** Downloads all of a JavaScript core up to `length`. */
export async function download(core, length) {
  await until(() => core.length >= length, `length ${length}, at ${core.length}`)
  await within(core.download({ start: 0, end: length }).done(), `download of ${length}`)
  await until(() => core.contiguousLength >= length, `contiguous length ${length}`)
}

/** Blocks of 100 bytes that say their numbers. */
export const entries = (count, first = 0) =>
  Array.from({ length: count }, (_, i) => b4a.from(`entry ${first + i} `.padEnd(100, '.')))
