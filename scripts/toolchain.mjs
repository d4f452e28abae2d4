// Checks for what a build needs, and says what to install when it is missing.

import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** The repository's root directory. */
export const root = fileURLToPath(new URL('..', import.meta.url))

const wantedNode = 20
const wantedRust = [1, 89]

/** What is missing for building the addon: one line of advice each. */
export function missingTools() {
  return [node(), rust(), compiler()].filter(Boolean)
}

/** Ends the program with advice when the addon cannot be built here. */
export function requireTools() {
  const missing = missingTools()
  if (missing.length === 0) return
  console.error('@alex/p2p is built from source, and this machine lacks:\n')
  for (const advice of missing) console.error(`  - ${advice}`)
  console.error('\nInstall that, open a new terminal, and run the same command again.')
  process.exit(1)
}

/** Installs the development dependencies unless they are there. Output goes to stderr. */
export function requirePackages() {
  if (existsSync(join(root, 'node_modules', '@napi-rs', 'cli'))) return
  // Not `npm ci`: npm writes lock files that leave out other platforms' optional packages, and then
  // refuses them.
  console.error('Installing development packages …')
  run('npm', ['install', '--no-save', '--no-audit', '--no-fund'])
}

/** Runs a command with its output on stderr, and ends the program when it fails. */
export function run(command, args, options = {}) {
  const { error, status } = spawnSync(command, args, {
    cwd: root,
    stdio: ['ignore', 2, 2],
    shell: process.platform === 'win32',
    ...options
  })
  if (status === 0) return
  console.error(`\n${[command, ...args].join(' ')}: ${error?.message ?? `ended with ${status}`}`)
  process.exit(status || 1)
}

/** The version text of a program, or nothing when it cannot be run. */
export function versionOf(command, args = ['--version']) {
  const { status, stdout } = spawnSync(command, args, { encoding: 'utf8' })
  return status === 0 ? stdout.trim() : undefined
}

function node() {
  const major = Number(process.versions.node.split('.')[0])
  if (major >= wantedNode) return
  return `Node.js ${wantedNode} or later (this is ${process.versions.node}): https://nodejs.org`
}

function rust() {
  const how = 'install it with rustup: https://rustup.rs'
  const found = versionOf('cargo')?.match(/(\d+)\.(\d+)/)
  if (!found) return `Rust ${wantedRust.join('.')} or later (cargo was not found): ${how}`
  const [major, minor] = [Number(found[1]), Number(found[2])]
  if (major > wantedRust[0] || (major === wantedRust[0] && minor >= wantedRust[1])) return
  return `Rust ${wantedRust.join('.')} or later (this is ${found[0]}): run \`rustup update\``
}

// SQLite is compiled from C, and Rust links with the C compiler.
function compiler() {
  if (process.platform === 'win32') return // rustup itself asks for the Visual Studio build tools
  const candidates = [process.env.CC, 'cc', 'gcc', 'clang'].filter(Boolean)
  if (candidates.some((candidate) => versionOf(candidate))) return
  const how = {
    darwin: 'run `xcode-select --install`',
    linux: 'for example `sudo apt install build-essential`, or `apk add build-base` on Alpine'
  }[process.platform]
  return `a C compiler (cc was not found)${how ? `: ${how}` : ''}`
}
