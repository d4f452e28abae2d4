// node.identity, and the static methods of Identity.

import assert from 'node:assert/strict'
import { readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { failure, openNode, p2p, temporaryDirectory, testnet } from './nodes.mjs'

const { Identity } = p2p

test('an identity is made once and shown in every form', async (t) => {
  const network = await testnet(t, 1)
  const dataDir = await temporaryDirectory(t)
  const first = await openNode(t, network, { dataDir })
  const { identity } = first
  assert.match(identity.publicKey, /^[a-z0-9]{52}$/)
  assert.match(identity.fingerprint, /^([a-z0-9]{4}-){7}[a-z0-9]{4}$/)
  assert.equal(identity.inviteLink(), `alex://peer/${identity.publicKey}`)
  const link = identity.inviteLink('Ada & Böb')
  assert.deepEqual(Identity.parse(link), { key: identity.publicKey, nickname: 'Ada & Böb' })
  const hex = identity.bytes.toString('hex')
  assert.deepEqual(Identity.parse(` ${hex.toUpperCase()}\n`).key, identity.publicKey)
  assert.match(identity.qr(), /^<\?xml.*<svg/s)
  assert.match(identity.qr('terminal', 'Ada'), /█/)

  const file = join(dataDir, 'keypair.json')
  const stored = JSON.parse(await readFile(file, 'utf8'))
  assert.equal(stored.publicKey, hex)
  if (process.platform !== 'win32') assert.equal((await stat(file)).mode & 0o777, 0o600)

  await first.close()
  const second = await openNode(t, network, { dataDir })
  assert.equal(second.identity.publicKey, identity.publicKey)
})

test('a signature verifies under its key and no other', async (t) => {
  const network = await testnet(t, 1)
  const [a, b] = [await openNode(t, network), await openNode(t, network)]
  const message = Buffer.from('a book')
  const signature = a.identity.sign(message)
  assert.equal(signature.length, 64)
  const key = a.identity.publicKey
  assert.equal(Identity.verify(key, message, signature), true)
  assert.equal(Identity.verify(a.identity.inviteLink(), new Uint8Array(message), signature), true)
  assert.equal(Identity.verify(b.identity.publicKey, message, signature), false)
  assert.equal(Identity.verify(key, Buffer.from('a boot'), signature), false)
  assert.equal(Identity.verify(key, message, signature.subarray(1)), false)
})

test('a key is read however it was pasted', async (t) => {
  const node = await openNode(t, await testnet(t, 1))
  const key = node.identity.publicKey
  const [front, back] = [key.slice(0, 30), key.slice(30)]
  for (const text of [
    `${front}\n${back}`,
    `${front}\u00a0\u200b${back}`,
    `"${key}".`,
    `alex://peer/${front}\r\n> ${back}?name=Ada`,
    `My server is <${node.identity.inviteLink('Ada')}>, add it.`,
    `hyper://${key}/books`,
    `pear://0.12.${key}/`
  ]) {
    assert.equal(Identity.parse(text).key, key, text)
  }
})

test('what is no key is refused with what is wrong', async () => {
  for (const [text, says] of [
    ['', /empty/],
    ['abc', /52 characters/],
    ['l'.repeat(52), /character 1/],
    ['https://example.org/x', /alex:\/\/peer/],
    ['g'.repeat(64), /hex/],
    [`${'y'.repeat(52)} or ${'b'.repeat(52)}`, /more than one/]
  ]) {
    const error = await failure(() => Identity.parse(text))
    assert.equal(error.code, 'ERR_INVALID_KEY', text)
    assert.match(error.message, says)
  }
})
