import { answer } from '../../../../lib/p2p'

export const dynamic = 'force-dynamic'

/** The servers that are known, those that wait for a decision, and those that were found. */
export function GET(): Promise<Response> {
  return answer(async ({ peers }) => {
    const [known, pending, discovered] = await Promise.all([
      peers.list(),
      peers.pending(),
      peers.discovered()
    ])
    return { peers: known, pending, discovered }
  })
}

/** Adds a server: `{ key, nickname? }`, where the key may be an invite link. */
export function POST(request: Request): Promise<Response> {
  return answer(async ({ peers }) => {
    const { key, nickname } = (await request.json()) as { key: string; nickname?: string }
    return peers.add(key, { nickname, signal: request.signal })
  }, 201)
}
