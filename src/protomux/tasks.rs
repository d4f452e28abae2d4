//! The two tasks of a connection: one reads and dispatches, one writes and keeps alive.

use std::sync::Arc;

use tokio::time::{Instant, sleep_until, timeout};

use super::CloseReason;
use super::connection::Connection;
use super::limits::{FLUSH_TIMEOUT, LARGE_FRAME, LINGER};
use super::wire::Items;
use crate::secret_stream::{SecretReceiver, SecretSender, SecretStream, SecretStreamError};

/// Starts both tasks; they end when the connection does.
pub(super) fn spawn(stream: SecretStream, connection: Arc<Connection>) {
    let (sender, receiver) = stream.split();
    let writer = crate::tasks::spawn(run_writer(sender, Arc::clone(&connection)));
    crate::tasks::spawn(async move {
        run_reader(receiver, &connection).await;
        // A writer that panicked must not leave anybody waiting.
        if writer.await.is_err() {
            connection.end(CloseReason::Failed("a task of the connection panicked".into()));
        }
        connection.finished.cancel();
    });
}

async fn run_reader(mut receiver: SecretReceiver, connection: &Arc<Connection>) {
    let reason = tokio::select! {
        biased;
        () = connection.stopped.cancelled() => return,
        reason = connection.closed() => reason,
        reason = read(&mut receiver, connection) => reason,
    };
    let local = reason == CloseReason::Local;
    connection.end(reason);
    if local {
        // Closing a socket with unread bytes can destroy what it still has to send.
        let discard = async { while let Ok(Some(_)) = receiver.recv().await {} };
        tokio::select! {
            biased;
            () = connection.stopped.cancelled() => {}
            _ = timeout(FLUSH_TIMEOUT + LINGER, discard) => {}
        }
    }
}

/// Reads until the end and says why that came.
async fn read(receiver: &mut SecretReceiver, connection: &Arc<Connection>) -> CloseReason {
    connection.started.cancelled().await;
    loop {
        let frame = match receiver.recv().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return CloseReason::Remote,
            Err(error) => return failure(&error),
        };
        let is_large = frame.len() >= LARGE_FRAME;
        let mut items = Items::new(frame);
        loop {
            match items.next() {
                Ok(Some(item)) => {
                    if let Err(what) = connection.take_item(item).await {
                        return CloseReason::Violation(what);
                    }
                }
                Ok(None) => break,
                Err(error) => return CloseReason::Violation(error.to_string()),
            }
        }
        if is_large {
            // Who was woken by it waits on this very thread: without a pause it would all be read first
            // and only then be used, by turns.
            tokio::task::yield_now().await;
        }
    }
}

async fn run_writer(mut sender: SecretSender, connection: Arc<Connection>) {
    tokio::select! {
        biased;
        () = connection.stopped.cancelled() => {}
        outcome = write(&mut sender, &connection) => {
            if let Err(error) = outcome {
                connection.end(failure(&error));
            }
        }
    }
}

/// Writes from the start until the connection is closed, then what is left, then the end.
async fn write(
    sender: &mut SecretSender,
    connection: &Connection,
) -> Result<(), SecretStreamError> {
    tokio::select! {
        () = connection.started.cancelled() => {}
        _ = connection.closed() => {}
    }
    sender.flush().await?; // the header
    tokio::select! {
        biased;
        outcome = write_all(sender, connection) => outcome?,
        () = expired_after_close(connection) => return Ok(()),
    }
    timeout(FLUSH_TIMEOUT, sender.shutdown()).await.unwrap_or(Ok(()))
}

async fn expired_after_close(connection: &Connection) {
    connection.closed().await;
    tokio::time::sleep(FLUSH_TIMEOUT).await;
}

async fn write_all(
    sender: &mut SecretSender,
    connection: &Connection,
) -> Result<(), SecretStreamError> {
    loop {
        let (frames, cost) = connection.take_outgoing();
        if frames.is_empty() {
            if connection.close_reason().is_some() {
                return Ok(());
            }
            wait(sender, connection).await?;
            continue;
        }
        for frame in &frames {
            match frame.parts.as_slice() {
                [one] => sender.feed(one)?,
                parts => {
                    let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
                    sender.feed_parts(&parts)?;
                }
            }
        }
        drop(frames);
        sender.flush().await?;
        connection.sent(cost);
        if cost as usize >= LARGE_FRAME {
            tokio::task::yield_now().await;
        }
    }
}

/// Waits for something to write, keeping the connection alive and the deadlines of waiting opens.
async fn wait(sender: &mut SecretSender, connection: &Connection) -> Result<(), SecretStreamError> {
    let now = Instant::now();
    let deadline = connection.refuse_expired(now);
    let keep_alive = sender.keep_alive_at();
    let wake = [deadline, keep_alive].into_iter().flatten().min();
    tokio::select! {
        biased;
        () = connection.to_write.notified() => return Ok(()),
        () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
    }
    if keep_alive.is_some_and(|at| at <= Instant::now()) {
        sender.keep_alive().await?;
    }
    Ok(())
}

fn failure(error: &SecretStreamError) -> CloseReason {
    match error {
        SecretStreamError::Decrypt
        | SecretStreamError::InvalidHeader
        | SecretStreamError::TooLong { .. } => CloseReason::Violation(error.to_string()),
        _ => CloseReason::Failed(error.to_string()),
    }
}
