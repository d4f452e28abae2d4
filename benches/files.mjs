// How long `sync` of a catalog takes that did not change, with the places of the books given and without:
//
//   npm run build && node benches/files.mjs [count]
//
// With places, each file is looked for. Prints milliseconds, of five times each.

import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { books } from './entries.mjs'

const { P2PNode, Testnet } = createRequire(import.meta.url)('../index.js')
const FOLDERS = 1000

const count = Number(process.argv[2] ?? 100_000)
const dir = await mkdtemp(join(tmpdir(), 'alex-p2p-files-'))
const list = books(count)
for (let n = 0; n < Math.min(FOLDERS, count); n++) await mkdir(join(dir, `${n}`))
for (const [n, book] of list.entries()) {
  book.source = join(dir, `${n % FOLDERS}`, `${book.id}.epub`)
  await writeFile(book.source, 'a book')
}
const network = await Testnet.start(1)
const node = await P2PNode.open({ bootstrap: network.bootstrap, host: '127.0.0.1', port: 0, dataDir: join(dir, 'data') })
try {
  await node.catalog.sync(list)
  console.log(JSON.stringify({ places: await times(list), without: await times(list.map(({ source, ...book }) => book)) }))
} finally {
  await node.close()
  await network.close()
  await rm(dir, { recursive: true })
}

async function times(books) {
  const taken = []
  for (let round = 0; round < 5; round++) {
    const start = performance.now()
    const changes = await node.catalog.sync(books)
    taken.push(Math.round(performance.now() - start))
    if (changes.unchanged !== count || changes.missing) throw new Error(JSON.stringify(changes))
  }
  return taken
}
