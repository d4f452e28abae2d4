// Catalog entries of the size and kind that real ones have, the same for both sides.

const words =
  'time house garden winter letters silence river glass mountain harbour children history island night'.split(' ')

/** `count` books, always the same ones. */
export function books(count) {
  return Array.from({ length: count }, (_, n) => ({
    id: `book-${n}`,
    title: `The ${pick(n, 0)} of the ${pick(n, 1)} and the ${pick(n, 2)}, volume ${n}`,
    author: `${pick(n, 3)} ${pick(n, 4)}`,
    isbn: String(9_780_000_000_000 + n),
    format: 'epub',
    sizeBytes: 200_000 + ((n * 7919) % 5_000_000),
    addedAt: new Date(Date.UTC(2024, 0, 1) + n * 60_000).toISOString()
  }))
}

function pick(n, place) {
  return words[(n * 31 + place * 17 + Math.floor(n / words.length) * 7) % words.length]
}
