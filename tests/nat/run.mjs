// The NAT laboratory: how peers of ours and of JavaScript's hyperdht reach each other through NATs.
//
//   npm run test:nat                              every cell, every pairing, 5 tries each
//   npm run test:nat -- cone/cone --tries 2       some cells: server/client
//   npm run test:nat -- --pairs ours-ours         some pairings: server-client
//   npm run test:nat -- --json                    a JSON line for each cell and pairing
//   npm run test:nat -- --quick                   one try each, repeated once if it fails; not npm to npm,
//                                                 idle only ours to ours
//   npm run test:nat -- --if-possible             no failure on a machine that lacks something
//
// Each try has NATs and processes of its own. Time is taken from connecting to the first echo. It fails when
// a pairing with ours stays below its bar.

import { join } from 'node:path'
import { Program, interopProgram, root } from '../../__test__/interop/support.mjs'
import { lan } from './lan.mjs'
import { Network, kinds, missing, publicHost, shared } from './network.mjs'
import { play, stories } from './stories.mjs'

/** Nodes of the public network. */
const nodes = 16
/** How long a program may take to start, to announce itself, and to connect, in milliseconds. */
const patience = 60_000
const pairings = ['js-js', 'ours-ours', 'ours-js', 'js-ours']

/**
 * What each cell has to reach: all tries, with a median for every pairing with ours, or only for ours to
 * ours; `most` is for each try. `oursOnly`: only our servers have to.
 */
const cells = {
  'open/open': {},
  'open/cone': {},
  'open/random': {},
  'cone/open': {},
  'random/open': {},
  'cone/cone': { median: 100 },
  'random/cone': { oursMedian: 5000 },
  'cone/random': { oursMedian: 5000 },
  // Over a relay: ours, or npm's.
  'random/random': { relay: 'ours', most: 10_000 },
  'random/random/js-relay': { relay: 'js', most: 10_000 },
  'carrier/cone': { median: 100 },
  'cone/carrier': { median: 100 },
  'carrier/carrier': { median: 100 },
  // Both behind one NAT.
  'lan/lan': { median: 1000 },
  // npm's server sends its first packet after a second.
  'hairpin/hairpin': { oursMedian: 1000 },
  'provider/provider': { relay: 'ours', most: 10_000 },
  // Nothing is sent for a minute, behind NATs that forget after 15 s.
  'cone/cone/idle': { median: 100, idle: 60, mappingSeconds: 15 },
  // The server's NAT gets another public address, 6 s before the client comes.
  'cone/cone/moved': { oursOnly: true, moves: true, idle: 6 },
  // Two whole servers in a house without internet: see lan.mjs.
  lan: { house: true }
}
// Whole nodes, which there are only of ours: stories.mjs.
for (const name of Object.keys(stories)) cells[name] = { isStory: true }

const options = parse(process.argv.slice(2))
const lacks = missing()
if (lacks.length > 0) {
  console.error('The NAT laboratory builds networks on this machine, which lacks:\n')
  for (const advice of lacks) console.error(`  - ${advice}`)
  if (options.ifPossible) console.error('\nIt is skipped.')
  process.exit(options.ifPossible ? 0 : 1)
}
const network = new Network()
const running = new Set()
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => close().then(() => process.exit(1)))
let failed = 0
try {
  const testnet = start(network.core, [process.execPath, peer(), 'testnet', nodes, publicHost])
  const { nodes: [bootstrap] } = await testnet.next('testnet', patience)
  for (const cell of options.cells) {
    if (cells[cell].house) {
      if (options.pairs.includes('ours-ours')) failed += !(await house())
      continue
    }
    for (const pair of options.pairs) {
      if (cells[cell].isStory && pair !== 'ours-ours') continue
      const { idle = 0 } = cells[cell]
      if (options.quick && idle > 10 && pair !== 'ours-ours') continue
      let reached = await measure(cell, pair, bootstrap)
      if (!reached && options.quick) reached = await measure(cell, pair, bootstrap)
      failed += !reached
    }
  }
} finally {
  await close()
}
process.exit(failed > 0 ? 1 : 0)

/** All tries of a cell and pairing. Returns whether they reach the bar. */
async function measure(cell, pair, bootstrap) {
  const bar = cells[cell]
  const outcomes = []
  // Idle tries do nothing but wait: all of them at once.
  const atOnce = bar.idle ? options.tries : 1
  for (let done = 0; done < options.tries; done += atOnce) {
    const tries = Array.from({ length: atOnce }, () => attempt(cell, pair, bootstrap))
    outcomes.push(...(await Promise.all(tries)))
  }
  const times = outcomes.filter(({ ms }) => ms !== undefined).map(({ ms }) => ms).sort((a, b) => a - b)
  const medianMs = times.length > 0 ? Math.round(times[times.length >> 1] * 10) / 10 : null
  const [server, client] = cell.split('/')
  const line = { server, client, pair, tries: options.tries, ok: times.length, medianMs }
  if (bar.idle) line.idleSeconds = bar.idle
  if (bar.moves) line.moved = true
  if (bar.relay) line.relay = bar.relay
  if (bar.isStory) line.story = cell.split('/')[2]
  const isOurs = bar.oursOnly ? pair.startsWith('ours') : pair !== 'js-js'
  const limit = bar.median ?? (pair === 'ours-ours' ? bar.oursMedian : undefined)
  const isInTime = (limit === undefined || medianMs < limit) && times.every((ms) => ms < (bar.most ?? Infinity))
  const reached = !isOurs || (line.ok === line.tries && isInTime)
  if (options.json) console.log(JSON.stringify(line))
  else {
    const took = medianMs === null ? '' : `median ${medianMs} ms`
    const range = times.length > 1 ? `${Math.round(times[0])} to ${Math.round(times.at(-1))}` : ''
    console.log(`${reached ? ' ' : '!'} ${cell.padEnd(15)} ${pair.padEnd(10)} ${line.ok}/${line.tries}  ${took}  ${range}`)
  }
  for (const { error } of outcomes) if (error && isOurs) console.error(`    ${error}`)
  return reached
}

/** All tries of the local network. Returns whether all find each other within a second and share a book. */
async function house() {
  const { errors, ...counts } = await lan({ tries: options.tries })
  const line = { server: 'lan', client: 'lan', pair: 'ours-ours', ...counts }
  const reached = line.ok === line.tries
  if (options.json) console.log(JSON.stringify(line))
  else console.log(`${reached ? ' ' : '!'} ${'lan'.padEnd(15)} ${line.pair.padEnd(10)} ${line.ok}/${line.tries}  median ${line.medianMs} ms`)
  for (const error of errors) console.error(`    ${error}`)
  return reached
}

/** One connection between fresh processes behind fresh NATs. */
async function attempt(cell, pair, bootstrap) {
  if (cells[cell].isStory) {
    const playing = play(cell, { network, bootstrap, start, stop, patience })
    return playing.catch((error) => ({ error: error.message }))
  }
  const { idle = 0, mappingSeconds, moves, relay } = cells[cell]
  const [serverKind, clientKind] = cell.split('/')
  const [serverSide, clientSide] = pair.split('-')
  const hosts = serverKind in shared
    ? network.pair(serverKind)
    : [network.host(serverKind, { mappingSeconds }), network.host(clientKind, { mappingSeconds })]
  const programs = []
  try {
    let through
    if (relay) {
      hosts.push(network.host('open'))
      const program = node(hosts[2], relay, bootstrap)
      programs.push(program)
      await program.next('ready', patience)
      program.send({ do: 'relay' })
      through = (await program.next('listening', patience)).key
    }
    const server = node(hosts[0], serverSide, bootstrap)
    programs.push(server)
    await server.next('ready', patience)
    server.send({ do: 'listen', through })
    const { key } = await server.next('listening', patience)
    const client = node(hosts[1], clientSide, bootstrap)
    programs.push(client)
    await client.next('ready', patience)
    if (moves) network.move(hosts[0])
    await new Promise((resolve) => setTimeout(resolve, idle * 1000))
    client.send({ do: 'connect', key, through })
    const { count, median } = await client.next('connected', patience)
    if (count > 0) return { ms: median }
    const { error } = await client.next('connect-failed', 1000)
    const log = programs.map((program) => program.stderr).join('\n--- next\n')
    return { error: options.verbose ? `${error}\n${log}` : error }
  } catch (error) {
    return { error: error.message }
  } finally {
    for (const program of programs) await stop(program)
    network.remove(...hosts)
  }
}

function node(host, side, bootstrap) {
  const command = side === 'js'
    ? [process.execPath, peer(), 'node', bootstrap]
    : [interopProgram(), 'dht', 'node', bootstrap, '--host=0.0.0.0', '--patience=45']
  return start(host, command)
}

function start(namespace, command) {
  const program = new Program('ip', ['netns', 'exec', namespace, ...command], {})
  running.add(program)
  return program
}

async function stop(program) {
  running.delete(program)
  await program.end()
}

async function close() {
  await Promise.all([...running].map(stop))
  network.close()
}

function peer() {
  return join(root, 'tests', 'nat', 'peer.mjs')
}

function parse(args) {
  const options = { cells: [], pairs: pairings, tries: 5, json: false, verbose: false }
  for (let argument; (argument = args.shift()) !== undefined; ) {
    if (argument === '--json') options.json = true
    else if (argument === '--quick') Object.assign(options, { quick: true, tries: 1, pairs: pairings.slice(1) })
    else if (argument === '--if-possible') options.ifPossible = true
    else if (argument === '--verbose') options.verbose = true
    else if (argument === '--tries') options.tries = Number(args.shift())
    else if (argument === '--pairs') options.pairs = args.shift()?.split(',') ?? []
    else if (argument in cells) options.cells.push(argument)
    else usage(`no such cell: ${argument}`)
  }
  const wrong = options.pairs.find((pair) => !pairings.includes(pair))
  if (wrong !== undefined || options.pairs.length === 0) usage(`no such pairing: ${wrong}`)
  if (!(options.tries >= 1)) usage('--tries wants a number')
  if (options.cells.length === 0) options.cells = Object.keys(cells)
  return options
}

function usage(problem) {
  console.error(`${problem}\n\ncells (server/client): ${Object.keys(cells).join(', ')}`)
  console.error(`pairings (server-client): ${pairings.join(', ')}`)
  for (const [kind, meaning] of Object.entries({ ...kinds, ...shared })) console.error(`  ${kind}: ${meaning}`)
  process.exit(2)
}
