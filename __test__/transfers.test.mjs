// node.transfers: asking, allowing, sending, and where the file ends up.

import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { mkdir, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { basename, dirname, join, sep } from 'node:path'
import { Readable } from 'node:stream'
import { test } from 'node:test'
import {
  books, eventOf, failure, offered, openNode, pair, shared, sharing, temporaryDirectory, testnet, undo, until
} from './nodes.mjs'

async function sha256(path) {
  return createHash('sha256').update(await readFile(path)).digest('hex')
}

/** The transfer at the sender, once it is in that state. */
async function asked(sender, state) {
  const find = async () => (await sender.transfers.list({ direction: 'outgoing', state }))[0]
  return until(find, `an outgoing transfer that is ${state}`)
}

test('the sender does not choose what a double click on a book does', async (t) => {
  const { sender, receiver, peer } = await sharing(t)
  const folder = await temporaryDirectory(t)
  const cases = [
    { title: 'Evil', format: 'exe', name: 'Evil (exe).book' },
    { title: 'Evil', format: 'desktop', name: 'Evil (desktop).book' },
    { title: 'Evil.html', name: 'Evil.html.book' },
    { title: 'x.pdf.lnk', name: 'x.pdf.lnk.book' },
    { title: 'Good', format: 'EPUB', name: 'Good.epub' }
  ]
  for (const [n, { title, format }] of cases.entries()) {
    await sender.catalog.publish([{ ...books[n % 2], id: `${n}`, title, format, author: undefined }])
  }
  await until(async () => await receiver.catalog.of(peer).get(`${cases.length - 1}`), 'the books are on offer')
  for (const [n, { name }] of cases.entries()) {
    const transfer = await receiver.transfers.request({ peer, bookId: `${n}`, saveTo: folder + sep })
    assert.equal(basename((await transfer.done()).path), name)
  }
})

test('a folder that cannot be made is named, and no disk is called full', async (t) => {
  const { receiver, peer } = await sharing(t)
  const file = join(await temporaryDirectory(t), 'a file')
  await writeFile(file, '')
  const folder = join(file, 'books')
  const transfer = await receiver.transfers.request({ peer, bookId: 'dracula', saveTo: folder + sep })
  const failed = await failure(transfer.done())
  assert.equal(failed.code, 'ERR_IO')
  assert.ok(failed.message.includes(folder) && failed.message.includes('saveTo'), failed.message)
})

test('a book arrives whole, under a name of the receiver\'s making, with its progress', async (t) => {
  const { sender, receiver, peer } = await sharing(t)
  const folder = await temporaryDirectory(t)
  const events = receiver.events()
  const transfer = await receiver.transfers.request({ peer, bookId: 'frankenstein', saveTo: folder + sep })
  assert.deepEqual([transfer.direction, transfer.peer, transfer.bookId], ['incoming', peer, 'frankenstein'])
  const done = await transfer.done()
  assert.equal(done.state, 'completed')
  assert.equal(dirname(done.path), folder)
  assert.match(basename(done.path), /Frankenstein.*\.epub$/)
  assert.equal(await sha256(done.path), await sha256(books[0].source))
  assert.deepEqual([done.progress.bytes, done.progress.total], [690_404, 690_404])
  assert.deepEqual(transfer.toJSON(), done)
  assert.deepEqual(JSON.parse(JSON.stringify({ transfer })).transfer, done)

  const states = []
  for await (const event of events) {
    if (event.type === 'transfer-state' && event.transfer === transfer.id) {
      states.push(event.state)
      if (event.state === 'completed') break
    }
  }
  assert.deepEqual(states.filter((state) => state === 'transferring').length, 1, states.join())
  assert.equal(states.at(-1), 'completed')
  const other = await asked(sender, 'completed')
  assert.deepEqual([other.peer, other.bookId], [receiver.identity.publicKey, 'frankenstein'])
  assert.equal((await sender.transfers.get(other.id)).state, 'completed')
  assert.equal(await sender.transfers.get('nothing'), null)
})

test('asking again for a book under way gives the same transfer', async (t) => {
  const { receiver, peer } = await sharing(t, { policy: 'manual-approve' })
  const request = { peer, bookId: 'dracula' }
  const [a, b] = await Promise.all([receiver.transfers.request(request), receiver.transfers.request(request)])
  assert.equal(a.id, b.id)
  assert.equal((await receiver.transfers.list()).length, 1)
})

test('a person approves or denies, and the receiver is told why', async (t) => {
  const { sender, receiver, peer } = await sharing(t, { policy: 'manual-approve' })
  const heard = eventOf(sender, (event) => event.type === 'transfer-requested')
  const first = await receiver.transfers.request({ peer, bookId: 'dracula' })
  const event = await heard
  assert.deepEqual([event.bookId, event.title, event.sizeBytes], ['dracula', 'Dracula', 574_571])
  await until(() => first.state === 'awaiting-approval', 'the receiver waits')
  const at = await sender.transfers.get(event.transfer)
  await at.approve()
  await at.approve()
  assert.equal((await first.done()).state, 'completed')
  await at.done()
  assert.equal((await failure(at.approve())).code, 'ERR_INVALID_STATE')
  assert.equal((await failure(first.approve())).code, 'ERR_INVALID_STATE')

  const second = await receiver.transfers.request({ peer, bookId: 'frankenstein' })
  await (await asked(sender, 'awaiting-approval')).deny('not this one')
  const error = await failure(second.done())
  assert.equal(error.code, 'ERR_DENIED')
  assert.match(error.message, /not this one/)
  assert.deepEqual([second.state, second.reason, second.path], ['denied', 'not this one', null])
})

test('metadata-only denies, and a peer\'s own policy goes before the node\'s', async (t) => {
  const { sender, receiver, peer } = await sharing(t, { policy: 'metadata-only' })
  const denied = await receiver.transfers.request({ peer, bookId: 'dracula' })
  assert.equal((await failure(denied.done())).code, 'ERR_DENIED')
  await sender.peers.update(receiver.identity.publicKey, { policy: 'auto-accept' })
  const granted = await receiver.transfers.request({ peer, bookId: 'frankenstein' })
  assert.equal((await granted.done()).state, 'completed')
})

test('a book that the peer does not have is ERR_UNAVAILABLE', async (t) => {
  const { sender, receiver, peer } = await sharing(t)
  const missing = await receiver.transfers.request({ peer, bookId: 'no such book' })
  assert.equal((await failure(missing.done())).code, 'ERR_UNAVAILABLE')
  const gone = join(await temporaryDirectory(t), 'gone.epub')
  await writeFile(gone, 'x'.repeat(1000))
  await sender.catalog.publish([{ id: 'gone', title: 'Gone', source: gone }, { id: 'none', title: 'No bytes' }])
  await rm(gone)
  for (const bookId of ['gone', 'none']) {
    const transfer = await receiver.transfers.request({ peer, bookId })
    assert.equal((await failure(transfer.done())).code, 'ERR_UNAVAILABLE', bookId)
  }
})

test('who is not approved here cannot be asked', async (t) => {
  const node = await openNode(t, await testnet(t, 1))
  const peer = '1m1ewdyh4bufibabw4d6ckjhfmddthpikyzok4qqe1ozn916q16y'
  assert.equal((await failure(node.transfers.request({ peer, bookId: 'x' }))).code, 'ERR_NOT_APPROVED')
})

test('a request waits for a peer that is offline, also across restarts of either side', async (t) => {
  const network = await testnet(t)
  const directories = [await temporaryDirectory(t), await temporaryDirectory(t)]
  const open = (which) => openNode(t, network, { dataDir: directories[which], policy: 'auto-accept' })
  let [sender, receiver] = [await open(0), await open(1)]
  await sender.catalog.publish(books)
  await pair(sender, receiver)
  await offered(receiver, sender, 2)
  const peer = sender.identity.publicKey
  await sender.close()
  await until(async () => !(await receiver.peers.get(peer)).isOnline, 'the sender is offline')
  const { id } = await receiver.transfers.request({ peer, bookId: 'dracula' })
  assert.equal((await receiver.transfers.get(id)).state, 'queued')
  await receiver.close()
  receiver = await open(1)
  assert.equal((await receiver.transfers.get(id)).state, 'queued')
  sender = await open(0)
  const done = await (await receiver.transfers.get(id)).done()
  assert.equal(await sha256(done.path), await sha256(books[1].source))
})

test('paused bytes stop, and go on; cancelled ones are gone', async (t) => {
  const { sender, receiver, peer } = await sharing(t, { policy: 'manual-approve' })
  const dataDir = await temporaryDirectory(t)
  const paused = await receiver.transfers.request({ peer, bookId: 'frankenstein', saveTo: dataDir + sep })
  const outgoing = await asked(sender, 'awaiting-approval')
  await paused.pause()
  assert.equal(paused.state, 'paused')
  await outgoing.approve()
  assert.equal((await failure(paused.done({ signal: AbortSignal.timeout(300) }))).code, 'ERR_ABORTED')
  assert.deepEqual(await readdir(dataDir), [])
  await paused.resume()
  assert.equal((await paused.done()).state, 'completed')

  const cancelled = await receiver.transfers.request({ peer, bookId: 'dracula', saveTo: dataDir + sep })
  await asked(sender, 'awaiting-approval')
  const waiting = failure(cancelled.done())
  await cancelled.cancel()
  await cancelled.cancel()
  assert.equal((await waiting).code, 'ERR_CANCELLED')
  await asked(sender, 'cancelled')
  assert.equal((await readdir(dataDir)).length, 1)
})

test('a book may come from a function: a path, a promise of one, a stream', async (t) => {
  const bytes = await readFile(books[0].source)
  const asks = []
  const list = [
    { id: 'path', title: 'Path', source: (id) => asks.push(id) && books[0].source },
    { id: 'promise', title: 'Promise', source: async () => books[0].source },
    { id: 'web', title: 'Web stream', source: () => Readable.toWeb(createReadStream(books[0].source)) },
    {
      id: 'chunks',
      title: 'Chunks',
      source: async () =>
        new ReadableStream({
          async start(controller) {
            for (let at = 0; at < bytes.length; at += 100_001) {
              const chunk = bytes.subarray(at, at + 100_001)
              controller.enqueue(new Uint8Array(chunk))
              await new Promise(setImmediate)
            }
            controller.close()
          }
        })
    },
    { id: 'throws', title: 'Throws', source: () => { throw new Error('no S3 today') } },
    { id: 'rejects', title: 'Rejects', source: async () => { throw new Error('no S3 today') } },
    { id: 'number', title: 'Number', source: () => 7 },
    {
      id: 'breaks',
      title: 'Breaks',
      source: () =>
        new ReadableStream({
          pull(controller) {
            controller.enqueue(new Uint8Array(1000))
            controller.error(new Error('the connection to S3 was lost'))
          }
        })
    }
  ]
  const { receiver, peer } = await sharing(t, { list })
  for (const bookId of ['path', 'promise', 'web', 'chunks']) {
    const transfer = await receiver.transfers.request({ peer, bookId })
    const { path } = await transfer.done()
    assert.ok(bytes.equals(await readFile(path)), bookId)
  }
  assert.deepEqual(asks, ['path'])
  for (const bookId of ['throws', 'rejects', 'number', 'breaks']) {
    const transfer = await receiver.transfers.request({ peer, bookId })
    assert.equal((await failure(transfer.done())).code, 'ERR_UNAVAILABLE', bookId)
  }
})

test('all six books of the library arrive at once', async (t) => {
  const folder = shared(t, 'library')
  if (!folder) return
  const names = (await readdir(folder)).filter((name) => name.endsWith('.epub'))
  assert.equal(names.length, 6)
  const list = names.map((name) => ({ id: name, title: name.slice(0, -5), source: join(folder, name) }))
  const { receiver, peer } = await sharing(t, { list })
  const to = await temporaryDirectory(t)
  const arrived = await Promise.all(
    names.map(async (bookId) => {
      const transfer = await receiver.transfers.request({ peer, bookId, saveTo: join(to, bookId) })
      return transfer.done()
    })
  )
  for (const { bookId, path } of arrived) {
    assert.equal(path, join(to, bookId))
    assert.equal(await sha256(path), await sha256(join(folder, bookId)), bookId)
  }
})

test('hostile words never become a path', async (t) => {
  const hostile = [
    '../../escaped',
    '/etc/escaped',
    'C:\\Windows\\escaped',
    '..\\..\\escaped',
    'nul\0byte',
    'CON',
    'x'.repeat(4000),
    '\u202egnp.exe\u202d',
    '\x1b[2J\x1b]0;owned\x07',
    '.',
    '..',
    '',
    ' ',
    '~/.ssh/authorized_keys',
    'a\nb\rc\td'
  ]
  const list = hostile.map((word, n) => ({
    id: `${n}/../../${word.slice(0, 100)}`,
    title: word,
    author: word,
    format: word.slice(0, 50) || '/',
    source: books[1].source
  }))
  const { receiver, peer } = await sharing(t, { list })
  const above = await temporaryDirectory(t)
  const folder = join(above, 'a', 'b')
  await mkdir(folder, { recursive: true })
  const theirs = (await receiver.catalog.of(peer).list({ limit: 100 })).books
  assert.equal(theirs.length, list.length)
  const unsafe = /[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/
  for (const { id } of list) {
    const transfer = await receiver.transfers.request({ peer, bookId: id, saveTo: folder + sep })
    const { path } = await transfer.done()
    assert.equal(dirname(path), folder, JSON.stringify(path))
    const name = basename(path)
    assert.ok(Buffer.byteLength(name) <= 255 && !unsafe.test(name), JSON.stringify(name))
    assert.ok(!/^(con(\.|$)|\.)/i.test(name), JSON.stringify(name))
    assert.equal((await stat(path)).size, 574_571)
  }
  for (const book of theirs) {
    assert.ok(!unsafe.test(book.title) && !unsafe.test(book.author), JSON.stringify(book))
  }
  assert.equal((await readdir(folder)).length, list.length)
  assert.deepEqual(await readdir(join(above, 'a')), ['b'])
  assert.deepEqual(await readdir(above), ['a'])
})

test('paths are those of the call that gave them, whatever becomes of the working directory', async (t) => {
  const network = await testnet(t)
  const before = process.cwd()
  undo(t, () => process.chdir(before))
  const here = await temporaryDirectory(t)
  const elsewhere = await temporaryDirectory(t)
  process.chdir(here)
  const opening = Promise.all([
    openNode(t, network, { dataDir: './sender', policy: 'auto-accept' }),
    openNode(t, network, { dataDir: './receiver', booksDir: './library' })
  ])
  process.chdir(elsewhere)
  const [sender, receiver] = await opening
  await pair(sender, receiver)
  process.chdir(here)
  await writeFile('a book.epub', 'its bytes')
  await writeFile('a stream.epub', 'other bytes')
  const publishing = sender.catalog.publish([
    { id: '1', title: 'One', format: 'epub', source: './a book.epub' },
    { id: '2', title: 'Two', format: 'epub', source: async () => join(here, 'a stream.epub') }
  ])
  process.chdir(elsewhere)
  await publishing
  const peer = sender.identity.publicKey
  await offered(receiver, peer, 2)
  process.chdir(here)
  const requests = [
    receiver.transfers.request({ peer, bookId: '1' }),
    receiver.transfers.request({ peer, bookId: '2', saveTo: './chosen.epub' })
  ]
  const backup = receiver.backup('./backup.db')
  process.chdir(elsewhere)
  const [first, second] = await Promise.all(requests.map(async (request) => (await (await request).done()).path))
  assert.equal(dirname(first), join(here, 'library'))
  assert.equal(second, join(here, 'chosen.epub'))
  assert.equal((await backup).path, join(here, 'backup.db'))
  assert.deepEqual(await readdir(elsewhere), [])
})
