// `npm start`: sets up all it needs, then lets two servers on this machine share a book.

import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { buildIfNeeded } from './build.mjs'
import { root } from './toolchain.mjs'

buildIfNeeded()

const example = join(root, 'examples', 'share-a-book', 'main.mjs')
const child = spawn(process.execPath, [example, ...process.argv.slice(2)], { stdio: 'inherit' })
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => child.kill(signal))
child.on('exit', (code, signal) => process.exit(code ?? (signal ? 1 : 0)))
