import { answer } from '../../../../../../lib/p2p'

export const dynamic = 'force-dynamic'

/** A page of a server's books, whether it is online or not: `?search=&cursor=&limit=`. */
export function GET(
  request: Request,
  { params }: { params: Promise<{ key: string }> }
): Promise<Response> {
  return answer(async ({ catalog }) => {
    const { key } = await params
    const { searchParams: query } = new URL(request.url)
    return catalog.of(key).list({
      search: query.get('search') ?? undefined,
      cursor: query.get('cursor') ?? undefined,
      limit: query.has('limit') ? Number(query.get('limit')) : undefined,
      signal: request.signal
    })
  })
}
