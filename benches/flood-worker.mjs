// The attackers of the flood rows: many peers of npm's making in a process of their own.

import DHT from 'hyperdht'
import z32 from 'z32'
import { Floods } from '../__test__/interop/floods.mjs'

let floods
let keyPairs

const methods = {
  /** Makes keys for `count` attackers. */
  async keys({ count }) {
    keyPairs = Array.from({ length: count }, () => DHT.keyPair())
    return keyPairs.map(({ publicKey }) => z32.encode(publicKey))
  },
  async visit({ bootstrap, target }) {
    floods = new Floods(bootstrap, target)
    for (const keyPair of keyPairs) {
      const peer = await floods.visit(keyPair)
      peer.socket.destroy()
      await peer.closed
    }
  },
  async start({ kind }) {
    floods.start(kind, keyPairs)
  },
  async lastEnd({ key }) {
    return floods.lastEnd.get(key)
  },
  async stop() {
    return floods.stop()
  }
}

process.on('message', async ({ id, method, argument }) => {
  try {
    process.send({ id, value: await methods[method](argument) })
  } catch (error) {
    process.send({ id, error: error?.stack ?? String(error) })
  }
})
process.on('disconnect', () => process.exit())
