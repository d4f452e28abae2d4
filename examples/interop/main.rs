//! The Rust side of the interoperability tests: one subcommand a layer, JSON lines in and out.
//!
//! `__test__/interop/*.test.mjs` starts this program and runs npm's implementation against it.

mod books;
mod command;
mod core;
mod dht;
mod differential;
mod parts;
mod replicate;
mod stream;
mod udx;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let outcome = match arguments.next().as_deref() {
        Some("books") => books::run(arguments),
        Some("core") => self::core::run(),
        Some("dht") => dht::run(arguments),
        Some("differential") => differential::run(arguments),
        Some("replicate") => replicate::main(),
        Some("stream") => stream::run(arguments),
        Some("udx") => udx::run(arguments),
        Some(other) => {
            eprintln!("unknown subcommand {other}");
            std::process::exit(2);
        }
        None => {
            eprintln!("usage: interop <layer> [arguments]");
            std::process::exit(2);
        }
    };
    if let Err(error) = outcome {
        eprintln!("{error}");
        std::process::exit(1);
    }
}
