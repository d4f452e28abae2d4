// A node in a process of its own, for tests that kill it: reads `{id, method, args}` lines and answers each
// with `{id, value}` or `{id, error}`. The argument is what `P2PNode.open` takes. Says when it began to open,
// which peers come online, and how far transfers are.

import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'

const { P2PNode } = createRequire(import.meta.url)('../index.js')
const say = (line) => process.stdout.write(JSON.stringify(line) + '\n')

const began = Date.now()
const node = await P2PNode.open(JSON.parse(process.argv[2]))
node.on('peer-online', ({ peer, at }) => say({ event: 'online', peer, at }))
node.on('transfer-progress', ({ transfer, bytes }) => say({ event: 'progress', transfer, bytes }))
say({ event: 'open', key: node.identity.publicKey, began })

/** What no single method of a node does. */
const more = {
  // Asks for a book, or goes on with it, and says how far it is whenever that changes.
  async fetch(request) {
    const transfer = await node.transfers.request(request)
    let last
    const show = () => {
      const { state, progress } = transfer.toJSON()
      const text = `${state} ${progress.bytes}`
      if (text !== last) say({ event: 'at', state, bytes: progress.bytes })
      last = text
    }
    const timer = setInterval(show, 2)
    transfer
      .done()
      .then((info) => say({ event: 'done', path: info.path }), ({ code }) => say({ event: 'done', code }))
      .finally(() => clearInterval(timer))
    return transfer.id
  },
  list: (peer, options) => node.catalog.of(peer).list(options),
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
