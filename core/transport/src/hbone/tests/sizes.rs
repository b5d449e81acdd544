//! What each connection and stream keeps while it is idle. A bound that is passed is a decision, not an accident.

use super::*;
use crate::copy::{Transfer, bidirectional};
use crate::hbone::liveness::{Slot, Vitals};
use crate::hbone::watched::Watched;

#[track_caller]
fn at_most(what: &str, bytes: usize, most: usize) {
    assert!(bytes <= most, "{what}: {bytes} bytes, allowed {most}");
}

#[tokio::test]
async fn an_idle_copy_is_small() {
    let mut pair = Pair::new().await;
    let (stream, _far) = pair.tunnel().await;
    let ((local, _application), transfer) = (sockets().await, Transfer::new());
    let copy = bidirectional(local, stream, &transfer);
    at_most("a copy", size_of_val(&copy), 1024);
    at_most("its count", size_of::<Transfer>(), 128);
}

#[tokio::test]
async fn opening_a_stream_is_small() {
    let pair = Pair::new().await;
    let request = ConnectRequest::new("10.0.0.1:80");
    at_most("a request", size_of::<ConnectRequest>(), 512);
    at_most("an open", size_of_val(&pair.client.open(&request)), 2048);
    at_most("a stream", size_of::<HboneStream>(), 128);
    at_most("an incoming", size_of::<Incoming>(), 1024);
}

#[test]
fn a_tunnel_connection_is_small() {
    at_most("vitals", size_of::<Vitals>(), 1024);
    at_most("a slot", size_of::<Slot>(), 32);
    at_most("a watch", size_of::<Watched<()>>(), 128);
    at_most("a server connection", size_of::<ServerConnection>(), 2048);
    at_most("a client handle", size_of::<ClientConnection>(), 8);
}

#[tokio::test]
async fn a_handshake_is_small() {
    let (near, far) = sockets().await;
    let (web, reviews) = (certificate(&id("web")), certificate(&id("reviews")));
    let client = client::connect(near, web.client_config(&[id("reviews")]), &CLIENT);
    let server = server::accept(far, reviews.server_config(), &SERVER);
    at_most("connecting", size_of_val(&client), 8192);
    at_most("accepting", size_of_val(&server), 8192);
}
