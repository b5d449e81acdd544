//! One entry per parser of foreign text, for the fuzzers and their kept corpus. Each panics when a property does
//! not hold.

use crate::document::{DOCUMENT_BYTES_MAX, documents};
use crate::object::{Reading, read, read_mesh};

/// Manifests: nothing panics, places lie within the text, names are safe to be paths, and what denies in the place of
/// a security object is there whenever such an object is refused.
///
/// # Panics
/// If one of these does not hold.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let lines = text.lines().count() as u64 + 1;
    for node in documents(&text).iter().flatten() {
        assert!(
            node.place.line <= lines,
            "a place beyond the end: {:?}",
            node.place
        );
        for reading in [read(node), read_mesh(node)] {
            check(&reading);
        }
        // What was read is written and read again as the same.
        let written = serde_json::to_string(node).expect("a tree is writable");
        if written.len() <= DOCUMENT_BYTES_MAX {
            let again = documents(&written);
            assert!(again.iter().all(Result::is_ok), "{written}");
        }
    }
}

fn check(reading: &Reading) {
    let key = match reading {
        Reading::Good { key, object, .. } => {
            assert!(!object.is_stand_in());
            key
        }
        Reading::Bad {
            key,
            faults,
            stand_in,
            ..
        } => {
            assert!(!faults.is_empty(), "a refusal without a cause");
            assert!(!key.kind.is_security() || stand_in.is_some(), "{key}");
            key
        }
        Reading::Skipped(_) | Reading::Unknown { .. } => return,
    };
    for part in [&key.namespace, &key.name] {
        let safe =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        assert!(part.bytes().all(safe) && !part.starts_with('.'), "{key}");
    }
}
