import { p2p } from '../../../../lib/p2p'

export const dynamic = 'force-dynamic'

/**
 * What happens, as server-sent events. A browser that was away sends the number of the last event it saw,
 * and goes on after it.
 */
export async function GET(request: Request): Promise<Response> {
  const node = await p2p()
  const last = request.headers.get('last-event-id')
  const after = last === null ? undefined : Number(last)
  const events = node.events({ after, signal: request.signal })
  const encoder = new TextEncoder()
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      controller.enqueue(encoder.encode('retry: 2000\n\n'))
    },
    async pull(controller) {
      const next = await events.next().catch(() => null) // the page is gone
      if (next === null || next.done) return controller.close()
      const { value } = next
      controller.enqueue(encoder.encode(`id: ${value.id}\ndata: ${JSON.stringify(value)}\n\n`))
    },
    async cancel() {
      await events.return()
    }
  })
  return new Response(body, {
    headers: { 'content-type': 'text/event-stream', 'cache-control': 'no-cache, no-transform' }
  })
}
