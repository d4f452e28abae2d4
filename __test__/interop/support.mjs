// What every interop test needs: the Rust program of examples/interop as a child process that talks
// JSON lines, temporary directories, JavaScript testnets, and waits that end.
//
// Everything made here is undone when its test ends, the last first, whatever the outcome.

import { spawn } from 'node:child_process'
import { existsSync, statSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

/** The repository's root directory. */
export const root = fileURLToPath(new URL('../../', import.meta.url))

/** How long a wait may take before the test fails, in milliseconds: generous, for busy machines. */
export const patience = Number(process.env.ALEX_P2P_TEST_TIMEOUT ?? 30_000)

const undoing = new WeakMap()

/** Undoes something when the test ends, before what was made earlier: a node needs its network to leave. */
export function undo(t, step) {
  const steps = undoing.get(t)
  if (steps) return steps.push(step)
  undoing.set(t, [step])
  t.after(async () => {
    for (const step of undoing.get(t).reverse()) await step()
  })
}

/** The interop program: `ALEX_P2P_INTEROP`, or the newest one that was built. */
export function interopProgram() {
  if (process.env.ALEX_P2P_INTEROP) return process.env.ALEX_P2P_INTEROP
  const name = process.platform === 'win32' ? 'interop.exe' : 'interop'
  const built = ['debug', 'release']
    .map((profile) => join(root, 'target', profile, 'examples', name))
    .filter((path) => existsSync(path))
    .sort((a, b) => statSync(b).mtimeMs - statSync(a).mtimeMs)
  if (built.length === 0) {
    throw new Error('the interop program is not built: run `cargo build --example interop`')
  }
  return built[0]
}

/**
 * Starts `interop <args…>` and ends it with the test.
 *
 * The child prints JSON objects, one a line, and reads the same from its stdin. What it writes to
 * stderr is shown when a wait on it fails.
 */
export function startInterop(t, args, options = {}) {
  return startProgram(t, interopProgram(), args, options)
}

/** Starts any program that talks JSON lines, and ends it with the test. */
export function startProgram(t, path, args = [], { env, cwd } = {}) {
  const program = new Program(path, args, { env, cwd })
  undo(t, () => program.end())
  return program
}

/** A child process that talks JSON lines. */
export class Program {
  #child
  #lines = []
  #waiting = []
  #stderr = ''
  #ended = false
  #name

  constructor(path, args, { env, cwd } = {}) {
    this.#name = `${path.split(/[\\/]/).pop()} ${args.join(' ')}`
    this.#child = spawn(path, args.map(String), {
      cwd,
      env: { ...process.env, ...env },
      stdio: ['pipe', 'pipe', 'pipe']
    })
    this.#child.stdin.on('error', () => {}) // the child may be gone; `exited` tells
    this.#child.stderr.setEncoding('utf8').on('data', (text) => {
      this.#stderr = (this.#stderr + text).slice(-16_384)
    })
    /** Settles with `{ code, signal }` when the process has ended. */
    this.exited = new Promise((resolve) => {
      this.#child.on('error', (error) => {
        this.#stderr += String(error)
        resolve({ code: null, signal: null })
      })
      this.#child.on('close', (code, signal) => resolve({ code, signal }))
    })
    createInterface({ input: this.#child.stdout }).on('line', (line) => this.#take(line))
    this.exited.then(() => {
      this.#ended = true
      for (const waiter of this.#waiting.splice(0)) waiter.fail('the program ended')
    })
  }

  /** The process id. */
  get pid() {
    return this.#child.pid
  }

  /** What the program has written to stderr lately. */
  get stderr() {
    return this.#stderr
  }

  /** Writes one JSON line to the program. */
  send(message) {
    this.#child.stdin.write(JSON.stringify(message) + '\n')
  }

  /** Closes the program's stdin. */
  finish() {
    this.#child.stdin.end()
  }

  /**
   * The next line that matches, also when it came before this call. `wanted` is the text of the
   * line's `event` field, or a function of the parsed line. Lines that do not match stay for later
   * calls. An `{"event": "error"}` line fails the wait unless errors are what is waited for.
   */
  next(wanted = () => true, timeout = patience) {
    const matches = typeof wanted === 'function' ? wanted : (line) => line.event === wanted
    const index = this.#lines.findIndex((line) => matches(line))
    if (index >= 0) return Promise.resolve(this.#lines.splice(index, 1)[0])
    return new Promise((resolve, reject) => {
      const waiter = {
        matches,
        give: (line) => {
          clearTimeout(timer)
          resolve(line)
        },
        fail: (reason) => {
          clearTimeout(timer)
          this.#waiting = this.#waiting.filter((other) => other !== waiter)
          const what = typeof wanted === 'string' ? wanted : 'a line'
          reject(new Error(`${this.#name}: waited for ${what}: ${reason}\n${this.#stderr}`))
        }
      }
      const timer = setTimeout(() => waiter.fail(`nothing within ${timeout} ms`), timeout)
      this.#waiting.push(waiter)
      const error = this.#lines.find((line) => line.event === 'error')
      if (error) waiter.fail(JSON.stringify(error))
      else if (this.#ended) waiter.fail('the program ended')
    })
  }

  /** Takes all lines that match and came before this call. */
  rest(matches) {
    const taken = this.#lines.filter((line) => matches(line))
    this.#lines = this.#lines.filter((line) => !matches(line))
    return taken
  }

  /** Gives a line back, for the next call that it matches. */
  unread(line) {
    this.#lines.unshift(line)
  }

  /** Sends a signal, SIGKILL by default, and waits for the end. */
  async kill(signal = 'SIGKILL') {
    this.#child.kill(signal)
    return this.exited
  }

  /** Closes stdin, which asks the program to end; kills it when it does not within two seconds. */
  async end() {
    if (this.#child.exitCode === null && this.#child.signalCode === null) this.finish()
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), 2_000)
    const outcome = await this.exited
    clearTimeout(timer)
    return outcome
  }

  #take(text) {
    let line
    try {
      line = JSON.parse(text)
    } catch {
      this.#stderr += `not JSON on stdout: ${text}\n`
      return
    }
    const waiter = this.#waiting.find((waiter) => waiter.matches(line))
    if (waiter) {
      this.#waiting = this.#waiting.filter((other) => other !== waiter)
      waiter.give(line)
    } else {
      this.#lines.push(line)
      if (line.event === 'error') {
        for (const waiting of this.#waiting.splice(0)) waiting.fail(JSON.stringify(line))
      }
    }
  }
}

/** A temporary directory that is removed with the test. */
export async function temporaryDirectory(t) {
  const path = await mkdtemp(join(tmpdir(), 'alex-p2p-'))
  undo(t, () => rm(path, { recursive: true, force: true, maxRetries: 5 }))
  return path
}

/** A HyperDHT of npm's making on 127.0.0.1: `{ bootstrap, nodes, createNode }`. */
export async function javascriptTestnet(t, size = 3) {
  const { default: createTestnet } = await import('hyperdht/testnet.js')
  const testnet = await createTestnet(size, { host: '127.0.0.1' })
  undo(t, () => testnet.destroy())
  return testnet
}

/** `promise`, or a failure that names what was waited for. */
export async function within(promise, what, timeout = patience) {
  let timer
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: not within ${timeout} ms`)), timeout)
  })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}

/** Waits until `condition()` is truthy and gives its value; for state that no event announces. */
export async function until(condition, what, timeout = patience) {
  const deadline = Date.now() + timeout
  for (;;) {
    const value = await condition()
    if (value) return value
    if (Date.now() > deadline) throw new Error(`${what}: not within ${timeout} ms`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

/** One event of an emitter, as an array of its arguments. */
export function event(emitter, name, timeout = patience) {
  return within(
    new Promise((resolve) => emitter.once(name, (...values) => resolve(values))),
    `event ${name}`,
    timeout
  )
}
