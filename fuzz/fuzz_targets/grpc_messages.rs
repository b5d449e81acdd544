//! A stream of gRPC messages.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_waypoint::fuzz::grpc_messages(data));
