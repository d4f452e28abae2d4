// One side of a measurement: its processes, and calls into them.

import { fork } from 'node:child_process'
import { mkdtemp } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const patience = 20 * 60_000

/** `ours` or `js`, in processes of its own below one directory. */
export class Side {
  #processes = []

  constructor(kind, directory) {
    this.kind = kind
    this.directory = directory
  }

  /** Starts a process; each method of ours.mjs or javascript.mjs (or of `script`) is a method of what this gives. */
  async start(script = 'worker.mjs') {
    const directory = await mkdtemp(join(this.directory, 'node-'))
    const child = fork(fileURLToPath(new URL(script, import.meta.url)), [this.kind, directory])
    const waiting = new Map()
    let last = 0
    child.on('message', ({ id, value, error }) => {
      const { resolve, reject } = waiting.get(id)
      waiting.delete(id)
      if (error) reject(new Error(`${this.kind}: ${error}`))
      else resolve(value)
    })
    const ended = new Promise((resolve) => child.on('exit', resolve))
    ended.then((code) => {
      for (const { reject } of waiting.values()) reject(new Error(`a worker ended with ${code}`))
    })
    const call = (method, argument) => {
      const id = ++last
      return new Promise((resolve, reject) => {
        const timer = setTimeout(() => reject(new Error(`${method}: too slow`)), patience)
        const settle = (then) => (value) => {
          clearTimeout(timer)
          then(value)
        }
        waiting.set(id, { resolve: settle(resolve), reject: settle(reject) })
        child.send({ id, method, argument })
      })
    }
    const proxy = new Proxy(
      { pid: child.pid },
      {
        get: (own, name) => {
          if (name in own || name === 'then') return own[name]
          return (argument) => call(name, argument)
        }
      }
    )
    this.#processes.push({ child, ended, proxy })
    return proxy
  }

  /** Ends one process. */
  async stop(process) {
    const { child, ended } = this.#processes.find(({ proxy }) => proxy === process)
    child.kill('SIGKILL')
    await ended
  }

  /** Starts a DHT of this side's own kind in a process of its own. */
  async testnet() {
    const process = await this.start()
    return { bootstrap: await process.testnet() }
  }

  /** Ends every process. */
  async end() {
    for (const { child } of this.#processes) child.kill('SIGKILL')
    await Promise.all(this.#processes.map(({ ended }) => ended))
  }
}
