//! A connection with channels, and an authenticated peer that sends it anything, while both ends open and
//! close channels: it goes on or ends with a reason, and everybody who waits is told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alex_p2p::encoding::Writer;
use alex_p2p::protomux::{Channel, ChannelOptions, MuxOptions, Protomux, RemoteOpen};
use alex_p2p::secret_stream::{SecretReceiver, SecretSender, SecretStream};
use tokio::io::duplex;

use crate::program::{byte, bytes};
use crate::session::sessions;

/// Room on the raw stream: all that one input leads to.
const ROOM: usize = 1 << 22;
/// Channels that we keep at once; more are dropped.
const CHANNELS: usize = 16;
/// Nothing inside of a connection waits for longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// One input is one program.
pub fn run(data: &[u8]) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(play(data));
}

struct World {
    mux: Protomux,
    foe: SecretSender,
    replies: SecretReceiver,
    channels: VecDeque<Channel>,
    /// What the foe opened and we have not decided on.
    offered: Arc<Mutex<VecDeque<RemoteOpen>>>,
}

async fn play(mut program: &[u8]) {
    let (near, far) = duplex(ROOM);
    let mux = Protomux::new(SecretStream::new(near, sessions()[0].clone()), MuxOptions::default());
    let (foe, replies) = SecretStream::new(far, sessions()[1].clone()).split();
    let offered: Arc<Mutex<VecDeque<RemoteOpen>>> = Arc::default();
    let keep = Arc::clone(&offered);
    mux.on_open(
        "b",
        Arc::new(move |open| {
            let mut offered = keep.lock().unwrap();
            offered.push_back(open);
            offered.truncate(CHANNELS);
        }),
    );
    let mut world = World { mux, foe, replies, channels: VecDeque::new(), offered };
    while world.step(&mut program).await.is_some() {}
    world.finish().await;
}

impl World {
    async fn step(&mut self, program: &mut &[u8]) -> Option<()> {
        let (step, detail) = (byte(program)?, byte(program)?);
        match step & 15 {
            0 => self.send(&bytes(program, detail.into())).await?,
            1..=7 => {
                let message = control(step, detail, program)?;
                self.send(&message).await?;
            }
            8 => {
                let mut batch = Writer::new();
                batch.uint(0).uint(0).uint(u64::from(detail & 7));
                for _ in 0..detail >> 3 {
                    let length = usize::from(byte(program)?);
                    match length & 7 {
                        0 => _ = batch.uint(0).uint(length as u64 >> 3),
                        _ => _ = batch.buffer(&bytes(program, length >> 2)),
                    }
                }
                self.send(batch.as_slice()).await?;
            }
            9 | 10 => {
                let protocol = if detail & 1 == 0 { "a" } else { "b" }.to_owned();
                let options = ChannelOptions {
                    protocol,
                    id: vec![detail >> 6],
                    inbox: usize::from(detail >> 2 & 3) * 100,
                    aliases: if detail & 2 == 0 { Vec::new() } else { vec!["c".to_owned()] },
                    ..ChannelOptions::default()
                };
                self.channels.extend(self.mux.open(options));
                self.channels.truncate(CHANNELS);
            }
            11 => {
                if let Some(channel) = self.channels.get(usize::from(detail)) {
                    let _ = channel.try_send(u32::from(detail), &bytes(program, 9));
                }
            }
            12 => _ = self.channels.remove(usize::from(detail)),
            13 => {
                if let Some(channel) = self.channels.get(usize::from(detail & 15)) {
                    let _ = tokio::time::timeout(Duration::from_millis(1), channel.recv()).await;
                }
            }
            14 => _ = self.offered.lock().unwrap().pop_front(),
            _ => tokio::time::sleep(Duration::from_millis(u64::from(detail) * 30)).await,
        }
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        Some(())
    }

    /// Sends what the foe says, as far as there is somebody to read it.
    async fn send(&mut self, message: &[u8]) -> Option<()> {
        let sent = tokio::time::timeout(PATIENCE, self.foe.send(message)).await;
        sent.ok()?.ok()
    }

    /// The foe leaves: the connection ends, and so does everything on it.
    async fn finish(self) {
        let Self { mux, mut foe, mut replies, channels, offered } = self;
        let reading = async { while let Ok(Some(_)) = replies.recv().await {} };
        let ending = async {
            let _ = foe.shutdown().await;
            // A channel that nobody reads keeps the connection from being read.
            let reads = channels.iter().map(|channel| async {
                while channel.recv().await.is_some() {}
                assert!(channel.is_closed() && channel.opened().await.is_err());
            });
            for read in reads {
                if tokio::time::timeout(PATIENCE, read).await.is_err() {
                    mux.close();
                }
            }
            mux.close();
            mux.closed().await;
            mux.finished().await;
        };
        let all = async { tokio::join!(reading, ending) };
        let ended = tokio::time::timeout(20 * PATIENCE, all).await;
        assert!(ended.is_ok(), "the connection never ended");
        drop(offered);
    }
}

/// A control message or a channel's message, right in most things.
fn control(step: u8, detail: u8, program: &mut &[u8]) -> Option<Vec<u8>> {
    let mut writer = Writer::new();
    let id = u64::from(detail & 7);
    match step & 15 {
        1..=3 => {
            let name = ["a", "b", "c", "other"][usize::from(detail >> 3 & 3)];
            let length = usize::from(byte(program)? & 15);
            writer.uint(0).uint(1).uint(id).string(name).buffer(&[detail >> 6]);
            writer.raw(&bytes(program, length));
        }
        4 => _ = writer.uint(0).uint(2).uint(id),
        5 => _ = writer.uint(0).uint(3).uint(id),
        _ => {
            let length = usize::from(byte(program)?);
            writer.uint(id).uint(u64::from(detail >> 3)).raw(&bytes(program, length));
        }
    }
    Some(writer.into_vec())
}
