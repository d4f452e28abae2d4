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
  let [steps, paused] = [0, 0]
  try {
    for (let seed = first; seed < first + programs; seed++) {
      if ((seed - first) % PROGRAMS_A_BENCH === 0) {
        paused += bench?.paused ?? 0
        await bench?.close()
        bench = await Bench.open()
      }
      const program = programOf(seed)
      steps += program.length
      try {
        await bench.run(program, seed.toString(16))
      } catch (failure) {
        await bench.close()
        bench = null
        console.error(`seed ${seed} fails at step ${failure.step}: ${failure.message}`)
        const shortest = await shorten(program, failure, seed.toString(16))
        console.error(`the shortest that fails: ${JSON.stringify(shortest.program, null, 1)}`)
        throw shortest.failure
      }
      if (seed % 1000 === 0) console.error(`${seed} programs, ${Math.round((Date.now() - started) / 1000)} s`)
    }
  } finally {
    await bench?.close()
  }
  paused += bench?.paused ?? 0
  const seconds = Math.round((Date.now() - started) / 1000)
  t.diagnostic(`${programs} programs, ${steps} steps, ${seconds} s; npm paused us ${paused} times`)
})
