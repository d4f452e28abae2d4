// A process of one side: does what the driver asks over the IPC channel, one call at a time.

const [kind, directory] = process.argv.slice(2)
const { Worker } = await import(kind === 'ours' ? './ours.mjs' : './javascript.mjs')
const worker = new Worker(directory)

/** The process's own use of memory (bytes) and processor (seconds). */
function usage() {
  const { user, system } = process.cpuUsage()
  return {
    rss: process.memoryUsage.rss(),
    peakRss: process.resourceUsage().maxRSS * 1024,
    cpu: (user + system) / 1e6
  }
}

process.on('message', async ({ id, method, argument }) => {
  try {
    const value = method === 'usage' ? usage() : await worker[method](argument)
    process.send({ id, value })
  } catch (error) {
    process.send({ id, error: error?.stack ?? String(error) })
  }
})
process.on('disconnect', () => process.exit())
