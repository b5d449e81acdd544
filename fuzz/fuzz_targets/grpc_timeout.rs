//! What the caller of gRPC gives a call.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_waypoint::fuzz::grpc_timeout(data));
