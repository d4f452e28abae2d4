// Ada's server: offers every EPUB of a folder to the servers that she adds.
//
//   node ada.mjs <data directory> <folder with books> <bootstrap …>

import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import p2p from '../../index.js'

const [dataDir, library, ...bootstrap] = process.argv.slice(2)

const node = await p2p.P2PNode.open({
  dataDir,
  bootstrap,
  host: '127.0.0.1',
  nickname: 'Ada',
  policy: 'auto-accept' // who is added may have every book; 'manual-approve' asks each time
})

// sync() takes the whole library each time and publishes what changed. Only the fields named here are
// published: the path in `source` never leaves this machine.
const names = (await readdir(library)).filter((name) => name.endsWith('.epub'))
await node.catalog.sync(
  names.map((name) => {
    const [author, title] = name.slice(0, -'.epub'.length).split('_').map(words)
    return { id: name, title, author, format: 'epub', source: join(library, name) }
  })
)

const { publicKey, fingerprint } = node.identity
process.send({
  event: 'open',
  server: { name: 'Ada', key: publicKey, fingerprint, books: names.length },
  invite: node.identity.inviteLink('Ada')
})

process.on('message', async ({ add }) => {
  await node.peers.add(add)
})

// The parent is done, or gone.
process.on('disconnect', () => node.close())

function words(text) {
  return text.split('-').map((word) => word[0].toUpperCase() + word.slice(1)).join(' ')
}
