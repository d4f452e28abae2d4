// `npm run bench`: this library against the JavaScript Hypercore stack, in the same run.
//
//   npm run bench                              every row, as a table
//   npm run bench -- connect sync-10k          only these
//   npm run bench -- idle-rss --json           as JSON lines
//   npm run bench -- --runs 5                  more runs (3 are the least)
//   npm run bench -- links                     streams over emulated links (needs root); or `streams`
//   npm run bench -- floods                    approved peers that attack; FLOODS=hellos,knocks only these kinds
//
// Each side runs in processes of its own on a testnet of its own kind; the sides alternate, and a row
// shows the median of the runs. A ratio above 1 means that ours is better.

import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buildIfNeeded } from '../scripts/build.mjs'
import { requirePackages } from '../scripts/toolchain.mjs'
import { floods } from './floods.mjs'
import { links } from './links.mjs'
import { groups as others } from './rows.mjs'
import { Side } from './side.mjs'
import { streams } from './streams.mjs'

const groups = [...others, ...streams, ...links, ...floods]
const rows = groups.flatMap((group) => group.rows.map((row) => ({ ...row, group })))
const { ids, json, runs } = readArguments(process.argv.slice(2))

buildIfNeeded()
requirePackages()

const chosen = rows.filter(({ id, group }) => ids.length === 0 || ids.includes(id) || ids.includes(group.set))
const wanted = chosen.filter(({ id, group }) => {
  const reason = group.skip?.()
  if (reason) note(`${id}: skipped, ${reason}`)
  return !reason
})
// What measurements left for the end of their group.
const kept = []
const values = new Map(wanted.map((row) => [row.id, { ours: [], js: [] }]))

for (const group of new Set(wanted.map((row) => row.group))) {
  const count = group.once ? 1 : Math.max(runs, group.runs ?? 0)
  try {
    await measureAll(group, count)
  } finally {
    await Promise.all(kept.splice(0).map(remove))
  }
}

const results = wanted.map((row) => {
  const ours = median(values.get(row.id).ours)
  if (row.group.oursOnly) return { id: row.id, unit: row.unit, ours: round(ours), js: null, ratio: null }
  const js = median(values.get(row.id).js)
  const ratio = row.better === 'low' ? js / ours : ours / js
  return { id: row.id, unit: row.unit, ours: round(ours), js: round(js), ratio: round(ratio) }
})
if (json) for (const result of results) console.log(JSON.stringify(result))
else printTable(results)

/** Both sides, `count` times, alternating; fills `values`. */
async function measureAll(group, count) {
  for (let run = 0; run < count; run++) {
    for (const kind of group.oursOnly ? ['ours'] : run % 2 === 0 ? ['ours', 'js'] : ['js', 'ours']) {
      note(`${group.rows.map((row) => row.id).join(', ')}: run ${run + 1} of ${count}, ${kind}`)
      const measured = await measure(group, kind)
      for (const [id, value] of Object.entries(measured)) values.get(id)?.[kind].push(value)
    }
  }
}

async function measure(group, kind) {
  const directory = await mkdtemp(join(tmpdir(), 'alex-p2p-bench-'))
  const side = new Side(kind, directory)
  try {
    return await group.measure(side)
  } finally {
    await side.end()
    if (group.keepsFiles) kept.push(directory)
    else await remove(directory)
  }
}

function remove(directory) {
  return rm(directory, { recursive: true, force: true, maxRetries: 5 })
}

function readArguments(words) {
  const chosen = { ids: [], json: false, runs: 3 }
  while (words.length > 0) {
    const word = words.shift()
    if (word === '--json') chosen.json = true
    else if (word === '--runs') chosen.runs = Math.max(3, Number(words.shift()) || 3)
    else if (rows.some(({ id, group }) => id === word || group.set === word)) chosen.ids.push(word)
    else {
      console.error(`no row ${word}; there are ${rows.map((row) => row.id).join(', ')}`)
      process.exit(2)
    }
  }
  return chosen
}

function printTable(results) {
  const table = [
    ['', 'unit', 'ours', 'JavaScript', 'ratio'],
    ...results.map((r) => [r.id, r.unit, r.ours, r.js ?? '-', r.ratio ?? '-'].map(String))
  ]
  const widths = table[0].map((_, column) => Math.max(...table.map((row) => row[column].length)))
  for (const row of table) {
    console.log(row.map((cell, i) => (i < 2 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join('  '))
  }
  console.log('\nA ratio above 1 means that ours is better. Medians; both sides measured in this run; - where JavaScript has no counterpart.')
}

function note(text) {
  console.error(text)
}

function median(numbers) {
  const sorted = numbers.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

function round(number) {
  return Number(number.toPrecision(3))
}
