//! Entry points of the fuzzers: what must hold for any input.

use crate::cni::call::{self, Configuration};
use crate::cni::protocol::{Reply, Request};
use crate::locate::cri;

/// What a container runtime or a plugin says: it is read or refused, the result of the plugins before is passed on as
/// it came, and what is read of our own protocol can be written and read again.
pub fn cni(input: &[u8]) {
    if let Ok(config) = Configuration::parse(input) {
        let _ = config.addresses();
        if let Some(before) = &config.prev_result {
            let bytes = before.get().as_bytes();
            assert!(
                input.windows(bytes.len()).any(|part| part == bytes),
                "passed on unchanged"
            );
        }
    }
    call::fuzz_arguments(&String::from_utf8_lossy(input));
    if let Ok(request) = Request::decode(input) {
        assert_eq!(
            Request::decode(&request.encode()).expect("our own message"),
            request
        );
    }
    if let Ok(reply) = Reply::decode(input) {
        assert_eq!(Reply::decode(&reply.encode()).expect("our own message"), reply);
    }
    if let Some(path) = cri::netns_path(input) {
        assert!(path.is_absolute());
    }
}
