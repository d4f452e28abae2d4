// A whole node of ours in the NAT laboratory, driven by JSON lines:
//
//   node node.mjs <data dir> <bootstrap> [options as JSON]
//
//   {"do": "add", "key"}      approves a peer, and tells when it is online and how it is connected
//   {"do": "publish", "path"} offers a file as the book "book"
//   {"do": "request", "key"}  gets the book "book" of a peer; tells how far it is

import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'

const { P2PNode } = createRequire(import.meta.url)('../../index.js')
const print = (message) => console.log(JSON.stringify(message))
const [dataDir, bootstrap, options = '{}'] = process.argv.slice(2)
const node = await P2PNode.open({
  dataDir, bootstrap: [bootstrap], port: 0, policy: 'auto-accept', ...JSON.parse(options)
})
print({ event: 'ready', key: node.identity.publicKey })
for await (const line of createInterface({ input: process.stdin })) {
  const { do: action, key, path } = JSON.parse(line)
  if (action === 'add') await add(key)
  else if (action === 'publish') await publish(path)
  else if (action === 'request') request(key)
}
await node.close()
process.exit()

async function add(key) {
  await node.peers.add(key)
  let before
  setInterval(async () => {
    const connection = (await node.peers.get(key).catch(() => null))?.connection
    const path = connection?.path ?? null
    if (path !== before) print({ event: 'peer', key, path, address: connection?.address })
    before = path
  }, 50).unref()
}

async function publish(path) {
  await node.catalog.publish([{ id: 'book', title: 'A book', format: 'epub', source: path }])
  print({ event: 'published' })
}

async function request(key) {
  while ((await node.catalog.of(key).list({ limit: 1 })).total === 0) await pause(100)
  const transfer = await node.transfers.request({ peer: key, bookId: 'book' })
  let before
  const telling = setInterval(() => {
    const { bytes } = transfer.progress
    if (bytes !== before) print({ event: 'progress', bytes })
    before = bytes
  }, 100)
  const { path } = await transfer.done()
  clearInterval(telling)
  print({ event: 'done', path })
}

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms))
}
