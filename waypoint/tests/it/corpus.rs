//! The kept corpus of the fuzzers holds on stable Rust, too.

#[path = "../../../fuzz/replay.rs"]
mod replay;

use replay::replay;
use tulle_waypoint::fuzz;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus");

#[test]
fn first_bytes_keep_their_properties() {
    replay(format!("{CORPUS}/client_hello"), fuzz::client_hello);
    replay(format!("{CORPUS}/first_bytes"), fuzz::first_bytes);
}
