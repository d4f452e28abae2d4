// node.catalog and node.catalog.of().

import assert from 'node:assert/strict'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { books, failure, offered, openNode, pair, shared, sharing, temporaryDirectory, testnet, undo, until } from './nodes.mjs'

test('publish, sync and unpublish append what changed and nothing else', async (t) => {
  const node = await openNode(t, await testnet(t, 1))
  const { catalog } = node
  assert.match(catalog.key, /^[a-z0-9]{52}$/)
  assert.equal(catalog.length, 0)
  assert.deepEqual(await catalog.publish(books), { added: 2, updated: 0, removed: 0, unchanged: 0 })
  assert.deepEqual(await catalog.sync(books), { added: 0, updated: 0, removed: 0, unchanged: 2 })
  assert.equal(catalog.length, 2)
  const changed = [{ ...books[0], title: 'Frankenstein; or, The Modern Prometheus' }, { id: 'new', title: 'New' }]
  assert.deepEqual(await catalog.sync(changed), { added: 1, updated: 1, removed: 1, unchanged: 0 })
  assert.deepEqual(await catalog.unpublish(['new', 'unknown']), { added: 0, updated: 0, removed: 1, unchanged: 0 })
  const { books: listed, total, nextCursor } = await catalog.list()
  assert.deepEqual([total, nextCursor, listed[0].id], [1, null, 'frankenstein'])
  assert.equal((await catalog.get('frankenstein')).author, 'Mary Shelley')
  assert.equal(await catalog.get('new'), null)
  assert.equal((await catalog.status()).books, 1)
})

test('the owner hears of books whose file is not there, and says whether they are published', async (t) => {
  const { catalog } = await openNode(t, await testnet(t, 1))
  const dir = await temporaryDirectory(t)
  const gone = { id: 'gone', title: 'Gone', source: join(dir, 'gone.epub') }
  const folder = { id: 'folder', title: 'Folder', source: dir }
  const changes = await catalog.publish([books[0], gone, folder])
  assert.deepEqual([changes.added, changes.missingCount], [3, 2])
  const said = changes.missing.map(({ id, index, path, code }) => ({ id, index, path, code }))
  assert.deepEqual(said, [
    { id: 'gone', index: 1, path: gone.source, code: 'ERR_NOT_FOUND' },
    { id: 'folder', index: 2, path: dir, code: 'ERR_IO' }
  ])
  for (const { message, path } of changes.missing) assert.ok(message.includes(path), message)
  // Nothing of where it should be is in the catalog.
  assert.deepEqual(Object.keys(await catalog.get('gone')).sort(), ['addedAt', 'id', 'title'])
  const again = await catalog.sync([books[0], gone, folder])
  assert.deepEqual([again.unchanged, again.missingCount, again.missing.length], [3, 2, 2])
  const skipped = await catalog.sync([books[0], gone, folder], { missing: 'skip' })
  assert.deepEqual([skipped.removed, skipped.unchanged, skipped.missingCount], [2, 1, 2])
  assert.equal(await catalog.get('gone'), null)
  assert.equal((await catalog.publish([gone], { missing: 'skip' })).added, 0)
  await writeFile(gone.source, 'here again')
  assert.deepEqual(await catalog.sync([books[0], gone], { missing: 'skip' }), { added: 1, updated: 0, removed: 0, unchanged: 1 })
  assert.equal((await catalog.get('gone')).sizeBytes, 10)
  const refused = await failure(catalog.publish([gone], { missing: 'delete' }))
  assert.equal(refused.code, 'ERR_INVALID_ARGUMENT')
})

test('a relative path is that of the call', async (t) => {
  const { catalog } = await openNode(t, await testnet(t, 1))
  const [dir, elsewhere, before] = [await temporaryDirectory(t), await temporaryDirectory(t), process.cwd()]
  await writeFile(join(dir, 'a.epub'), 'a book')
  undo(t, () => process.chdir(before))
  // The second waits for the first; by then the program is elsewhere.
  const many = Array.from({ length: 2000 }, (_, n) => ({ id: `${n}`, title: `Volume ${n}` }))
  process.chdir(dir)
  const calls = [catalog.publish(many), catalog.publish([{ id: 'a', title: 'A', source: 'a.epub' }])]
  process.chdir(elsewhere)
  const [, changes] = await Promise.all(calls)
  assert.equal(changes.missing, undefined)
  assert.equal((await catalog.get('a')).sizeBytes, 6)
})

test('the fields of a book arrive as they were given, and its place does not', async (t) => {
  const network = await testnet(t)
  const [a, b] = [await openNode(t, network), await openNode(t, network)]
  const addedAt = new Date('2024-05-06T07:08:09.123Z')
  await a.catalog.publish([
    { ...books[0], addedAt, language: 'en', tags: ['gothic'], series: { name: 'S', number: 1.5 }, isbn: null },
    { id: 'on demand', title: 'On demand', source: () => '/secret/place.epub' }
  ])
  await pair(a, b)
  await offered(b, a, 2)
  const { books: listed } = await b.catalog.of(a.identity.publicKey).list()
  assert.deepEqual(listed[0], {
    id: 'frankenstein',
    title: 'Frankenstein',
    author: 'Mary Shelley',
    format: 'epub',
    sizeBytes: 690_404,
    addedAt: addedAt.toISOString(),
    language: 'en',
    tags: ['gothic'],
    series: { name: 'S', number: 1.5 }
  })
  assert.deepEqual(Object.keys(listed[1]).sort(), ['addedAt', 'id', 'title'])
})

test('a peer\'s catalog is followed live, and can be browsed while the peer is offline', async (t) => {
  const network = await testnet(t)
  const [a, b] = [await openNode(t, network), await openNode(t, network)]
  await pair(a, b)
  const theirs = b.catalog.of(a.identity.inviteLink('Ada'))
  assert.equal(theirs.peer, a.identity.publicKey)
  for (let n = 1; n <= 5; n++) {
    await a.catalog.publish([{ id: `${n}`, title: `Volume ${n}` }])
    await offered(b, a, n)
  }
  await a.catalog.unpublish(['3'])
  await offered(b, a, 4)
  const status = await theirs.status()
  assert.deepEqual([status.feedKey, status.length, status.books], [a.catalog.key, 6, 4])
  await a.close()
  await until(async () => !(await b.peers.get(a.identity.publicKey)).isOnline, 'a is offline')
  assert.equal((await theirs.list({ search: 'volume' })).total, 4)
  assert.equal((await theirs.get('5')).title, 'Volume 5')
})

test('an unknown peer\'s catalog is empty', async (t) => {
  const node = await openNode(t, await testnet(t, 1))
  const theirs = node.catalog.of('1m1ewdyh4bufibabw4d6ckjhfmddthpikyzok4qqe1ozn916q16y')
  assert.deepEqual(await theirs.list(), { books: [], nextCursor: null, total: 0, isTotalExact: true })
  assert.equal(await theirs.status(), null)
})

test('a page after another shows every book once', async (t) => {
  const node = await openNode(t, await testnet(t, 1))
  await node.catalog.publish(Array.from({ length: 25 }, (_, n) => ({ id: `${n}`, title: `Volume ${n}` })))
  const seen = []
  let cursor
  do {
    const page = await node.catalog.list({ cursor, limit: 10, newestFirst: true })
    seen.push(...page.books.map((book) => Number(book.id)))
    cursor = page.nextCursor
  } while (cursor)
  assert.deepEqual(seen, Array.from({ length: 25 }, (_, n) => 24 - n))
})

test('ten thousand real entries arrive at a peer and are found there', async (t) => {
  const path = shared(t, 'catalog', 'goodbooks-10k.jsonl')
  if (!path) return
  const list = (await readFile(path, 'utf8'))
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
    .map(({ type, ...book }) => book)
  const network = await testnet(t)
  const [a, b] = [await openNode(t, network), await openNode(t, network)]
  const changes = await a.catalog.sync(list)
  assert.equal(changes.added, list.length)
  assert.equal((await a.catalog.sync(list)).unchanged, list.length)
  await pair(a, b)
  await offered(b, a, list.length)
  const theirs = b.catalog.of(a.identity.publicKey)
  const last = list.at(-1)
  assert.equal((await theirs.get(last.id)).title, last.title)
  const found = await theirs.list({ search: 'hunger games' })
  assert.ok(found.books.some((book) => book.title.startsWith('The Hunger Games')), JSON.stringify(found))

  await a.catalog.unpublish([last.id])
  await offered(b, a, list.length - 1)
})

test('a book that breaks a limit is refused, and nothing of its batch is published', async (t) => {
  const node = await openNode(t, await testnet(t, 1))
  const batch = [...books, { id: 'huge', title: 'x'.repeat(70_000) }]
  assert.equal((await failure(node.catalog.publish(batch))).code, 'ERR_INVALID_ARGUMENT')
  assert.equal((await node.catalog.list()).total, 0)
})

test('the catalogs of all peers are searched at once, and say which books are here already', async (t) => {
  const network = await testnet(t)
  const [a, b, c] = [await openNode(t, network), await openNode(t, network), await openNode(t, network)]
  await a.catalog.publish([
    { id: '1', title: 'Les Misérables', author: 'Victor Hugo', format: 'epub', language: 'fr', isbn: '0-14-143951-3' },
    { id: '2', title: 'Hugo', author: 'Zoë Ada', format: 'pdf', language: 'en' }
  ])
  await b.catalog.publish([{ id: '1', title: 'The Hunchback', author: 'Hugo', format: 'epub', hash: 'ab'.repeat(32) }])
  await c.catalog.publish([
    { id: 'own', title: 'Hugo, a life', isbn: '9780141439518' },
    { id: 'file', title: 'Notre-Dame', hash: 'AB'.repeat(32) }
  ])
  await pair(a, c)
  await pair(b, c)
  await offered(c, a, 2)
  await offered(c, b, 1)
  const names = (page) => page.hits.map(({ peer, book }) => (peer === b.identity.publicKey ? 'b' : 'a') + book.id)

  const page = await c.catalog.search({ query: 'hugo' })
  assert.deepEqual(names(page), ['a2', 'a1', 'b1'])
  assert.deepEqual([page.total, page.isTotalExact, page.nextCursor], [3, true, null])
  assert.deepEqual(page.facets.formats, { epub: 2, pdf: 1 })
  assert.deepEqual(page.facets.languages, { fr: 1, en: 1 })
  assert.deepEqual(page.facets.peers, { [a.identity.publicKey]: 2, [b.identity.publicKey]: 1 })
  assert.deepEqual(
    page.hits.map((hit) => hit.have),
    [null, { by: 'isbn', bookId: 'own' }, { by: 'hash', bookId: 'file' }]
  )
  assert.equal((await c.catalog.search({ query: 'hugo', includeOwn: true })).hits.filter((hit) => hit.isOwn).length, 1)
  assert.deepEqual(names(await c.catalog.search({ query: '978 0 14 143951 8' })), ['a1'])
  assert.deepEqual(names(await c.catalog.search({ sort: 'author', descending: true })), ['a2', 'a1', 'b1'])
  assert.deepEqual(names(await c.catalog.search({ formats: ['EPUB'], peers: [a.identity.inviteLink()] })), ['a1'])
  const first = await c.catalog.search({ sort: 'title', limit: 2 })
  const rest = await c.catalog.search({ sort: 'title', limit: 2, cursor: first.nextCursor })
  assert.deepEqual([...names(first), ...names(rest)], ['a2', 'a1', 'b1'])
  const listed = await c.catalog.of(a.identity.publicKey).list({ languages: ['en'], sort: 'title' })
  assert.deepEqual([listed.books.map((book) => book.id), listed.total], [['2'], 1])

  for (const [options, code] of [
    [{ limit: 0 }, 'ERR_INVALID_ARGUMENT'],
    [{ sort: 'colour' }, 'ERR_INVALID_ARGUMENT'],
    [{ cursor: 'x' }, 'ERR_INVALID_ARGUMENT'],
    [{ peers: ['nobody'] }, 'ERR_INVALID_KEY']
  ]) {
    assert.equal((await failure(c.catalog.search(options))).code, code, JSON.stringify(options))
  }
})

test('a book that came from a peer is known to be here, and the others are not', async (t) => {
  const { receiver, peer } = await sharing(t)
  const saveTo = `${await temporaryDirectory(t)}/dracula.epub`
  const transfer = await receiver.transfers.request({ peer, bookId: 'dracula', saveTo })
  await transfer.done()
  const { hits } = await receiver.catalog.search({ sort: 'title' })
  assert.deepEqual(
    hits.map(({ book, have }) => [book.id, have]),
    [['dracula', { by: 'transfer', transferId: transfer.id }], ['frankenstein', null]]
  )
})

test('an ISBN is found while it is typed, and years and numbers by how they begin', async (t) => {
  const node = await openNode(t, await testnet(t, 1))
  await node.catalog.publish([
    { id: 'a', title: 'One', isbn: '978-0-14-143951-8' },
    { id: 'b', title: 'Nineteen 1984', isbn: '9780141439525' },
    { id: 'c', title: '20000 Leagues', isbn: '0439023483' }
  ])
  const found = async (search) => (await node.catalog.list({ search })).books.map((book) => book.id).join('')
  for (const [typed, ids] of [
    ['9', 'abc'], ['9780', 'abc'], ['97801414395', 'ab'], ['978014143951', 'a'], ['9780141439518', 'a'],
    ['978-0-14-14', 'a'], ['043902', 'c'], ['9780439', 'c'], ['198', 'b'], ['1984', 'b'], ['2000', 'c'], ['19845', '']
  ]) {
    assert.equal(await found(typed), ids, typed)
  }
})

test('what is found is counted by format, language and peer, exactly', async (t) => {
  const network = await testnet(t)
  const [a, b] = [await openNode(t, network), await openNode(t, network)]
  const list = Array.from({ length: 300 }, (_, n) => ({
    id: `${n}`,
    title: `Volume ${n}`,
    format: n % 3 === 0 ? 'PDF' : 'epub',
    language: ['en', 'fr', null][n % 3]
  }))
  await a.catalog.publish(list)
  await pair(a, b)
  await offered(b, a, list.length)
  const page = await b.catalog.search({ query: 'volume', limit: 10 })
  assert.deepEqual([page.hits.length, page.total, page.isTotalExact], [10, 300, true])
  const { formats, languages, peers } = page.facets
  assert.deepEqual(
    { formats, languages, peers },
    { formats: { pdf: 100, epub: 200 }, languages: { en: 100, fr: 100 }, peers: { [a.identity.publicKey]: 300 } }
  )
  const french = await b.catalog.search({ query: 'volume', languages: ['fr'], formats: ['epub'] })
  assert.deepEqual([french.total, french.facets.formats], [100, { epub: 100 }])
})

test('a text that was cut in the middle of an emoji is published with a replacement, and finds its reader', async (t) => {
  const network = await testnet(t)
  const [writer, reader] = [await openNode(t, network), await openNode(t, network)]
  await pair(writer, reader)
  const cut = 'Shelf ' + '📚'.slice(0, 1)
  const { added } = await writer.catalog.sync([
    { id: '1', title: cut, author: 'Ann', format: 'epub' },
    { id: '2', title: 'Whole 📚', author: 'Ann', format: 'epub' }
  ], { missing: 'publish' })
  assert.equal(added, 2)
  await offered(reader, writer.identity.publicKey, 2)
  const { books: found } = await reader.catalog.of(writer.identity.publicKey).list({ search: 'ann' })
  assert.deepEqual(found.map(({ title }) => title).sort(), [cut.toWellFormed?.() ?? 'Shelf \ufffd', 'Whole 📚'])
})
