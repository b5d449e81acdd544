//! One entry per parser of foreign bytes, for the fuzzers. Each panics when a property does not hold.

use crate::detect::first::{self, First};
use crate::detect::sni::{self, HELLO_BYTES_MAX, Hello};

/// What is understood does not depend on what follows, a name is one that can be matched, and nothing is waited for
/// beyond the bound.
pub fn client_hello(data: &[u8]) {
    let found = sni::read(data);
    if let Hello::Named(name) = &found {
        assert!(!name.is_empty() && name.len() <= 253 && name.is_ascii());
    }
    if found != Hello::More {
        let mut longer = data.to_vec();
        longer.push(0x16);
        if longer.len() <= HELLO_BYTES_MAX {
            assert_eq!(sni::read(&longer), found);
        }
    }
    assert!(data.len() <= HELLO_BYTES_MAX || found != Hello::More);
}

/// What was told from the first bytes stays true when more arrive.
pub fn first_bytes(data: &[u8]) {
    let found = first::look(data);
    if found != First::More {
        let mut longer = data.to_vec();
        longer.push(b'x');
        assert_eq!(first::look(&longer), found);
    }
    assert!(data.len() <= 128 || found != First::More, "it is decided soon");
}
