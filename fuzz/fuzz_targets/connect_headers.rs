//! All headers of a tunnel request together, one a line.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_transport::fuzz::connect_headers(data));
