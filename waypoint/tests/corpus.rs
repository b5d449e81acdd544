//! The kept corpus of the fuzzers holds on stable Rust, too.

#[path = "../../fuzz/replay.rs"]
mod replay;

use replay::replay;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus");

#[test]
fn tokens_are_read_as_before() {
    replay(format!("{CORPUS}/jwt"), tulle_waypoint::policy::jwt::token::fuzz);
}
