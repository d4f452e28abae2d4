// What the example shows: text with a progress bar, or JSON lines.

const json = process.argv.includes('--json')

/** One function for each thing that happens. */
export const report = json ? lines() : text()

function lines() {
  const names = ['network', 'server', 'paired', 'book', 'progress', 'received', 'failed']
  return Object.fromEntries(
    names.map((event) => [event, (what) => console.log(JSON.stringify({ event, ...what }))])
  )
}

function text() {
  let heading
  const under = (title, line) => {
    if (title !== heading) console.log(`\n${(heading = title)}`)
    console.log(`  ${line}`)
  }
  return {
    network: ({ bootstrap }) => under('A private DHT', `at ${bootstrap.join(', ')}`),
    server: ({ name, key, fingerprint, books }) => {
      under('Two servers', `${name}  ${key}`)
      under('Two servers', `${' '.repeat(name.length)}  fingerprint ${fingerprint}, ${books} books`)
    },
    paired: ({ peer }) => under('Pairing', `each has added the other's invite link: ${peer} is online`),
    book: ({ title, author, sizeBytes }) =>
      under("Ada's catalog, at Ben's", `${title} — ${author} (${megabytes(sizeBytes)})`),
    progress: ({ bytes, total, rate }) => {
      if (!process.stdout.isTTY) return
      if (heading !== 'Transfer') console.log(`\n${(heading = 'Transfer')}`)
      const share = total > 0 ? bytes / total : 0
      const bar = '█'.repeat(Math.round(share * 40)).padEnd(40, '░')
      const speed = rate > 0 ? `${megabytes(rate)}/s` : ''
      process.stdout.write(`\r  ${bar} ${Math.round(share * 100)} %  ${megabytes(total)}  ${speed}\x1b[K`)
    },
    received: ({ path, bytes, identical }) => {
      if (process.stdout.isTTY) console.log()
      const verdict = identical ? 'the same bytes as the original' : 'NOT the bytes of the original'
      under('Received', `${path}\n  ${bytes} bytes, ${verdict}`)
      console.log()
    },
    failed: ({ code, message }) => console.error(`\n${code ? `${code}: ` : ''}${message}`)
  }
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`
}
