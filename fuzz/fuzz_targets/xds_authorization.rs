//! Policies from the control plane, and the stub that stands in for an unusable one.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_proto::fuzz::xds_authorization(data));
