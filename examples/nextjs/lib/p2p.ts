// The one node of this server, and how routes answer with it.

import { P2PNode, type P2PError } from '@alex/p2p'
import { library } from './library'

// Next evaluates modules several times: on every change in development, once for instrumentation and
// once for the routes in production. A second node on the same data directory would be refused with
// ERR_LOCKED, so the node lives on globalThis.
const shared = globalThis as typeof globalThis & { alexP2P?: Promise<P2PNode> }

/** The node; opened by whoever asks first. */
export function p2p(): Promise<P2PNode> {
  shared.alexP2P ??= open().catch((error: unknown) => {
    shared.alexP2P = undefined // the next request tries again
    throw error
  })
  return shared.alexP2P
}

/** Closes the node, when there is one. */
export async function closeP2P(): Promise<void> {
  const node = await shared.alexP2P?.catch(() => undefined)
  await node?.close()
}

async function open(): Promise<P2PNode> {
  const node = await P2PNode.open({
    dataDir: process.env.ALEX_P2P_DATA ?? './data/p2p',
    bootstrap: process.env.ALEX_P2P_BOOTSTRAP?.split(','),
    host: process.env.ALEX_P2P_HOST,
    nickname: process.env.ALEX_P2P_NICKNAME
  })
  await node.catalog.sync(await library())
  return node
}

/** The JSON of what `work` gives, or of its error with a fitting status. */
export async function answer(work: (node: P2PNode) => unknown, status = 200): Promise<Response> {
  try {
    const value = await work(await p2p())
    return Response.json(value ?? null, { status })
  } catch (error) {
    const { code = 'ERR_INTERNAL', message } = error as Partial<P2PError>
    if (error instanceof SyntaxError) return failure(400, 'ERR_INVALID_ARGUMENT', 'the body is no JSON')
    return failure(statuses[code] ?? 500, code, message)
  }
}

function failure(status: number, code: string, message: string | undefined): Response {
  return Response.json({ error: { code, message } }, { status })
}

// instanceof fails where a framework runs modules in realms of their own; the code is always there.
const statuses: { [Code in P2PError['code']]?: number } = {
  ERR_INVALID_KEY: 400,
  ERR_INVALID_ARGUMENT: 400,
  ERR_NOT_FOUND: 404,
  ERR_INVALID_STATE: 409,
  ERR_PEER_BLOCKED: 409,
  ERR_NOT_APPROVED: 403,
  ERR_LIMIT_EXCEEDED: 429,
  ERR_CLOSED: 503,
  ERR_LOCKED: 503
}
