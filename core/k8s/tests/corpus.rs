//! The kept corpus of the fuzzers holds on stable Rust, too.

#[path = "../../../fuzz/replay.rs"]
mod replay;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus");

#[test]
fn manifests_are_read_as_before() {
    replay::replay(format!("{CORPUS}/config"), tulle_k8s::fuzz::config);
}
