// Two servers share a book: Ada's, in a process of its own, has a library; Ben's, here, wants a book.
//
//   npm start               for people
//   npm start -- --json     the same as JSON lines
//
// Everything runs on this machine, over a DHT that lives in this process.

import { fork } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve, sep } from 'node:path'
import { fileURLToPath } from 'node:url'
import p2p from '../../index.js'
import { report } from './report.mjs'

const { P2PNode, Testnet } = p2p
const library = fileURLToPath(new URL('../library/', import.meta.url))
const patience = { signal: AbortSignal.timeout(120_000) }

const scratch = await mkdtemp(join(tmpdir(), 'alex-p2p-example-'))
const testnet = await Testnet.start(3)
const ada = startAda()
const ben = await P2PNode.open({
  dataDir: join(scratch, 'ben'),
  bootstrap: testnet.bootstrap,
  host: '127.0.0.1',
  nickname: 'Ben',
  ...patience
})

try {
  report.network({ bootstrap: testnet.bootstrap })
  const { invite, server } = await ada.next('open')
  report.server(server)
  report.server(describe('Ben', ben))

  // Pairing: each adds the other's invite link, which people send each other by mail, say. Until both
  // have, neither gets a connection.
  const events = ben.events(patience)
  await ben.peers.add(invite)
  ada.send({ add: ben.identity.inviteLink('Ben') })
  const online = await first(events, (event) => event.type === 'peer-online')
  report.paired({ peer: online.nickname, key: online.peer })

  // Ada's catalog comes by itself and is here from now on, whether she is online or not.
  const catalog = ben.catalog.of(online.peer)
  let page = await catalog.list()
  while (page.total < server.books) {
    await first(events, (event) => event.type === 'catalog-updated')
    page = await catalog.list()
  }
  for (const book of page.books) report.book(book)

  // One book, straight into ./received/. It would go on after a crash or a lost connection.
  const [wanted] = (await catalog.list({ search: 'frankenstein' })).books
  ben.on('transfer-progress', ({ bytes, total, rate, etaMs }) => {
    report.progress({ bytes, total, rate, etaMs })
  })
  const transfer = await ben.transfers.request({
    peer: online.peer,
    bookId: wanted.id,
    saveTo: resolve('received') + sep
  })
  const done = await transfer.done(patience)
  report.progress(done.progress)
  const [original, received] = await Promise.all([sha256(join(library, wanted.id)), sha256(done.path)])
  report.received({ path: done.path, bytes: done.progress.bytes, identical: original === received })
  process.exitCode = original === received ? 0 : 1
} catch (error) {
  report.failed({ code: error.code ?? null, message: error.message })
  process.exitCode = 1
} finally {
  await Promise.all([ben.close(), ada.end()])
  await testnet.close()
  await rm(scratch, { recursive: true, force: true, maxRetries: 5 })
}

/** Ada's server as a child process, and what it says. */
function startAda() {
  const program = fileURLToPath(new URL('ada.mjs', import.meta.url))
  const child = fork(program, [join(scratch, 'ada'), library, ...testnet.bootstrap])
  const exited = new Promise((resolve) => child.on('exit', resolve))
  return {
    send: (message) => child.send(message),
    next: (event) =>
      new Promise((resolve, reject) => {
        child.on('message', (message) => message.event === event && resolve(message))
        exited.then((code) => reject(new Error(`Ada's server ended with ${code}`)))
      }),
    end: () => {
      if (child.connected) child.disconnect()
      return exited
    }
  }
}

function describe(name, node) {
  return { name, key: node.identity.publicKey, fingerprint: node.identity.fingerprint, books: 0 }
}

async function first(events, wanted) {
  for (;;) {
    const { value, done } = await events.next()
    if (done) throw new Error('the node was closed')
    if (wanted(value)) return value
  }
}

async function sha256(path) {
  return createHash('sha256').update(await readFile(path)).digest('hex')
}
