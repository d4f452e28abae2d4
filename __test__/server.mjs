// A node in a process of its own, for tests that kill it: reads `{id, method, args}` lines and answers each
// with `{id, value}` or `{id, error}`. The argument is what `P2PNode.open` takes.

import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'

const { P2PNode } = createRequire(import.meta.url)('../index.js')
const say = (line) => process.stdout.write(JSON.stringify(line) + '\n')

const node = await P2PNode.open(JSON.parse(process.argv[2]))
say({ event: 'open', key: node.identity.publicKey })

/** What no single method of a node does. */
const more = {
  // Asks for a book, or goes on with it, and says how far it is every few milliseconds.
  async fetch(request) {
    const transfer = await node.transfers.request(request)
    const before = transfer.toJSON()
    let shown = -1
    const timer = setInterval(() => {
      const { bytes } = transfer.progress
      if (bytes !== shown) say({ event: 'bytes', bytes: (shown = bytes) })
    }, 2)
    transfer
      .done()
      .then((info) => say({ event: 'done', path: info.path }), (error) => say({ event: 'done', error }))
      .finally(() => clearInterval(timer))
    return before
  },
  memory: () => process.memoryUsage.rss()
}

createInterface({ input: process.stdin })
  .on('line', async (text) => {
    const { id, method, args } = JSON.parse(text)
    try {
      const path = method.split('.')
      const name = path.pop()
      const owner = path.reduce((object, part) => object[part], node)
      say({ id, value: await (more[method] ?? owner[name].bind(owner))(...args) })
    } catch ({ code, message }) {
      say({ id, error: { code, message } })
    }
  })
  .on('close', () => node.close())
