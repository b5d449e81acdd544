//! The kept corpus of the fuzzers holds on stable Rust, too.

#[path = "../../../fuzz/replay.rs"]
mod replay;

use replay::replay;
use tulle_model::fuzz;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus");

#[test]
fn authorities_are_read_as_before() {
    replay(format!("{CORPUS}/connect_authority"), fuzz::connect_authority);
}

#[test]
fn identities_are_read_as_before() {
    replay(format!("{CORPUS}/spiffe"), fuzz::spiffe);
}

#[test]
fn templates_of_paths_are_read_as_before() {
    replay(format!("{CORPUS}/path_template"), fuzz::path_template);
}

#[test]
fn paths_are_read_as_before() {
    replay(format!("{CORPUS}/request_path"), fuzz::request_path);
}

#[test]
fn hosts_are_read_as_before() {
    replay(format!("{CORPUS}/request_host"), fuzz::request_host);
}

#[test]
fn rules_are_chosen_as_before() {
    replay(format!("{CORPUS}/route_select"), fuzz::route_select);
}
