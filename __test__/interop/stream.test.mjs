// The encrypted stream and its channels against npm's: @hyperswarm/secret-stream, noise-handshake
// with noise-curve-ed, and protomux.

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { createRequire } from 'node:module'
import net from 'node:net'
import test from 'node:test'

import { event, startInterop, until, within } from './support.mjs'

// Dependencies of dependencies: found from where the packages that use them are.
const require = createRequire(import.meta.url)
const fromDht = createRequire(require.resolve('hyperdht'))
const NoiseSecretStream = fromDht('@hyperswarm/secret-stream')
const NoiseHandshake = fromDht('noise-handshake')
const curve = fromDht('noise-curve-ed')
const crypto = fromDht('hypercore-crypto')
const c = fromDht('compact-encoding')
const Protomux = require('protomux')

const roles = ['initiator', 'responder']
const other = (role) => (role === 'initiator' ? 'responder' : 'initiator')
const hex = (buffer) => Buffer.from(buffer).toString('hex')

/** A TCP server for one connection: `{ port, socket }`, where `socket` is a promise. */
async function listen(t) {
  const server = net.createServer()
  server.listen(0, '127.0.0.1')
  await event(server, 'listening')
  t.after(() => server.close())
  const socket = event(server, 'connection').then(([socket]) => {
    t.after(() => socket.destroy())
    return socket
  })
  return { port: server.address().port, socket }
}

/** Sends messages and expects each of them back, then ends. */
async function echo(stream, messages) {
  const back = []
  stream.on('data', (data) => back.push(Buffer.from(data)))
  for (const message of messages) stream.write(message)
  await until(() => back.length === messages.length, 'the echo')
  for (const [i, message] of messages.entries()) assert.ok(back[i].equals(message), `message ${i}`)
  const ended = event(stream, 'end')
  stream.end()
  await ended
}

const sizes = [1, 2, 252, 253, 65_519, 65_536, 70_000, 300_000, 1, 2_000_000]

for (const role of roles) {
  test(`XX over TCP, ours the ${role}: messages come back whole, and the end arrives`, async (t) => {
    const { port, socket } = await listen(t)
    const rust = startInterop(t, ['stream', 'echo', port, role])
    const stream = new NoiseSecretStream(other(role) === 'initiator', await socket)
    stream.on('error', () => {})
    assert.ok(await within(stream.opened, 'the handshake'))
    const connected = await rust.next('connected')
    assert.equal(connected.hash, hex(stream.handshakeHash))
    assert.equal(connected.remotePublicKey, hex(stream.publicKey))
    assert.equal(connected.publicKey, hex(stream.remotePublicKey))
    await echo(stream, sizes.map((size) => randomBytes(size)))
    const ended = await rust.next('ended')
    assert.deepEqual([ended.how, ended.messages], ['end', sizes.length])
  })

  test(`IK as hyperdht does it, ours the ${role}, and the stream after it`, async (t) => {
    const [, , , prologue] = crypto.namespace('hyperdht', 5)
    const ours = crypto.keyPair(Buffer.alloc(32, 1))
    const theirs = crypto.keyPair(Buffer.alloc(32, 2))
    const seed = hex(Buffer.alloc(32, 1))
    const remote = role === 'initiator' ? [hex(theirs.publicKey)] : []
    const rust = startInterop(t, ['stream', 'noise', role, seed, hex(prologue), ...remote])

    const noise = new NoiseHandshake('IK', role !== 'initiator', theirs, { curve })
    noise.initialise(prologue, role === 'initiator' ? null : ours.publicKey)
    const [first, second] = [Buffer.from('first payload'), randomBytes(500)]
    if (role === 'initiator') {
      rust.send({ write: hex(first) })
      const { message } = await rust.next('written')
      assert.deepEqual(Buffer.from(noise.recv(Buffer.from(message, 'hex'))), first)
      assert.equal(hex(noise.rs), hex(ours.publicKey))
      rust.send({ read: hex(noise.send(second)) })
      assert.equal((await rust.next('read')).payload, hex(second))
    } else {
      rust.send({ read: hex(noise.send(first)) })
      const read = await rust.next('read')
      assert.deepEqual([read.payload, read.remote], [hex(first), hex(theirs.publicKey)])
      rust.send({ write: hex(second) })
      const { message } = await rust.next('written')
      assert.deepEqual(Buffer.from(noise.recv(Buffer.from(message, 'hex'))), second)
    }

    const { port, socket } = await listen(t)
    rust.send({ finish: port })
    const session = await rust.next('session')
    const isInitiator = role !== 'initiator'
    assert.equal(session.hash, hex(noise.hash))
    assert.equal(session.remoteId, hex(NoiseSecretStream.id(noise.hash, isInitiator)))
    assert.equal(session.id, hex(NoiseSecretStream.id(noise.hash, !isInitiator)))
    const handshake = {
      tx: noise.tx,
      rx: noise.rx,
      hash: noise.hash,
      publicKey: theirs.publicKey,
      remotePublicKey: ours.publicKey
    }
    const stream = new NoiseSecretStream(isInitiator, await socket, { handshake })
    stream.on('error', () => {})
    await echo(stream, [0, 1, 0, 100_000].map((size) => randomBytes(size)))
    assert.deepEqual((await rust.next('ended')).how, 'end')
  })
}

test('IK with another prologue is refused', async (t) => {
  const theirs = crypto.keyPair()
  const seed = Buffer.alloc(32, 1)
  const rust = startInterop(t, ['stream', 'noise', 'responder', hex(seed), '00'])
  const noise = new NoiseHandshake('IK', true, theirs, { curve })
  noise.initialise(Buffer.from([1]), crypto.keyPair(seed).publicKey)
  rust.send({ read: hex(noise.send(Buffer.alloc(0))) })
  await rust.next('refused')
})

test('a connection that breaks inside a message is told from one that ended', async (t) => {
  const { port, socket } = await listen(t)
  const rust = startInterop(t, ['stream', 'echo', port, 'initiator'])
  const raw = await socket
  const stream = new NoiseSecretStream(false, raw)
  stream.on('error', () => {})
  await within(stream.opened, 'the handshake')
  await rust.next('connected')
  raw.end(Buffer.from([100, 0, 0, 1, 2, 3]))
  assert.equal((await rust.next('ended')).how, 'truncated')
})

test('keep-alives pass in both directions and are not messages', async (t) => {
  const { port, socket } = await listen(t)
  const rust = startInterop(t, ['stream', 'echo', port, 'initiator'])
  const stream = new NoiseSecretStream(false, await socket)
  stream.on('error', () => {})
  await within(stream.opened, 'the handshake')
  stream.setKeepAlive(5_000)
  stream.sendKeepAlive()
  await echo(stream, [Buffer.from('x')])
  assert.equal((await rust.next('ended')).messages, 1)
})

/**
 * npm's multiplexer and ours on one connection. Ours reads nothing before `start`, so what is set up
 * until then is in place when npm's first open arrives.
 */
async function connect(t, role, { start = true, accept } = {}) {
  const { port, socket } = await listen(t)
  const rust = startInterop(t, ['stream', 'mux', port, role])
  const stream = new NoiseSecretStream(role !== 'initiator', await socket)
  stream.on('error', () => {})
  const mux = new Protomux(stream)
  const act = (what, fields = {}) => rust.send({ do: what, ...fields })
  if (accept) act('accept', { protocol: accept })
  if (start) act('start')
  return { rust, mux, stream, act }
}

/** A channel of npm's that collects what happens on it. */
function channel(mux, protocol, id, { handshake = 'js', messages = 3, aliases } = {}) {
  const seen = { messages: [], handshake: null, closed: false, remote: null }
  const made = mux.createChannel({
    protocol,
    aliases,
    id,
    handshake: c.raw,
    messages: Array.from({ length: messages }, (_, kind) => ({
      encoding: c.raw,
      onmessage: (data) => seen.messages.push([kind, Buffer.from(data).toString()])
    })),
    onopen: (handshake) => (seen.handshake = Buffer.from(handshake ?? []).toString()),
    onclose: (remote) => Object.assign(seen, { closed: true, remote })
  })
  made?.open(Buffer.from(handshake))
  return made && Object.assign(made, { seen })
}

for (const role of roles) {
  test(`channels open with handshakes in either order, ours the ${role}`, async (t) => {
    const { rust, mux, act } = await connect(t, role, { accept: 'test' })
    const first = channel(mux, 'test', Buffer.from([1]), { handshake: 'hello' })
    const opened = await rust.next('opened')
    assert.deepEqual([opened.name, opened.handshake], ['01', hex(Buffer.from('hello'))])
    assert.ok(await within(first.fullyOpened(), 'the first channel'))
    assert.equal(first.seen.handshake, 'accepted')

    let second = null
    mux.pair({ protocol: 'mine' }, (id) => (second = channel(mux, 'mine', id)))
    act('open', { name: 'b', protocol: 'mine', id: '0203', handshake: hex(Buffer.from('rust')) })
    await rust.next((line) => line.event === 'opened' && line.name === 'b')
    await until(() => second?.opened, 'the second channel')
    assert.equal(second.seen.handshake, 'rust')
  })

  test(`messages, batches and corks keep their order, ours the ${role}`, async (t) => {
    const { rust, mux, act } = await connect(t, role, { start: false })
    act('open', { name: 'a', protocol: 'test' })
    act('open', { name: 'b', protocol: 'twin' })
    const ours = channel(mux, 'test', null)
    const twin = channel(mux, 'twin', null)
    act('start')
    assert.ok(await within(ours.fullyOpened(), 'the channel'))

    ours.messages[1].send(Buffer.from('plain'))
    ours.cork()
    ours.messages[0].send(Buffer.from('corked'))
    twin.messages[2].send(Buffer.from('another channel'))
    ours.messages[2].send(Buffer.alloc(0))
    ours.uncork()
    ours.messages[0].send(Buffer.alloc(1_500_000, 'x'))
    const received = []
    for (let i = 0; i < 5; i++) {
      const { name, kind, size } = await rust.next('message')
      received.push(`${name}${kind}:${size}`)
    }
    const of = (name) => received.filter((text) => text.startsWith(name))
    assert.deepEqual(of('a'), ['a1:5', 'a0:6', 'a2:0', 'a0:1500000'])
    assert.deepEqual(of('b'), ['b2:15'])

    const data = (text) => hex(Buffer.from(text))
    act('send', { name: 'a', kind: 1, data: data('one') })
    act('batch', {
      name: 'a',
      messages: [
        { kind: 0, data: data('two') },
        { kind: 2, data: '' },
        { kind: 1, data: data('four') },
        { kind: 9, data: data('of a type that the other side does not know') }
      ]
    })
    act('send', { name: 'a', kind: 0, size: 1_000_000 })
    await until(() => ours.seen.messages.length === 5, 'the messages')
    assert.deepEqual(ours.seen.messages.slice(0, 4), [[1, 'one'], [0, 'two'], [2, ''], [1, 'four']])
    assert.equal(ours.seen.messages[4][1].length, 1_000_000)
  })

  test(`messages before the other side has opened arrive after it did, ours the ${role}`, async (t) => {
    const { rust, mux, act } = await connect(t, role, { start: false })
    // Ours reads nothing yet: npm's open and messages wait on the wire.
    const first = channel(mux, 'test', Buffer.from([1]))
    first.messages[0].send(Buffer.from('early'))
    first.messages[1].send(Buffer.from('bird'))
    act('accept', { protocol: 'test' })
    act('start')
    assert.equal((await rust.next('message')).data, hex(Buffer.from('early')))
    assert.equal((await rust.next('message')).kind, 1)

    // npm's side takes its time to open: our messages wait there.
    let open = null
    mux.pair({ protocol: 'slow' }, (id) => new Promise((resolve) => {
      open = () => {
        const made = channel(mux, 'slow', id)
        resolve()
        return made
      }
    }))
    act('open', { name: 's', protocol: 'slow', id: '07' })
    for (const text of ['one', 'two', 'three']) {
      act('send', { name: 's', kind: 2, data: hex(Buffer.from(text)) })
    }
    await until(() => open, 'the request to pair')
    await until(() => mux._buffered > 1536, 'the messages')
    const slow = open()
    await until(() => slow.seen.messages.length === 3, 'the messages')
    assert.deepEqual(slow.seen.messages.map(([, text]) => text), ['one', 'two', 'three'])
  })

  test(`what one side does not know is rejected, and can be opened later, ours the ${role}`, async (t) => {
    const { rust, mux, act } = await connect(t, role)
    const refused = channel(mux, 'test', Buffer.from([1]))
    assert.equal(await within(refused.fullyOpened(), 'the reject'), false)
    act('open', { name: 'refused', protocol: 'test', id: '02' })
    assert.equal((await rust.next('unopened')).why, 'Rejected')

    act('accept', { protocol: 'test' })
    act('open', { name: 'refused again', protocol: 'test', id: '03' })
    await rust.next('unopened') // and so the handler is in place
    const first = channel(mux, 'test', Buffer.from([1]))
    assert.ok(await within(first.fullyOpened(), 'the channel that npm opens again'))
    let second = null
    mux.pair({ protocol: 'test' }, (id) => (second = channel(mux, 'test', id)))
    act('open', { name: 'later', protocol: 'test', id: '02' })
    await rust.next((line) => line.event === 'opened' && line.name === 'later')
    assert.ok(await within(second.fullyOpened(), 'the channel that ours opens again'))
  })

  test(`channels close and open again under the same name, ours the ${role}`, async (t) => {
    const { rust, mux, act } = await connect(t, role, { accept: 'test' })
    const id = Buffer.from([1])
    for (let round = 0; round < 20; round++) {
      let ours = null
      if (round % 4 < 2) {
        ours = channel(mux, 'test', id)
      } else {
        mux.pair({ protocol: 'test' }, (id) => (ours = channel(mux, 'test', id)))
        act('open', { name: '01', protocol: 'test', id: hex(id) })
      }
      await rust.next('opened')
      assert.ok(await within(ours.fullyOpened(), 'the channel'))
      ours.messages[0].send(Buffer.from([round]))
      if (round % 2) {
        ours.close()
        assert.equal((await rust.next('message')).data, hex(Buffer.from([round])))
        await rust.next('closed')
      } else {
        assert.equal((await rust.next('message')).data, hex(Buffer.from([round])))
        act('close', { name: '01' })
        await within(ours.fullyClosed(), 'the close')
        assert.equal(ours.seen.remote, true)
        await rust.next('closed')
      }
    }
    assert.ok(mux._local.length <= 2, 'ids are used again')
    assert.ok(mux._remote.length <= 2, 'ids are used again')
  })

  test(`opening and closing at once from both sides settles, ours the ${role}`, async (t) => {
    const { rust, mux, act } = await connect(t, role)
    for (let round = 0; round < 50; round++) {
      const made = channel(mux, 'race', null)
      act('open', { name: 'r', protocol: 'race' })
      if (round % 3 === 0) await new Promise(setImmediate)
      made?.close()
      act('close', { name: 'r' })
    }
    // Whatever happened before, a channel that stays is open on both sides in the end.
    act('accept', { protocol: 'after' })
    mux.pair({ protocol: 'ready' }, (id) => channel(mux, 'ready', id))
    act('open', { name: 'ready', protocol: 'ready' })
    await rust.next((line) => line.event === 'opened' && line.name === 'ready')
    const stays = channel(mux, 'after', Buffer.from([9]))
    assert.ok(await within(stays.fullyOpened(), 'the last channel'))
    await rust.next((line) => line.event === 'opened' && line.name === '09')
  })

  test(`the end closes all channels of the other side, ours the ${role}`, async (t) => {
    const { rust, mux, stream, act } = await connect(t, role, { start: false })
    act('open', { name: 'a', protocol: 'test' })
    act('start')
    const ours = channel(mux, 'test', null)
    await within(ours.fullyOpened(), 'the channel')
    if (role === 'initiator') {
      act('send', { name: 'a', kind: 0, data: hex(Buffer.from('bye')) })
      act('end')
      await until(() => ours.seen.closed, 'the close')
      assert.deepEqual(ours.seen.messages, [[0, 'bye']])
      assert.equal((await rust.next('ended')).reason, 'closed here')
    } else {
      ours.messages[0].send(Buffer.from('bye'))
      stream.end()
      assert.equal((await rust.next('message')).data, hex(Buffer.from('bye')))
      await rust.next('closed')
      assert.equal((await rust.next('ended')).reason, 'closed by the remote')
    }
  })
}

test('an alias of ours pairs with the name that npm opens', async (t) => {
  const { rust, mux, act } = await connect(t, 'initiator', { start: false })
  act('open', { name: 'a', protocol: 'new', aliases: ['old'], id: '01' })
  act('start')
  const ours = channel(mux, 'old', Buffer.from([1]), { aliases: ['new'] })
  await rust.next('opened')
  assert.ok(await within(ours.fullyOpened(), 'the channel'))
})

test('messages on many channels at once all arrive', async (t) => {
  const { mux, rust } = await connect(t, 'responder', { accept: 'many' })
  const channels = Array.from({ length: 50 }, (_, i) => channel(mux, 'many', Buffer.from([i])))
  const payload = Buffer.alloc(3_000, 1)
  for (let round = 0; round < 100; round++) {
    for (const made of channels) made.messages[0].send(payload)
  }
  const counts = new Map()
  for (let i = 0; i < 5_000; i++) {
    const { name, size } = await rust.next('message')
    assert.equal(size, payload.length)
    counts.set(name, (counts.get(name) ?? 0) + 1)
  }
  assert.equal(counts.size, 50)
  assert.ok([...counts.values()].every((count) => count === 100))
})
