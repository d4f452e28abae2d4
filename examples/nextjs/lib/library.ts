// The books of this server. Alex takes them from its database; here they are the EPUBs of a folder.

import { readdir } from 'node:fs/promises'
import { resolve } from 'node:path'
import type { Book } from '@alex/p2p'

/** Every book on offer, and where it is. A book in S3 would have a function as its `source`. */
export async function library(): Promise<Book[]> {
  const folder = process.env.ALEX_LIBRARY
  if (!folder) return []
  const names = (await readdir(folder)).filter((name) => name.endsWith('.epub'))
  return names.map((name) => ({
    id: name,
    title: name.slice(0, -'.epub'.length),
    format: 'epub',
    source: resolve(folder, name)
  }))
}
