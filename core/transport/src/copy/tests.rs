//! Copies between real sockets over a tunnel: what one application does, the other sees.
//!
//! ```text
//!   client ── TCP ── copy ── tunnel ── copy ── TCP ── server
//! ```

use std::net::Ipv4Addr;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tulle_runtime::tasks;

use super::*;
use crate::hbone::tests::Pair;
use crate::hbone::{ConnectRequest, ConnectResponse, HboneWriter, Settings};
use crate::socket::set_rst;

/// Two connected sockets.
async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (near, far) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (near.unwrap(), far.unwrap().0)
}

/// Two applications with a tunnel, or a plain relay, between them.
struct Path {
    client: TcpStream,
    server: TcpStream,
    outbound: Arc<Transfer>,
    inbound: Arc<Transfer>,
    copies: Vec<JoinHandle<CopyResult>>,
    _pair: Option<Pair>,
}

fn copy(local: TcpStream, remote: impl Into<Endpoint>, transfer: &Arc<Transfer>) -> JoinHandle<CopyResult> {
    let (remote, transfer) = (remote.into(), Arc::clone(transfer));
    tasks::spawn(
        "copy",
        async move { bidirectional(local, remote, &transfer).await },
    )
}

async fn tunnelled() -> Path {
    let mut pair = Pair::new().await;
    let (near, far) = pair.tunnel().await;
    let ((client, captured), (server, delivered)) = (sockets().await, sockets().await);
    let (outbound, inbound) = (Transfer::new(), Transfer::new());
    let copies = vec![copy(captured, near, &outbound), copy(delivered, far, &inbound)];
    Path {
        client,
        server,
        outbound,
        inbound,
        copies,
        _pair: Some(pair),
    }
}

async fn plain() -> Path {
    let ((client, captured), (server, delivered)) = (sockets().await, sockets().await);
    let (outbound, inbound) = (Transfer::new(), Transfer::new());
    let copies = vec![copy(captured, delivered, &outbound)];
    Path {
        client,
        server,
        outbound,
        inbound,
        copies,
        _pair: None,
    }
}

async fn both() -> [Path; 2] {
    [tunnelled().await, plain().await]
}

async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn either_application_may_finish_first() {
    for client_first in [true, false] {
        for path in both().await {
            let (mut first, mut second) = if client_first {
                (path.client, path.server)
            } else {
                (path.server, path.client)
            };
            first.write_all(b"question").await.unwrap();
            first.shutdown().await.unwrap();
            assert_eq!(read_all(&mut second).await, b"question");
            second.write_all(b"answer").await.unwrap();
            drop(second);
            assert_eq!(read_all(&mut first).await, b"answer");
            for copy in path.copies {
                assert_eq!(copy.await.unwrap().error, None);
            }
        }
    }
}

#[tokio::test]
async fn bytes_are_counted_as_the_local_application_sees_them() {
    let path = tunnelled().await;
    let (mut client, mut server) = (path.client, path.server);
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    read_all(&mut server).await;
    server.write_all(b"an answer").await.unwrap();
    drop(server);
    read_all(&mut client).await;
    let expect = [(8, 9), (9, 8)];
    for (copy, (sent, received)) in path.copies.into_iter().zip(expect) {
        assert_eq!(
            copy.await.unwrap(),
            CopyResult {
                sent,
                received,
                error: None
            }
        );
    }
    assert_eq!((path.outbound.sent(), path.inbound.sent()), (8, 9));
}

#[tokio::test]
async fn a_reset_of_either_application_reaches_the_other_as_reset() {
    for client_resets in [true, false] {
        for path in both().await {
            let (resetting, mut other) = if client_resets {
                (path.client, path.server)
            } else {
                (path.server, path.client)
            };
            set_rst(&resetting).unwrap();
            drop(resetting);
            let error = other.read(&mut [0; 16]).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            for copy in path.copies {
                assert!(copy.await.unwrap().error.is_some());
            }
        }
    }
}

#[tokio::test]
async fn a_reset_after_fin_reaches_the_other_as_reset() {
    for client_resets in [true, false] {
        for path in both().await {
            let (mut resetting, mut other) = if client_resets {
                (path.client, path.server)
            } else {
                (path.server, path.client)
            };
            resetting.shutdown().await.unwrap();
            assert_eq!(other.read(&mut [0; 16]).await.unwrap(), 0, "the FIN first");
            set_rst(&resetting).unwrap();
            drop(resetting);
            for copy in path.copies {
                assert!(copy.await.unwrap().error.is_some());
            }
            while other.write(b"?").await.is_ok() {}
        }
    }
}

#[tokio::test]
async fn a_socket_reset_is_connect_error_on_the_wire() {
    let mut pair = Pair::new().await;
    let (near, far) = pair.tunnel().await;
    let (client, captured) = sockets().await;
    let _copy = copy(captured, near, &Transfer::new());
    set_rst(&client).unwrap();
    drop(client);
    let (mut reader, _writer) = far.split();
    assert_eq!(
        reader.read_chunk().await,
        Some(Err(StreamError::Reset(ResetCode::Connect)))
    );
}

#[tokio::test]
async fn no_error_after_end_stream_is_a_plain_close() {
    let mut pair = Pair::new().await;
    let (near, far) = pair.tunnel().await;
    let (mut client, captured) = sockets().await;
    let copy = copy(captured, near, &Transfer::new());
    let (_reader, mut writer) = far.split();
    writer.write_chunk(b"all there is".to_vec().into()).await.unwrap();
    writer.finish().unwrap();
    assert_eq!(read_all(&mut client).await, b"all there is");
    writer.reset(ResetCode::NoError);
    assert_eq!(copy.await.unwrap().error, None);
}

#[tokio::test]
async fn an_abort_resets_both_sides_and_says_why() {
    for path in both().await {
        let (mut client, mut server) = (path.client, path.server);
        client.write_all(b"x").await.unwrap();
        server.read_exact(&mut [0]).await.unwrap();
        path.outbound.abort(Reason::PolicyChanged);
        path.outbound.abort(Reason::PeerDrained);
        let mut copies = path.copies.into_iter();
        let first = copies.next().unwrap().await.unwrap();
        assert_eq!(
            first.error,
            Some(CopyError::Aborted(Reason::PolicyChanged)),
            "the first reason stays"
        );
        assert!(client.read(&mut [0; 16]).await.is_err());
        assert!(server.read(&mut [0; 16]).await.is_err());
    }
}

#[tokio::test]
async fn an_abort_before_the_copy_counts() {
    let ((_client, captured), (_server, delivered)) = (sockets().await, sockets().await);
    let transfer = Transfer::new();
    transfer.abort(Reason::PolicyChanged);
    let result = bidirectional(captured, delivered, &transfer).await;
    assert_eq!(result.error, Some(CopyError::Aborted(Reason::PolicyChanged)));
}

#[tokio::test]
async fn a_cancelled_copy_resets_both_sides() {
    for path in both().await {
        let (mut client, mut server) = (path.client, path.server);
        client.write_all(b"x").await.unwrap();
        server.read_exact(&mut [0]).await.unwrap();
        path.copies[0].abort();
        assert!(client.read(&mut [0; 16]).await.is_err());
        assert!(server.read(&mut [0; 16]).await.is_err());
    }
}

#[tokio::test]
async fn a_lost_tunnel_is_a_reset_for_the_application() {
    let mut pair = Pair::new().await;
    let (near, _far) = pair.tunnel().await;
    let (mut client, captured) = sockets().await;
    let copy = copy(captured, near, &Transfer::new());
    pair.server.close();
    assert!(client.read(&mut [0; 16]).await.is_err());
    assert!(matches!(copy.await.unwrap().error, Some(CopyError::Tunnel(_))));
}

/// Pseudo-random bytes, so that lost or swapped chunks change the sum.
fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

async fn exchange(stream: TcpStream, send: Vec<u8>) -> Vec<u8> {
    let (mut read, mut write) = stream.into_split();
    let sending = tasks::spawn("sender", async move {
        write.write_all(&send).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut received = Vec::new();
    read.read_to_end(&mut received).await.unwrap();
    sending.await.unwrap();
    received
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_mebibytes_arrive_unchanged_both_ways() {
    const LENGTH: usize = 64 * 1024 * 1024;
    for path in both().await {
        let (up, down) = (pattern(LENGTH, 1), pattern(LENGTH, 2));
        let (at_client, at_server) = tokio::join!(
            exchange(path.client, up.clone()),
            exchange(path.server, down.clone())
        );
        assert!(at_server == up && at_client == down);
        for copy in path.copies {
            let result = copy.await.unwrap();
            assert_eq!(
                (result.sent, result.received, result.error),
                (LENGTH as u64, LENGTH as u64, None)
            );
        }
    }
}

/// More than the kernel takes for an application that does not read.
const STALLING: usize = 1024 * 1024;

/// R114: applications that do not read keep their tunnels, and their neighbours', however small the frames.
#[tokio::test]
async fn stalled_readers_with_small_frames_do_not_kill_neighbours() {
    let mut pair = Pair::new().await;
    let mut stalled: Vec<(HboneWriter, TcpStream, JoinHandle<CopyResult>)> = Vec::new();
    for _ in 0..10 {
        let (near, far) = pair.tunnel().await;
        let (application, delivered) = sockets().await;
        SockRef::from(&delivered).set_send_buffer_size(64 * 1024).unwrap();
        SockRef::from(&application)
            .set_recv_buffer_size(64 * 1024)
            .unwrap();
        let copy = copy(delivered, far, &Transfer::new());
        let (_, mut writer) = near.split();
        // Fills the kernel's buffers, then stalls.
        writer.write_chunk(vec![0; STALLING].into()).await.unwrap();
        stalled.push((writer, application, copy));
    }
    // All of them unread inside HTTP/2 would cost the connection more than its budget.
    for _ in 0..100 {
        for (writer, _, _) in &mut stalled {
            for _ in 0..100 {
                writer.write_chunk(b"x".to_vec().into()).await.unwrap();
            }
        }
        tokio::task::yield_now().await;
    }
    let (near, far) = pair.tunnel().await;
    let (mut client, captured) = sockets().await;
    let (mut server, delivered) = sockets().await;
    let _copies = (
        copy(captured, near, &Transfer::new()),
        copy(delivered, far, &Transfer::new()),
    );
    client.write_all(b"neighbour").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut server).await, b"neighbour");
    for (mut writer, mut application, _copy) in stalled {
        writer.finish().unwrap();
        assert_eq!(read_all(&mut application).await.len(), STALLING + 10_000);
    }
}

/// A slow reader's bytes wait in its own window; they must not use up that of the whole connection.
#[tokio::test]
async fn stalled_bulk_readers_do_not_starve_neighbours() {
    let settings = Settings {
        stream_window: 256 * 1024,
        connection_window: 1024 * 1024,
        ..Settings::server()
    };
    let mut pair = Pair::with(Settings::client(), settings).await;
    let mut stalled = Vec::new();
    for _ in 0..16 {
        let (near, far) = pair.tunnel().await;
        let (application, delivered) = sockets().await;
        let copy = copy(delivered, far, &Transfer::new());
        let (reader, mut writer) = near.split();
        let sending = tasks::spawn("sender", async move {
            let _ = writer.write_chunk(vec![0; 16 * 1024 * 1024].into()).await;
        });
        stalled.push((application, copy, reader, sending));
    }
    let request = ConnectRequest::new("10.0.0.1:80");
    let (opened, accepted) = tokio::join!(pair.client.open(&request), async {
        pair.incoming
            .recv()
            .await
            .unwrap()
            .accept(&ConnectResponse::default())
            .unwrap()
    });
    let (mut client, captured) = sockets().await;
    let (mut server, delivered) = sockets().await;
    let _copies = (
        copy(captured, opened.unwrap().0, &Transfer::new()),
        copy(delivered, accepted, &Transfer::new()),
    );
    let question = vec![1; 512 * 1024];
    client.write_all(&question).await.unwrap();
    client.shutdown().await.unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(20), read_all(&mut server)).await;
    assert_eq!(answer.expect("the neighbour is served").len(), question.len());
}

/// What both proxies hold of one stream is bounded by its window: bytes the first has taken from its application, less
/// those the second has given to its own.
#[tokio::test]
async fn a_stalled_reader_is_sent_no_more_than_the_window() {
    const WINDOW: u32 = 100_000;
    let settings = Settings {
        stream_window: WINDOW,
        ..Settings::server()
    };
    let mut pair = Pair::with(Settings::client(), settings).await;
    let (near, far) = pair.tunnel().await;
    let ((mut client, captured), (_server, delivered)) = (sockets().await, sockets().await);
    let (outbound, inbound) = (Transfer::new(), Transfer::new());
    let _copies = [copy(captured, near, &outbound), copy(delivered, far, &inbound)];
    let held = || outbound.sent() - inbound.received();
    let chunk = vec![7; 64 * 1024];
    let fill = async {
        loop {
            client.write_all(&chunk).await.unwrap();
            assert!(held() <= u64::from(WINDOW));
        }
    };
    // What was taken is told to the sender by half a window, so it comes to rest somewhere above that.
    let stalled = async {
        let (mut sent, mut looks) = (0, 0);
        while looks < 1000 {
            tokio::task::yield_now().await;
            let rests = held() >= u64::from(WINDOW / 2) && outbound.sent() == sent;
            looks = if rests { looks + 1 } else { 0 };
            sent = outbound.sent();
        }
    };
    tokio::select! {
        () = fill => {}
        () = stalled => {}
    }
    for _ in 0..1000 {
        tokio::task::yield_now().await;
        assert!(held() <= u64::from(WINDOW));
    }
}

/// Of all connections of this process, those that are idle hold no buffer.
#[tokio::test]
async fn f31_an_idle_connection_holds_no_buffer() {
    for mut path in both().await {
        let (sent, mut received) = (pattern(300_000, 3), vec![0; 300_000]);
        let (written, read) = tokio::join!(
            path.client.write_all(&sent),
            path.server.read_exact(&mut received)
        );
        written.unwrap();
        read.unwrap();
        // Other tests run beside this one, and their buffers come back too.
        while buffer_bytes() > 0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn keepalive_tightens_on_a_connection_that_stays_half_closed() {
    let (mut client, captured) = sockets().await;
    let (server, delivered) = sockets().await;
    let probe = SockRef::from(&delivered).try_clone().unwrap();
    let _copy = copy(captured, delivered, &Transfer::new());
    client.shutdown().await.unwrap();
    while !probe.keepalive().unwrap() {
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(probe.tcp_keepalive_time().unwrap(), Duration::from_secs(30));
    assert_eq!(probe.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
    assert_eq!(probe.tcp_keepalive_retries().unwrap(), 3);
    let found_after = HALF_CLOSED_GRACE + Keepalive::HALF_CLOSED.span();
    assert!(found_after <= Duration::from_secs(120), "{found_after:?}");
    drop(server);
}
