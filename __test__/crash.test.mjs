// kill -9 of either side in the middle of a large book.

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { shared, startServer, temporaryDirectory, testnet } from './nodes.mjs'

const kills = 10
const block = 64 * 1024
const MiB = 1024 * 1024
const sample = ['library', 'lewis-carroll_alices-adventures-in-wonderland_john-tenniel.epub']

/** The 25 MB book of the samples, or as many random bytes where it is not. */
async function largeBook(t) {
  const path = shared({ skip: (reason) => t.diagnostic(`${reason}; random bytes instead`) }, ...sample)
  return path ? readFile(path) : randomBytes(25_725_969)
}

/**
 * Fetches books and kills one side a moment after bytes began to flow, until it has been killed often
 * enough. A book that arrives before its kill is followed by another, a little longer, and the next kill
 * comes earlier. `check` is called after each kill, before the victim is started again.
 */
async function killing(t, victim, { killed, resumed }) {
  const network = await testnet(t)
  const folder = await temporaryDirectory(t)
  const large = await largeBook(t)
  const start = (name) =>
    startServer(t, network, { dataDir: join(folder, name), policy: 'auto-accept', nickname: name })
  const servers = { sender: await start('sender'), receiver: await start('receiver') }
  const peer = servers.sender.key
  await servers.receiver.call('peers.add', peer)
  await servers.sender.call('peers.add', servers.receiver.key)

  let done = 0
  let pause = 80
  for (let n = 0; done < kills; n++) {
    assert.ok(n < 60, `${done} kills in ${n} books`)
    const book = Buffer.concat([large, Buffer.alloc(n + 1, n)])
    const source = join(folder, `${n}.epub`)
    const saveTo = join(folder, `received-${n}.epub`)
    await writeFile(source, book)
    await servers.sender.call('catalog.publish', [{ id: `${n}`, title: `Book ${n}`, source }])
    const request = { peer, bookId: `${n}`, saveTo }
    let transfer = await servers.receiver.call('fetch', request)
    for (;;) {
      const { program } = servers.receiver
      const flowing = await program.next((at) => at.event === 'done' || at.state === 'transferring')
      if (flowing.event !== 'done' && done < kills) {
        await new Promise((resolve) => setTimeout(resolve, pause))
        const early = program.rest((line) => line.event === 'done')
        if (early.length === 0) {
          done += 1
          await servers[victim].kill()
          await killed?.({ folder, book })
          servers[victim] = await start(victim)
          if (victim === 'receiver') {
            program.rest(() => true)
            const again = await servers.receiver.call('fetch', request)
            if (again === transfer) {
              await resumed?.(servers.receiver, transfer)
            } else {
              // It was whole, and has landed before it was asked for again: now it comes a second time.
              assert.ok(book.equals(await readFile(saveTo)), `book ${n}`)
              transfer = again
            }
          }
          continue
        }
        pause *= 0.6
      } else if (flowing.event !== 'done') {
        await program.next('done')
      }
      break
    }
    assert.ok(book.equals(await readFile(saveTo)), `book ${n}`)
  }
  t.diagnostic(`killed ${done} times, at last ${pause.toFixed(0)} ms after bytes began to flow`)
}

test(`a receiver killed ${kills} times goes on from the blocks that it has`, async (t) => {
  let written
  let measured = 0
  let worst = 0
  await killing(t, 'receiver', {
    // What the partial file has of the book is what was fetched and verified.
    async killed({ folder, book }) {
      written = 0
      const incoming = join(folder, 'receiver', 'incoming')
      for (const name of await readdir(incoming)) {
        const part = await readFile(join(incoming, name))
        for (let at = 0; at < part.length; at += block) {
          const here = part.subarray(at, at + block)
          if (here.equals(book.subarray(at, at + block))) written += here.length
        }
      }
    },
    // First of all it says what it has, before any new block.
    async resumed({ program }, transfer) {
      const first = await program.next(
        (line) => line.event === 'done' || (line.event === 'progress' && line.transfer === transfer)
      )
      if (first.event === 'done') return program.unread(first)
      measured += 1
      worst = Math.max(worst, written - first.bytes)
    }
  })
  t.diagnostic(`at most ${worst} verified bytes were fetched again, of ${measured} times`)
  assert.ok(measured > 0 && worst <= MiB)
})

test(`a sender killed ${kills} times goes on when it is back`, (t) => killing(t, 'sender', {}))
