// index.d.ts: described throughout, usable, and true.

import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import ts from 'typescript'
import { books, p2p, root, sharing, temporaryDirectory } from './nodes.mjs'

const path = join(root, 'index.d.ts')
const declarations = ts.createSourceFile(path, readFileSync(path, 'utf8'), ts.ScriptTarget.Latest, true)

test('every exported name and every member is described', () => {
  const bare = []
  const look = (node, name) => {
    if (ts.getJSDocCommentsAndTags(node).length === 0) bare.push(name)
  }
  for (const statement of declarations.statements) {
    if (!statement.name) continue
    const name = statement.name.text
    look(statement, name)
    for (const member of statement.members ?? []) {
      if (ts.isConstructorDeclaration(member)) continue
      look(member, `${name}.${member.name?.getText() ?? member.getText()}`)
    }
  }
  assert.ok(declarations.statements.length > 30)
  assert.deepEqual(bare, [])
})

test('the classes that are declared are those that there are, with the same members', () => {
  const declared = {}
  for (const statement of declarations.statements) {
    if (!ts.isClassDeclaration(statement)) continue
    declared[statement.name.text] = statement.members
      .filter((member) => !ts.isConstructorDeclaration(member))
      .map((member) => member.name.getText().replace(/^\[globalThis\.Symbol\.(.*)\]$/, '@@$1'))
      .sort()
  }
  const named = (key) => (typeof key === 'symbol' ? `@@${key.description.split('.').at(-1)}` : key)
  const ofEveryFunction = ['length', 'name', 'prototype', 'arguments', 'caller']
  const real = Object.fromEntries(
    Object.keys(declared).map((name) => {
      const own = Reflect.ownKeys(p2p[name].prototype).filter((key) => key !== 'constructor')
      const statics = Object.getOwnPropertyNames(p2p[name]).filter((key) => !ofEveryFunction.includes(key))
      return [name, [...own, ...statics].map(named).sort()]
    })
  )
  assert.deepEqual(real, declared)
})

/** The names of an interface's members, optional ones apart. */
function members(name) {
  const found = declarations.statements.find((statement) => statement.name?.text === name)
  const inherited = (found.heritageClauses ?? []).flatMap((clause) =>
    clause.types.flatMap((type) => Object.entries(members(type.expression.getText())))
  )
  const own = found.members
    .filter((member) => ts.isPropertySignature(member))
    .map((member) => [member.name.getText(), member.questionToken ? 'optional' : 'always'])
  return Object.fromEntries([...inherited, ...own])
}

test('values have the members that their types say, and no others', async (t) => {
  const { sender, receiver, peer } = await sharing(t)
  const events = receiver.events({ after: 0 })
  const transfer = await receiver.transfers.request({ peer, bookId: books[1].id })
  const done = await transfer.done()
  const catalog = receiver.catalog.of(peer)
  const page = await catalog.list()
  const known = await receiver.peers.get(peer)
  const status = receiver.status()
  const values = {
    Peer: known,
    PeerConnection: known.connection,
    CatalogPage: page,
    BookEntry: page.books[0],
    CatalogStatus: await catalog.status(),
    CatalogChanges: await sender.catalog.sync(books),
    TransferInfo: done,
    TransferProgress: done.progress,
    NodeStatus: status,
    LayerStatus: status.layers[0],
    ParsedKey: p2p.Identity.parse(peer)
  }
  const eventTypes = Object.fromEntries(
    declarations.statements
      .filter((statement) => statement.name?.text.endsWith('Event') && statement.members)
      .map((statement) => [
        statement.members.find((member) => member.name.getText() === 'type').type.literal.text,
        statement.name.text
      ])
  )
  for await (const event of events) {
    assert.ok(event.type in eventTypes, event.type)
    values[eventTypes[event.type]] = event
    if (event.type === 'transfer-state' && event.state === 'completed') break
  }
  for (const [name, value] of Object.entries(values)) {
    const expected = members(name)
    for (const key of Object.keys(value)) assert.ok(key in expected, `${name}.${key} is not declared`)
    for (const [key, when] of Object.entries(expected)) {
      assert.ok(key in value || when === 'optional', `${name}.${key} is missing`)
    }
  }
  assert.ok(Object.keys(values).length >= 16, Object.keys(values).join())
})

test('a program that uses everything type-checks, strictly', async (t) => {
  const folder = await temporaryDirectory(t)
  const program = join(folder, 'program.mts')
  writeFileSync(
    program,
    `
    import p2p, { P2PNode, Testnet, Identity } from ${JSON.stringify(join(root, 'index.js'))}
    import type { Book, NodeEvent, P2PError, Peer, TransferInfo } from ${JSON.stringify(join(root, 'index.js'))}
    await using testnet = await Testnet.start(3)
    await using node = await P2PNode.open({
      dataDir: 'x', bootstrap: testnet.bootstrap, policy: 'manual-approve', limits: { openRequests: 4 },
      discovery: { topic: true }, signal: AbortSignal.timeout(1)
    })
    const book: Book = { id: '1', title: 'x', addedAt: new Date(), shelf: 7, source: async (id: string) => id }
    await node.catalog.publish([book, { id: '2', title: 'y', source: () => new ReadableStream<Uint8Array>() }])
    const peer: Peer | null = await node.peers.get('x')
    for await (const event of node.events({ after: 3 })) {
      const exhaustive: NodeEvent['type'] = event.type
      if (event.type === 'transfer-progress') console.log(event.bytes / event.total, exhaustive)
    }
    node.on('peer-online', ({ nickname }) => console.log(nickname?.length)).unref()
    // @ts-expect-error no such event
    node.on('nonsense', () => {})
    // @ts-expect-error no such policy
    await node.peers.update('x', { policy: 'never' })
    const info: TransferInfo = await (await node.transfers.request({ peer: 'x', bookId: 'y' })).done()
    const failed = (error: P2PError) => error.code === 'ERR_LOCKED' && Identity.verify('x', new Uint8Array(), node.identity.bytes)
    console.log(p2p, peer?.isOnline, info.path?.length, failed)
    `
  )
  const check = ts.createProgram([program], {
    target: ts.ScriptTarget.ESNext,
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    lib: ['lib.esnext.d.ts', 'lib.dom.d.ts', 'lib.dom.asynciterable.d.ts'],
    types: ['node'],
    typeRoots: [join(root, 'node_modules', '@types')],
    strict: true,
    noEmit: true
  })
  const complaints = ts.getPreEmitDiagnostics(check).map(({ file, start, messageText }) => {
    const line = file ? `${file.fileName}:${file.getLineAndCharacterOfPosition(start).line + 1}: ` : ''
    return line + ts.flattenDiagnosticMessageText(messageText, '\n')
  })
  assert.deepEqual(complaints, [])
})
