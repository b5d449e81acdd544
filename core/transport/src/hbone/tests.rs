//! Two peers over an in-memory stream or loopback TLS: what tunnels promise.

use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tulle_identity::testing::{TestCa, certificate};
use tulle_model::{Identity, Reason};
use tulle_runtime::tasks;

use super::*;
use crate::{Baggage, ReasonHeader};

const CLIENT: Settings = Settings::client();
const SERVER: Settings = Settings::server();

/// A client and a server that talk to each other, plain HTTP/2 over memory.
pub(crate) struct Pair {
    pub(crate) client: ClientConnection,
    pub(crate) incoming: mpsc::Receiver<Incoming>,
    pub(crate) server: ServerHandle,
}

impl Pair {
    pub(crate) async fn new() -> Self {
        Self::with(Settings::client(), Settings::server()).await
    }

    pub(crate) async fn with(client: Settings, server: Settings) -> Self {
        let (near, far) = duplex(1024 * 1024);
        Self::over(near, far, client, server).await
    }

    async fn over(near: DuplexStream, far: DuplexStream, client: Settings, server: Settings) -> Self {
        let (client, connection) =
            tokio::join!(client::handshake(near, &client), server::handshake(far, &server));
        let (server, incoming) = serve(connection.unwrap());
        Self {
            client: client.unwrap(),
            incoming,
            server,
        }
    }

    /// An open tunnel, both ends.
    pub(crate) async fn tunnel(&mut self) -> (HboneStream, HboneStream) {
        let request = ConnectRequest::new("10.0.0.1:80");
        let (opened, accepted) = tokio::join!(self.client.open(&request), async {
            let incoming = self.incoming.recv().await.unwrap();
            incoming.accept(&ConnectResponse::default()).unwrap()
        });
        (opened.unwrap().0, accepted)
    }
}

/// Drives a server connection; its streams come out of the channel.
pub(crate) fn serve(mut connection: ServerConnection) -> (ServerHandle, mpsc::Receiver<Incoming>) {
    let handle = connection.handle();
    let (sender, receiver) = mpsc::channel(1024);
    tasks::spawn("test server", async move {
        while let Some(incoming) = connection.accept().await {
            let _ = sender.send(incoming).await;
        }
    });
    (handle, receiver)
}

async fn read_all(stream: &mut HboneStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

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
async fn a_refusal_arrives_with_its_reason() {
    let mut pair = Pair::new().await;
    let request = ConnectRequest::new("10.0.0.1:80");
    let (refused, ()) = tokio::join!(pair.client.open(&request), async {
        let incoming = pair.incoming.recv().await.unwrap();
        let reason = ReasonHeader::new(Reason::PolicyDenied).policy("shop/deny-dev");
        incoming.reject(401, Some(reason));
    });
    let error = refused.unwrap_err();
    assert_eq!(
        (error.reason(), error.retry(), error.blame()),
        (Reason::PolicyDenied, Retry::Never, Blame::Downstream)
    );
    let OpenError::Refused(Refusal {
        status: 401,
        header: Some(header),
    }) = error
    else {
        panic!("{error}")
    };
    assert_eq!(header.policy.as_deref(), Some("shop/deny-dev"));
    assert_eq!(pair.client.active(), 0);
}

#[tokio::test]
async fn a_refusal_may_keep_its_reason_to_itself() {
    let mut pair = Pair::new().await;
    let request = ConnectRequest::new("10.0.0.1:80");
    let (refused, ()) = tokio::join!(pair.client.open(&request), async {
        pair.incoming.recv().await.unwrap().reject(401, None);
    });
    let error = refused.unwrap_err();
    assert_eq!(error.reason(), Reason::PolicyDenied, "as far as its status tells");
    let silent = Refusal {
        status: 401,
        header: None,
    };
    assert!(
        matches!(&error, OpenError::Refused(refusal) if *refusal == silent),
        "{error}"
    );
}

#[tokio::test]
async fn only_a_503_sends_the_caller_to_another_endpoint() {
    let mut pair = Pair::new().await;
    for (status, retry) in [
        (400, Retry::Never),
        (401, Retry::Never),
        (503, Retry::OtherEndpoint),
    ] {
        let request = ConnectRequest::new("10.0.0.1:80");
        let (refused, ()) = tokio::join!(pair.client.open(&request), async {
            pair.incoming
                .recv()
                .await
                .unwrap()
                .reject(status, Some(Reason::ConnectFailed.into()));
        });
        assert_eq!(refused.unwrap_err().retry(), retry, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_with_open_streams_is_lost_within_ten_seconds() {
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
        ..Settings::client()
    };
    let mut pair = Pair::with(client, Settings::server()).await;
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
async fn a_window_that_is_not_given_back_stops_the_sender_there() {
    let settings = Settings {
        stream_window: 100_000,
        ..Settings::server()
    };
    let mut pair = Pair::with(Settings::client(), settings).await;
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

#[tokio::test]
async fn what_is_no_connect_is_told_so() {
    let (near, far) = duplex(1024 * 1024);
    let (server, handshake) = tokio::join!(
        server::handshake(far, &SERVER),
        h2::client::Builder::new().handshake::<_, Bytes>(near),
    );
    let (_handle, mut incoming) = serve(server.unwrap());
    let (mut sender, connection) = handshake.unwrap();
    tasks::spawn("raw client", connection);
    let get = http::Request::get("http://10.0.0.1/").body(()).unwrap();
    let (response, _) = sender.send_request(get, true).unwrap();
    let stream = incoming.recv().await.unwrap();
    let error = stream.request().unwrap_err();
    assert_eq!(error, MalformedConnect::NotConnect);
    stream.reject(400, Some(error.reason().into()));
    let response = response.await.unwrap();
    assert_eq!(response.status(), 400);
    assert_eq!(response.headers()["x-tulle-reason"], "T0419; not_connect");
}

/// R107: a peer that only makes work is sent away.
#[tokio::test]
async fn a_flood_of_settings_ends_the_connection() {
    let (mut near, far) = duplex(1024 * 1024);
    let connection = tokio::join!(server::handshake(far, &SERVER), async {
        near.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        near.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    });
    let (_handle, mut incoming) = serve(connection.0.unwrap());
    let (mut answers, mut floods) = tokio::io::split(near);
    tasks::spawn("reader", async move {
        while answers.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {}
    });
    let flood = async { while floods.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.is_ok() {} };
    tokio::join!(flood, async { assert!(incoming.recv().await.is_none()) });
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

/// R114: neighbours of streams that nobody reads live on, however small the frames.
#[tokio::test]
async fn unread_small_frames_do_not_kill_the_neighbours() {
    let mut pair = Pair::new().await;
    let mut stalled = Vec::new();
    for _ in 0..199 {
        let (client, server) = pair.tunnel().await;
        let (reader, mut writer) = client.split();
        for _ in 0..20 {
            writer.write_chunk(Bytes::from_static(b"x")).await.unwrap();
        }
        stalled.push((reader, writer, server));
    }
    let (mut client, mut server) = pair.tunnel().await;
    client.write_all(b"neighbour").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut server).await, b"neighbour");
}

fn id(name: &str) -> Identity {
    Identity::new("cluster.local", "shop", name)
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (near, far) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (near.unwrap(), far.unwrap().0)
}

#[tokio::test]
async fn both_sides_prove_who_they_are() {
    let (near, far) = sockets().await;
    let (web, reviews) = (certificate(&id("web")), certificate(&id("reviews")));
    let (client, server) = tokio::join!(
        client::connect(near, web.client_config(&[id("reviews")]), &CLIENT),
        server::accept(far, reviews.server_config(), &SERVER),
    );
    let (client, server) = (client.unwrap(), server.unwrap());
    assert_eq!(server.identity, id("web"));
    let (_handle, mut incoming) = serve(server.connection);
    let request = ConnectRequest::new("10.0.0.1:80");
    let (opened, mut accepted) = tokio::join!(client.open(&request), async {
        incoming
            .recv()
            .await
            .unwrap()
            .accept(&ConnectResponse::default())
            .unwrap()
    });
    let mut opened = opened.unwrap().0;
    opened.write_all(b"over TLS").await.unwrap();
    opened.shutdown().await.unwrap();
    assert_eq!(read_all(&mut accepted).await, b"over TLS");
}

#[tokio::test]
async fn another_identity_than_expected_is_final() {
    let (near, far) = sockets().await;
    let (web, reviews) = (certificate(&id("web")), certificate(&id("reviews")));
    let (client, server) = tokio::join!(
        client::connect(near, web.client_config(&[id("ratings")]), &CLIENT),
        server::accept(far, reviews.server_config(), &SERVER),
    );
    let error = client.unwrap_err();
    assert_eq!(
        (error.reason(), error.retry()),
        (Reason::PeerIdentityMismatch, Retry::Never),
        "{error}"
    );
    assert!(server.is_err());
}

#[tokio::test]
async fn a_client_that_the_server_does_not_trust_hears_it_when_it_opens() {
    let (near, far) = sockets().await;
    let reviews = certificate(&id("reviews"));
    let stranger = TestCa::new().certificate(&id("web"));
    // Both roots differ, so either side may be the first to refuse; both say it is TLS.
    let (client, server) = tokio::join!(
        client::connect(near, stranger.client_config(&[id("reviews")]), &CLIENT),
        server::accept(far, reviews.server_config(), &SERVER),
    );
    assert_eq!(client.unwrap_err().reason(), Reason::TlsFailed);
    assert_eq!(server.unwrap_err().reason(), Reason::TlsFailed);
}

#[tokio::test]
async fn a_foreign_trust_domain_is_told_when_it_opens() {
    let (near, far) = sockets().await;
    let foreign = Identity::new("elsewhere.local", "shop", "web");
    let (web, reviews) = (certificate(&foreign), certificate(&id("reviews")));
    let (client, server) = tokio::join!(
        client::connect(near, web.client_config(&[id("reviews")]), &CLIENT),
        server::accept(far, reviews.server_config(), &SERVER),
    );
    assert!(server.is_err());
    // A TLS 1.3 client has finished before the server judged it.
    let error = match client {
        Ok(connection) => connection
            .open(&ConnectRequest::new("10.0.0.1:80"))
            .await
            .unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.reason(), Reason::TlsFailed, "{error}");
}

#[tokio::test]
async fn a_peer_that_speaks_no_http2_is_named() {
    let (near, mut far) = duplex(4096);
    let client = client::handshake(near, &CLIENT).await.unwrap();
    far.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let error = client
        .open(&ConnectRequest::new("10.0.0.1:80"))
        .await
        .unwrap_err();
    assert_eq!(
        (error.reason(), error.retry()),
        (Reason::Http2Failed, Retry::OtherEndpoint),
        "{error}"
    );
}

impl Pair {
    /// A pair whose two sides can be cut apart without either being told.
    async fn blackholed() -> Cut {
        let (near, mut near_end) = duplex(1024 * 1024);
        let (far, mut far_end) = duplex(1024 * 1024);
        let (cut, mut wait) = mpsc::channel::<()>(1);
        tasks::spawn("test link", async move {
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near_end, &mut far_end) => {}
                _ = wait.recv() => {}
            }
            std::future::pending::<()>().await;
            drop((near_end, far_end));
        });
        Cut {
            pair: Self::over(near, far, Settings::client(), Settings::server()).await,
            cut,
        }
    }
}

struct Cut {
    pair: Pair,
    cut: mpsc::Sender<()>,
}

impl Cut {
    fn cut(&self) {
        self.cut.try_send(()).unwrap();
    }
}

impl std::ops::Deref for Cut {
    type Target = Pair;
    fn deref(&self) -> &Pair {
        &self.pair
    }
}

impl std::ops::DerefMut for Cut {
    fn deref_mut(&mut self) -> &mut Pair {
        &mut self.pair
    }
}
