import { answer } from '../../../../lib/p2p'

/** Asks a server for a book: `{ peer, bookId }`. The answer is the transfer; its events tell the rest. */
export function POST(request: Request): Promise<Response> {
  return answer(async ({ transfers }) => {
    const { peer, bookId } = (await request.json()) as { peer: string; bookId: string }
    // Where the file goes is this server's business: no `saveTo` from a page.
    return transfers.request({ peer, bookId, signal: request.signal })
  }, 202)
}
