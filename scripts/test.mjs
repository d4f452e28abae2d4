// `npm test`: every check there is, in the order in which failures are cheapest to find.
//
//   npm test                     all
//   npm test -- addon interop    only some: fmt clippy rust build types addon interop

import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { build, interopProgram } from './build.mjs'
import { requirePackages, requireTools, root, run, versionOf } from './toolchain.mjs'

const steps = {
  fmt: () => run('cargo', ['fmt', '--check']),
  clippy: () => run('cargo', ['clippy', '--locked', '--all-targets', '--', '-D', 'warnings']),
  rust: () => {
    // Examples are built by cargo test; nextest runs each test in a process of its own.
    if (versionOf('cargo', ['nextest', '--version'])) run('cargo', ['nextest', 'run', '--locked', '--no-fail-fast'])
    else run('cargo', ['test', '--locked', '--no-fail-fast', '--lib', '--tests'])
  },
  build: () => build({ check: true }),
  types: () => run(process.execPath, [typescript(), '--project', 'examples/nextjs']),
  addon: () => javascript('__test__'),
  interop: () => javascript('__test__/interop')
}

const chosen = process.argv.slice(2)
const unknown = chosen.filter((name) => !(name in steps))
if (unknown.length > 0) {
  console.error(`no such step: ${unknown.join(', ')}; there are ${Object.keys(steps).join(', ')}`)
  process.exit(2)
}

requireTools()
requirePackages()
for (const [name, step] of Object.entries(steps)) {
  if (chosen.length > 0 && !chosen.includes(name)) continue
  const started = Date.now()
  console.error(`\n── ${name}`)
  step()
  console.error(`── ${name}: passed in ${((Date.now() - started) / 1000).toFixed(1)} s`)
}

function javascript(folder) {
  const files = readdirSync(join(root, folder)).filter((name) => name.endsWith('.test.mjs'))
  // One file at a time: the tests measure time and memory, and machines may be small.
  run(
    process.execPath,
    ['--test', '--test-reporter=spec', '--test-concurrency=1', ...files.map((f) => join(folder, f))],
    { env: { ...process.env, ALEX_P2P_INTEROP: process.env.ALEX_P2P_INTEROP ?? interopProgram() } }
  )
}

function typescript() {
  return join(root, 'node_modules', 'typescript', 'bin', 'tsc')
}
