//! The kept corpus of the fuzzers holds on stable Rust, too.

#[path = "../../../fuzz/replay.rs"]
mod replay;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus");

#[test]
fn revocation_lists_keep_their_properties() {
    replay::replay(format!("{CORPUS}/crl"), tulle_identity::trust::crl::fuzz);
}

#[test]
fn held_keys_are_read_as_they_were_written() {
    replay::replay(format!("{CORPUS}/held_keys"), tulle_identity::ca::fuzz_held);
}
