// Processes for raw encrypted streams, of either kind and in a network namespace if wanted, and the
// emulated link between two namespaces.

import { spawn, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { exampleProgram } from '../scripts/build.mjs'

const patience = 180_000
const script = fileURLToPath(new URL('stream-worker.mjs', import.meta.url))

/** The two ends of an emulated link. */
export const ends = [
  { end: 'a', host: '10.77.0.1' },
  { end: 'b', host: '10.77.0.2' }
]

/** Why there can be no emulated link here; nothing when there can. */
export function linkIsImpossible() {
  if (process.platform !== 'linux') return 'network namespaces are Linux'
  if (process.getuid() !== 0) return 'network namespaces and TUN devices need root'
  if (!existsSync('/dev/net/tun')) return 'there is no /dev/net/tun'
  if (spawnSync('ip', ['netns', 'list']).status !== 0) return 'ip (iproute2) is missing'
}

/** Everything one measurement started. */
export class Peers {
  #children = []

  /** A process of `kind`, `ours` or `js`: each method it knows is a method of what this gives. */
  start(kind, namespace) {
    const program = kind === 'ours' ? [exampleProgram('bench')] : [process.execPath, script]
    const words = namespace ? ['ip', 'netns', 'exec', namespace, ...program] : program
    const waiting = new Map()
    let last = 0
    const child = this.#spawn(words, ({ id, value, error }) => {
      const { resolve, reject } = waiting.get(id) ?? {}
      waiting.delete(id)
      if (error) reject?.(new Error(`${kind}: ${error}`))
      else resolve?.(value)
    })
    child.on('exit', (code, signal) => {
      for (const { reject } of waiting.values()) reject(new Error(`${kind} ended with ${code ?? signal}`))
    })
    const call = (method, argument) =>
      new Promise((resolve, reject) => {
        const id = ++last
        const timer = setTimeout(() => reject(new Error(`${kind}, ${method}: too slow`)), patience)
        const settle = (then) => (value) => {
          clearTimeout(timer)
          then(value)
        }
        waiting.set(id, { resolve: settle(resolve), reject: settle(reject) })
        child.stdin.write(`${JSON.stringify({ id, method, argument })}\n`)
      })
    return new Proxy({}, { get: (_, name) => (name === 'then' ? undefined : (argument) => call(name, argument)) })
  }

  /** Makes a link; gives its namespaces, at the hosts of `ends`. It goes when this process goes. */
  async link(options) {
    const name = `alexb${process.pid}`
    const words = Object.entries(options).map(([key, value]) => `--${key}=${value}`)
    await new Promise((resolve, reject) => {
      const child = this.#spawn([exampleProgram('link'), name, ...words], resolve)
      child.on('exit', () => reject(new Error('the link ended')))
      child.isLink = true
    })
    return ends.map(({ end }) => `${name}-${end}`)
  }

  /** Ends everything; the link last, and by itself: it removes its namespaces. */
  async end() {
    const ended = (child) => child.exitCode !== null || child.signalCode !== null
    for (const child of this.#children.reverse()) {
      if (ended(child)) continue
      const gone = new Promise((resolve) => child.on('exit', resolve))
      if (child.isLink) child.stdin.end()
      else child.kill('SIGKILL')
      await gone
    }
    this.#children = []
  }

  #spawn([program, ...words], online) {
    // A group of its own: interrupting this process ends their stdin, and that ends them in order.
    const child = spawn(program, words, { stdio: ['pipe', 'pipe', 'inherit'], detached: true })
    child.stdin.on('error', () => {})
    child.on('error', (error) => console.error(error.message))
    createInterface({ input: child.stdout }).on('line', (line) => online(JSON.parse(line)))
    this.#children.push(child)
    return child
  }
}
