//! Templates of paths as policies write them, and the lenient form of a path.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_model::fuzz::path_template(data));
