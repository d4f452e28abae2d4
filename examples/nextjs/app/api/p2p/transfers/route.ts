import type { TransferFilter } from '@alex/p2p'
import { answer } from '../../../../lib/p2p'

export const dynamic = 'force-dynamic'

/** Transfers, the newest first: `?direction=incoming&state=awaiting-approval&peer=`. */
export function GET(request: Request): Promise<Response> {
  return answer(({ transfers }) => {
    const { searchParams: query } = new URL(request.url)
    const text = (name: string) => query.get(name) ?? undefined
    return transfers.list({
      direction: text('direction') as TransferFilter['direction'],
      state: text('state') as TransferFilter['state'],
      peer: text('peer'),
      signal: request.signal
    })
  })
}
