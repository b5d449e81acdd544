//! What a container runtime or a CNI plugin says.

#![no_main]

use tulle_agent::fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::cni(data));
