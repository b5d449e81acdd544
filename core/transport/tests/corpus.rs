//! The kept corpus of the fuzzers holds on stable Rust, too.

#[path = "../../../fuzz/replay.rs"]
mod replay;

use replay::replay;
use tulle_transport::fuzz;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus");

#[test]
fn headers_keep_their_properties() {
    replay(format!("{CORPUS}/baggage"), fuzz::baggage);
    replay(format!("{CORPUS}/forwarded"), fuzz::forwarded);
    replay(format!("{CORPUS}/reason_header"), fuzz::reason_header);
    replay(format!("{CORPUS}/traceparent"), fuzz::traceparent);
    replay(format!("{CORPUS}/connect_headers"), fuzz::connect_headers);
}

#[test]
fn socks5_requests_keep_their_properties() {
    replay(format!("{CORPUS}/socks5"), fuzz::socks5);
}

#[test]
fn proxy_protocol_headers_keep_their_properties() {
    replay(format!("{CORPUS}/proxy_protocol"), fuzz::proxy_protocol);
}

#[test]
fn tunnels_keep_their_properties() {
    replay(format!("{CORPUS}/tunnel_frames"), fuzz::tunnel_frames);
    replay(format!("{CORPUS}/tunnel_heads"), fuzz::tunnel_heads);
}

#[test]
fn records_keep_their_properties() {
    replay(format!("{CORPUS}/records"), fuzz::records);
}
