//! Connections that end on purpose: unused, drained, closed.

use super::*;

#[tokio::test(start_paused = true)]
async fn an_unused_connection_is_released() {
    let mut pair = Pair::new().await;
    drop(pair.tunnel().await);
    let started = Instant::now();
    pair.client.retired().await;
    assert!(
        started.elapsed() >= Duration::from_secs(300),
        "{:?}",
        started.elapsed()
    );
    assert!(
        pair.incoming.recv().await.is_none(),
        "the server saw the connection end"
    );
    let error = pair
        .client
        .open(&ConnectRequest::new("10.0.0.1:80"))
        .await
        .unwrap_err();
    assert_eq!(error.retry(), Retry::FreshConnection);
}

#[tokio::test(start_paused = true)]
async fn a_server_sends_an_unused_connection_away() {
    let client = Settings {
        idle_timeout: Duration::from_secs(100_000),
        ..client_settings()
    };
    let mut pair = Pair::with(client, server_settings()).await;
    drop(pair.tunnel().await);
    let started = Instant::now();
    assert!(pair.incoming.recv().await.is_none());
    assert!(started.elapsed() >= Duration::from_secs(600));
}

#[tokio::test]
async fn the_last_handle_takes_the_connection_with_it() {
    let mut pair = Pair::new().await;
    let (mut client, mut server) = pair.tunnel().await;
    drop(pair.client);
    client.write_all(b"open streams go on").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut server).await, b"open streams go on");
    server.shutdown().await.unwrap();
    read_all(&mut client).await;
    drop((client, server));
    assert!(pair.incoming.recv().await.is_none());
}

#[tokio::test]
async fn a_draining_server_finishes_what_it_took_and_takes_no_more() {
    let mut pair = Pair::new().await;
    let (mut client, mut server) = pair.tunnel().await;
    pair.server.drain();
    // The next stream may race the GOAWAY; the one after it cannot.
    let request = ConnectRequest::new("10.0.0.1:80");
    let mut refused = None;
    while refused.is_none() {
        tokio::select! {
            result = pair.client.open(&request) => refused = result.err(),
            incoming = pair.incoming.recv() => drop(incoming),
        }
    }
    let refused = refused.unwrap();
    assert_eq!(refused.retry(), Retry::FreshConnection, "{refused}");
    client.write_all(b"still served").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut server).await, b"still served");
    server.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await, b"");
    drop((client, server));
    while pair.incoming.recv().await.is_some() {}
}

#[tokio::test(start_paused = true)]
async fn a_server_takes_no_stream_after_a_certificate_has_expired_and_finishes_what_it_took() {
    let mut pair = Pair::new().await;
    let (mut client, mut server) = pair.tunnel().await;
    let (hour, now) = (Duration::from_secs(3600), SystemTime::now());
    // The wall clock stands still, as one that was set back.
    let retired = pair.server.retire_after(now + hour, Clock::from_fn(move || now));
    let retired = tasks::spawn("test lifetime", retired);
    tokio::time::sleep(hour - Duration::from_secs(1)).await;
    let _still = pair.tunnel().await;
    assert!(!pair.client.is_retired());
    retired.await.unwrap();
    pair.client.retired().await;
    client.write_all(b"goes on").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut server).await, b"goes on");
}

#[tokio::test]
async fn a_closed_server_ends_open_streams_at_once() {
    let mut pair = Pair::new().await;
    let (client, _server) = pair.tunnel().await;
    pair.server.close();
    let (mut reader, _writer) = client.split();
    assert!(matches!(reader.read_chunk().await, Some(Err(_))));
    assert!(pair.incoming.recv().await.is_none());
}

#[tokio::test]
async fn a_goaway_stops_new_streams_before_one_is_tried() {
    let mut pair = Pair::new().await;
    let _open = pair.tunnel().await;
    pair.server.drain();
    pair.client.retired().await;
    assert!(matches!(
        pair.client.open(&ConnectRequest::new("10.0.0.1:80")).await,
        Err(OpenError::GoingAway)
    ));
}
