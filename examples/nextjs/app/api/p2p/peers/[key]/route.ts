import { answer } from '../../../../../lib/p2p'

/** Forgets a server. */
export function DELETE(
  request: Request,
  { params }: { params: Promise<{ key: string }> }
): Promise<Response> {
  return answer(async ({ peers }) => {
    const { key } = await params
    return { removed: await peers.remove(key, { signal: request.signal }) }
  })
}
