// What a machine lacks is named.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { chmod, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { root, temporaryDirectory } from './nodes.mjs'

const build = join(root, 'scripts', 'build.mjs')

/** Builds where only these programs can be found: name to what it prints. */
async function buildWith(t, programs) {
  const folder = await temporaryDirectory(t)
  for (const [name, output] of Object.entries(programs)) {
    await writeFile(join(folder, name), `#!/bin/sh\necho '${output}'\n`)
    await chmod(join(folder, name), 0o755)
  }
  const { status, stderr } = spawnSync(process.execPath, [build], { env: { PATH: folder }, encoding: 'utf8' })
  assert.equal(status, 1, stderr)
  return stderr
}

const skip = process.platform === 'win32' && 'shell scripts stand in for the tools'

test('without Rust and a C compiler the build says what to install', { skip }, async (t) => {
  const advice = await buildWith(t, {})
  assert.match(advice, /Rust 1\.89 or later \(cargo was not found\).*https:\/\/rustup\.rs/)
  assert.match(advice, /a C compiler \(cc was not found\)/)
})

test('an old Rust is told from a missing one', { skip }, async (t) => {
  const advice = await buildWith(t, { cargo: 'cargo 1.70.0 (old)', cc: 'cc 12' })
  assert.match(advice, /this is 1\.70\).*rustup update/)
  assert.doesNotMatch(advice, /C compiler/)
})
