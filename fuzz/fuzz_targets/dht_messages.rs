#![no_main]

#[path = "../targets/session.rs"]
mod session;
#[path = "../targets/dht_messages.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
