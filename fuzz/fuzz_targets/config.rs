//! Manifests of the configuration folder.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_k8s::fuzz::config(data));
