//! Questions for names, and the replies of name servers.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_ztunnel::dns::wire::fuzz(data));
