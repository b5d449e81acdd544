//! How far clients are behind, as the metrics tell it.

use std::time::Instant;

use super::*;
use crate::metrics::Lag;

#[tokio::test]
async fn the_longest_wait_for_an_answer_is_told_in_milliseconds_and_ends_with_it() {
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    server.set(ResourceType::Address, "a", b"one");
    let mut client = server
        .connect(&token, first("n1", ResourceType::Address))
        .await
        .unwrap();
    let response = client.receive().await.unwrap();
    let some = Duration::from_millis(340);
    until(|| Lag::of(&server.clients, Instant::now() + some).wait >= some).await;
    let now = Instant::now();
    let lag = Lag::of(&server.clients, now);
    let later = Lag::of(&server.clients, now + some);
    assert_eq!((lag.changes, later.wait - lag.wait), (1, some));
    client.answer(&response, None).await;
    until(|| Lag::of(&server.clients, Instant::now()) == Lag::default()).await;
}
