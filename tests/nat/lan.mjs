// The local network in the NAT laboratory: two servers on one switch that leads nowhere, with no DHT. They
// approved each other, find each other by multicast DNS, and one gets a book of the other's.
//
//   node tests/nat/lan.mjs [--tries 5] [--json]
//
// Each try has a switch, directories and processes of its own. Time is taken from the moment at which the
// second server begins to open until both know that the other is online. Nodes that were at rest before have
// 20 s to do the rest.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { Program, root } from '../../__test__/interop/support.mjs'
import { missing } from './network.mjs'

/** What the first contact may take, in milliseconds. */
const limit = 1000
/** What anything else may take. */
const patience = 20_000
const book = join(root, 'examples', 'library', 'bram-stoker_dracula.epub')

/** All tries. `ok` counts those in which everything worked and the first contact was within a second. */
export async function lan({ tries = 5 } = {}) {
  const outcomes = []
  for (let number = 0; number < tries; number++) outcomes.push(await attempt(number))
  const times = outcomes.filter(({ ms }) => ms !== undefined).map(({ ms }) => ms).sort((a, b) => a - b)
  return {
    tries,
    ok: outcomes.filter(({ ms, error }) => !error && ms <= limit).length,
    medianMs: times[times.length >> 1] ?? null,
    errors: outcomes.map(({ error }) => error).filter(Boolean)
  }
}

async function attempt(number) {
  const house = new House(`lan${process.pid}-${number}`)
  const directory = await mkdtemp(join(tmpdir(), 'alex-p2p-lan-'))
  const programs = []
  const start = (name, options) => {
    const server = new Server(house[name], { dataDir: join(directory, name), ...options })
    programs.push(server)
    return server
  }
  try {
    const [lender, reader] = await acquaint(start)
    const first = start('a', { policy: 'auto-accept' })
    await first.opened()
    await first.call('catalog.publish', [{ id: 'dracula', title: 'Dracula', source: book }])
    // At rest: what it said at its start is over.
    await new Promise((resolve) => setTimeout(resolve, 2000))
    const second = start('b', {})
    const { began } = await second.opened()
    const online = await Promise.all([first.online(reader), second.online(lender)])
    const ms = Math.max(...online.map(({ at }) => at)) - began
    await until(async () => (await second.call('list', lender, {})).total === 1)
    await second.call('fetch', { peer: lender, bookId: 'dracula' })
    const { path, code } = await second.program.next('done', patience)
    assert.equal(code, undefined)
    assert.deepEqual(await readFile(path), await readFile(book))
    const { connection } = await second.call('peers.get', lender)
    assert.equal(connection.path, 'lan')
    return { ms }
  } catch (error) {
    return { error: `${error.message}\n${programs.map(({ program }) => program.stderr).join('\n')}` }
  } finally {
    await Promise.all(programs.map(({ program }) => program.end()))
    house.close()
    await rm(directory, { recursive: true, force: true })
  }
}

/** Lets both approve each other before there is a network. Gives their keys. */
async function acquaint(start) {
  const servers = ['a', 'b'].map((name) => start(name, { discovery: { dht: false, lan: false } }))
  const keys = []
  for (const server of servers) keys.push((await server.opened()).key)
  await servers[0].call('peers.add', keys[1])
  await servers[1].call('peers.add', keys[0])
  await Promise.all(servers.map(({ program }) => program.end()))
  return keys
}

/** A server in a process and a namespace of its own. */
class Server {
  #last = 0

  constructor(namespace, options) {
    const program = join(root, '__test__', 'server.mjs')
    const settings = JSON.stringify({ discovery: { dht: false }, ...options })
    this.program = new Program('ip', ['netns', 'exec', namespace, process.execPath, program, settings], { cwd: root })
  }

  opened() {
    return this.program.next('open', patience)
  }

  online(peer) {
    return this.program.next((line) => line.event === 'online' && line.peer === peer, patience)
  }

  async call(method, ...args) {
    const id = ++this.#last
    this.program.send({ id, method, args })
    const { value, error } = await this.program.next((line) => line.id === id, patience)
    if (error) throw new Error(`${method}: ${error.message}`)
    return value
  }
}

/** Two hosts, `a` and `b`, on one switch: addresses, and no way out. */
class House {
  constructor(name) {
    this.a = `${name}-a`
    this.b = `${name}-b`
    this.switch = `${name}-s`
    const host = (namespace, number) => `
      ip netns add ${namespace}
      ip -n ${namespace} link set lo up
      ip -n ${this.switch} link add p${number} type veth peer name eth0 netns ${namespace}
      ip -n ${this.switch} link set p${number} master br0 up
      ip -n ${namespace} addr add 192.168.77.${number}/24 dev eth0
      ip -n ${namespace} link set eth0 up
    `
    const script = `
      ip netns add ${this.switch}
      ip -n ${this.switch} link add br0 type bridge
      ip -n ${this.switch} link set br0 up
      ${host(this.a, 1)} ${host(this.b, 2)}
    `
    const { status, stderr } = spawnSync('sh', ['-e'], { input: script, encoding: 'utf8' })
    if (status === 0) return
    this.close()
    throw new Error(`the network could not be built: ${stderr}`)
  }

  close() {
    for (const namespace of [this.a, this.b, this.switch]) spawnSync('ip', ['netns', 'del', namespace])
  }
}

async function until(holds) {
  const end = Date.now() + patience
  while (!(await holds())) {
    if (Date.now() > end) throw new Error(`not within ${patience} ms: ${holds}`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const lacks = missing()
  if (lacks.length > 0) {
    console.error(`The laboratory builds networks on this machine, which lacks:\n  - ${lacks.join('\n  - ')}`)
    process.exit(1)
  }
  const index = process.argv.indexOf('--tries')
  const { errors, ...line } = await lan({ tries: index > 0 ? Number(process.argv[index + 1]) : 5 })
  for (const error of errors) console.error(error)
  if (process.argv.includes('--json')) console.log(JSON.stringify({ server: 'lan', client: 'lan', pair: 'ours-ours', ...line }))
  else console.log(`lan ${line.ok}/${line.tries}  median ${line.medianMs} ms to the first contact`)
  process.exit(line.ok === line.tries ? 0 : 1)
}
