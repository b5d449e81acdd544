//! Certificate revocation lists.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_identity::trust::crl::fuzz(data));
