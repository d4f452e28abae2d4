// Backups, and what a restored, damaged or copied catalog says and does.

import assert from 'node:assert/strict'
import { copyFile, mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'node:test'
import { books, failure, offered, openNode, p2p, pair, temporaryDirectory, testnet, until } from './nodes.mjs'

const { P2PNode } = p2p
const passphrase = 'correct horse'

test('a restored node publishes once a peer has given its lost entries back', async (t) => {
  const network = await testnet(t)
  const writer = await openNode(t, network)
  const reader = await openNode(t, network)
  await writer.catalog.publish(books.slice(0, 1))
  await pair(writer, reader)
  const backup = join(await temporaryDirectory(t), 'alex.backup')
  const made = await writer.backup(backup, { passphrase })
  assert.deepEqual(made, { path: backup, bytes: (await stat(backup)).size, hasIdentity: true })
  await writer.catalog.publish(books.slice(1, 2))
  await offered(reader, writer, 2)
  await writer.close()

  const dataDir = join(await temporaryDirectory(t), 'restored')
  const restored = await P2PNode.restore(backup, dataDir, { passphrase })
  assert.deepEqual(restored, { publicKey: writer.identity.publicKey, hasIdentity: true })
  const again = await openNode(t, network, { dataDir })
  await until(() => again.catalog.length === 2, 'the lost entry')
  await until(() => again.status().layers.find(({ name }) => name === 'catalog').works, 'the confirmation')
  await again.catalog.publish([{ id: 'third', title: 'A third book' }])
  await offered(reader, again, 3)
})

test('a restored node without peers says what to do, and does it', async (t) => {
  const network = await testnet(t)
  const node = await openNode(t, network)
  await node.catalog.publish(books)
  const folder = await temporaryDirectory(t)
  const backup = join(folder, 'alex.backup')
  await node.backup(backup, { passphrase })
  await node.close()
  const dataDir = join(folder, 'restored')
  await P2PNode.restore(backup, dataDir, { passphrase })
  const restored = await openNode(t, network, { dataDir })
  const refused = await failure(restored.catalog.publish(books))
  assert.equal(refused.code, 'ERR_FEED_UNCONFIRMED')
  assert.match(refused.message, /resumePublishing/)
  assert.ok(restored.status().advice.some((advice) => /restored/.test(advice)))
  await restored.catalog.resumePublishing()
  await restored.catalog.publish([{ id: 'third', title: 'A third book' }])
  assert.equal(restored.catalog.length, 3)
})

test('the identity is encrypted, and only in a backup with a passphrase', async (t) => {
  const network = await testnet(t)
  const folder = await temporaryDirectory(t)
  const dataDir = join(folder, 'data')
  const node = await openNode(t, network, { dataDir })
  const { secretKey } = JSON.parse(await readFile(join(dataDir, 'keypair.json'), 'utf8'))
  const seed = Buffer.from(secretKey.slice(0, 64), 'hex')
  const [sealed, bare] = ['sealed', 'bare'].map((name) => join(folder, name))
  assert.ok((await node.backup(sealed, { passphrase })).hasIdentity)
  assert.ok(!(await node.backup(bare)).hasIdentity)
  for (const file of [sealed, bare]) {
    const bytes = await readFile(file)
    assert.ok(!bytes.includes(seed) && !bytes.includes(secretKey.slice(0, 64)))
  }
  const to = join(folder, 'to')
  const code = async (work) => (await failure(work)).code
  assert.equal(await code(node.backup(sealed, { passphrase })), 'ERR_INVALID_ARGUMENT')
  assert.equal(await code(node.backup(join(folder, 'x'), { passphrase: 'short' })), 'ERR_INVALID_ARGUMENT')
  assert.equal(await code(node.backup(join(folder, 'x'), { identity: true })), 'ERR_INVALID_ARGUMENT')
  assert.equal(await code(node.backup(join(folder, 'x'), { identity: 'yes' })), 'ERR_INVALID_ARGUMENT')
  assert.equal(await code(node.backup(join(folder, 'no/such/folder/x'))), 'ERR_IO')
  assert.equal(await code(P2PNode.restore(sealed, to, { passphrase: 'wrong horse' })), 'ERR_DENIED')
  assert.equal(await code(P2PNode.restore(bare, to)), 'ERR_INVALID_STATE')
  assert.equal(await code(P2PNode.restore(sealed, dataDir, { passphrase })), 'ERR_INVALID_STATE')
  await node.close()
  assert.equal(await code(node.backup(join(folder, 'x'))), 'ERR_CLOSED')
})

test('a backup that somebody changed is refused, and gives nobody a right', async (t) => {
  const network = await testnet(t)
  const folder = await temporaryDirectory(t)
  const dataDir = join(folder, 'data')
  const node = await openNode(t, network, { dataDir })
  await node.catalog.publish(books)
  const friend = await openNode(t, network)
  await node.peers.add(friend.identity.publicKey)
  const [good, bare, changed] = ['good', 'bare', 'changed'].map((name) => join(folder, name))
  await node.backup(good, { passphrase })
  await node.backup(bare)
  await node.close()
  const bytes = await readFile(good)
  const refused = async (content, options = { passphrase }) => {
    await writeFile(changed, content)
    const to = join(folder, 'refused')
    const { code } = await failure(P2PNode.restore(changed, to, options))
    assert.ok(!(await readdir(folder)).includes('refused'), 'nothing is left')
    return code
  }
  // Somebody else is approved in the friend's place.
  const stranger = await openNode(t, network)
  const at = bytes.indexOf(friend.identity.publicKey)
  assert.ok(at > 0)
  const other = Buffer.from(bytes)
  other.write(stranger.identity.publicKey, at)
  assert.equal(await refused(other), 'ERR_CORRUPT')
  const footer = 96
  assert.equal(await refused(bytes.subarray(0, -footer)), 'ERR_CORRUPT')
  assert.equal(await refused(bytes.subarray(0, -1)), 'ERR_CORRUPT')
  assert.equal(await refused(bytes.subarray(0, bytes.length / 2)), 'ERR_CORRUPT')
  assert.equal(await refused(Buffer.alloc(0)), 'ERR_CORRUPT')
  assert.equal(await refused(Buffer.concat([bytes, Buffer.from('x')])), 'ERR_CORRUPT')
  assert.equal(await refused(other, { passphrase, unauthenticated: false }), 'ERR_CORRUPT')
  assert.equal(await refused(other, { passphrase, unauthenticated: 'yes' }), 'ERR_INVALID_ARGUMENT')

  // With consent the catalog is there, and nobody's right.
  await writeFile(changed, other)
  const to = join(folder, 'catalog')
  const restored = await P2PNode.restore(changed, to, { passphrase, unauthenticated: true })
  assert.deepEqual(restored, { publicKey: node.identity.publicKey, hasIdentity: true, catalogOnly: true })
  const again = await openNode(t, network, { dataDir: to })
  assert.deepEqual(await again.peers.list(), [])
  assert.equal((await again.catalog.list()).total, books.length)
  assert.equal((await failure(again.catalog.publish(books))).code, 'ERR_FEED_UNCONFIRMED')
  await again.close()

  // The key pair beside it proves a backup without the identity.
  const beside = join(folder, 'beside')
  await mkdir(beside)
  await copyFile(join(dataDir, 'keypair.json'), join(beside, 'keypair.json'))
  const whole = await P2PNode.restore(bare, beside, { unauthenticated: true })
  assert.deepEqual(whole, { publicKey: node.identity.publicKey, hasIdentity: false })
  const last = await openNode(t, network, { dataDir: beside })
  assert.deepEqual((await last.peers.list()).map(({ key }) => key), [friend.identity.publicKey])
})

test('a catalog is verified, and a new feed has its books', async (t) => {
  const network = await testnet(t)
  const writer = await openNode(t, network)
  const reader = await openNode(t, network)
  const many = Array.from({ length: 3000 }, (_, i) => ({ id: `b${i}`, title: `Book ${i}`, note: 'x'.repeat(500) }))
  await writer.catalog.publish(many)
  await pair(writer, reader)
  await offered(reader, writer, 3000)
  const steps = []
  const found = await writer.catalog.verify({ onProgress: (step) => steps.push(step) })
  assert.deepEqual(found, { ok: true, entries: 3000, damaged: [], mended: 0, problems: [], rebuilt: false, refetched: [] })
  await until(() => steps.at(-1)?.bytes === steps.at(-1)?.total, 'the last step')
  assert.deepEqual((await reader.catalog.verify({ peers: true })).refetched, [])
  const aborted = await failure(writer.catalog.verify({ signal: AbortSignal.abort() }))
  assert.equal(aborted.code, 'ERR_ABORTED')

  const before = writer.catalog.key
  const key = await writer.catalog.startNewFeed()
  assert.ok(key !== before && key === writer.catalog.key)
  await writer.catalog.publish([{ id: 'one more', title: 'One more' }])
  await offered(reader, writer, 3001)
  assert.equal((await reader.catalog.of(writer.identity.publicKey).status()).feedKey, key)
})
