// 150 random programs against npm hypercore, or as many as DIFFERENTIAL_PROGRAMS says; the first has the
// seed DIFFERENTIAL_SEED.

import { test } from 'node:test'

import { Bench, programOf, shorten } from './differential.mjs'

const programs = Number(process.env.DIFFERENTIAL_PROGRAMS ?? 150)
const first = Number(process.env.DIFFERENTIAL_SEED ?? 1)
/** After so many programs everything starts anew: npm keeps every log that a store ever had. */
const PROGRAMS_A_BENCH = 100

test(`${programs} random programs leave npm hypercore and ours equal after every step`, async (t) => {
  const started = Date.now()
  let bench = null
  let steps = 0
  const odd = { paused: 0, uncut: 0, torn: 0, blind: 0 }
  const close = async () => {
    for (const kind of Object.keys(odd)) odd[kind] += bench?.[kind] ?? 0
    await bench?.close()
    bench = null
  }
  const soFar = (count) =>
    `${count} programs, ${steps} steps, ${Math.round((Date.now() - started) / 1000)} s; npm paused us ${odd.paused} ` +
    `times, could not follow ours ${odd.blind} times, had lost hashes ${odd.torn + odd.uncut} times`
  try {
    for (let seed = first; seed < first + programs; seed++) {
      if ((seed - first) % PROGRAMS_A_BENCH === 0) {
        await close()
        if (seed > first) console.error(soFar(seed - first))
        bench = await Bench.open()
      }
      const program = programOf(seed)
      steps += program.length
      try {
        await bench.run(program, seed.toString(16))
      } catch (failure) {
        await close()
        console.error(`seed ${seed} fails at step ${failure.step}: ${failure.message}`)
        const shortest = await shorten(program, failure, seed.toString(16))
        console.error(`the shortest that fails: ${JSON.stringify(shortest.program, null, 1)}`)
        throw shortest.failure
      }
    }
  } finally {
    await close()
  }
  t.diagnostic(soFar(programs))
})
