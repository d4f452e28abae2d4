import { answer } from '../../../../lib/p2p'

export const dynamic = 'force-dynamic'

/** Who this server is: its key in every form in which people pass it on. */
export function GET(): Promise<Response> {
  return answer(({ identity }) => ({
    publicKey: identity.publicKey,
    fingerprint: identity.fingerprint,
    inviteLink: identity.inviteLink(process.env.ALEX_P2P_NICKNAME),
    qr: identity.qr('svg', process.env.ALEX_P2P_NICKNAME)
  }))
}
