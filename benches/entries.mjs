// Catalog entries of the size and kind that real ones have, the same for both sides.

import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { root } from '../scripts/toolchain.mjs'

/** Ten thousand entries of real books, as JSON lines; not part of the repository. */
export const realEntries = resolve(root, process.env.ALEX_P2P_SHARED ?? '../shared', 'catalog/goodbooks-10k.jsonl')

const words =
  'time house garden winter letters silence river glass mountain harbour children history island night'.split(' ')

/** `count` books from number `first` on, always the same ones. */
export function books(count, first = 0) {
  return Array.from({ length: count }, (_, at) => book(first + at))
}

/** The books as blocks of a feed. */
export function entries(count) {
  return books(count).map((book) => JSON.stringify({ type: 'book-added', ...book }))
}

function book(n) {
  return {
    id: `book-${n}`,
    title: `The ${pick(n, 0)} of the ${pick(n, 1)} and the ${pick(n, 2)}, volume ${n}`,
    author: `${pick(n, 3)} ${pick(n, 4)}`,
    isbn: String(9_780_000_000_000 + n),
    format: 'epub',
    sizeBytes: 200_000 + ((n * 7919) % 5_000_000),
    addedAt: new Date(Date.UTC(2024, 0, 1) + n * 60_000).toISOString()
  }
}

function pick(n, place) {
  return words[(n * 31 + place * 17 + Math.floor(n / words.length) * 7) % words.length]
}

/** Makes book number `n` of as many as wanted: the real ones first, then ones mixed of two of them. */
export function variedBooks() {
  const originals = readFileSync(realEntries, 'utf8').trim().split('\n').map((line) => JSON.parse(line))
  const { length } = originals
  return (n) => {
    const [at, round] = [n % length, Math.floor(n / length)]
    const { type, ...book } = originals[at]
    if (round === 0) return book
    const [mine, theirs] = [book, originals[(at * 31 + round * 977) % length]].map(({ title }) => title.split(' '))
    return {
      ...book,
      id: `${book.id}-${round}`,
      title: [...mine.slice(0, Math.ceil(mine.length / 2)), ...theirs.slice(theirs.length >> 1)].join(' '),
      author: originals[(at + round * 37) % length].author,
      isbn: `978${String(n).padStart(10, '0')}`,
      addedAt: new Date(Date.UTC(2000 + (round % 26), at % 12, 1 + ((n * 7919) % 28))).toISOString()
    }
  }
}

/** Searches as people make them: what is typed, letter by letter too, in several orders, filtered or not. */
export function searches() {
  const typed = [
    '', 'a', 's', 't', 'z', 'th', 'ha', 'zo', 'qu', 'the', 'of', 'and', 'love', 'book', 'secret', 'john', 'harry',
    'h', 'hu', 'hun', 'hung', 'hunger', 'hunger g', 'hunger games', 'silmarillion', 'zorba', 'quixote', 'beowulf',
    'the zorba', 'harry potter', 'of the', 'love story', 'game of thrones', 'harry zorba', 'john beowulf',
    'stephen king', 'tolkien', 'j.k. rowling', 'garcía márquez', 'james', '9780000012345', '0439023483', 'qqqqqq'
  ]
  const ways = [
    {}, { sort: 'title' }, { sort: 'author' }, { sort: 'added', descending: true }, { formats: ['epub'] },
    { languages: ['fre'], sort: 'title' }
  ]
  return typed.flatMap((query) => ways.map((way) => ({ query, includeOwn: true, ...way })))
}
