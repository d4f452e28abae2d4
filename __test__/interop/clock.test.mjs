// A server whose wall clock jumps, by a day and by years, both ways: it goes on hearing who knocks, and serves
// its friends.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'node:test'
import DHT from 'hyperdht'
import z32 from 'z32'
import { announced, books, offered, online, openNode, startServer, temporaryDirectory, testnet, undo, until } from '../nodes.mjs'

const DAY = 24 * 60 * 60
const YEARS = 10 * 365 * DAY

/** What has a process believe in another time; skips the test where it cannot be made. */
function shiftedClock(t, folder) {
  if (process.platform !== 'linux') return t.skip('the clock is shifted with LD_PRELOAD, on Linux')
  const library = join(folder, 'shifted-clock.so')
  const source = fileURLToPath(new URL('shifted-clock.c', import.meta.url))
  try {
    execFileSync('cc', ['-shared', '-fPIC', '-o', library, source, '-ldl'], { stdio: 'pipe' })
  } catch (error) {
    return t.skip(`no C compiler to shift the clock with: ${error.message.split('\n')[0]}`)
  }
  const file = join(folder, 'shift')
  return {
    env: { LD_PRELOAD: library, CLOCK_SHIFT: file },
    /** Sets the clock to so many seconds from now. */
    async set(seconds) {
      await writeFile(`${file}.new`, `${seconds}`)
      await rename(`${file}.new`, file)
    }
  }
}

for (const [name, before, after] of [
  ['a day ahead and is put right', DAY, 0],
  ['a day behind and is put right', -DAY, 0],
  ['ten years ahead and is put right', YEARS, 0],
  ['ten years behind and is put right', -YEARS, 0],
  ['right and jumps ten years ahead', 0, YEARS]
]) {
  test(`a server whose clock is ${name} hears who knocks and serves its friends`, async (t) => {
    const folder = await temporaryDirectory(t)
    const clock = shiftedClock(t, folder)
    if (!clock) return
    const network = await testnet(t)
    await clock.set(before)
    const options = { dataDir: join(folder, 'data'), policy: 'auto-accept' }
    let server = await startServer(t, network, options, clock)
    const [host, port] = network.bootstrap[0].split('@').at(-1).split(':')
    const dht = new DHT({ bootstrap: [{ host, port: Number(port) }], host: '127.0.0.1' })
    undo(t, () => dht.destroy())
    /** The keys that knocked, the latest first. */
    const keys = []
    const pending = () => server.call('peers.pending')
    /** Somebody knocks, and is heard as the latest. How far the server's clock is from ours then. */
    const knock = async (keyPair = DHT.keyPair()) => {
      const key = z32.encode(keyPair.publicKey)
      const before = (await pending()).find((knock) => knock.key === key)?.count ?? 0
      let isHeard = false
      const dial = () => {
        if (isHeard) return
        const socket = dht.connect(z32.decode(server.key), { keyPair })
        // Refused in any case, and perhaps not found: npm's hyperdht does not try again by itself.
        socket.on('error', () => {}).on('close', () => setTimeout(dial, 500))
        undo(t, () => socket.destroy())
      }
      undo(t, () => (isHeard = true))
      dial()
      const latest = await until(async () => {
        const [latest] = await pending()
        return latest?.key === key && latest.count > before && latest
      }, 'the knock')
      isHeard = true
      if (keys.includes(key)) keys.splice(keys.indexOf(key), 1)
      keys.unshift(key)
      return Math.round((latest.lastAt - Date.now()) / 1000)
    }
    const listed = async () => (await pending()).map(({ key }) => key)
    const isAbout = (shift, expected) => assert.ok(Math.abs(shift - expected) < 120, `${shift}, not ${expected}`)
    const friend = await openNode(t, network)
    await friend.peers.add(server.key)
    await server.call('peers.add', friend.identity.publicKey)
    await server.call('catalog.publish', books.slice(0, 1))
    await announced({ status: () => server.call('status') })
    await online(friend, server.key)
    await offered(friend, server.key, 1)

    const first = DHT.keyPair()
    isAbout(await knock(first), before)
    await clock.set(after)
    for (let n = 0; n < 3; n++) isAbout(await knock(), after)
    assert.deepEqual(await listed(), keys)
    await server.call('catalog.publish', books.slice(1, 2))
    await offered(friend, server.key, 2)
    for (const { id } of books) {
      const transfer = await friend.transfers.request({ peer: server.key, bookId: id })
      assert.equal((await transfer.done()).state, 'completed')
    }
    // Back again, and the first one knocks once more.
    await clock.set(before)
    isAbout(await knock(first), before)
    await knock()
    assert.deepEqual(await listed(), keys)

    // All of it is there when it is started again, at either time.
    await server.program.end()
    await clock.set(after)
    server = await startServer(t, network, options, clock)
    assert.deepEqual((await listed()).sort(), [...keys].sort())
    await online(friend, server.key)
    await announced({ status: () => server.call('status') })
    isAbout(await knock(), after)
    assert.equal((await listed()).length, 6)
  })
}
