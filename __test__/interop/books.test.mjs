// alex/p2p with a JavaScript program that has protomux and plain hypercore, in both roles, and two of
// our servers that are killed in the middle of a book. Plain TCP with a secret stream.

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import net from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'

import b4a from 'b4a'
import c from 'compact-encoding'
import Corestore from 'corestore'
import Hypercore from 'hypercore'
import Protomux from 'protomux'
import NoiseStream from '@hyperswarm/secret-stream'
import z32 from 'z32'

import { root, startInterop, temporaryDirectory, until, within } from './support.mjs'

const BLOCK = 65_536

/** A book of the shared library, or random bytes of the same size. */
async function book(t, name, size) {
  const shared = join(root, '../shared/library', name)
  if (existsSync(shared)) return shared
  t.diagnostic(`no shared library: ${size} random bytes instead of ${name}`)
  const path = join(await temporaryDirectory(t), name)
  await writeFile(path, randomBytes(size))
  return path
}

const small = (t) => book(t, 'mary-shelley_frankenstein.epub', 690_404)
const large = (t) =>
  book(t, 'lewis-carroll_alices-adventures-in-wonderland_john-tenniel.epub', 25_725_969)

/** One of our servers. */
async function server(t, directory) {
  const program = startInterop(t, ['books', directory ?? (await temporaryDirectory(t))])
  const { port, key, feedKey } = await program.next('listening')
  return {
    program,
    port,
    key,
    feedKey,
    async ask(command, fields, answer) {
      program.send({ command, ...fields })
      return program.next(answer)
    },
    /** The next event of this type, past or to come. */
    event: (type, matches = () => true) =>
      program.next((line) => line.event === 'node' && line.type === type && matches(line))
  }
}

/** A JavaScript program's end of a connection to one of our servers, with alex/p2p open. */
async function dial(t, port, { onrequest = () => {}, open = true, hello = {}, keyPair } = {}) {
  const socket = net.connect(port, '127.0.0.1')
  socket.setNoDelay(true)
  const stream = new NoiseStream(true, socket, { keyPair })
  stream.on('error', () => {})
  t.after(() => stream.destroy())
  await within(stream.opened, 'the secret stream')
  const replies = []
  const channel = Protomux.from(stream).createChannel({
    protocol: 'alex/p2p',
    handshake: c.raw.json,
    messages: [
      { encoding: c.raw.json, onmessage: onrequest },
      { encoding: c.raw.json, onmessage: (reply) => replies.push(reply) },
      { encoding: c.raw.json },
      { encoding: c.raw.json }
    ]
  })
  if (open) channel.open({ version: 1, nickname: 'JavaScript', features: ['none'], ...hello })
  return {
    stream,
    channel,
    key: z32.encode(stream.publicKey),
    hello: async () => (await within(channel.fullyOpened(), 'the channel')) && channel.handshake,
    send: (kind, message) => channel.messages[kind].send(message),
    reply: () => until(() => replies.shift(), 'a reply')
  }
}

test('a JavaScript program asks for a book and downloads its core with plain hypercore', async (t) => {
  const path = await small(t)
  const us = await server(t)
  await us.ask('publish', { id: 'frankenstein', path }, 'published')
  const peer = await dial(t, us.port)
  const hello = await peer.hello()
  assert.equal(hello.version, 1)
  assert.equal(hello.feedKey, us.feedKey)

  peer.send(0, { id: 'first', bookId: 'frankenstein', unknown: { field: true } })
  const reply = await peer.reply()
  const bytes = await readFile(path)
  assert.equal(reply.id, 'first')
  assert.equal(reply.status, 'granted')
  assert.equal(reply.byteLength, bytes.length)
  assert.equal(reply.length, Math.ceil(bytes.length / BLOCK))

  const core = new Hypercore(await temporaryDirectory(t), z32.decode(reply.key))
  t.after(() => core.close())
  await core.ready()
  core.replicate(peer.stream)
  await until(() => core.length === reply.length, 'the length')
  await within(core.download({ start: 0, end: reply.length }).done(), 'the book')
  assert.equal(b4a.toString(await core.treeHash(), 'hex'), reply.hash)
  const blocks = []
  for (let i = 0; i < core.length; i++) blocks.push(await core.get(i))
  assert.ok(b4a.equals(b4a.concat(blocks), bytes))
  peer.send(3, { id: 'first' })
  await us.event('transfer-state', (line) => line.state === 'completed')
})

test('without a grant a JavaScript program gets no block', async (t) => {
  const path = await small(t)
  const us = await server(t)
  await us.ask('publish', { id: 'frankenstein', path }, 'published')
  const friend = await dial(t, us.port)
  friend.send(0, { id: '1', bookId: 'frankenstein' })
  const { key, length } = await friend.reply()

  await us.ask('policy', { policy: 'metadata-only' }, 'policy')
  const stranger = await dial(t, us.port)
  const core = new Hypercore(await temporaryDirectory(t), z32.decode(key))
  t.after(() => core.close())
  await core.ready()
  core.replicate(stranger.stream)
  stranger.send(0, { id: '1', bookId: 'frankenstein' })
  const reply = await stranger.reply()
  assert.equal(reply.status, 'denied')
  assert.equal(reply.key, undefined)
  const got = core.get(0, { timeout: 1_000 })
  await assert.rejects(got)
  assert.deepEqual([core.length, core.contiguousLength], [0, 0])
  assert.ok(length > 0)
})

test('a person approves a JavaScript program, or denies it', async (t) => {
  const path = await small(t)
  const us = await server(t)
  await us.ask('publish', { id: 'b', path }, 'published')
  await us.ask('policy', { policy: 'manual-approve' }, 'policy')
  const peer = await dial(t, us.port)
  peer.send(0, { id: 'yes', bookId: 'b' })
  assert.equal((await peer.reply()).status, 'pending')
  const yes = await us.event('transfer-requested')
  await us.ask('act', { id: yes.transfer, action: 'approve' }, 'acted')
  assert.equal((await peer.reply()).status, 'granted')
  peer.send(0, { id: 'no', bookId: 'b' })
  assert.equal((await peer.reply()).status, 'pending')
  const no = await us.event('transfer-requested')
  await us.ask('act', { id: no.transfer, action: 'deny' }, 'acted')
  const denied = await peer.reply()
  assert.deepEqual([denied.id, denied.status, denied.reason], ['no', 'denied', 'no'])
  peer.send(0, { id: 'what', bookId: 'unknown' })
  assert.equal((await peer.reply()).status, 'unavailable')
})

test('we download a book that a JavaScript program grants us', async (t) => {
  const path = await small(t)
  const bytes = await readFile(path)
  const blocks = []
  for (let at = 0; at < bytes.length; at += BLOCK) blocks.push(bytes.subarray(at, at + BLOCK))
  const store = new Corestore(await temporaryDirectory(t))
  await store.ready()
  t.after(() => store.close())
  const draft = store.get({ name: 'draft' })
  await draft.append(blocks)
  const hash = await draft.treeHash()
  const prologue = { hash, length: draft.length }
  const core = store.get({ manifest: { version: 1, quorum: 0, signers: [], prologue } })
  await core.ready()
  await core.core.copyPrologue(draft.state)

  const us = await server(t)
  const peer = await dial(t, us.port, {
    onrequest(request) {
      peer.send(1, { id: request.id, status: 'pending', reason: 'a moment\u001b[2J' })
      store.replicate(peer.stream)
      peer.send(1, {
        id: request.id,
        status: 'granted',
        key: z32.encode(core.key),
        hash: b4a.toString(hash, 'hex'),
        length: core.length,
        byteLength: bytes.length
      })
    }
  })
  await peer.hello()
  const { id } = await us.ask('request', { peer: peer.key, bookId: '../../evil' }, 'requested')
  const waiting = await us.event('transfer-state', (line) => line.state === 'awaiting-approval')
  assert.equal(waiting.reason, 'a moment[2J')
  await us.event('transfer-state', (line) => line.state === 'completed')
  const { info } = await us.ask('info', { id }, 'info')
  assert.ok(b4a.equals(await readFile(info.path), bytes))
  // Nothing says what kind of book it is: the ending is one that no system opens with a program.
  assert.ok(info.path.endsWith('books/evil.book'), info.path)
})

test('a grant that does not fit its key is refused', async (t) => {
  const us = await server(t)
  const peer = await dial(t, us.port, {
    onrequest(request) {
      const key = z32.encode(b4a.alloc(32, 1))
      const hash = b4a.toString(b4a.alloc(32, 2), 'hex')
      peer.send(1, { id: request.id, status: 'granted', key, hash, length: 1, byteLength: 10 })
    }
  })
  await peer.hello()
  await us.ask('request', { peer: peer.key, bookId: 'b' }, 'requested')
  const failed = await us.event('transfer-state', (line) => line.state === 'failed')
  assert.match(failed.reason, /does not match/)
})

/** A link to whatever port it is told, at about 20 MB/s, that counts what comes back over it. */
async function slowLink(t) {
  const link = { target: 0, carried: 0, waiting: null }
  const sockets = new Set()
  const listener = net.createServer({ allowHalfOpen: true }, (near) => {
    const far = net.connect({ port: link.target, host: '127.0.0.1', allowHalfOpen: true })
    for (const [from, to, counts] of [[near, far, false], [far, near, true]]) {
      sockets.add(from)
      from.setNoDelay(true)
      from.on('error', () => to.destroy())
      from.on('end', () => to.end())
      from.on('close', () => to.destroy())
      from.on('data', (chunk) => {
        to.write(chunk)
        if (!counts) return
        link.carried += chunk.length
        if (link.waiting && link.carried >= link.waiting.bytes) link.waiting.resolve()
        from.pause()
        setTimeout(() => from.resume(), chunk.length / 20_000)
      })
    }
  })
  listener.listen(0, '127.0.0.1')
  await new Promise((resolve) => listener.once('listening', resolve))
  t.after(() => {
    listener.close()
    for (const socket of sockets) socket.destroy()
  })
  link.port = listener.address().port
  link.until = (bytes) =>
    within(
      new Promise((resolve) => {
        link.waiting = { bytes, resolve }
        if (link.carried >= bytes) resolve()
      }),
      `${bytes} bytes over the link`
    )
  return link
}

test("entries of npm's that are encrypted are skipped, and it is said in words when all are", async (t) => {
  const us = await server(t)
  const keyPair = NoiseStream.keyPair()
  const encrypted = new Hypercore(await temporaryDirectory(t), { keyPair, encryptionKey: randomBytes(32) })
  t.after(() => encrypted.close())
  const book = (n) => JSON.stringify({ type: 'book-added', id: `book-${n}`, title: `Book ${n}` })
  await encrypted.append([book(1), book(2), book(3)])
  const peer = await dial(t, us.port, { keyPair, hello: { feedKey: z32.encode(encrypted.key) } })
  encrypted.replicate(peer.stream)
  const said = await us.event('status', (event) => event.layer === 'catalog' && !event.ok)
  assert.ok(said.message.includes(peer.key))
  assert.match(said.message, /none of the 3 entries .* encrypted/)
  const { status } = await us.ask('catalog', { peer: peer.key }, 'catalog')
  assert.deepEqual([status.length, status.replayed, status.books, status.skipped], [3, 3, 0, 3])
  assert.match(status.trouble, /encrypted/)

  // One that can be read is enough.
  await encrypted.setEncryption(null)
  await encrypted.append(book(4))
  const now = await until(async () => {
    const { status } = await us.ask('catalog', { peer: peer.key }, 'catalog')
    return status.replayed === 4 && status
  }, 'the fourth entry')
  assert.deepEqual([now.books, now.skipped, now.trouble], [1, 3, null])
})

for (const victim of ['receiver', 'sender']) {
  test(`the ${victim} is killed ten times in the middle of a book, and it arrives whole`, async (t) => {
    const path = await large(t)
    const bytes = readFileSync(path)
    const directories = { sender: await temporaryDirectory(t), receiver: await temporaryDirectory(t) }
    const servers = {}
    for (const role of ['sender', 'receiver']) servers[role] = await server(t, directories[role])
    const { sender } = servers
    await sender.ask('publish', { id: 'alice', path, title: 'Alice' }, 'published')
    const request = { peer: sender.key, bookId: 'alice' }
    const { id } = await servers.receiver.ask('request', request, 'requested')
    const link = await slowLink(t)
    const connect = () => {
      link.target = servers.sender.port
      servers.receiver.program.send({ command: 'connect', port: link.port })
    }

    for (let kills = 1; kills <= 10; kills++) {
      connect()
      await link.until((kills * bytes.length) / 12)
      await servers[victim].program.kill()
      if (victim === 'sender') await servers.receiver.program.next('closed')
      servers[victim] = await server(t, directories[victim])
    }
    const { info } = await servers.receiver.ask('info', { id }, 'info')
    assert.notEqual(info.state, 'completed', 'it was killed in the middle')
    connect()
    const done = await until(async () => {
      const { info } = await servers.receiver.ask('info', { id }, 'info')
      assert.notEqual(info.state, 'failed', info.reason)
      return info.state === 'completed' && info
    }, 'the book')
    assert.ok(bytes.equals(readFileSync(done.path)))
    const again = link.carried - bytes.length
    t.diagnostic(`${again} bytes beside the book's own`)
    assert.ok(again < 10 * 1024 * 1024, `${again} bytes were sent twice`)
    await until(
      async () => (await readdir(join(directories.receiver, 'incoming'))).length === 0,
      'an empty folder for partial books'
    )
  })
}
