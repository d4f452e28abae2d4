// Next runs this once when the server starts: the node is open before the first request, and closed when
// the server is told to stop. Start Next with NEXT_MANUAL_SIG_HANDLE=true, else it ends at once on a
// signal and nothing here is called.

export async function register(): Promise<void> {
  if (process.env.NEXT_RUNTIME !== 'nodejs') return
  const { closeP2P, p2p } = await import('./lib/p2p')
  await p2p()
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.once(signal, () => {
      void closeP2P().finally(() => process.exit(0))
    })
  }
}
