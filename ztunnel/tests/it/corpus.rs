//! The kept corpus of the fuzzers holds on stable Rust, too.

#[path = "../../../fuzz/replay.rs"]
mod replay;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus");

#[test]
fn messages_for_names_keep_their_properties() {
    replay::replay(format!("{CORPUS}/dns"), tulle_ztunnel::dns::wire::fuzz);
}
