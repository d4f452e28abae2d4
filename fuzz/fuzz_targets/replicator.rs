#![no_main]

#[path = "../targets/program.rs"]
mod program;
#[path = "../targets/session.rs"]
mod session;
#[path = "../targets/replicator.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
