// npm udx-native and ours, over loopback: the same packets mean the same on both sides.

import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { createSocket } from 'node:dgram'
import { describe, test } from 'node:test'

import UDX from 'udx-native'

import { event, root, startInterop, startProgram, within } from './support.mjs'

const MEGABYTES = 20_000_000

/** A socket of npm's, closed with the test. */
function javascriptSocket(t, host = '127.0.0.1') {
  const udx = new UDX()
  const socket = udx.createSocket()
  socket.bind(0, host)
  const streams = []
  t.after(async () => {
    for (const stream of streams) stream.destroy()
    await socket.close()
  })
  return { udx, socket, streams, port: socket.address().port, host }
}

let lastId = Math.floor(Math.random() * 2 ** 31)

/** A stream of npm's. Its errors are for the tests that expect them. */
function javascriptStream(js, options) {
  const stream = js.udx.createStream(++lastId, options)
  stream.on('error', () => {})
  js.streams.push(stream)
  return stream
}

/** One stream between npm's side and ours, connected on both. */
async function connected(t, host = '127.0.0.1') {
  const js = javascriptSocket(t, host)
  const ours = startInterop(t, ['udx', host])
  const { port } = await ours.next('ready')
  ours.send({ do: 'stream' })
  const { id } = await ours.next('stream')
  const stream = javascriptStream(js)
  stream.connect(js.socket, id, port, host)
  ours.send({ do: 'connect', remoteId: stream.id, host, port: js.port })
  return { js, ours, stream }
}

/** What a stream of npm's gives until its end, or until so many bytes. */
function received(stream, bytes = Infinity) {
  const hash = createHash('blake2b512')
  let total = 0
  return within(
    new Promise((resolve, reject) => {
      const done = () => resolve({ bytes: total, hash: hash.digest('hex') })
      stream.on('data', (data) => {
        hash.update(data)
        total += data.byteLength
        if (total >= bytes) done()
      })
      stream.on('end', done)
      stream.on('close', () => reject(new Error(`closed after ${total} bytes`)))
    }),
    'what we sent'
  )
}

/** Writes random bytes in pieces of every size; their hash. */
async function send(stream, bytes) {
  const hash = createHash('blake2b512')
  for (let left = bytes; left > 0; ) {
    const piece = randomBytes(Math.min(left, 1 + Math.floor(Math.random() * 200_000)))
    hash.update(piece)
    left -= piece.byteLength
    if (!stream.write(piece)) await event(stream, 'drain')
  }
  return hash.digest('hex')
}

for (const host of ['127.0.0.1', '::1']) {
  test(`20 MB go both ways at once and both ends end, over ${host}`, async (t) => {
    const { ours, stream } = await connected(t, host)
    ours.send({ do: 'receive' })
    ours.send({ do: 'send', bytes: MEGABYTES })
    ours.send({ do: 'end' })
    const [theirs, hash] = await Promise.all([
      received(stream),
      send(stream, MEGABYTES).then((hash) => (stream.end(), hash))
    ])
    const sent = await ours.next('sent')
    assert.deepEqual(theirs, { bytes: MEGABYTES, hash: sent.hash })
    const got = await ours.next('received')
    assert.deepEqual([got.bytes, got.hash, got.error], [MEGABYTES, hash, null])
    assert.equal((await ours.next('ended')).error, null)
    assert.equal((await ours.next('closed')).reason, 'Ended')
    assert.equal(stream.mtu, 1500, 'its probes reached us and were acknowledged')
  })
}

test('over loopback our packets fill the buffer of npm, and no more', async (t) => {
  const { ours, stream } = await connected(t)
  ours.send({ do: 'send', bytes: MEGABYTES })
  ours.send({ do: 'end' })
  const theirs = await received(stream)
  assert.deepEqual(theirs, { bytes: MEGABYTES, hash: (await ours.next('sent')).hash })
  // Of 2,028 bytes, but for the first ones; Ethernet's would be 13,774.
  assert.ok(stream.packetsReceived < 11_000, `${stream.packetsReceived} packets`)
})

test('our END is seen at once and npm may go on writing', async (t) => {
  const { ours, stream } = await connected(t)
  ours.send({ do: 'send', bytes: 5 })
  ours.send({ do: 'end' })
  ours.send({ do: 'receive' })
  assert.equal((await received(stream)).bytes, 5)
  const hash = await send(stream, 1_000_000)
  stream.end()
  const got = await ours.next('received')
  assert.deepEqual([got.bytes, got.hash, got.error], [1_000_000, hash, null])
  assert.equal((await ours.next('closed')).reason, 'Ended')
})

test('npm destroying its stream resets ours', async (t) => {
  const { ours, stream } = await connected(t)
  stream.write('something')
  ours.send({ do: 'receive', bytes: 9 })
  await ours.next('received')
  stream.destroy()
  assert.equal((await ours.next('closed', 2_000)).reason, 'Reset')
})

for (const how of ['drop', 'destroy']) {
  test(`ours being let go (${how}) resets npm's`, async (t) => {
    const { ours, stream } = await connected(t)
    const error = event(stream, 'error', 2_000)
    ours.send({ do: how })
    assert.equal((await error)[0].code, 'ECONNRESET')
    assert.equal((await ours.next('closed')).reason, 'Destroyed')
  })
}

test('a stream of ours connects to whoever sends its first packet', async (t) => {
  const js = javascriptSocket(t)
  const ours = startInterop(t, ['udx'])
  const { port } = await ours.next('ready')
  ours.send({ do: 'stream' })
  const { id } = await ours.next('stream')
  const stream = javascriptStream(js)
  ours.send({ do: 'accept', remoteId: stream.id })
  // More than a window: it arrives while it is read.
  ours.send({ do: 'receive' })
  stream.connect(js.socket, id, port)
  const hash = await send(stream, 3_000_000)
  stream.end()
  assert.equal((await ours.next('received')).hash, hash)
})

test("a stream of npm's connects to whoever sends its first packet", async (t) => {
  const js = javascriptSocket(t)
  const ours = startInterop(t, ['udx'])
  await ours.next('ready')
  ours.send({ do: 'stream' })
  const { id } = await ours.next('stream')
  const stream = javascriptStream(js, {
    firewall(socket, port, host) {
      stream.connect(socket, id, port, host)
      return false
    }
  })
  ours.send({ do: 'connect', remoteId: stream.id, host: '127.0.0.1', port: js.port })
  ours.send({ do: 'send', bytes: 300_000 })
  const theirs = await received(stream, 300_000)
  assert.equal(theirs.hash, (await ours.next('sent')).hash)
})

test('both sides move to other sockets while bytes go both ways', async (t) => {
  const { js, ours, stream } = await connected(t)
  const other = js.udx.createSocket()
  other.bind(0, '127.0.0.1')
  t.after(() => other.close())
  ours.send({ do: 'receive' })
  ours.send({ do: 'send', bytes: MEGABYTES })
  ours.send({ do: 'end' })
  const arriving = received(stream)
  const sending = send(stream, MEGABYTES)
  ours.send({ do: 'move', remoteId: stream.id, host: '127.0.0.1', port: other.address().port })
  const { port } = await ours.next('moved')
  await stream.changeRemote(other, stream.remoteId, port, '127.0.0.1')
  const hash = await sending
  stream.end()
  assert.equal((await arriving).hash, (await ours.next('sent')).hash)
  assert.equal((await ours.next('received')).hash, hash)
})

/** A NAT in front of npm's socket: the address npm sends to, and another mapping on demand. */
async function nat(t, inside, outside) {
  const front = await datagramSocket(t)
  let mapping
  front.on('message', (packet) => mapping.send(packet, outside, '127.0.0.1'))
  const rebind = async () => {
    mapping?.removeAllListeners('message')
    mapping = await datagramSocket(t)
    mapping.on('message', (packet) => front.send(packet, inside, '127.0.0.1'))
    return mapping.address().port
  }
  return { port: front.address().port, mapped: await rebind(), rebind }
}

async function datagramSocket(t) {
  const socket = createSocket('udp4')
  socket.bind(0, '127.0.0.1')
  await event(socket, 'listening')
  t.after(() => socket.close())
  return socket
}

test('npm is followed when its NAT gives it another port', async (t) => {
  const js = javascriptSocket(t)
  const ours = startInterop(t, ['udx'])
  const { port } = await ours.next('ready')
  ours.send({ do: 'stream' })
  const { id } = await ours.next('stream')
  const between = await nat(t, js.port, port)
  const stream = javascriptStream(js)
  stream.connect(js.socket, id, between.port)
  ours.send({ do: 'connect', remoteId: stream.id, host: '127.0.0.1', port: between.mapped })
  ours.send({ do: 'receive', bytes: 100_000 })
  const first = await send(stream, 100_000)
  assert.equal((await ours.next('received')).hash, first)
  await between.rebind()
  const arriving = received(stream, 100_000)
  ours.send({ do: 'receive', bytes: 400_000 })
  const second = await send(stream, 400_000)
  assert.equal((await ours.next('received')).hash, second)
  ours.send({ do: 'send', bytes: 100_000 })
  assert.equal((await arriving).hash, (await ours.next('sent')).hash)
  stream.end()
})

/** A process with one stream of npm's, to be killed. */
const CHILD = `
  const UDX = require('udx-native')
  const udx = new UDX()
  const socket = udx.createSocket()
  socket.bind(0, '127.0.0.1')
  const stream = udx.createStream(7)
  const say = (line) => console.log(JSON.stringify(line))
  say({ event: 'ready', port: socket.address().port, id: stream.id })
  process.stdin.once('data', (line) => {
    const { id, port } = JSON.parse(line)
    stream.connect(socket, id, port, '127.0.0.1')
    stream.write('something')
    stream.resume()
  })
`

describe('what takes its time', { concurrency: true }, () => {
  test('a reader that stops stops npm, and goes on where it stopped', async (t) => {
    const { ours, stream } = await connected(t)
    const sending = send(stream, MEGABYTES)
    await new Promise((resolve) => setTimeout(resolve, 3_000))
    ours.send({ do: 'receive', bytes: MEGABYTES })
    const hash = await within(sending, 'sending')
    assert.equal((await ours.next('received')).hash, hash)
  })

  test('an idle stream with npm stays open', { timeout: 60_000 }, async (t) => {
    const { ours, stream } = await connected(t)
    await new Promise((resolve) => setTimeout(resolve, 14_000))
    ours.send({ do: 'receive', bytes: 100_000 })
    const hash = await send(stream, 100_000)
    assert.equal((await ours.next('received')).hash, hash)
  })

  for (const writing of [false, true]) {
    const doing = writing ? 'while we write' : 'while idle'
    test(`npm killed is noticed within 15 seconds ${doing}`, { timeout: 60_000 }, async (t) => {
      const child = startProgram(t, process.execPath, ['-e', CHILD], { cwd: root })
      const ours = startInterop(t, ['udx'])
      const [theirs, { port }] = await Promise.all([child.next('ready'), ours.next('ready')])
      ours.send({ do: 'stream' })
      const { id } = await ours.next('stream')
      child.send({ id, port })
      ours.send({ do: 'connect', remoteId: theirs.id, host: '127.0.0.1', port: theirs.port })
      ours.send({ do: 'receive', bytes: 9 })
      await ours.next('received')
      const start = Date.now()
      await child.kill()
      if (writing) ours.send({ do: 'send', bytes: MEGABYTES })
      assert.equal((await ours.next('closed', 20_000)).reason, 'TimedOut')
      assert.ok(Date.now() - start < 15_000, `${Date.now() - start} ms`)
    })
  }
})
