// Approved peers that name what is another's as their feed, in a hello or with a `feed-moved`: what they see is
// the same whatever is here under that key, and nothing of anybody's is touched by it.

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import c from 'compact-encoding'
import Hypercore from 'hypercore'
import crypto from 'hypercore-crypto'
import DHT from 'hyperdht'
import Protomux from 'protomux'
import z32 from 'z32'
import { announced, offered, online, openNode, startServer, temporaryDirectory, testnet, undo } from '../nodes.mjs'
import { until, within } from './support.mjs'

/**
 * A server of ours that follows the feed of another, `vera`, serves the book `big` to an npm peer, and waits for
 * the blocks of a book that another npm peer granted.
 */
async function victim(t) {
  const network = await testnet(t)
  const server = await startServer(t, network, { dataDir: await temporaryDirectory(t), policy: 'auto-accept' })
  const [host, port] = network.bootstrap[0].split(':')
  const dht = new DHT({ bootstrap: [{ host, port: Number(port) }], host: '127.0.0.1', connectionKeepAlive: false })
  undo(t, () => dht.destroy())
  const big = join(await temporaryDirectory(t), 'big.epub')
  await writeFile(big, randomBytes(2_000_000))
  const book = { id: 'big', title: 'A big book', format: 'epub', source: big }
  await server.call('catalog.publish', [book])
  await announced({ status: () => server.call('status') })
  const target = { network, server, connect: (hello) => connect(t, dht, server, hello) }

  const vera = await openNode(t, network, { policy: 'auto-accept' })
  await vera.catalog.publish([{ ...book, title: "Vera's book" }])
  await vera.peers.add(server.key)
  await server.call('peers.add', vera.identity.publicKey)
  await online(vera, server.key)
  await until(async () => (await server.call('list', vera.identity.publicKey, { limit: 1 })).total === 1, "Vera's catalog")

  const reader = await target.connect()
  reader.channel.messages[0].send({ id: '1', bookId: 'big' })
  const served = await within(reader.reply((reply) => reply.status === 'granted'), 'a grant')

  const manifest = { version: 1, quorum: 0, signers: [], prologue: { hash: randomBytes(32), length: 40 } }
  const fetched = Hypercore.key(manifest)
  const sender = await target.connect({
    onrequest(request) {
      sender.channel.messages[1].send({
        id: request.id,
        status: 'granted',
        key: z32.encode(fetched),
        hash: manifest.prologue.hash.toString('hex'),
        length: manifest.prologue.length,
        byteLength: manifest.prologue.length * 65_536
      })
    }
  })
  const opened = sender.opened(fetched)
  await server.call('transfers.request', { peer: z32.encode(sender.keyPair.publicKey), bookId: 'b' })
  await within(opened, 'the download')

  target.vera = vera
  target.keys = {
    'no feed at all': randomBytes(32),
    'the feed of a peer that is followed': z32.decode(vera.catalog.key),
    'a book that is served': z32.decode(served.key),
    'a book that is fetched': fetched
  }
  target.own = reader.hello.feedKey
  return target
}

/** A connection with a key of its own that notes every message it gets, decrypted. */
async function connect(t, dht, server, { hello, onrequest = () => {}, keyPair = DHT.keyPair() } = {}) {
  await server.call('peers.add', keyPair.publicKey.toString('hex'))
  const socket = dht.connect(z32.decode(server.key), { keyPair })
  const frames = []
  const waiting = new Set()
  const look = () => waiting.forEach((check) => check())
  socket.on('error', () => {})
  socket.on('data', (frame) => {
    frames.push(Buffer.from(frame).toString('hex'))
    look()
  })
  await within(new Promise((resolve) => socket.once('open', resolve)), 'a connection')
  undo(t, () => socket.destroy())
  const replies = []
  let asked = 0
  const when = (found) =>
    new Promise((resolve) => {
      const check = () => {
        const value = found()
        if (!value) return
        waiting.delete(check)
        resolve(value)
      }
      waiting.add(check)
      check()
    })
  const mux = Protomux.from(socket)
  const peer = {
    socket,
    keyPair,
    frames,
    when,
    reply: (matches) => when(() => replies.find(matches)),
    /** Settles when the server opens a core with this key. */
    opened: (key) => when(() => opens(frames, key).length > 0),
    /** Says hello, again if it was said before. */
    async say(hello = {}) {
      peer.channel?.close()
      peer.channel = mux.createChannel({
        protocol: 'alex/p2p',
        handshake: c.raw.json,
        onopen: (theirs) => {
          peer.hello = theirs
          look()
        },
        messages: [
          { encoding: c.raw.json, onmessage: (request) => onrequest(request) },
          {
            encoding: c.raw.json,
            onmessage: (reply) => {
              replies.push(reply)
              look()
            }
          },
          { encoding: c.raw.json },
          { encoding: c.raw.json }
        ]
      })
      peer.channel.open({ version: 1, features: [], ...hello })
      await within(peer.channel.fullyOpened(), 'the channel')
    },
    /** Returns when the server has answered, and with it everything that was asked before. */
    async settled() {
      const id = `settled ${++asked}`
      peer.channel.messages[0].send({ id, bookId: 'no such book' })
      await within(peer.reply((reply) => reply.id === id), 'an answer')
    }
  }
  await peer.say(hello)
  return peer
}

/** The messages in which a core with this key is opened. */
const opens = (frames, key) => {
  const id = crypto.discoveryKey(key).toString('hex')
  return frames.filter((frame) => frame.includes(id))
}

/** What was seen, without what follows from the key alone: its hash, and the proof that the server knows it. */
function transcript(frames, key) {
  const id = crypto.discoveryKey(key).toString('hex')
  return frames.map((frame) => frame.replace(new RegExp(`${id}(.{2}).{64}`), 'KEY$1PROOF'))
}

/** A core of the peer's own, with these entries. */
async function feed(t, keyPair, entries) {
  const signers = [{ publicKey: keyPair.publicKey, namespace: randomBytes(32) }]
  const core = new Hypercore(await temporaryDirectory(t), { keyPair, manifest: { version: 1, signers } })
  await core.ready()
  undo(t, () => core.close())
  await core.append(entries.map((entry) => JSON.stringify(entry)))
  return core
}

/** A core that this peer knows only the key of. */
async function unknown(t, key) {
  const core = new Hypercore(await temporaryDirectory(t), key)
  await core.ready()
  undo(t, () => core.close())
  return core
}

/** All the same, and not nothing. */
function same(seen) {
  const [[, first], ...others] = Object.entries(seen)
  assert.ok(first.length > 0)
  for (const [name, other] of others) assert.deepEqual(other, first, name)
}

test('a hello that names a key tells nothing of what is here under it', async (t) => {
  const target = await victim(t)
  const seen = {}
  for (const [name, key] of Object.entries({ ...target.keys, "this server's own": z32.decode(target.own) })) {
    const peer = await target.connect()
    await peer.settled()
    const before = peer.frames.length
    await peer.say({ feedKey: z32.encode(key) })
    await within(peer.when(() => opens(peer.frames.slice(before), key).length > 0), `an open after ${name}`)
    await peer.settled()
    seen[name] = transcript(opens(peer.frames.slice(before), key), key)
  }
  same(seen)
  assert.equal(Object.values(seen)[0].length, 1)
})

test('a peer that opens what it has named sees the same whatever it is', async (t) => {
  const target = await victim(t)
  const seen = {}
  for (const [name, key] of Object.entries(target.keys)) {
    const peer = await target.connect()
    const core = await unknown(t, key)
    await peer.settled()
    core.replicate(peer.socket)
    await peer.settled()
    const before = peer.frames.length
    await peer.say({ feedKey: z32.encode(key) })
    await until(() => core.peers.length === 1, `${name} is open`)
    await peer.settled()
    await until(() => core.peers[0].remoteOpened, `${name} has said something`)
    assert.deepEqual([core.length, core.peers[0].remoteLength], [0, 0], name)
    seen[name] = transcript(peer.frames.slice(before), key).sort()
  }
  same(seen)
})

test('a peer that opens a core which it was not given sees the same whatever it is', async (t) => {
  const target = await victim(t)
  const seen = {}
  for (const [name, key] of Object.entries(target.keys)) {
    const peer = await target.connect()
    await peer.settled()
    const before = peer.frames.length
    const core = await unknown(t, key)
    core.replicate(peer.socket)
    // A reject is the first thing that comes.
    await within(peer.when(() => peer.frames.length > before), `an answer to the open of ${name}`)
    await peer.settled()
    assert.equal(core.peers.length, 0)
    seen[name] = peer.frames.slice(before).slice(0, 1)
  }
  same(seen)
})

test('a feed that leads to a key tells nothing of what is here under it', async (t) => {
  const target = await victim(t)
  const seen = {}
  for (const [name, key] of Object.entries(target.keys)) {
    const keyPair = DHT.keyPair()
    const core = await feed(t, keyPair, [
      { type: 'book-added', id: 'a', title: 'A' },
      { type: 'feed-moved', key: z32.encode(key) }
    ])
    const peer = await target.connect({ keyPair })
    await peer.settled()
    core.replicate(peer.socket)
    await peer.say({ feedKey: z32.encode(core.key) })
    await within(peer.opened(key), `an open after ${name}`)
    await peer.settled()
    seen[name] = transcript(opens(peer.frames, key), key)
  }
  same(seen)
  // Nothing of anybody's was touched.
  const { server, vera } = target
  await vera.catalog.publish([{ id: 'new', title: 'A new book', format: 'epub' }])
  await until(async () => (await server.call('list', vera.identity.publicKey, { limit: 1 })).total === 2, 'her new book')
  const friend = await openNode(t, target.network)
  await friend.peers.add(server.key)
  await server.call('peers.add', friend.identity.publicKey)
  await online(friend, server.key)
  await offered(friend, server.key, 1)
  const transfer = await friend.transfers.request({ peer: server.key, bookId: 'big' })
  assert.equal((await transfer.done()).state, 'completed')
})
