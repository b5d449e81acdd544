//! What goes through a tunnel: heads, bytes, FIN, RST, credit.

use super::*;

#[tokio::test]
async fn request_and_response_heads_arrive() {
    let mut pair = Pair::new().await;
    let mut request = ConnectRequest::new("10.0.0.1:80");
    request.baggage = Baggage::parse("service.name=web");
    let expect = request.clone();
    let response = ConnectResponse {
        baggage: Baggage::parse("service.name=reviews"),
    };
    let answer = response.clone();
    let (opened, _stream) = tokio::join!(pair.client.open(&request), async {
        let incoming = pair.incoming.recv().await.unwrap();
        assert_eq!(incoming.request(), Ok(&expect));
        incoming.accept(&answer).unwrap()
    });
    assert_eq!(opened.unwrap().1, response);
}

#[tokio::test]
async fn either_side_may_finish_first() {
    let mut pair = Pair::new().await;
    for client_first in [true, false] {
        let (client, server) = pair.tunnel().await;
        let (mut first, mut second) = if client_first {
            (client, server)
        } else {
            (server, client)
        };
        first.write_all(b"question").await.unwrap();
        first.shutdown().await.unwrap();
        assert_eq!(read_all(&mut second).await, b"question");
        second.write_all(b"answer").await.unwrap();
        second.shutdown().await.unwrap();
        assert_eq!(read_all(&mut first).await, b"answer");
    }
}

#[tokio::test]
async fn a_reset_is_seen_by_reader_and_writer() {
    let mut pair = Pair::new().await;
    for client_resets in [true, false] {
        let (client, server) = pair.tunnel().await;
        let (resetting, other) = if client_resets {
            (client, server)
        } else {
            (server, client)
        };
        let (mut reader, mut writer) = other.split();
        resetting.reset(ResetCode::Connect);
        let expect = StreamError::Reset(ResetCode::Connect);
        assert_eq!(reader.read_chunk().await, Some(Err(expect.clone())));
        assert_eq!(std::future::poll_fn(|cx| writer.poll_reset(cx)).await, expect);
        assert_eq!(writer.write_chunk(Bytes::from_static(b"x")).await, Err(expect));
    }
}

#[tokio::test]
async fn a_dropped_tunnel_is_reset_not_finished() {
    let mut pair = Pair::new().await;
    let (client, server) = pair.tunnel().await;
    drop(client);
    let (mut reader, _writer) = server.split();
    assert_eq!(
        reader.read_chunk().await,
        Some(Err(StreamError::Reset(ResetCode::Cancel)))
    );
}

#[tokio::test]
async fn a_window_that_is_not_given_back_stops_the_sender_there() {
    let settings = Settings {
        stream_window: 100_000,
        ..server_settings()
    };
    let mut pair = Pair::with(client_settings(), settings).await;
    let (client, server) = pair.tunnel().await;
    let (_reader, mut writer) = client.split();
    let (mut reader, _writer) = server.split();
    let sending = tasks::spawn("sender", async move {
        writer.write_chunk(vec![7; 300_000].into()).await.unwrap();
        writer
    });
    let mut received = 0;
    while received < 100_000 {
        received += reader.read_chunk().await.unwrap().unwrap().len();
    }
    assert_eq!(received, 100_000);
    tokio::task::yield_now().await;
    assert!(
        !sending.is_finished(),
        "nothing was released, so no more may come"
    );
    reader.release(received);
    while received < 300_000 {
        let length = reader.read_chunk().await.unwrap().unwrap().len();
        reader.release(length);
        received += length;
    }
    sending.await.unwrap();
}
