//! Rules and the requests that may take them: a rule's path, a line end, a target.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_model::fuzz::route_select(data));
