//! The kept corpus of the fuzzers holds on stable Rust, too.

#[path = "../../fuzz/replay.rs"]
mod replay;

use replay::replay;
use tulle_agent::fuzz;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus");

#[test]
fn what_runtimes_and_plugins_say_is_read_as_before() {
    replay(format!("{CORPUS}/cni"), fuzz::cni);
}
