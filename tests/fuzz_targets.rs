//! The fuzz targets as ordinary tests: the inputs kept in `fuzz/corpus`, and random ones from a seed.
//!
//! `npm run fuzz` runs the same functions under a fuzzer (`fuzz/README.md`). A new target gets one line
//! in `targets!`.

#![allow(clippy::unwrap_used)] // a failing unwrap is a failing test

use std::path::Path;

#[path = "simulation/dice.rs"]
#[allow(dead_code)] // the simulator throws them in more ways
mod dice;
#[path = "../fuzz/targets/program.rs"]
mod program;
#[path = "../fuzz/targets/session.rs"]
mod session;

/// Random inputs a target; `FUZZ_INPUTS` says otherwise.
const INPUTS: u64 = 2000;
/// Bytes of the longest random input.
const LONGEST: u64 = 1024;

/// A test for each target: it takes every input.
macro_rules! targets {
    ($($name:ident: $path:literal),* $(,)?) => {$(
        #[path = $path]
        mod $name;

        #[test]
        fn $name() {
            take_inputs(stringify!($name), $name::run);
        }
    )*};
}

targets! {
    dht_messages: "../fuzz/targets/dht_messages.rs",
    dht_node: "../fuzz/targets/dht_node.rs",
    hypercore: "../fuzz/targets/hypercore.rs",
    names: "../fuzz/targets/names.rs",
    protomux: "../fuzz/targets/protomux.rs",
    replicator: "../fuzz/targets/replicator.rs",
    secret_stream: "../fuzz/targets/secret_stream.rs",
    udx_packet: "../fuzz/targets/udx_packet.rs",
    udx_stream: "../fuzz/targets/udx_stream.rs",
}

fn take_inputs(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    for entry in std::fs::read_dir(corpus).into_iter().flatten() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        run(&std::fs::read(path).unwrap());
    }
    let inputs = std::env::var("FUZZ_INPUTS").ok().and_then(|text| text.parse().ok());
    for seed in 0..inputs.unwrap_or(INPUTS) {
        let mut dice = dice::Dice::new(seed);
        let length = dice.below(LONGEST);
        let input: Vec<u8> = (0..length).map(|_| dice.next() as u8).collect();
        let result = std::panic::catch_unwind(|| run(&input));
        assert!(result.is_ok(), "{target} failed on random input {seed}: {input:?}");
    }
}
