//! How much of everything one connection may hold.

use std::time::Duration;

/// The longest protocol name, in bytes.
pub(super) const MAX_PROTOCOL: usize = 255;

/// The longest channel id, in bytes.
pub(super) const MAX_ID: usize = 255;

/// The longest handshake of a channel, in bytes.
pub(super) const MAX_HANDSHAKE: usize = 64 * 1024;

/// Channels that the remote may have open or asked for; the next ones are rejected.
pub(super) const MAX_REMOTE_CHANNELS: usize = 1024;

/// Channels that we may have open, or closed before the remote answered.
pub(super) const MAX_LOCAL_CHANNELS: u64 = 4096;

/// How often the remote may open channels: so many at once, as a peer does that has as many cores, and then so many
/// a second. Beyond that the connection ends.
pub(super) const OPEN_BURST: u32 = 8192;
pub(super) const OPENS_A_SECOND: u32 = 128;

/// Messages on channels that the remote never opened, after which the connection ends.
pub(super) const MAX_STRAYS: u32 = 64;

/// How long a channel that the remote opened waits for us to open it too.
pub(super) const PENDING_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of messages to channels that wait to be opened, above which nothing more is read.
pub(super) const MAX_PENDING: usize = 32 * 1024;

/// What a message counts besides its own bytes wherever messages wait.
pub(super) const MESSAGE_COST: usize = 64;

/// The default of `ChannelOptions::inbox`.
pub(super) const DEFAULT_INBOX: usize = 1024 * 1024;

/// Bytes of messages that wait to be sent, above which senders wait.
pub(super) const MAX_OUTBOX: usize = 256 * 1024;

/// Control messages that wait to be sent, above which nothing more is read.
pub(super) const MAX_CONTROL: usize = 1024;

/// How many bytes are encrypted and written at a time.
pub(super) const WRITE_BATCH: usize = 256 * 1024;

/// After so many bytes at once, reading and writing let other tasks go first.
pub(super) const LARGE_FRAME: usize = 64 * 1024;

/// Bytes of messages in one batch; more become several batches.
pub(super) const MAX_BATCH: usize = 512 * 1024;

/// How long closing may take to send what waits.
pub(super) const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a closed connection listens for the remote's end.
pub(super) const LINGER: Duration = Duration::from_secs(2);
