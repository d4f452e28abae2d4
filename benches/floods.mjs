// Approved peers that send as much as they can of one kind of message: what a server's memory does meanwhile, and
// how long a person waits who blocks one of them.

import { randomFillSync } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { kinds } from '../__test__/interop/floods.mjs'

const seconds = Number(process.env.FLOOD_SECONDS ?? 6)
const MB = 1e6
const page = 4096

export const floods = [
  {
    set: 'floods',
    oursOnly: true,
    once: true,
    skip: () => (existsSync('/proc/self/statm') ? null : 'memory is read from /proc'),
    rows: [
      { id: 'flood-block', unit: 'ms', better: 'low' },
      { id: 'flood-rss', unit: 'MB', better: 'low' }
    ],
    // The worst of all kinds. Each has a server of its own that has served its attackers honestly before.
    async measure(side) {
      const worst = { 'flood-block': 0, 'flood-rss': 0 }
      const only = process.env.FLOODS?.split(',') ?? Object.keys(kinds)
      const { bootstrap } = await side.testnet()
      const sources = await writeBooks(side.directory)
      for (const kind of only) {
        const figures = await flood(side, kind, { bootstrap, sources })
        worst['flood-block'] = Math.max(worst['flood-block'], figures.block)
        worst['flood-rss'] = Math.max(worst['flood-rss'], figures.rss)
      }
      return worst
    }
  }
]

async function writeBooks(directory) {
  const sources = {}
  for (const [id, size] of [['small', 100_000], ['large', 100 * MB]]) {
    sources[id] = join(directory, `${id}.epub`)
    await writeFile(sources[id], randomFillSync(Buffer.alloc(size)))
  }
  return sources
}

async function flood(side, kind, { bootstrap, sources }) {
  const { peers = 1 } = kinds[kind]
  const attackers = await side.start('flood-worker.mjs')
  const keys = await attackers.keys({ count: peers })
  const dataDir = join(side.directory, `victim-${kind}`)
  const { key, feed } = await prepare(side, { bootstrap, dataDir, sources, keys })
  // Another process than the one that published: its memory is that of serving alone.
  const victim = await side.start()
  await victim.open({ bootstrap, dataDir })
  await attackers.visit({ bootstrap, target: { key, ...feed } })
  await sleep(1000)

  const idle = resident(victim.pid)
  const cpu = (await victim.usage()).cpu
  let peak = idle
  let isOver = false
  const watching = (async () => {
    while (!isOver) {
      peak = Math.max(peak, resident(victim.pid))
      await sleep(20)
    }
  })()
  await attackers.start({ kind })
  await sleep(seconds * 1000)
  const during = peak
  const busy = ((await victim.usage()).cpu - cpu) / seconds
  const blocked = await victim.block({ key: keys[0] })
  await sleep(500)
  const counts = await attackers.stop()
  const lastEnd = await attackers.lastEnd({ key: keys[0] })
  await sleep(4500)
  isOver = true
  await watching
  const after = resident(victim.pid)
  await side.stop(victim)
  await side.stop(attackers)

  const block = Math.max(blocked.returned, blocked.gone)
  const rss = (peak - idle) / MB
  const megabytes = (bytes) => ((bytes - idle) / MB).toFixed(1)
  console.error(
    `  ${kind}: block ${blocked.returned.toFixed(1)} ms, gone ${blocked.gone.toFixed(1)} ms ` +
      `(the attacker saw it after ${lastEnd ? Math.max(0, lastEnd - blocked.at) : '-'} ms), ` +
      `memory +${megabytes(during)} MB, at most +${rss.toFixed(1)} MB, 5 s later +${megabytes(after)} MB of ${(idle / MB).toFixed(0)} MB; ` +
      `${busy.toFixed(2)} processors, ${counts.messages} messages, ${counts.connections} connections, ${counts.refused} refused`
  )
  return { block, rss }
}

/** A data directory of a server with some thousand books that knows its attackers. */
async function prepare(side, { bootstrap, dataDir, sources, keys }) {
  const server = await side.start()
  const { key } = await server.open({ bootstrap, dataDir })
  await server.publish({ count: 4000 })
  const feed = await server.offer({ sources })
  for (const attacker of keys) await server.admit({ key: attacker })
  await server.close()
  await side.stop(server)
  return { key, feed }
}

/** A process's memory, in bytes. */
function resident(pid) {
  return Number(readFileSync(`/proc/${pid}/statm`, 'utf8').split(' ')[1]) * page
}
