// `npm run fuzz`: the fuzz targets under libFuzzer, each for a while.
//
//   npm run fuzz                                  all, one minute each
//   npm run fuzz -- --seconds 20                  all, shorter
//   npm run fuzz -- udx_stream --seconds 3600     one, longer
//
// It needs no nightly compiler and no cargo-fuzz: the targets are built with the flags that cargo-fuzz
// gives the compiler. (`cargo fuzz run -s none udx_stream` works too.) What it finds is in fuzz/artifacts.

import { mkdirSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { requireTools, root, run, versionOf } from './toolchain.mjs'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { seconds: { type: 'string', default: '60' } }
})
const seconds = Number(values.seconds)
const folder = join(root, 'fuzz')
const targets = readdirSync(join(folder, 'fuzz_targets')).map((file) => file.replace(/\.rs$/, ''))
const unknown = positionals.filter((name) => !targets.includes(name))
if (unknown.length > 0 || !(seconds > 0)) {
  console.error(
    unknown.length > 0
      ? `no such target: ${unknown.join(', ')}; there are ${targets.join(', ')}`
      : `--seconds is a positive number, not ${values.seconds}`
  )
  process.exit(2)
}

requireTools()
if (![process.env.CXX, 'c++', 'g++', 'clang++'].some((compiler) => compiler && versionOf(compiler))) {
  console.error('libFuzzer is C++, and no C++ compiler was found: for example `sudo apt install g++`')
  process.exit(1)
}

// With --target the flags are not for build scripts, which could not be linked with them.
const host = versionOf('rustc', ['-vV']).match(/host: (\S+)/)[1]
const flags = [
  '-Cpasses=sancov-module',
  ...[
    'level=4',
    'inline-8bit-counters',
    'pc-table',
    'trace-compares'
  ].map((option) => `-Cllvm-args=-sanitizer-coverage-${option}`),
  '-Ccodegen-units=1',
  '--cfg=fuzzing',
  '--cfg=chacha20_avx512'
]
const built = join(folder, 'target')
run('cargo', ['build', '--locked', '--release', '--bins', '--target', host], {
  cwd: folder,
  env: { ...process.env, RUSTFLAGS: flags.join(' '), CARGO_TARGET_DIR: built }
})

for (const target of positionals.length > 0 ? positionals : targets) {
  console.error(`\n── ${target}: ${seconds} s`)
  // New inputs are kept beside the build; those in fuzz/corpus are for every machine.
  const [found, artifacts] = [join(built, 'corpus', target), join(folder, 'artifacts', target)]
  const kept = join(folder, 'corpus', target)
  for (const directory of [found, artifacts, kept]) mkdirSync(directory, { recursive: true })
  run(
    join(built, host, 'release', target),
    [found, kept, `-max_total_time=${seconds}`, '-max_len=2048', '-timeout=120', '-print_final_stats=1', `-artifact_prefix=${artifacts}/`],
    { cwd: folder }
  )
}
