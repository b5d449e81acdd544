//! Silent peers: found when lost, kept when they live.

use super::*;

#[tokio::test(start_paused = true)]
async fn f10_a_silent_peer_with_open_streams_is_lost_within_ten_seconds() {
    let mut pair = Pair::blackholed().await;
    let (client, _server) = pair.tunnel().await;
    let (mut reader, _writer) = client.split();
    pair.cut();
    let started = Instant::now();
    let error = reader.read_chunk().await.unwrap().unwrap_err();
    assert_eq!(error, StreamError::Lost("no answer to PING".into()));
    assert!(
        started.elapsed() <= Duration::from_millis(10_100),
        "{:?}",
        started.elapsed()
    );
    assert!(pair.client.is_retired());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_died_in_silence_is_found_by_the_next_stream() {
    let mut pair = Pair::blackholed().await;
    drop(pair.tunnel().await);
    tokio::time::sleep(Duration::from_secs(60)).await;
    pair.cut();
    let started = Instant::now();
    let error = pair
        .client
        .open(&ConnectRequest::new("10.0.0.1:80"))
        .await
        .unwrap_err();
    assert_eq!(
        (error.reason(), error.retry()),
        (Reason::PeerLost, Retry::FreshConnection)
    );
    assert!(
        started.elapsed() <= Duration::from_millis(5_100),
        "asked at once: {:?}",
        started.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_lost_too() {
    let mut pair = Pair::blackholed().await;
    let (_client, server) = pair.tunnel().await;
    let (mut reader, _writer) = server.split();
    pair.cut();
    let started = Instant::now();
    assert!(matches!(
        reader.read_chunk().await,
        Some(Err(StreamError::Lost(_)))
    ));
    assert!(
        started.elapsed() <= Duration::from_millis(10_100),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_that_lives_is_kept() {
    let mut pair = Pair::new().await;
    let (mut client, mut server) = pair.tunnel().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    client.write_all(b"still there").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut server).await, b"still there");
}

/// A process that was stopped, or starved, goes on: its timers have all passed, and what its peer said is still to be read.
#[tokio::test(start_paused = true)]
async fn f18_a_process_that_stood_still_keeps_the_peers_that_answer() {
    let mut pair = Pair::blackholed().await;
    let (mut client, mut server) = pair.tunnel().await;
    pair.cut();
    // Both sides have asked whether the other lives.
    tokio::time::sleep(Duration::from_secs(6)).await;
    tokio::time::advance(Duration::from_secs(60)).await;
    pair.mend();
    tokio::time::sleep(Duration::from_secs(60)).await;
    client.write_all(b"still there").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut server).await, b"still there");
}
