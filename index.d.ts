// The types of @alex/p2p. Generated: the values below are src/bindings/node/types.d.ts, the classes come
// from the Rust sources. All times are Unix milliseconds, all sizes bytes, all keys 52 z32 characters,
// unless a member says otherwise.

/* eslint-disable */

/** `error.code` of every failure. The message says what to do; only the code is stable. */
export type ErrorCode =
  /** A key, link or name that is none. */
  | 'ERR_INVALID_KEY'
  /** An argument of the wrong type, or outside its domain. */
  | 'ERR_INVALID_ARGUMENT'
  /** Nothing goes by that key or id. */
  | 'ERR_NOT_FOUND'
  /** The peer is blocked here. */
  | 'ERR_PEER_BLOCKED'
  /** Another process has the data directory open. */
  | 'ERR_LOCKED'
  /** The node, or the call's object, was closed. */
  | 'ERR_CLOSED'
  /** The call's signal ended it; `error.cause` is the signal's reason. */
  | 'ERR_ABORTED'
  /** The wait reached its limit. */
  | 'ERR_TIMEOUT'
  /** One side has not approved the other. */
  | 'ERR_NOT_APPROVED'
  /** The peer is known and approved, and not connected now. */
  | 'ERR_PEER_OFFLINE'
  /** The peer could not be found or reached. */
  | 'ERR_PEER_UNREACHABLE'
  /** The peer broke the protocol. */
  | 'ERR_PROTOCOL'
  /** The peer said no. */
  | 'ERR_DENIED'
  /** The peer no longer has the book. */
  | 'ERR_UNAVAILABLE'
  /** The transfer was withdrawn by either side. */
  | 'ERR_CANCELLED'
  /** The transfer is not in a state that allows this. */
  | 'ERR_INVALID_STATE'
  /** A limit was reached. */
  | 'ERR_LIMIT_EXCEEDED'
  /** The disk is full. */
  | 'ERR_DISK_FULL'
  /** Stored data is damaged. */
  | 'ERR_CORRUPT'
  /** Reading or writing a file failed. */
  | 'ERR_IO'
  /** A socket could not be opened or used. */
  | 'ERR_NETWORK'
  /** The node was restored, and its catalog may be longer elsewhere: nothing is published yet. */
  | 'ERR_FEED_UNCONFIRMED'
  | 'ERR_BUSY'
  /** A defect of this library; please report it. */
  | 'ERR_INTERNAL'

/** What every method throws or rejects with. An aborted call's `name` is `AbortError`. */
export interface P2PError extends Error {
  /** What went wrong, for programs. */
  code: ErrorCode
  /** With `ERR_ABORTED`: the signal's reason. */
  cause?: unknown
}

/** What every method that waits takes as its last argument. */
export interface WaitOptions {
  /** Ends the wait with `ERR_ABORTED`. What the call has already changed stays changed. */
  signal?: AbortSignal
}

/**
 * What happens when a peer asks for a book: it is granted at once; a person decides; it is denied, and
 * the catalog is for browsing only.
 */
export type Policy = 'auto-accept' | 'manual-approve' | 'metadata-only'

/** What {@link P2PNode.open} takes. */
export interface OpenOptions extends WaitOptions {
  /** The folder for the key, the database and books on their way in. Made when it is not there. */
  dataDir: string
  /**
   * Ways into the DHT, as `host:port` or `address@host:port`, or as objects. The public HyperDHT when left
   * out; an empty list makes a network of its own.
   */
  bootstrap?: (string | { host: string; port: number })[]
  /** The IP address to listen on; all IPv4 addresses when left out. */
  host?: string
  /** The UDP port to listen on; 49737 or one near it when left out, any for 0. */
  port?: number
  /** How peers are found. */
  discovery?: DiscoveryOptions
  /** Ways around NATs that let nobody through: none unless asked for. */
  relay?: RelayOptions
  /** Bounds on what each peer may use. */
  limits?: Partial<Limits>
  /** What happens when a peer asks for a book, unless it has a policy of its own; `manual-approve` when left out. */
  policy?: Policy
  /**
   * Whether the catalogs of peers are passed on among all approved peers: from this server to those that follow
   * the same catalog, and from them to it while its owner is away. Off when left out: nobody learns whose
   * catalogs this server follows.
   */
  shareFeeds?: boolean
  /** What this server calls itself to its peers. At most 64 characters. */
  nickname?: string
  /** Where received books go unless the request says otherwise; `books` in the data directory when left out. */
  booksDir?: string
}

/** How peers are found. */
export interface DiscoveryOptions {
  /**
   * By their keys in the DHT. On unless `false`: then peers find each other on the local network, and where
   * a person says they are.
   */
  dht?: boolean
  /**
   * On the local network, by multicast DNS, without internet. On unless `false`, or where `host` is a
   * loopback address. Found keys are shown, never added; peers are connected directly.
   */
  lan?: boolean
  /** By a topic that all servers may join; found keys are shown, never added. Off unless `true`. */
  topic?: boolean
}

/** Ways around NATs that let nobody through: approved peers that pass encrypted packets on. */
export interface RelayOptions {
  /** Pass packets on between approved peers that ask for it. Off unless `true`. */
  serve?: boolean
  /** How many bytes a second to pass on, for all of them together; 2 MiB when left out. */
  bytesPerSecond?: number
  /**
   * Keys of approved peers to go over, as long as they are connected and serve, when there is no direct path
   * to another. The connection moves to a direct path when one is found later.
   */
  through?: string[]
}

/** Bounds on what each peer may use. */
export interface Limits {
  /** Requests that a peer may have open here, and this server there; 16 by default. */
  openRequests: number
  /** Books that flow to one peer at once; further ones wait. 8 by default. Books of up to 512 KiB do not count. */
  transfersAtOnce: number
  /** The largest book, in bytes; 4 GiB by default. */
  bookBytes: number
}

/** What works and what does not, for a person. */
export interface NodeStatus {
  /** This server's key. */
  publicKey: string
  /** Whether the node is off the network, by {@link P2PNode.suspend}. */
  isSuspended: boolean
  /** The layers, each with what it says of itself. */
  layers: LayerStatus[]
  /** The addresses this node listens on, as `ip:port`. */
  addresses: string[]
  /** The address at which anybody on the internet reaches this node, when that is proved. */
  publicAddress: string | null
  /** The address that others see this node at; without a port where a NAT changes it. */
  seenAddress: string | null
  /** The kind of NAT in front of it. */
  nat: 'open' | 'consistent' | 'random' | 'unknown'
  /** The approved peers, connected or not, with the reason. */
  peers: Peer[]
  /** How many keys wait for approval. */
  pending: number
  /** The length of the own feed, in entries. */
  catalogLength: number
  /** What a person can do to make more of it work; empty when all is well. */
  advice: string[]
}

/** One layer's health. */
export interface LayerStatus {
  /** Which one. */
  name: 'dht' | 'lan' | 'topic' | 'catalog' | 'relay'
  /** Whether it is switched on. */
  isEnabled: boolean
  /** Whether it works now. */
  works: boolean
  /** The same in words. */
  detail: string
}

/** A key that {@link Identity.parse} has read. */
export interface ParsedKey {
  /** The key, as z32. */
  key: string
  /** The nickname that the link suggests: the words of whoever made it. */
  nickname: string | null
}

/** What {@link PeerManager.add} takes besides the key. */
export interface AddPeerOptions extends WaitOptions {
  /** What to call the server; the name in the invite link when left out. At most 64 characters. */
  nickname?: string
  /**
   * Where the server is, as `host:port`, for networks on which it is not found by itself. It is tried
   * first, beside other ways.
   */
  address?: string
}

/** What {@link PeerManager.update} changes; what is left out stays, `null` unsets. */
export interface PeerUpdate {
  /** What to call the server. At most 64 characters. */
  nickname?: string | null
  /** What happens when it asks for a book; `null` for the node's own policy. */
  policy?: Policy | null
  /** Where the server is, as `host:port`. */
  address?: string | null
}

/** Another server, as it stands now. */
export interface Peer {
  /** Its public key. */
  key: string
  /** The nickname given here. */
  nickname: string | null
  /** What it calls itself, once it was connected. */
  name: string | null
  /** Whether it knocked and waits for a decision, may connect, or is refused. */
  status: 'pending' | 'approved' | 'blocked'
  /** Whether it is connected now; a crash on its side shows within 20 seconds. */
  isOnline: boolean
  /** When it was added or first knocked. */
  addedAt: number
  /** When it was last connected; now, while it is online. */
  lastSeenAt: number | null
  /** What happens when it asks for a book; `null` for the node's own policy. */
  policy: Policy | null
  /** The key of its catalog's feed, once it was connected. */
  feedKey: string | null
  /** Its address as a person gave it here, `host:port`. */
  address: string | null
  /** Where it may be, likeliest first. */
  addresses: PeerAddress[]
  /** How it is connected, while it is. */
  connection: PeerConnection | null
  /** Why it is not connected, as far as the last try showed. */
  problem: PeerProblem | null
}

/** An address of a server. It proves nothing: whoever answers there has to have the server's key. */
export interface PeerAddress {
  /** The address as `ip:port`, or `name:port` where a person gave a name. */
  address: string
  /**
   * Where it comes from: announced on the local network, given by a person, reached there before, or found
   * on the topic (then it is a node that leads there).
   */
  source: 'lan' | 'manual' | 'reached' | 'topic'
  /** When it was last seen, given or reached. */
  seenAt: number
}

/** A live connection. */
export interface PeerConnection {
  /**
   * What its packets go through: the local network, the internet directly, a hole that both sides made in
   * their NATs, or a relay.
   */
  path: 'lan' | 'direct' | 'punched' | 'relayed'
  /** The other end, as `ip:port`. */
  address: string
  /** Whether this side dialed. */
  initiator: boolean
  /** Since when. */
  since: number
  /** The measured round trip in milliseconds; 0 before the first measurement. */
  roundTripMs: number
  /** How much flowed lately, both ways together, in bytes a second. */
  bytesPerSecond: number
  /** Bytes sent on this connection. */
  bytesSent: number
  /** Bytes received on it. */
  bytesReceived: number
}

/** Why an approved peer is not connected. */
export interface PeerProblem {
  /** What is wrong, for programs. */
  code: ErrorCode
  /** What it means and what to do. */
  message: string
  /** When it was found out. */
  at: number
}

/** A key that is not approved and tried to connect. */
export interface Knock {
  /** The key. */
  key: string
  /** The first try. */
  firstAt: number
  /** The last try. */
  lastAt: number
  /** How many tries there were. */
  count: number
  /** From where the last came, as `ip:port`; a node that passed it on may have made it up. */
  address: string | null
}

/** A key that was found and is no peer. Nobody is added by itself. */
export interface DiscoveredPeer {
  /** The key. */
  key: string
  /** Where it was found. */
  source: 'topic' | 'lan'
  /** Where it can be reached, as `ip:port`. */
  addresses: string[]
  /** When it was last seen. */
  seenAt: number
}

/** What gives a book's bytes when a peer may have it: a path, or a stream of them (from S3, say). */
export type BookProvider = (
  bookId: string
) => string | ReadableStream<Uint8Array> | Promise<string | ReadableStream<Uint8Array>>

/** A book in a catalog, as its server describes it. */
export interface BookEntry {
  /** What the server calls the book; unique within its catalog, at most 512 bytes. */
  id: string
  /** The title. */
  title: string
  /** The author or authors, as one line. */
  author?: string
  /** The ISBN, as the server writes it. */
  isbn?: string
  /** The file's format: `epub`, `pdf`, …. */
  format?: string
  /** The file's size in bytes, as the server claims. */
  sizeBytes?: number
  /** When the book came to the server, as an RFC 3339 time. */
  addedAt?: string
  /** Whatever else the server says of it. */
  [field: string]: unknown
}

/**
 * A book to publish. Every field but `source` goes to all peers; one entry has at most 64 KiB.
 */
export interface Book {
  /** What this server calls the book; unique within its catalog, at most 512 bytes. */
  id: string
  /** The title. */
  title: string
  /** The author or authors, as one line. */
  author?: string | null
  /** The ISBN. */
  isbn?: string | null
  /** The file's format: `epub`, `pdf`, …. */
  format?: string | null
  /** The file's size in bytes; read from the file when left out. */
  sizeBytes?: number | null
  /** When the book came to this server; the time of the first publication when left out. */
  addedAt?: Date | string | null
  /**
   * Where the bytes are: a path, or a function that is asked when a peer may have the book. Never leaves
   * this machine. Left out, what was said before holds.
   */
  source?: string | BookProvider | null
  /** Whatever else peers should know of it. */
  [field: string]: unknown
}

/** What a change to the catalog did, in books. */
export interface CatalogChanges {
  /** New in the catalog. */
  added: number
  /** Described anew. */
  updated: number
  /** Taken off. */
  removed: number
  /** Left alone. */
  unchanged: number
  /** Books whose file is not there, or is no book: the first 100 of them. Absent when all are there. */
  missing?: MissingBook[]
  /** How many these are in all. Absent when all are there. */
  missingCount?: number
}

/** A book whose file is not there, or cannot be sent as it is. */
export interface MissingBook {
  /** Its id. */
  id: string
  /** Where it stands in the array that was given, from 0. */
  index: number
  /** Where its file should be. */
  path: string
  /** `ERR_NOT_FOUND`, or `ERR_IO` for what is there and is no file with a book in it, or cannot be looked at. */
  code: 'ERR_NOT_FOUND' | 'ERR_IO'
  /** What is wrong, and what to do. */
  message: string
}

/** How to publish. */
export interface PublishOptions extends WaitOptions {
  /**
   * What to do with books whose `source` is a path at which there is no book. `publish` (the default): they are
   * published as the others, because the disk may be back tomorrow; requests for them are answered `unavailable`
   * until then. `skip`: they are left out as if they had not been given, so that `sync` takes them off.
   */
  missing?: 'publish' | 'skip'
}

/** The order of books. */
export type CatalogSort =
  /** Titles that begin with what was typed, then the others; each by title. */
  | 'relevance'
  /** The title, without regard to case and accents. */
  | 'title'
  /** The author, then the title; books without an author come last. */
  | 'author'
  /** When the book came to its server, as the server says (`addedAt`). */
  | 'added'
  /** The order in which servers published the books. */
  | 'published'

/** What {@link CatalogFeed.verify} takes. */
export interface VerifyOptions extends WaitOptions {
  /** Also what is here of peers' catalogs. */
  peers?: boolean
  /** Told how far the catalog that is read now is, about once a mebibyte. */
  onProgress?: (progress: { bytes: number; total: number }) => void
}

/** What {@link CatalogFeed.verify} has found. */
export interface CatalogVerification {
  /** Whether this server's catalog and the database are whole. */
  ok: boolean
  /** How many entries of this server's catalog are as they were signed. */
  entries: number
  /** The entries that are not, the first hundred. */
  damaged: number[]
  /**
   * How many entries and hashes of this server's catalog were damaged and are whole again: hashes follow from
   * the entries, and entries were fetched back from connected peers.
   */
  mended: number
  /** What is wrong, in words. */
  problems: string[]
  /** Whether what is shown of this server's catalog was not what it says, and was made anew from it. */
  rebuilt: boolean
  /** The peers whose catalogs were damaged here; the damage is fetched again. */
  refetched: string[]
}

/** What {@link P2PNode.backup} takes. */
export interface BackupOptions extends WaitOptions {
  /** Encrypts the identity in the backup; at least 8 characters. Without one the identity is left out. */
  passphrase?: string
  /** Leave the identity out, or insist that it is in. */
  identity?: boolean
}

/** A backup that was made. */
export interface Backup {
  /** The file. */
  path: string
  /** Its size. */
  bytes: number
  /** Whether the identity is in it. */
  hasIdentity: boolean
}

/** What {@link P2PNode.restore} takes. */
export interface RestoreOptions extends WaitOptions {
  /** What the identity in the backup was encrypted with. */
  passphrase?: string
  /**
   * Also take a backup that nothing proves: one that was changed, or that a version made which could not
   * prove backups yet. Of such a one, only the catalog is restored, as far as the identity signed it.
   */
  unauthenticated?: boolean
}

/** A data directory that was made from a backup. */
export interface Restored {
  /** Whose it is. */
  publicKey: string
  /** Whether `keypair.json` came out of the backup. */
  hasIdentity: boolean
  /**
   * There when the backup could not be proven to be what was made, and so only the catalog was restored: no
   * peers, no policies, no transfers, and not where the books' files are.
   */
  catalogOnly?: true
}

/** Which books to list. */
export interface ListOptions extends WaitOptions {
  /**
   * Words that begin words of the title, author, series or ISBN; case and accents do not matter. An
   * ISBN of 10 digits finds the same one of 13, and the other way round, however they are parted.
   */
  search?: string
  /** Only books of one of these formats; all when left out or empty. */
  formats?: string[]
  /** Only books in one of these languages, as the server writes them; all when left out or empty. */
  languages?: string[]
  /** The order; `published` when left out. */
  sort?: CatalogSort
  /** The other way round. */
  descending?: boolean
  /** The `nextCursor` of the page before, with the same other options. */
  cursor?: string | null
  /** How many books, 1 to 1,000; 50 when left out. */
  limit?: number
  /** The newest first instead of the oldest: `published`, descending. */
  newestFirst?: boolean
}

/** Some books of a catalog. */
export interface CatalogPage {
  /** The books, with their texts made safe to show. */
  books: BookEntry[]
  /**
   * Where the next page begins; `null` at the end. A page may have fewer books than the limit, even none, and
   * yet a cursor: what it looks for is rare, and it stopped so as not to take long. Go on with the cursor.
   */
  nextCursor: string | null
  /** How many books the catalog has, or how many the search finds; at least so many unless it is exact. */
  total: number
  /**
   * Whether `total` is exact. It is without search and filters, for words that find up to 40,000 books, and
   * with filters, or with words as common as "the" beside others, for up to 1,000. Else say "more than".
   */
  isTotalExact: boolean
}

/** Which books to find among those of all peers. */
export interface SearchOptions extends WaitOptions {
  /**
   * Words that begin words of the title, author, series or ISBN; case and accents do not matter. An
   * ISBN of 10 digits finds the same one of 13, and the other way round, however they are parted.
   */
  query?: string
  /** Only the catalogs of these servers, as keys or invite links; those of all peers that are not blocked when left out. */
  peers?: string[]
  /** Only books of one of these formats; all when left out or empty. */
  formats?: string[]
  /** Only books in one of these languages, as their servers write them; all when left out or empty. */
  languages?: string[]
  /** The order; `relevance` when left out, `title` when nothing is typed. */
  sort?: CatalogSort
  /** The other way round. */
  descending?: boolean
  /** The `nextCursor` of the page before, with the same other options. */
  cursor?: string | null
  /** How many books, 1 to 1,000; 50 when left out. */
  limit?: number
  /** Also this server's own books. */
  includeOwn?: boolean
}

/** How a book that a peer offers is here already; the surest way that is known. */
export type Have =
  /** It came from this very peer. */
  | { by: 'transfer'; transferId: string }
  /** A book on the own catalog has the same `hash`: the same file, as its server says. */
  | { by: 'hash'; bookId: string }
  /** A book on the own catalog has the same ISBN: the same edition, as both servers say. */
  | { by: 'isbn'; bookId: string }

/** A book that was found. */
export interface CatalogHit {
  /** The server that offers it. */
  peer: string
  /** What the server is called here, or else calls itself. */
  nickname: string | null
  /** Whether it is one of this server's own books. */
  isOwn: boolean
  /** The book, with its texts made safe to show. */
  book: BookEntry
  /** How it is here already; `null` when it is not, as far as is known, and for own books. */
  have: Have | null
}

/** Some of the books that were found. */
export interface SearchPage {
  /** The books, in order. */
  hits: CatalogHit[]
  /** Where the next page begins; as in {@link CatalogPage}. */
  nextCursor: string | null
  /** How many books are found; at least so many unless it is exact. */
  total: number
  /** Whether `total` is exact; as in {@link CatalogPage}. */
  isTotalExact: boolean
  /**
   * How many of the books found are of one kind: by format and by language (in lower case, the 50 most
   * frequent), and by server. `null` where more are found than are counted in time (1,000 to 4,000), and
   * where nothing is typed and nothing filtered.
   */
  facets: {
    formats: Record<string, number>
    languages: Record<string, number>
    peers: Record<string, number>
  } | null
}

/** What is known of a catalog. */
export interface CatalogStatus {
  /** Whose catalog it is. */
  peer: string
  /** The feed's key. */
  feedKey: string
  /** The feed's length as far as it is known, in entries. */
  length: number
  /** How many entries are in the catalog already; less than `length` while it is fetched. */
  replayed: number
  /** How many books are on offer. */
  books: number
  /** How many entries were skipped: bad ones, and those beyond a limit. */
  skipped: number
  /** When the catalog last changed here. */
  updatedAt: number | null
  /**
   * Why there is nothing to show though the feed has entries, for a person: none of them can be read, as when
   * they are encrypted.
   */
  trouble: string | null
}

/** Which way a book goes. */
export type TransferDirection = 'incoming' | 'outgoing'

/** Where a transfer stands. The last four are final, though a failed one may be resumed. */
export type TransferState =
  /** Waiting for the peer to come online, or for a free slot. */
  | 'queued'
  /** Incoming: asked, no answer yet. Outgoing: the book is being prepared. */
  | 'requested'
  /** Waiting for a person at the sender. */
  | 'awaiting-approval'
  /** Bytes may flow. */
  | 'transferring'
  /** Stopped by a person here. */
  | 'paused'
  /** All bytes are here; the file is checked and put in its place. */
  | 'verifying'
  /** The book is whole at the receiver. */
  | 'completed'
  /** The sender said no. */
  | 'denied'
  /** Withdrawn by either side. */
  | 'cancelled'
  /** Ended by an error. */
  | 'failed'

/** How far a transfer is. */
export interface TransferProgress {
  /** Verified bytes. */
  bytes: number
  /** The book's size in bytes; 0 until it is known. */
  total: number
  /** Bytes a second over the last seconds. */
  rate: number
  /** Milliseconds left at that rate; `null` while nothing moves. */
  etaMs: number | null
}

/** A transfer as it stands: what {@link Transfer.toJSON} gives. */
export interface TransferInfo {
  /** The transfer's id on this server. */
  id: string
  /** Which way the book goes. */
  direction: TransferDirection
  /** The other server's key. */
  peer: string
  /** The book's id in the sender's catalog. */
  bookId: string
  /** The book's title, as far as it is known. */
  title: string
  /** Where it stands. */
  state: TransferState
  /** Why, for a person; with `failed` and `denied` above all. */
  reason: string | null
  /** The code of the error that made it fail. */
  error: ErrorCode | null
  /** How far it is. */
  progress: TransferProgress
  /** Where the file is, once it is whole. */
  path: string | null
  /** When it began. */
  createdAt: number
  /** When its state last changed. */
  updatedAt: number
}

/** What {@link Transfers.request} takes. */
export interface TransferRequest extends WaitOptions {
  /** The server that has the book. */
  peer: string
  /** The book's id in its catalog. */
  bookId: string
  /**
   * Where the file goes: a folder, or a full path. `<dataDir>/books` when left out. In a folder it is named after
   * title and author, with an ending that books have, or `.book` for any other format. A folder is made when it is
   * not there; one that cannot be made fails the transfer with `ERR_IO` before anything is fetched.
   */
  saveTo?: string
}

/** Which transfers to list. */
export interface TransferFilter extends WaitOptions {
  /** Only those that go this way. */
  direction?: TransferDirection
  /** Only those in this state. */
  state?: TransferState
  /** Only those with this server. */
  peer?: string
  /** How many at most. */
  limit?: number
}

/** What {@link P2PNode.events} takes. */
export interface EventOptions {
  /** The `id` of the last event seen, to go on after it; only new events when left out. */
  after?: number
  /** Ends the iteration: a pending `next()` rejects with `ERR_ABORTED`. */
  signal?: AbortSignal
}

/** What every event has. */
export interface EventBase {
  /** Grows from event to event, with holes, also over restarts. */
  id: number
  /** When it happened. */
  at: number
}

/** An approved peer is connected now. */
export interface PeerOnlineEvent extends EventBase {
  /** The event's kind. */
  type: 'peer-online'
  /** The peer. */
  peer: string
  /** What it is called here, or calls itself. */
  nickname: string | null
}

/** An approved peer is not connected any more. */
export interface PeerOfflineEvent extends EventBase {
  /** The event's kind. */
  type: 'peer-offline'
  /** The peer. */
  peer: string
  /** What it is called here, or calls itself. */
  nickname: string | null
  /** Why the connection ended, for a person. */
  reason: string
}

/** A key that is not approved tried to connect. At most one event a minute and key. */
export interface PeerKnockEvent extends EventBase {
  /** The event's kind. */
  type: 'peer-knock'
  /** The key. */
  peer: string
  /** How often it has tried. */
  count: number
  /** From where, as `ip:port`. */
  address: string | null
}

/** The list of peers changed. */
export interface PeerChangedEvent extends EventBase {
  /** The event's kind. */
  type: 'peer-changed'
  /** The peer. */
  peer: string
  /** What was done to it. */
  change: 'approved' | 'blocked' | 'removed' | 'updated'
}

/** A key was found on the topic or the network, and is no peer. */
export interface PeerDiscoveredEvent extends EventBase {
  /** The event's kind. */
  type: 'peer-discovered'
  /** The key. */
  peer: string
  /** Where it was found. */
  source: 'topic' | 'lan'
}

/** A catalog changed. */
export interface CatalogUpdatedEvent extends EventBase {
  /** The event's kind. */
  type: 'catalog-updated'
  /** Whose: a peer's key, or this server's own. */
  peer: string
  /** The feed's length in entries. */
  length: number
}

/** A peer asks for a book; a person has to decide. */
export interface TransferRequestedEvent extends EventBase {
  /** The event's kind. */
  type: 'transfer-requested'
  /** The id of the transfer to approve or deny. */
  transfer: string
  /** Who asks. */
  peer: string
  /** The book. */
  bookId: string
  /** Its title here. */
  title: string | null
  /** Its size in bytes. */
  sizeBytes: number | null
}

/** Bytes went across. At most four a second and transfer. */
export interface TransferProgressEvent extends EventBase {
  /** The event's kind. */
  type: 'transfer-progress'
  /** The transfer's id. */
  transfer: string
  /** Bytes verified (incoming) or sent (outgoing) so far. */
  bytes: number
  /** Bytes in all. */
  total: number
  /** Bytes a second, averaged over the last seconds. */
  rate: number
  /** Milliseconds left at that rate; `null` while nothing moves. */
  etaMs: number | null
}

/** A transfer came into a state. */
export interface TransferStateEvent extends EventBase {
  /** The event's kind. */
  type: 'transfer-state'
  /** The transfer's id. */
  transfer: string
  /** The other server. */
  peer: string
  /** Which way the book goes. */
  direction: TransferDirection
  /** Where it stands now. */
  state: TransferState
  /** Why, where there is a reason. */
  reason: string | null
}

/** Something about the node changed; `node.status()` has all of it. */
export interface StatusEvent extends EventBase {
  /** The event's kind. */
  type: 'status'
  /** What: `network`, `dht`, `topic`, `catalog`, `storage`, …. */
  layer: string
  /** Whether it works. */
  ok: boolean
  /** What a person should know. */
  message: string
}

/** Events were missed: fetch lists anew, then go on from here. */
export interface GapEvent extends EventBase {
  /** The event's kind. */
  type: 'gap'
  /** The number after which events are missing. */
  after: number
}

/** Whatever happens in a node; `type` tells which it is. */
export type NodeEvent =
  | PeerOnlineEvent
  | PeerOfflineEvent
  | PeerKnockEvent
  | PeerChangedEvent
  | PeerDiscoveredEvent
  | CatalogUpdatedEvent
  | TransferRequestedEvent
  | TransferProgressEvent
  | TransferStateEvent
  | StatusEvent
  | GapEvent

/** The event of a type. */
export type EventOf<Type extends NodeEvent['type']> = Extract<NodeEvent, { type: Type }>

/**
 * Which binding artifact the generated loader actually loaded: `'native'` for
 * a native addon, otherwise the `platformArchABI` of the WASI flavor. Every
 * flavor napi-rs can build is listed, because `NAPI_RS_NATIVE_LIBRARY_PATH`
 * can point the loader at a WASI artifact this package does not build itself.
 */
export declare const __napiBindingTarget: 'native' | 'wasm32-wasi' | 'wasm32-wasip1'

/**
 * This server's catalog: the books that it offers to its peers, as a Hypercore that they follow live.
 * From `node.catalog`.
 */
export declare class CatalogFeed {
  /** The feed's key, as 52 z32 characters. */
  get key(): string
  /** The feed's length in entries; it grows with each change. */
  get length(): number
  /**
   * Adds books, or describes them anew; only what changed is appended, all or nothing, and it is on
   * disk when the promise resolves. Rejects with `ERR_INVALID_ARGUMENT` when a book breaks a limit. Books
   * whose file is not there are named in the result, and published as the options say.
   */
  publish(books: Book[], options?: PublishOptions): Promise<CatalogChanges>
  /** Takes books off the catalog; ids that are not on it are ignored. Transfers that run go on. */
  unpublish(ids: string[], options?: WaitOptions): Promise<CatalogChanges>
  /**
   * Makes the catalog exactly these books: appends what is new or changed, removes what is missing,
   * leaves the rest alone. Cheap when little changed: call it at every start with the whole library. Books
   * whose file is not there are named in the result, and stay on the catalog or not as the options say.
   */
  sync(books: Book[], options?: PublishOptions): Promise<CatalogChanges>
  /** A page of this server's own catalog. */
  list(options?: ListOptions): Promise<CatalogPage>
  /**
   * Searches the catalogs of all peers at once, as far as they have arrived here; also those of peers
   * that are offline. What blocked peers offer is found only when `peers` names them. The work is bounded,
   * so that a page of rare books may be short and yet have a cursor.
   */
  search(options?: SearchOptions): Promise<SearchPage>
  /** One of this server's own books; `null` when it is not on the catalog. */
  get(bookId: string, options?: WaitOptions): Promise<BookEntry | null>
  /** What is known of this server's own catalog. */
  status(options?: WaitOptions): Promise<CatalogStatus | null>
  /**
   * Reads this server's catalog again, every entry against what was signed, and lets SQLite check the
   * database; with `peers` also what is here of peers' catalogs. Damage to the own catalog stops
   * publishing (`ERR_CORRUPT`) while reading goes on; damage to a peer's is fetched again.
   */
  verify(options?: VerifyOptions): Promise<CatalogVerification>
  /**
   * Says that publishing may go on after it was stopped. After a restore it does at once: call this
   * when nothing was published since the backup. After the catalog was found to be written elsewhere,
   * call it when the other copy was stopped for good: what peers have is fetched first. Rejects with
   * `ERR_CORRUPT` when the catalog is damaged.
   */
  resumePublishing(options?: WaitOptions): Promise<void>
  /**
   * Starts a new feed with the books that are on the catalog now, and gives its key. Peers follow it
   * as soon as they are connected; the old feed is deleted here.
   * Books whose entries were damaged are left out: publish them again.
   */
  startNewFeed(options?: WaitOptions): Promise<string>
  /**
   * Says who is asked for books that were published with a function in an earlier run, until they
   * are published again; `null` for nobody.
   */
  setProvider(provider: BookProvider | null): void
  /**
   * A peer's catalog. Throws `ERR_INVALID_KEY` for what is no key; one of which nothing is known yet
   * is empty.
   */
  of(peerKey: string): PeerCatalog
}

/**
 * Who this server is: an ed25519 key pair, made when the data directory is first opened and kept in its
 * `keypair.json`. From `node.identity`.
 */
export declare class Identity {
  /** The public key as 52 z32 characters: what other servers know this one by. */
  get publicKey(): string
  /** The 32 bytes of the public key; a copy. */
  get bytes(): Buffer
  /** The key in a form that two people compare over the phone: 8 groups of 4 characters. */
  get fingerprint(): string
  /** The link that adds this server elsewhere: `alex://peer/<key>?name=<nickname>`. */
  inviteLink(nickname?: string): string
  /**
   * The invite link as a QR code: an SVG document, or lines of text for a terminal. Throws
   * `ERR_INVALID_ARGUMENT` when the nickname is too long for one.
   */
  qr(format?: 'svg' | 'terminal', nickname?: string): string
  /** A detached ed25519 signature (64 bytes) over the bytes. */
  sign(message: Uint8Array): Buffer
  /**
   * Whether the signature is that of the key's owner over the bytes. The key may be z32, hex or a
   * link; throws `ERR_INVALID_KEY` when it is none.
   */
  static verify(key: string, message: Uint8Array, signature: Uint8Array): boolean
  /**
   * Reads the one key in what a person typed or pasted, as z32, hex, or in an invite, `hyper://` or
   * `pear://` link; also broken over lines, in quotes, or in a sentence. Gives the key as z32, and the
   * nickname that the link suggests. Throws `ERR_INVALID_KEY` with what is wrong.
   */
  static parse(text: string): ParsedKey
}

/**
 * The events of a node, for `for await`; from `node.events()`. A waiting iterator does not keep the
 * process alive. It ends when the node is closed, and fails with `ERR_ABORTED` when its signal is aborted.
 */
export declare class NodeEvents {
  /** The next event, as soon as there is one. Calls that overlap are answered in their order. */
  next(): Promise<IteratorResult<NodeEvent, undefined>>
  /** Ends the iteration; `break` calls it. */
  return(): Promise<IteratorResult<NodeEvent, undefined>>
  /** This iterator, for `for await`. */
  [globalThis.Symbol.asyncIterator](): this
}

/**
 * One running endpoint over one data directory: this server among its peers.
 *
 * An open node keeps the process alive until `close()` or `unref()`. After `close()` every method fails
 * with `ERR_CLOSED`, except `close()`, `ref()`, `unref()` and `off()`, which do nothing then.
 */
export declare class P2PNode {
  /**
   * Copies peers, catalogs and transfers as they are at one moment into a new file, readable by its
   * owner only, while the node goes on. The file appears only when it is whole and synced. Books are
   * not in it; the identity is if there is a passphrase, encrypted. Nobody can change it without being
   * noticed who has neither the passphrase nor `keypair.json`. Rejects with `ERR_INVALID_ARGUMENT` when the file exists or the passphrase has less than 8 characters,
   * `ERR_DISK_FULL`, `ERR_IO`. Aborted, it leaves nothing.
   */
  backup(path: string, options?: BackupOptions): Promise<Backup>
  /**
   * Makes the data directory of a node from a backup. Opened afterwards, the node publishes nothing
   * (`ERR_FEED_UNCONFIRMED`) until a peer has confirmed that its catalog is not longer elsewhere, or
   * you have with `catalog.resumePublishing()`. The backup must be what was made, to the last bit, which
   * the identity proves: without the identity in the backup, its `keypair.json` must be in the
   * directory. Rejects with `ERR_INVALID_STATE` when there is a node already or no key pair,
   * `ERR_DENIED` for a wrong passphrase, `ERR_CORRUPT` for a file that is no whole backup, that was
   * changed, or that a version made which could not prove backups yet; nothing was changed then. With
   * the option `unauthenticated`, of such a file the catalog alone is restored.
   */
  static restore(backupPath: string, dataDir: string, options?: RestoreOptions): Promise<Restored>
  /**
   * Opens the node: makes the data directory and the identity at the first start, takes up what an
   * earlier run left, and goes online in the background. Rejects with `ERR_LOCKED` when another
   * process has the directory, `ERR_INVALID_ARGUMENT` for a bad option, `ERR_CORRUPT` when stored
   * data is damaged, `ERR_NETWORK` when no socket can be bound.
   */
  static open(options: OpenOptions): Promise<P2PNode>
  /** Who this server is. */
  get identity(): Identity
  /** The other servers. */
  get peers(): PeerManager
  /** The books on offer, here and at the peers. */
  get catalog(): CatalogFeed
  /** The books on their way. */
  get transfers(): Transfers
  /** What works and what does not, for a person. */
  status(): NodeStatus
  /**
   * Goes off the network, before the machine sleeps or while there is nothing to do: peers hear that
   * this server goes, and nothing is sent or received until `resume()`. Everything that needs no
   * network goes on working. Calling it again does nothing.
   */
  suspend(options?: WaitOptions): Promise<void>
  /**
   * Goes back on the network, on the same port if that is free, and dials every peer at once. Rejects
   * with `ERR_NETWORK` when no socket can be bound. Calling it again does nothing.
   */
  resume(options?: WaitOptions): Promise<void>
  /**
   * What happens in the node from now on, or after the event whose number is given: iterate with
   * `for await`. A reader that is too slow gets a `gap` event for what it missed. The iteration ends
   * when the node is closed.
   */
  events(options?: EventOptions): NodeEvents
  /**
   * Calls the function with every event of that type from now on. What it throws is an uncaught
   * exception. A listener alone does not keep the process alive.
   */
  on<Type extends NodeEvent['type']>(type: Type, listener: (event: EventOf<Type>) => void): this
  /** Stops calling a function that was given to `on()`. One that was not is ignored. */
  off<Type extends NodeEvent['type']>(type: Type, listener: (event: EventOf<Type>) => void): this
  /** Keeps the process alive while the node is open, as it is at first. */
  ref(): this
  /** Lets the process end although the node is open. */
  unref(): this
  /**
   * Closes the node: peers hear that it goes, transfers stop where they are and go on at the next
   * start, all that was acknowledged is on disk. Calls in flight fail with `ERR_CLOSED`. Calling it
   * again waits for the same end.
   */
  close(): Promise<void>
  /** As `close()`: for `await using`. */
  [globalThis.Symbol.asyncDispose](): Promise<void>
}

/**
 * A peer's catalog as it is known here; it can be browsed while the peer is offline. From
 * `node.catalog.of(key)`.
 */
export declare class PeerCatalog {
  /** Whose catalog it is. */
  get peer(): string
  /** A page of the catalog, as far as it has arrived here. */
  list(options?: ListOptions): Promise<CatalogPage>
  /** One book; `null` when it is not on offer, or not known yet. */
  get(bookId: string, options?: WaitOptions): Promise<BookEntry | null>
  /** How much of the catalog is here, and when it last changed; `null` until its feed is known. */
  status(options?: WaitOptions): Promise<CatalogStatus | null>
}

/**
 * The other servers: who may connect, who knocked, who is online. Two servers connect only when each has
 * approved the other. From `node.peers`. Keys are taken as z32, hex or invite link everywhere.
 */
export declare class PeerManager {
  /**
   * Adds and approves a server by its key or invite link. It connects once it has approved this one,
   * too. Adding it again changes its nickname and address at most. Rejects with `ERR_INVALID_KEY`,
   * which says what is wrong with the text, and with `ERR_PEER_BLOCKED` for a blocked key.
   */
  add(keyOrLink: string, options?: AddPeerOptions): Promise<Peer>
  /** Forgets a server, approved, blocked or knocking, and closes its connection. Whether it was known. */
  remove(key: string, options?: WaitOptions): Promise<boolean>
  /** The approved and blocked servers, by name. Those that knocked are in `pending()`. */
  list(options?: WaitOptions): Promise<Peer[]>
  /** What is known of a key; `null` when nothing is. One that knocked has the status `pending`. */
  get(key: string, options?: WaitOptions): Promise<Peer | null>
  /** Approves a key: one that knocked, one that is blocked, or any other. */
  approve(key: string, options?: WaitOptions): Promise<Peer>
  /** Blocks a key: its connection is closed, and its knocks are refused without being listed. */
  block(key: string, options?: WaitOptions): Promise<Peer>
  /**
   * Changes a server's nickname, policy or address; `null` unsets one. Rejects with `ERR_NOT_FOUND` for a key
   * that is neither approved nor blocked.
   */
  update(key: string, update: PeerUpdate, options?: WaitOptions): Promise<Peer>
  /** The keys that tried to connect and wait for a decision, the latest first; at most 256. */
  pending(options?: WaitOptions): Promise<Knock[]>
  /** The keys found on the topic or the network that are no peers, the latest first; at most 256. */
  discovered(options?: WaitOptions): Promise<DiscoveredPeer[]>
}

/**
 * A private DHT on 127.0.0.1, inside this process: for tests and for trying things out without the
 * public network. Not for servers.
 */
export declare class Testnet {
  /** Starts a network of `size` nodes (3 unless told, 64 at most). */
  static start(size?: number, options?: WaitOptions): Promise<Testnet>
  /** What {@link P2PNode.open} takes as `bootstrap` to be in this network. */
  get bootstrap(): Array<string>
  /** Stops all nodes. Calling it again does nothing. */
  close(): Promise<void>
  /** As `close()`: for `await using`. */
  [globalThis.Symbol.asyncDispose](): Promise<void>
}

/**
 * One book on its way. Its properties show where it stands whenever they are read, and where it last
 * stood once the node is closed.
 */
export declare class Transfer {
  /** The transfer's id on this server. */
  get id(): string
  /** Which way the book goes. */
  get direction(): TransferDirection
  /** The other server's key. */
  get peer(): string
  /** The book's id in the sender's catalog. */
  get bookId(): string
  /** The book's title, as far as it is known. */
  get title(): string
  /** Where it stands. */
  get state(): TransferState
  /** Why, for a person; with `failed` and `denied` above all. */
  get reason(): string | null
  /** The code of the error that made it fail. */
  get error(): ErrorCode | null
  /** How far it is. */
  get progress(): TransferProgress
  /** Where the file is, once it is whole. */
  get path(): string | null
  /** When it began. */
  get createdAt(): number
  /** When its state last changed. */
  get updatedAt(): number
  /** All of the above as a plain object, also for `JSON.stringify`. */
  toJSON(): TransferInfo
  /**
   * Lets the peer have the book. Approving what is approved does nothing. Rejects with
   * `ERR_INVALID_STATE` for incoming transfers and those that are over.
   */
  approve(options?: WaitOptions): Promise<void>
  /** Tells the peer no, with a reason for a person; also ends an outgoing transfer that is flowing. */
  deny(reason?: string | null, options?: WaitOptions): Promise<void>
  /** Stops the bytes; those that were verified stay. Works on either side, also across restarts. */
  pause(options?: WaitOptions): Promise<void>
  /** Goes on with a transfer that was paused here, or that failed. */
  resume(options?: WaitOptions): Promise<void>
  /** Ends the transfer on both sides and deletes what was received. Cancelling twice does nothing. */
  cancel(options?: WaitOptions): Promise<void>
  /**
   * Waits until the book is whole and says where it is. Rejects with `ERR_DENIED` when the sender
   * said no, `ERR_CANCELLED` when either side withdrew, and otherwise with the code of what made it
   * fail. The wait alone does not keep the process alive.
   */
  done(options?: WaitOptions): Promise<TransferInfo>
}

/** The books on their way, in both directions, and those that went. From `node.transfers`. */
export declare class Transfers {
  /**
   * Asks a peer for a book, now or when it is online. The request is on disk when the promise
   * resolves, and survives crashes and restarts. Asking again for a book that is under way gives the
   * same transfer; one that failed goes on. Rejects with `ERR_NOT_APPROVED` when the peer is not
   * approved here.
   */
  request(request: TransferRequest): Promise<Transfer>
  /** Lists transfers, the newest first. */
  list(filter?: TransferFilter): Promise<Transfer[]>
  /** The transfer with that id, also a finished one; `null` when there is none. */
  get(id: string, options?: WaitOptions): Promise<Transfer | null>
}
