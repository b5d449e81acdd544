//! The kept corpus of the fuzzers holds on stable Rust, too.

#[path = "../../fuzz/replay.rs"]
mod replay;

use replay::replay;
use tulle_waypoint::fuzz;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus");

#[test]
fn headers_of_clients_and_endpoints_keep_their_properties() {
    replay(format!("{CORPUS}/b3"), fuzz::b3);
    replay(format!("{CORPUS}/retry_after"), fuzz::retry_after);
    replay(format!("{CORPUS}/grpc_timeout"), fuzz::grpc_timeout);
    replay(format!("{CORPUS}/cookie"), fuzz::cookie);
}

#[test]
fn streams_of_messages_keep_their_properties() {
    replay(format!("{CORPUS}/grpc_messages"), fuzz::grpc_messages);
}

#[test]
fn tokens_are_read_as_before() {
    replay(format!("{CORPUS}/jwt"), tulle_waypoint::policy::jwt::token::fuzz);
}

#[test]
fn first_bytes_keep_their_properties() {
    replay(format!("{CORPUS}/client_hello"), fuzz::client_hello);
    replay(format!("{CORPUS}/first_bytes"), fuzz::first_bytes);
    replay(format!("{CORPUS}/request_heads"), fuzz::request_heads);
}
