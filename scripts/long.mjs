// `npm run test:long`: what takes too long for every `npm test`.
//
// The simulator over 10,000 seeds (500 otherwise) and with ten million forged packets; random inputs for
// the fuzz targets; a DHT that grows from 50 to 200 nodes, ten waves of which leave; a thousand `kill -9`;
// a disk that fails at every single call; 32 flipped bits in each page of a database; 30,000 changed proofs;
// 300 random programs of what owners and peers do, with what can be read after each step (6 otherwise);
// 10,000 random programs over one log against npm hypercore (150 otherwise); then ten minutes of fuzzing
// each. `npm run test:long -- --quick` leaves out the fuzzer.

import { requireTools, run } from './toolchain.mjs'
import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'

requireTools()
const test = (name, numbers) =>
  run('cargo', ['test', '--locked', '--test', name, '--', '--nocapture'], {
    env: { ...process.env, ...numbers }
  })
test('simulation', { SIMULATION_SEEDS: '10000', FORGED_PACKETS: '10000000' })
test('fuzz_targets', { FUZZ_INPUTS: '200000' })
test('dht_churn', { CHURN_SIZES: '50,100,200', CHURN_WAVES: '10', CHURN_LOOKUPS: '500' })
test('store', { KILLS: '1000', FAULTS_STEP: '1', FLIPS: '32', PATIENCE: '600' })
test('hostile_feeds', { MUTATIONS: '30000', HUGE: '64' })
test('permission', { SEEDS: '300', STEPS: '80' })

run('cargo', ['build', '--locked', '--example', 'interop'])
const differential = '__test__/interop/differential.test.mjs'
run(process.execPath, ['--test', '--test-reporter=spec', differential], {
  env: { ...process.env, DIFFERENTIAL_PROGRAMS: '10000' }
})

if (!process.argv.includes('--quick')) {
  const fuzz = fileURLToPath(new URL('fuzz.mjs', import.meta.url))
  const { status } = spawnSync(process.execPath, [fuzz, '--seconds', '600'], { stdio: 'inherit' })
  process.exit(status ?? 1)
}
