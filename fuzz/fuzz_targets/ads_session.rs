//! Operations on a discovery stream.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_xds::fuzz::ads_session(data));
