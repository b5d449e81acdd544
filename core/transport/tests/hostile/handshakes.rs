//! Peers that begin and do not go on, or begin oddly.

use std::sync::Arc;
use std::time::Instant;

use super::*;

const SLOW: usize = 300;

/// The deadline of these tests; the real one is asserted to be what is promised.
fn hasty() -> Settings {
    assert!(server_settings().handshake_timeout <= Duration::from_secs(10));
    Settings {
        handshake_timeout: Duration::from_millis(500),
        ..server_settings()
    }
}

/// A server with TLS that counts what it holds.
struct TlsTarget {
    address: SocketAddr,
    held: Arc<()>,
    _alone: MutexGuard<'static, ()>,
}

impl TlsTarget {
    async fn new() -> Self {
        let alone = ALONE.lock().await;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let held = Arc::new(());
        let counted = Arc::clone(&held);
        tasks::spawn("target", async move {
            while let Ok((socket, _)) = listener.accept().await {
                let held = Arc::clone(&counted);
                tasks::spawn("target connection", async move {
                    let tls = certificate(&id("reviews")).server_config();
                    if let Ok(mut accepted) = server::accept(socket, tls, &hasty()).await {
                        while let Some(incoming) = accepted.connection.accept().await {
                            tasks::spawn("echo", echo(incoming));
                        }
                    }
                    drop(held);
                });
            }
        });
        Self {
            address,
            held,
            _alone: alone,
        }
    }

    async fn socket(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Serves a good client, and says how long that took.
    async fn good_client(&self) -> Duration {
        let started = Instant::now();
        let tls = certificate(&id("web")).client_config(&[id("reviews")]);
        let connection = client::connect(self.socket().await, tls, &client_settings())
            .await
            .unwrap();
        let (mut stream, _) = connection
            .open(&ConnectRequest::new("10.0.0.1:80"))
            .await
            .unwrap();
        stream.shutdown().await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.unwrap();
        started.elapsed()
    }

    /// All that slow peers held is given back soon after the deadline, and good ones were served meanwhile.
    async fn outlives(&self, slow: Vec<TcpStream>) {
        let started = Instant::now();
        // The listener and the acceptor's task hold one each. On a busy machine the first are sent away before the last
        // have come.
        while Arc::strong_count(&self.held) < 2 + slow.len() / 2
            && started.elapsed() < hasty().handshake_timeout
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(self.good_client().await < Duration::from_secs(3));
        while Arc::strong_count(&self.held) > 2 {
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "{} are held",
                Arc::strong_count(&self.held)
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(slow);
        self.good_client().await;
    }
}

/// F14, before and inside of TLS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f14_who_begins_tls_and_stops_is_sent_away() {
    let target = TlsTarget::new().await;
    let mut slow = Vec::new();
    for n in 0..SLOW {
        let mut socket = target.socket().await;
        // The start of a handshake record of 512 bytes, more or less of it.
        socket
            .write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..n % 11])
            .await
            .unwrap();
        slow.push(socket);
    }
    target.outlives(slow).await;
}

/// F14, in HTTP/2: a preface without end, SETTINGS that do not come, a head that does not end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f14_who_begins_a_preface_or_a_head_and_stops_is_sent_away() {
    let settings = raw::frame(raw::SETTINGS, 0, 0, &[]);
    let head = raw::frame(raw::HEADERS, raw::END_HEADERS, 1, raw::CONNECT);
    let open_head = raw::frame(raw::HEADERS, 0, 1, raw::CONNECT);
    let beginnings = [
        raw::PREFACE[..9].to_vec(),
        raw::PREFACE.to_vec(),
        [raw::PREFACE, &settings, &head[..14]].concat(),
        [raw::PREFACE, &settings, &open_head].concat(),
    ];
    for beginning in beginnings {
        let target = Target::with(Manner::Hold, hasty()).await;
        slow_http2(target, &beginning).await;
    }
}

async fn slow_http2(mut target: Target, beginning: &[u8]) {
    let started = Instant::now();
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        let mut socket = dial(target.address).await;
        socket.write_all(beginning).await.unwrap();
        socket.flush().await.unwrap();
        slow.push(socket);
    }
    target.neighbour_is_served().await;
    // The server drops what is not finished. A preface is bounded by whoever accepts, as `server::accept` does.
    if beginning.len() >= raw::PREFACE.len() {
        for _ in 0..SLOW {
            target.sent_away().await;
        }
        assert!(started.elapsed() < Duration::from_secs(10));
    }
    target.neighbour_is_served().await;
}

/// F14, after TLS: the preface falls under the same deadline as TLS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f14_who_finishes_tls_and_says_nothing_is_sent_away() {
    let target = TlsTarget::new().await;
    let tls = certificate(&id("web")).client_config(&[id("reviews")]);
    let mut stream = tulle_identity::tls::connect(tls, target.socket().await)
        .await
        .unwrap();
    let mut settings = Vec::new();
    let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut settings))
        .await
        .expect("sent away in time");
    target.good_client().await;
}

/// R701: a ClientHello in records of one byte each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r701_a_hello_in_many_records_does_no_harm() {
    let target = TlsTarget::new().await;
    let tls = certificate(&id("web")).client_config(&[id("reviews")]);
    let name = tulle_identity::tls::unnamed_server();
    let mut client = rustls::ClientConnection::new(tls, name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let mut socket = target.socket().await;
    for byte in &hello[5..] {
        socket.write_all(&[22, 3, 1, 0, 1, *byte]).await.unwrap();
    }
    let mut answer = [0; 5];
    // Either is fine: it goes on with the handshake, or ends it.
    let _ = timeout(Duration::from_secs(5), socket.read(&mut answer))
        .await
        .expect("answered or closed");
    target.good_client().await;
}

/// R701: close_notify and garbage inside of a handshake.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r701_a_goodbye_inside_of_a_handshake_does_no_harm() {
    let target = TlsTarget::new().await;
    let close_notify = [21, 3, 3, 0, 2, 1, 0];
    let garbage = [0xff; 64];
    for bytes in [&close_notify[..], &garbage, &[]] {
        let mut socket = target.socket().await;
        socket.write_all(bytes).await.unwrap();
        socket.shutdown().await.unwrap();
        let mut rest = Vec::new();
        let _ = timeout(Duration::from_secs(5), socket.read_to_end(&mut rest))
            .await
            .expect("it is closed");
    }
    target.good_client().await;
}
