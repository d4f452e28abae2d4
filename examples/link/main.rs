//! A bad network on one machine: joins two network namespaces through two TUN devices and delays,
//! drops, reorders and slows the packets between them. For measurements; needs Linux and root.
//!
//! `link <name> [--delay-ms=N] [--rate-mbit=N] [--queue=N] [--loss=F] [--reorder=F] [--seed=N]`
//!
//! Makes the namespaces `<name>-a` (10.77.0.1) and `<name>-b` (10.77.0.2), prints `{"event":"ready"}`,
//! and removes them when stdin ends. All amounts hold for each direction: the delay is one way, the
//! rate counts whole IP packets, the queue in front of it is in packets.

#[cfg(target_os = "linux")]
mod path;
#[cfg(target_os = "linux")]
mod tun;

#[cfg(target_os = "linux")]
fn main() {
    let outcome = Arguments::parse(std::env::args().skip(1)).and_then(|arguments| run(&arguments));
    if let Err(error) = outcome {
        eprintln!("link: {error}");
        std::process::exit(1);
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("link: only Linux has the namespaces this joins");
    std::process::exit(1);
}

#[cfg(target_os = "linux")]
struct Arguments {
    name: String,
    link: path::Link,
    seed: u64,
}

#[cfg(target_os = "linux")]
type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

#[cfg(target_os = "linux")]
impl Arguments {
    fn parse(words: impl Iterator<Item = String>) -> Outcome<Self> {
        use std::time::Duration;
        let mut arguments = Self { name: String::new(), link: path::Link::default(), seed: 1 };
        let link = &mut arguments.link;
        for word in words {
            match word.split_once('=') {
                None if !word.starts_with('-') => arguments.name = word,
                Some(("--delay-ms", n)) => {
                    link.delay = Duration::from_secs_f64(n.parse::<f64>()? / 1e3)
                }
                Some(("--rate-mbit", n)) => link.rate = Some(n.parse::<f64>()? * 1e6 / 8.0),
                Some(("--queue", n)) => link.queue = n.parse()?,
                Some(("--loss", n)) => link.loss = n.parse()?,
                Some(("--reorder", n)) => link.reorder = n.parse()?,
                Some(("--seed", n)) => arguments.seed = n.parse()?,
                _ => return Err(format!("what is {word}?").into()),
            }
        }
        // Interface names have at most 15 bytes, and this one becomes `<name>-a`.
        if arguments.name.is_empty() || arguments.name.len() > 13 {
            return Err("a name of 1 to 13 characters is needed".into());
        }
        Ok(arguments)
    }
}

#[cfg(target_os = "linux")]
fn run(arguments: &Arguments) -> Outcome {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    let (a, b) = (format!("{}-a", arguments.name), format!("{}-b", arguments.name));
    let left = tun::Tun::in_namespace(&a, "10.77.0.1/24")?;
    let right = tun::Tun::in_namespace(&b, "10.77.0.2/24")?;
    println!("{{\"event\":\"ready\"}}");
    let ended = Arc::new(AtomicBool::new(false));
    std::thread::spawn({
        let ended = Arc::clone(&ended);
        move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            ended.store(true, Ordering::Relaxed);
        }
    });
    let mut paths = [
        path::Path::new(&arguments.link, arguments.seed),
        path::Path::new(&arguments.link, arguments.seed ^ 0x5555),
    ];
    while !ended.load(Ordering::Relaxed) {
        paths[0].carry(&left, &right)?;
        paths[1].carry(&right, &left)?;
        let next = paths.iter().filter_map(path::Path::next_at).min();
        tun::wait([&left, &right], next)?;
    }
    let [there, back] = paths.map(|path| path.counts());
    eprintln!("link {}: {there} from a, {back} from b", arguments.name);
    Ok(())
}
