// What happens to whole nodes of ours while a book is on its way: cells of the NAT laboratory.

import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'

/** How fast books flow, so that they take a while, and how large they are. */
const rate = 4 << 20
const size = 32 << 20

/**
 * Each gets the two nodes, the sender's first, and tells how many milliseconds something took that `most`
 * bounds.
 */
export const stories = {
  'random/random/book': {
    about: 'a book over a relay of ours, from approving each other until it is there',
    relay: true,
    most: 30_000,
    async play({ begin, done }) {
      const start = performance.now()
      await begin('relayed')
      await done()
      return performance.now() - start
    }
  },
  'open/cone/book-moved': {
    about: "the receiver's NAT gets another address while a book comes: how long nothing does",
    most: 5000,
    play: (book) => moved(book, 'direct')
  },
  // The sender's NAT lets nothing in from the new address: both find each other anew, once they notice that
  // the other is silent.
  'cone/cone/book-moved': {
    about: 'the same behind two NATs',
    most: 5000,
    play: (book) => moved(book, 'punched')
  },
  'cone/cone/book-cut': {
    about: 'no network for 30 s while a book comes: how long until it goes on afterwards',
    most: 60_000,
    async play({ begin, progress, next, drain, done, network, hosts }) {
      await begin('punched')
      await progress(size / 4)
      network.cut(hosts[1], true)
      await pause(30_000)
      network.cut(hosts[1], false)
      await drain()
      const start = performance.now()
      await next()
      const took = performance.now() - start
      await done()
      return took
    }
  }
}

async function moved({ begin, progress, done, network, hosts }, path) {
  await begin(path)
  await progress(size / 4)
  network.move(hosts[1])
  return await done()
}

/** One try of a story. `start(host, command)` starts a program there; `stop(program)` ends it. */
export async function play(name, { network, bootstrap, start, stop, patience }) {
  const { relay, play, most } = stories[name]
  const [senderKind, receiverKind] = name.split('/')
  const hosts = [network.host(senderKind), network.host(receiverKind)]
  if (relay) hosts.push(network.host('open'))
  const folder = await mkdtemp(join(tmpdir(), 'alex-p2p-nat-'))
  const programs = []
  try {
    const open = async (index, options) => {
      const script = join(import.meta.dirname, 'node.mjs')
      const dataDir = join(folder, String(index))
      const command = [process.execPath, script, dataDir, bootstrap, JSON.stringify(options)]
      const program = start(hosts[index], command)
      programs.push(program)
      const { key } = await program.next('ready', patience)
      return { program, key }
    }
    const relaying = relay ? await open(2, { relay: { serve: true, bytesPerSecond: 2 * rate } }) : null
    const through = relaying ? [relaying.key] : []
    const sender = await open(0, { relay: { through }, limits: { uploadBytesPerSecond: rate } })
    const receiver = await open(1, { relay: { through } })
    const approve = async (a, b) => {
      a.program.send({ do: 'add', key: b.key })
      b.program.send({ do: 'add', key: a.key })
      const isThere = ({ event, key, path }) => event === 'peer' && key === b.key && path !== null
      return (await a.program.next(isThere, patience)).path
    }
    if (relaying) for (const node of [sender, receiver]) await approve(node, relaying)
    const book = join(folder, 'book.epub')
    await writeFile(book, Buffer.alloc(size, 7))
    sender.program.send({ do: 'publish', path: book })
    await sender.program.next('published', patience)
    const next = () => receiver.program.next('progress', patience)
    return await play({
      network,
      hosts,
      next,
      // Forgets how far it was.
      async drain() {
        while (await receiver.program.next('progress', 10).catch(() => null));
      },
      async begin(expected) {
        const path = await approve(receiver, sender)
        if (path !== expected) throw new Error(`the receiver is connected ${path}, not ${expected}`)
        receiver.program.send({ do: 'request', key: sender.key })
      },
      async progress(least) {
        while ((await next()).bytes < least);
      },
      // Returns the longest time in between.
      async done() {
        let longest = 0
        for (let before = performance.now(); ; ) {
          const { event } = await receiver.program.next(
            ({ event }) => event === 'progress' || event === 'done', patience
          )
          const now = performance.now()
          longest = Math.max(longest, now - before)
          before = now
          if (event === 'done') return longest
        }
      }
    }).then((ms) => (ms < most ? { ms } : { error: `took ${Math.round(ms)} ms` }))
  } finally {
    for (const program of programs) await stop(program)
    network.remove(...hosts)
    await rm(folder, { recursive: true, force: true })
  }
}
