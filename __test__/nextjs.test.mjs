// The routes of examples/nextjs, run as Next would run them: a Request in, a Response out.

import assert from 'node:assert/strict'
import { mkdir, readFile, symlink, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { test } from 'node:test'
import ts from 'typescript'
import { books, online, openNode, root, temporaryDirectory, testnet, undo, until } from './nodes.mjs'

const files = [
  'lib/p2p.ts',
  'lib/library.ts',
  'instrumentation.ts',
  'app/api/p2p/identity/route.ts',
  'app/api/p2p/peers/route.ts',
  'app/api/p2p/peers/[key]/route.ts',
  'app/api/p2p/peers/[key]/books/route.ts',
  'app/api/p2p/transfer/route.ts',
  'app/api/p2p/transfers/route.ts',
  'app/api/p2p/transfers/[id]/approve/route.ts',
  'app/api/p2p/events/route.ts'
]

/** Compiles the example into a folder where `@alex/p2p` is this addon, and loads its routes. */
async function routes(t, environment) {
  const folder = await temporaryDirectory(t)
  await mkdir(join(folder, 'node_modules', '@alex'), { recursive: true })
  await symlink(root, join(folder, 'node_modules', '@alex', 'p2p'), 'junction')
  for (const file of files) {
    const source = await readFile(join(root, 'examples', 'nextjs', file), 'utf8')
    const { outputText } = ts.transpileModule(source, {
      compilerOptions: { module: ts.ModuleKind.CommonJS, target: ts.ScriptTarget.ES2022 }
    })
    const path = join(folder, file.replace(/\.ts$/, '.js'))
    await mkdir(join(path, '..'), { recursive: true })
    await writeFile(path, outputText)
  }
  Object.assign(process.env, { ALEX_P2P_DATA: join(folder, 'data'), ALEX_P2P_HOST: '127.0.0.1', ...environment })
  const require = createRequire(join(folder, 'app.js'))
  undo(t, async () => {
    await require('./lib/p2p.js').closeP2P()
    delete globalThis.alexP2P
  })
  return {
    require,
    /** Calls a route: `call('GET', 'peers/[key]/books', { key }, '?limit=1')`. */
    async call(method, route, params = {}, { query = '', body, ...more } = {}) {
      const handler = require(`./app/api/p2p/${route}/route.js`)[method]
      const request = new Request(`http://localhost/api/p2p/${route.replace(/[[\]]/g, '')}${query}`, {
        method,
        body: body === undefined ? undefined : JSON.stringify(body),
        ...more
      })
      const response = await handler(request, { params: Promise.resolve(params) })
      if (response.headers.get('content-type') !== 'application/json') return response
      return { status: response.status, json: await response.json() }
    }
  }
}

test('two servers share a book over the routes of one of them', async (t) => {
  const network = await testnet(t)
  const friend = await openNode(t, network, { nickname: 'Friend', policy: 'auto-accept' })
  await friend.catalog.publish(books)
  const { call } = await routes(t, {
    ALEX_P2P_BOOTSTRAP: network.bootstrap.join(),
    ALEX_P2P_NICKNAME: 'Alex',
    ALEX_LIBRARY: join(root, 'examples', 'library')
  })

  const identity = await call('GET', 'identity')
  assert.equal(identity.status, 200)
  assert.match(identity.json.inviteLink, /^alex:\/\/peer\/[a-z0-9]{52}\?name=Alex$/)
  assert.match(identity.json.qr, /<svg/)

  const key = friend.identity.publicKey
  const added = await call('POST', 'peers', {}, { body: { key: friend.identity.inviteLink('Friend') } })
  assert.deepEqual([added.status, added.json.key, added.json.nickname], [201, key, 'Friend'])
  await friend.peers.add(identity.json.inviteLink)
  await online(friend, identity.json.publicKey)
  const { json } = await call('GET', 'peers')
  assert.deepEqual([json.peers.length, json.pending, json.discovered], [1, [], []])

  const page = await until(async () => {
    const { json } = await call('GET', 'peers/[key]/books', { key }, { query: '?search=dracula&limit=5' })
    return json.total === 1 && json
  }, 'the catalog')
  const bookId = page.books[0].id
  const asked = await call('POST', 'transfer', {}, { body: { peer: key, bookId } })
  assert.deepEqual([asked.status, asked.json.bookId, asked.json.direction], [202, bookId, 'incoming'])
  await until(async () => {
    const { json } = await call('GET', 'transfers', {}, { query: `?state=completed&peer=${key}` })
    return json[0]?.id === asked.json.id
  }, 'the book')

  // The other way a person approves.
  const mine = await until(
    async () => (await friend.catalog.of(identity.json.publicKey).list()).books[0],
    'the catalog of the routes'
  )
  const wanted = await friend.transfers.request({ peer: identity.json.publicKey, bookId: mine.id })
  const waiting = await until(async () => {
    const { json } = await call('GET', 'transfers', {}, { query: '?direction=outgoing&state=awaiting-approval' })
    return json[0]
  }, 'a request that waits')
  const approved = await call('POST', 'transfers/[id]/approve', { id: waiting.id })
  assert.equal(approved.status, 200)
  assert.equal((await wanted.done()).state, 'completed')

  assert.deepEqual(await call('DELETE', 'peers/[key]', { key }), { status: 200, json: { removed: true } })
  assert.deepEqual((await call('GET', 'peers')).json.peers, [])
})

test('failures are statuses with codes', async (t) => {
  const network = await testnet(t, 1)
  const { call } = await routes(t, { ALEX_P2P_BOOTSTRAP: network.bootstrap.join(), ALEX_LIBRARY: '' })
  const cases = [
    [400, 'ERR_INVALID_KEY', await call('POST', 'peers', {}, { body: { key: 'nonsense' } })],
    [400, 'ERR_INVALID_ARGUMENT', await call('POST', 'peers', {}, { body: {} })],
    [400, 'ERR_INVALID_ARGUMENT', await call('POST', 'transfer', {}, { body: { peer: 7 } })],
    [404, 'ERR_NOT_FOUND', await call('POST', 'transfers/[id]/approve', { id: 'none' })],
    [400, 'ERR_INVALID_KEY', await call('GET', 'peers/[key]/books', { key: 'nonsense' })],
    [400, 'ERR_INVALID_ARGUMENT', await call('GET', 'transfers', {}, { query: '?state=nonsense' })]
  ]
  for (const [status, code, answer] of cases) {
    assert.deepEqual([answer.status, answer.json.error.code], [status, code])
    assert.ok(answer.json.error.message)
  }
})

test('a page follows events, goes on after the last that it saw, and lets go when it is closed', async (t) => {
  const network = await testnet(t, 1)
  const { call, require } = await routes(t, { ALEX_P2P_BOOTSTRAP: network.bootstrap.join(), ALEX_LIBRARY: '' })
  const node = await require('./lib/p2p.js').p2p()
  const key = '1m1ewdyh4bufibabw4d6ckjhfmddthpikyzok4qqe1ozn916q16y'

  /** Opens the page's connection; `find` reads events until one matches, and closes it. */
  async function follow(headers) {
    const page = new AbortController()
    const response = await call('GET', 'events', {}, { headers, signal: page.signal })
    assert.equal(response.headers.get('content-type'), 'text/event-stream')
    return async function find(wanted) {
      let text = ''
      for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
        text += chunk
        for (const [, id, data] of text.matchAll(/id: (\d+)\ndata: (.*)\n\n/g)) {
          const event = JSON.parse(data)
          assert.equal(event.id, Number(id))
          if (!wanted(event)) continue
          page.abort()
          return event
        }
      }
    }
  }
  const find = await follow({})
  await node.peers.add(key)
  const first = await find((event) => event.change === 'approved')
  await node.peers.remove(key)
  const again = await follow({ 'last-event-id': String(first.id) })
  const next = await again((event) => event.change === 'removed')
  assert.ok(next.id > first.id)
})

test('instrumentation opens the node once and for all', async (t) => {
  const network = await testnet(t, 1)
  const { require } = await routes(t, { ALEX_P2P_BOOTSTRAP: network.bootstrap.join(), ALEX_LIBRARY: '' })
  const before = process.listenerCount('SIGTERM')
  process.env.NEXT_RUNTIME = 'nodejs'
  undo(t, () => delete process.env.NEXT_RUNTIME)
  await require('./instrumentation.js').register()
  assert.equal(process.listenerCount('SIGTERM'), before + 1)
  for (const signal of ['SIGTERM', 'SIGINT']) undo(t, () => process.removeAllListeners(signal))
  const first = await require('./lib/p2p.js').p2p()
  // As after a change in development: the module is evaluated again, the node is the same.
  for (const path of Object.keys(require.cache)) if (path.includes('lib')) delete require.cache[path]
  assert.equal(await require('./lib/p2p.js').p2p(), first)
})
