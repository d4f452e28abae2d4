// What every method has in common: codes, signals, arguments, and the end of the node.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { failure, openNode, p2p, testnet } from './nodes.mjs'

const { Identity, P2PNode, Testnet } = p2p
const someKey = '1m1ewdyh4bufibabw4d6ckjhfmddthpikyzok4qqe1ozn916q16y'

/** Every method of a node that can fail, as a call. */
function everyMethod(node, transfer) {
  const catalog = node.catalog.of(someKey)
  return {
    'identity.inviteLink': () => node.identity.inviteLink(),
    'identity.qr': () => node.identity.qr(),
    'identity.sign': () => node.identity.sign(Buffer.from('x')),
    suspend: () => node.suspend(),
    resume: () => node.resume(),
    backup: () => node.backup('/nowhere/at/all'),
    'catalog.verify': () => node.catalog.verify(),
    'catalog.resumePublishing': () => node.catalog.resumePublishing(),
    'catalog.startNewFeed': () => node.catalog.startNewFeed(),
    'peers.add': () => node.peers.add(someKey),
    'peers.remove': () => node.peers.remove(someKey),
    'peers.list': () => node.peers.list(),
    'peers.get': () => node.peers.get(someKey),
    'peers.approve': () => node.peers.approve(someKey),
    'peers.block': () => node.peers.block(someKey),
    'peers.update': () => node.peers.update(someKey, { nickname: 'x' }),
    'peers.pending': () => node.peers.pending(),
    'peers.discovered': () => node.peers.discovered(),
    'catalog.publish': () => node.catalog.publish([]),
    'catalog.unpublish': () => node.catalog.unpublish([]),
    'catalog.sync': () => node.catalog.sync([]),
    'catalog.list': () => node.catalog.list(),
    'catalog.search': () => node.catalog.search(),
    'catalog.get': () => node.catalog.get('x'),
    'catalog.status': () => node.catalog.status(),
    'catalog.setProvider': () => node.catalog.setProvider(null),
    'catalog.of': () => node.catalog.of(someKey),
    'of.list': () => catalog.list(),
    'of.get': () => catalog.get('x'),
    'of.status': () => catalog.status(),
    'transfers.request': () => node.transfers.request({ peer: someKey, bookId: 'x' }),
    'transfers.list': () => node.transfers.list(),
    'transfers.get': () => node.transfers.get('x'),
    'transfer.approve': () => transfer.approve(),
    'transfer.deny': () => transfer.deny(),
    'transfer.pause': () => transfer.pause(),
    'transfer.resume': () => transfer.resume(),
    'transfer.cancel': () => transfer.cancel(),
    'transfer.done': () => transfer.done(),
    status: () => node.status(),
    events: () => node.events(),
    on: () => node.on('status', () => {})
  }
}

/** The names of an object's methods, to see that none is left out. */
function methodsOf(instance) {
  const members = Object.getOwnPropertyDescriptors(Object.getPrototypeOf(instance))
  return Object.keys(members).filter((name) => name !== 'constructor' && members[name].value)
}

test('after close() every method fails with ERR_CLOSED', async (t) => {
  const node = await openNode(t, await testnet(t, 1))
  await node.peers.add(someKey)
  const transfer = await node.transfers.request({ peer: someKey, bookId: 'x' })
  const calls = everyMethod(node, transfer)
  const objects = {
    identity: node.identity,
    peers: node.peers,
    catalog: node.catalog,
    of: node.catalog.of(someKey),
    transfers: node.transfers,
    transfer
  }
  const untried = Object.entries(objects)
    .flatMap(([name, object]) => methodsOf(object).map((method) => `${name}.${method}`))
    .concat(methodsOf(node))
    .filter((name) => !(name in calls))
  assert.deepEqual(untried.sort(), ['close', 'off', 'ref', 'transfer.toJSON', 'unref'])

  await Promise.all([node.close(), node.close()])
  for (const [name, call] of Object.entries(calls)) {
    assert.equal((await failure(call)).code, 'ERR_CLOSED', name)
  }
  // What is of no harm does nothing; what was known stays readable.
  await node.close()
  await node[Symbol.asyncDispose]()
  node.ref().unref().off('status', () => {})
  assert.equal(transfer.toJSON().state, 'queued')
  assert.equal(transfer.state, 'queued')
  assert.equal(node.identity.publicKey.length, 52)
})

test('calls in flight end with ERR_CLOSED', async (t) => {
  const node = await openNode(t, await testnet(t, 1))
  await node.peers.add(someKey)
  const transfer = await node.transfers.request({ peer: someKey, bookId: 'x' })
  const waiting = Promise.all([failure(transfer.done()), failure(transfer.done())])
  await node.close()
  for (const error of await waiting) assert.equal(error.code, 'ERR_CLOSED')
})

test('a signal ends a wait, and its reason is kept', async (t) => {
  const node = await openNode(t, await testnet(t, 1))
  await node.peers.add(someKey)
  const transfer = await node.transfers.request({ peer: someKey, bookId: 'x' })
  const reason = new Error('the page is gone')

  const controller = new AbortController()
  const waiting = failure(transfer.done({ signal: controller.signal }))
  controller.abort(reason)
  const error = await waiting
  assert.equal(error.code, 'ERR_ABORTED')
  assert.equal(error.name, 'AbortError')
  assert.equal(error.cause, reason)

  const before = await failure(transfer.done({ signal: AbortSignal.abort('no') }))
  assert.deepEqual([before.code, before.cause], ['ERR_ABORTED', 'no'])
  const late = await failure(transfer.done({ signal: AbortSignal.timeout(5) }))
  assert.deepEqual([late.code, late.cause.name], ['ERR_ABORTED', 'TimeoutError'])
})

test('a call leaves nothing on its signal', async (t) => {
  const node = await openNode(t, await testnet(t, 1))
  const { signal } = new AbortController()
  signal.onabort = () => {}
  const { onabort } = signal
  let listeners = 0
  const add = signal.addEventListener
  const remove = signal.removeEventListener
  signal.addEventListener = function (...args) {
    listeners += 1
    return add.apply(this, args)
  }
  signal.removeEventListener = function (...args) {
    listeners -= 1
    return remove.apply(this, args)
  }
  for (let n = 0; n < 20; n++) await node.peers.list({ signal })
  await failure(node.peers.add('nonsense', { signal }))
  assert.equal(listeners, 0)
  assert.equal(signal.onabort, onabort)
})

test('arguments of a wrong type are refused with ERR_INVALID_ARGUMENT', async (t) => {
  const node = await openNode(t, await testnet(t, 1))
  const circular = {}
  circular.self = circular
  const wrong = {
    'open()': () => P2PNode.open(),
    'open(7)': () => P2PNode.open(7),
    'open({})': () => P2PNode.open({}),
    'open: dataDir': () => P2PNode.open({ dataDir: 7 }),
    'open: policy': () => P2PNode.open({ dataDir: '/nowhere', policy: 'never' }),
    'open: host': () => P2PNode.open({ dataDir: '/nowhere', host: {} }),
    'open: port': () => P2PNode.open({ dataDir: '/nowhere', port: 70_000 }),
    'open: bootstrap': () => P2PNode.open({ dataDir: '/nowhere', bootstrap: [1] }),
    'Testnet.start': () => Testnet.start({}),
    'Testnet.start(0)': () => Testnet.start(0),
    'peers.add()': () => node.peers.add(),
    'peers.add(1)': () => node.peers.add(1),
    'peers.add options': () => node.peers.add(someKey, 'Ada'),
    'peers.add nickname': () => node.peers.add(someKey, { nickname: 7 }),
    'peers.add signal': () => node.peers.add(someKey, { signal: {} }),
    'peers.update': () => node.peers.update(someKey, 'x'),
    'peers.update policy': () => node.peers.update(someKey, { policy: 'x' }),
    'catalog.publish()': () => node.catalog.publish(),
    'catalog.publish(book)': () => node.catalog.publish({ id: '1', title: 'x' }),
    'catalog.publish without id': () => node.catalog.publish([{ title: 'x' }]),
    'catalog.publish size': () => node.catalog.publish([{ id: '1', title: 'x', sizeBytes: -1 }]),
    'catalog.publish source': () => node.catalog.publish([{ id: '1', title: 'x', source: 7 }]),
    'catalog.publish path': () => node.catalog.publish([{ id: '1', title: 'x', path: '/secret' }]),
    'catalog.publish bigint': () => node.catalog.publish([{ id: '1', title: 'x', extra: 1n }]),
    'catalog.publish circular': () => node.catalog.publish([{ id: '1', title: 'x', circular }]),
    'catalog.unpublish': () => node.catalog.unpublish([1]),
    'catalog.list': () => node.catalog.list('x'),
    'catalog.list limit': () => node.catalog.list({ limit: 0 }),
    'catalog.list cursor': () => node.catalog.list({ cursor: 'nonsense' }),
    'catalog.of': () => node.catalog.of(7),
    'catalog.setProvider': () => node.catalog.setProvider(7),
    'transfers.request()': () => node.transfers.request(),
    'transfers.request bookId': () => node.transfers.request({ peer: someKey }),
    'transfers.request saveTo': () => node.transfers.request({ peer: someKey, bookId: 'x', saveTo: 7 }),
    'transfers.list': () => node.transfers.list({ state: 'x' }),
    'transfers.get': () => node.transfers.get(),
    'events after': () => node.events({ after: -1 }),
    'events signal': () => node.events({ signal: 'x' }).next(),
    'on type': () => node.on(7, () => {}),
    'on listener': () => node.on('status'),
    'identity.sign': () => node.identity.sign('text'),
    'identity.qr': () => node.identity.qr('png'),
    'Identity.verify': () => Identity.verify(someKey, Buffer.alloc(1), 'x')
  }
  for (const [name, call] of Object.entries(wrong)) {
    const error = await failure(call)
    assert.ok(error instanceof Error, name)
    assert.equal(error.code, 'ERR_INVALID_ARGUMENT', `${name}: ${error.message}`)
    assert.ok(error.message.length > 10, name)
  }
  assert.equal((await node.catalog.list()).total, 0)
})

test('methods that wait reject rather than throw', async (t) => {
  const node = await openNode(t, await testnet(t, 1))
  const promise = node.peers.add(7)
  assert.ok(promise instanceof Promise)
  await assert.rejects(promise, { code: 'ERR_INVALID_ARGUMENT' })
})
