import { answer } from '../../../../../../lib/p2p'

/** Lets the server that asked have its book. */
export function POST(
  request: Request,
  { params }: { params: Promise<{ id: string }> }
): Promise<Response> {
  return answer(async ({ transfers }) => {
    const transfer = await transfers.get((await params).id)
    if (!transfer) {
      throw Object.assign(new Error('there is no transfer with this id'), { code: 'ERR_NOT_FOUND' })
    }
    await transfer.approve({ signal: request.signal })
    return transfer
  })
}
