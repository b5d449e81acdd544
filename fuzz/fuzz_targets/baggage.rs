//! Who a peer says it is, for telemetry.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_transport::fuzz::baggage(data));
