// What `npm start` shows.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { books, root, temporaryDirectory } from './nodes.mjs'

const program = join(root, 'examples', 'share-a-book', 'main.mjs')

async function run(t, ...args) {
  const cwd = await temporaryDirectory(t)
  const child = spawn(process.execPath, [program, ...args], { cwd, stdio: ['ignore', 'pipe', 'pipe'] })
  t.after(() => child.kill('SIGKILL'))
  const output = { stdout: '', stderr: '' }
  for (const stream of Object.keys(output)) child[stream].on('data', (data) => (output[stream] += data))
  const code = await new Promise((resolve) => child.on('close', resolve))
  return { code, cwd, ...output }
}

const scratch = async () =>
  (await readdir(tmpdir())).filter((name) => name.startsWith('alex-p2p-example-')).length

test('two servers share a book, told in JSON lines', async (t) => {
  const before = await scratch()
  const { code, cwd, stdout, stderr } = await run(t, '--json')
  assert.equal(code, 0, stderr)
  const lines = stdout.trim().split('\n').map((line) => JSON.parse(line))
  const names = [...new Set(lines.map((line) => line.event))]
  assert.deepEqual(names, ['network', 'server', 'paired', 'book', 'progress', 'received'])
  const { path, bytes, identical } = lines.at(-1)
  assert.deepEqual([bytes, identical], [690_404, true])
  assert.ok(path.startsWith(join(cwd, 'received')) || path.includes('received'), path)
  assert.ok((await readFile(path)).equals(await readFile(books[0].source)))
  assert.equal(await scratch(), before)
})

test('two servers share a book, told to a person', async (t) => {
  const { code, stdout, stderr } = await run(t)
  assert.equal(code, 0, stderr)
  for (const part of ['A private DHT', 'Ada', 'Ben', 'is online', 'Frankenstein — Mary Shelley', 'Received']) {
    assert.ok(stdout.includes(part), stdout)
  }
  const path = stdout.match(/^ {2}(.*Frankenstein.*\.epub)$/m)[1]
  assert.ok((await readFile(path)).equals(await readFile(books[0].source)))
  await rm(path)
})
