//! Manifests of the configuration folder.

#![no_main]

use tulle_k8s::{document::documents, object::read};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    documents(&text)
        .iter()
        .flatten()
        .for_each(|node| drop(read(node)));
});
