// How long a process lives with a node in it, and what is left when it ends.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { failure, openNode, p2p, root, startServer, temporaryDirectory, testnet, within } from './nodes.mjs'

const { P2PNode } = p2p
const start = `
  const { P2PNode, Testnet } = require(${JSON.stringify(join(root, 'index.js'))})
  const open = (dataDir) => P2PNode.open({ dataDir, bootstrap: [], host: '127.0.0.1', port: 0 })
`

/** Runs a program; gives its exit code, or `'alive'` when it still runs after `patience` ms. */
async function run(t, source, { patience = 20_000, args = [] } = {}) {
  const dataDir = await temporaryDirectory(t)
  const child = spawn(process.execPath, ['-e', `${start};(async () => {${source}})()`, dataDir, ...args], {
    stdio: ['ignore', 'pipe', 'pipe']
  })
  let output = ''
  child.stdout.on('data', (data) => (output += data))
  child.stderr.on('data', (data) => (output += data))
  const ended = new Promise((resolve) => child.on('close', (code, signal) => resolve(code ?? signal)))
  let timer
  const late = new Promise((resolve) => (timer = setTimeout(resolve, patience, 'alive')))
  const outcome = await Promise.race([ended, late])
  clearTimeout(timer)
  if (outcome === 'alive') child.kill('SIGKILL')
  await ended
  return { outcome, output }
}

async function endsWith(t, code, source) {
  const { outcome, output } = await run(t, source)
  assert.equal(outcome, code, output)
  return output
}

test('a closed node lets the process end', (t) =>
  endsWith(t, 0, `
    const node = await open(process.argv[1])
    node.on('status', () => {})
    const events = node.events(); events.next()
    await node.close()
  `))

test('an open node keeps the process alive', async (t) => {
  const { outcome } = await run(t, 'await open(process.argv[1]); console.log("open")', { patience: 3_000 })
  assert.equal(outcome, 'alive')
})

test('an open node that nobody refers to is not collected', async (t) => {
  const { outcome } = await run(
    t,
    `
    require('node:v8').setFlagsFromString('--expose-gc')
    const gc = require('node:vm').runInNewContext('gc')
    await open(process.argv[1])
    setTimeout(gc, 10).unref(); setTimeout(gc, 200).unref()
    `,
    { patience: 3_000 }
  )
  assert.equal(outcome, 'alive')
})

test('after unref() the process ends although the node is open', (t) =>
  endsWith(t, 0, `
    const node = (await open(process.argv[1])).unref()
    node.on('peer-online', () => {})
    node.events().next()
  `))

test('a wait for a transfer does not hold the process after unref()', (t) =>
  endsWith(t, 0, `
    const node = (await open(process.argv[1])).unref()
    const peer = '1m1ewdyh4bufibabw4d6ckjhfmddthpikyzok4qqe1ozn916q16y'
    await node.peers.add(peer)
    const transfer = await node.transfers.request({ peer, bookId: 'x' })
    transfer.done()
  `))

test('ref() after unref() holds the process again', async (t) => {
  const source = 'const node = await open(process.argv[1]); node.unref().ref().ref()'
  assert.equal((await run(t, source, { patience: 3_000 })).outcome, 'alive')
})

test('process.exit() with an open node ends with its code', (t) =>
  endsWith(t, 7, `
    const node = await open(process.argv[1])
    node.events().next()
    process.exit(7)
  `))

test('an uncaught exception with an open node ends the process as usual', async (t) => {
  const output = await endsWith(t, 1, `
    const node = await open(process.argv[1])
    setTimeout(() => { throw new Error('as usual') }, 10)
  `)
  assert.match(output, /as usual/)
})

test('a second node on a data directory gets ERR_LOCKED, in this process and in another', async (t) => {
  const network = await testnet(t, 1)
  const dataDir = await temporaryDirectory(t)
  const node = await openNode(t, network, { dataDir })
  const options = { dataDir, bootstrap: network.bootstrap, host: '127.0.0.1', port: 0 }
  const error = await failure(P2PNode.open(options))
  assert.equal(error.code, 'ERR_LOCKED')
  const { outcome, output } = await run(
    t,
    'await open(process.argv[2]).catch((error) => { console.log(error.code); process.exitCode = 3 })',
    { args: [dataDir] }
  )
  assert.deepEqual([outcome, output.trim()], [3, 'ERR_LOCKED'])
  await node.close()
  await openNode(t, network, { dataDir })
})

test('a directory is free again after kill -9', async (t) => {
  const network = await testnet(t, 1)
  const dataDir = await temporaryDirectory(t)
  for (let n = 0; n < 3; n++) {
    const server = await startServer(t, network, { dataDir })
    await server.call('catalog.publish', [{ id: `${n}`, title: 'Acknowledged' }])
    await server.kill()
  }
  const node = await openNode(t, network, { dataDir })
  assert.equal((await node.catalog.list()).total, 3)
})

test('an aborted open() leaves nothing open', async (t) => {
  const network = await testnet(t, 1)
  const dataDir = await temporaryDirectory(t)
  const options = { dataDir, bootstrap: network.bootstrap, host: '127.0.0.1', port: 0 }
  const controller = new AbortController()
  const opening = failure(P2PNode.open({ ...options, signal: controller.signal }))
  controller.abort()
  assert.equal((await opening).code, 'ERR_ABORTED')
  // What was opened in vain is closed again in the background.
  for (let n = 0; ; n++) {
    const node = await P2PNode.open(options).catch((error) => {
      if (error.code !== 'ERR_LOCKED' || n > 200) throw error
    })
    if (node) return node.close()
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
})

test('worker threads have nodes of their own, and take them along when they are terminated', async (t) => {
  const dataDir = await temporaryDirectory(t)
  const source = `${start}; (async () => {
    const { parentPort, workerData } = require('node:worker_threads')
    const node = await open(workerData)
    node.on('peer-changed', ({ change }) => parentPort.postMessage(change))
    node.events().next()
    parentPort.postMessage('open')
    parentPort.on('message', async (key) => { await node.peers.add(key) })
  })()`
  for (let n = 0; n < 5; n++) {
    const worker = new Worker(source, { eval: true, workerData: dataDir })
    const messages = []
    const came = (wanted) =>
      within(
        new Promise((resolve, reject) => {
          if (messages.includes(wanted)) resolve()
          worker.on('message', (message) => message === wanted && resolve())
          worker.on('error', reject)
        }),
        `${wanted} in worker ${n}`
      )
    worker.on('message', (message) => messages.push(message))
    await came('open')
    worker.postMessage('1m1ewdyh4bufibabw4d6ckjhfmddthpikyzok4qqe1ozn916q16y')
    if (n === 0) await came('approved')
    await worker.terminate()
    for (let tries = 0; ; tries++) {
      const node = await P2PNode.open({ dataDir, bootstrap: [], host: '127.0.0.1', port: 0 }).catch((error) => {
        if (error.code !== 'ERR_LOCKED' || tries > 300) throw error
      })
      if (node) {
        await node.close()
        break
      }
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  }
})

test('the addon may be loaded twice', (t) =>
  endsWith(t, 0, `
    const path = ${JSON.stringify(join(root, 'index.js'))}
    const first = require(path)
    for (const key of Object.keys(require.cache)) delete require.cache[key]
    const second = require(path)
    const options = { bootstrap: [], host: '127.0.0.1', port: 0 }
    const { join } = require('node:path')
    const a = await first.P2PNode.open({ ...options, dataDir: join(process.argv[1], 'a') })
    const b = await second.P2PNode.open({ ...options, dataDir: join(process.argv[1], 'b') })
    await Promise.all([a.close(), b.close()])
  `))
