//! Round trips of single UDP packets, to see what a transfer beside them does to a link.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::UdpSocket;

use super::{Outcome, text};

/// Between two packets.
const EVERY: Duration = Duration::from_millis(50);
/// A packet without an answer for so long is lost.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answers every packet at `host`; gives the address.
pub async fn echo(argument: &Value) -> Outcome {
    let socket = UdpSocket::bind((text(argument, "host")?, 0)).await?;
    let address = socket.local_addr()?.to_string();
    tokio::spawn(async move {
        let mut packet = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut packet).await {
            let _ = socket.send_to(&packet[..length], from).await;
        }
    });
    Ok(json!(address))
}

/// Round trips to `to` for `seconds`: the median and the 95th percentile, in milliseconds.
pub async fn ping(argument: &Value) -> Outcome {
    let socket = UdpSocket::bind((text(argument, "host")?, 0)).await?;
    socket.connect(text(argument, "to")?).await?;
    let time = Duration::from_secs_f64(argument["seconds"].as_f64().ok_or("seconds is missing")?);
    let (start, mut times, mut number) = (Instant::now(), Vec::new(), 0u64);
    while start.elapsed() < time {
        number += 1;
        let sent = Instant::now();
        socket.send(&number.to_le_bytes()).await?;
        let answered = tokio::time::timeout(PATIENCE, async {
            let mut packet = [0; 64];
            loop {
                let length = socket.recv(&mut packet).await?;
                // Answers that came too late are of other packets.
                if packet[..length] == number.to_le_bytes() {
                    return std::io::Result::Ok(());
                }
            }
        });
        if let Ok(outcome) = answered.await {
            outcome?;
            times.push(sent.elapsed().as_secs_f64() * 1000.0);
        }
        tokio::time::sleep(EVERY).await;
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times.get((times.len() as f64 * share) as usize);
    Ok(json!({ "median": at(0.5), "high": at(0.95), "count": times.len() }))
}
