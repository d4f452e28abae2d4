// Builds the addon, its loader `index.js` and its types `index.d.ts`, and beside it the programs that
// tests and benches start (examples/interop, bench and link), in one run of cargo.
//
//   node scripts/build.mjs [--debug] [--check]
//
// `--check` fails when index.js or index.d.ts was not what the build generates.

import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { requirePackages, requireTools, root, run, versionOf } from './toolchain.mjs'

const programs = ['interop', 'bench', 'link']
const generated = ['index.js', 'index.d.ts']

/** Builds everything. With `check`, says which generated files were not up to date. */
export function build({ profile = 'release', check = false } = {}) {
  requireTools()
  requirePackages()
  const before = generated.map(read)
  const cli = join(root, 'node_modules', '@napi-rs', 'cli', 'dist', 'cli.js')
  const options = profile === 'release' ? ['--release'] : []
  run(process.execPath, [
    cli, 'build', '--platform', ...options, '--', '--locked', '--lib',
    ...programs.flatMap((name) => ['--example', name])
  ])
  const stale = generated.filter((name, index) => read(name) !== before[index])
  if (check && stale.length > 0) {
    console.error(`\n${stale.join(' and ')} did not match the sources; now they do. Commit them.`)
    process.exit(1)
  }
}

/** Builds the addon for release unless it is newer than all its sources. */
export function buildIfNeeded() {
  const addon = readdirSync(root).filter((name) => name.endsWith('.node'))
  const built = Math.max(0, ...addon.map((name) => statSync(join(root, name)).mtimeMs))
  const examples = ['examples/bench', 'examples/link']
  const changed = newest(['src', ...examples, 'build.rs', 'Cargo.toml', 'Cargo.lock'].map((p) => join(root, p)))
  if (built >= changed && programs.every((name) => existsSync(exampleProgram(name)))) return
  console.error('Building the addon; the first time this takes several minutes …')
  build()
}

/** Where cargo put the interop program. */
export function interopProgram(profile) {
  return exampleProgram('interop', profile)
}

/** Where cargo put the program of examples/`example`. */
export function exampleProgram(example, profile = 'release') {
  const triple = versionOf('rustc', ['-vV'])?.match(/^host: (.*)$/m)?.[1] ?? ''
  const name = process.platform === 'win32' ? `${example}.exe` : example
  return join(process.env.CARGO_TARGET_DIR ?? join(root, 'target'), triple, profile, 'examples', name)
}

function read(name) {
  const path = join(root, name)
  return existsSync(path) ? readFileSync(path, 'utf8') : ''
}

function newest(paths) {
  return Math.max(
    ...paths.map((path) => {
      const found = statSync(path)
      if (!found.isDirectory()) return found.mtimeMs
      return newest(readdirSync(path).map((name) => join(path, name)))
    }),
    0
  )
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  build({
    profile: process.argv.includes('--debug') ? 'debug' : 'release',
    check: process.argv.includes('--check')
  })
}
