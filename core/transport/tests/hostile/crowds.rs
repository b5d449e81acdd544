//! Many streams on one tunnel: how many there may be, what stalled ones cost, and that neighbours go on.

use std::sync::Arc;

use tulle_transport::Transfer;
use tulle_transport::copy::{bidirectional, buffer_bytes};

use super::*;

/// The 201st stream of a connection is refused, and taken once another has ended.
#[tokio::test]
async fn a_connection_carries_two_hundred_streams_and_no_more() {
    let target = Target::new(Manner::AcceptAndHold).await;
    let mut attacker = target.attacker().await;
    for n in 0..200 {
        attacker.send(&raw::connect(2 * n + 1)).await;
        attacker.next_of(raw::HEADERS).await;
    }
    attacker.send(&raw::connect(401)).await;
    let refused = attacker.next_of(raw::RST_STREAM).await;
    assert_eq!(
        (refused.stream, &refused.payload[..]),
        (401, &7u32.to_be_bytes()[..]),
        "REFUSED_STREAM"
    );
}

/// R114: small frames that wait unread on all streams make nobody go away.
#[tokio::test]
async fn r114_small_unread_frames_on_all_streams_are_no_reason_to_go_away() {
    for manner in [Manner::Hold, Manner::AcceptAndHold] {
        let target = Target::new(manner).await;
        let mut peer = target.attacker().await;
        for n in 0..199 {
            peer.send(&raw::connect(2 * n + 1)).await;
            for _ in 0..20 {
                peer.send(&raw::frame(raw::DATA, 0, 2 * n + 1, b"x")).await;
            }
        }
        // The answer shows that all of it was read, and that the connection lives.
        peer.send(&raw::frame(raw::PING, 0, 0, &[9; 8])).await;
        loop {
            let frame = peer.next().await;
            assert_ne!(frame.kind, raw::GOAWAY);
            if frame.kind == raw::PING && frame.flags == raw::ACK {
                break;
            }
        }
        target.neighbour_is_served().await;
    }
}

/// F13: streams whose readers stand still hold their window and little more, and a neighbour on the same tunnel is
/// not held up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f13_stalled_streams_hold_their_window_and_their_neighbour_goes_on() {
    const STALLED: usize = 190;
    const WINDOW: u32 = 64 * 1024;
    let _alone = ALONE.lock().await;
    let settings = Settings {
        stream_window: WINDOW,
        ..server_settings()
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (near, far) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    let (client, connection) = tokio::join!(client_on(near.unwrap()), server_on(far.unwrap().0, &settings),);
    let mut connection = connection.unwrap();
    let (sender, mut applications) = mpsc::channel(256);
    tasks::spawn("server", async move {
        while let Some(incoming) = connection.accept().await {
            let (socket, application) = sockets().await;
            let stream = incoming.accept(&ConnectResponse::default()).unwrap();
            tasks::spawn("copy", async move {
                bidirectional(socket, stream, &Transfer::new()).await
            });
            sender.send(application).await.unwrap();
        }
    });
    let before = resident();
    let (mut stalled, mut writers) = (Vec::new(), Vec::new());
    for _ in 0..STALLED {
        let (stream, _) = client.open(&ConnectRequest::new("10.0.0.1:80")).await.unwrap();
        stalled.push(applications.recv().await.unwrap());
        let (reader, mut writer) = stream.split();
        // Fills the application's socket and then the window, and stops.
        let filling = async {
            loop {
                writer
                    .write_chunk(bytes::Bytes::from_static(&[7; 8192]))
                    .await
                    .unwrap();
            }
        };
        assert!(timeout(Duration::from_millis(20), filling).await.is_err());
        writers.push((reader, writer));
    }
    // The bytes that this test could not send wait on the sender's side, which is in this process as well: at most
    // one window per stream again.
    grown_at_most(before, STALLED * (64 * 1024 + 2 * WINDOW as usize));
    let (mut stream, _) = client.open(&ConnectRequest::new("10.0.0.1:80")).await.unwrap();
    let mut application = applications.recv().await.unwrap();
    let round_trips = async {
        for _ in 0..100 {
            stream.write_all(b"ping").await.unwrap();
            application.read_exact(&mut [0; 4]).await.unwrap();
            application.write_all(b"pong").await.unwrap();
            stream.read_exact(&mut [0; 4]).await.unwrap();
        }
    };
    timeout(Duration::from_secs(5), round_trips)
        .await
        .expect("the neighbour goes on");
    assert_eq!(client.active(), 191);
    drop(stream);
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (near, far) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (near.unwrap(), far.unwrap().0)
}

/// F13, by count: a stream whose window is full leaves no more than the smallest buffer standing, however much it has moved
/// before. Under the `h2` crate, which is not asked how much room there is, it is the buffer of a whole read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f13_a_stalled_stream_leaves_no_read_standing() {
    if FRAMING == Framing::H2 {
        return;
    }
    const STALLED: usize = 8;
    const WINDOW: u64 = 4 * 1024 * 1024;
    let _alone = ALONE.lock().await;
    let settings = Settings {
        stream_window: u32::try_from(WINDOW).unwrap(),
        ..server_settings()
    };
    let (near, far) = sockets().await;
    let (client, connection) = tokio::join!(client_on(near), server_on(far, &settings));
    let mut connection = connection.unwrap();
    let (sender, mut accepted) = mpsc::channel(STALLED);
    tasks::spawn("server", async move {
        while let Some(incoming) = connection.accept().await {
            let (socket, application) = sockets().await;
            let stream = incoming.accept(&ConnectResponse::default()).unwrap();
            let transfer = Transfer::new();
            sender.send((application, Arc::clone(&transfer))).await.unwrap();
            tasks::spawn(
                "copy",
                async move { bidirectional(socket, stream, &transfer).await },
            );
        }
    });
    let (mut pairs, mut held) = (Vec::new(), Vec::new());
    for _ in 0..STALLED {
        let (stream, _) = client.open(&ConnectRequest::new("10.0.0.1:80")).await.unwrap();
        let (mut flooding, captured) = sockets().await;
        let transfer = Transfer::new();
        let sent = Arc::clone(&transfer);
        tasks::spawn(
            "copy",
            async move { bidirectional(captured, stream, &transfer).await },
        );
        tasks::spawn("flood", async move {
            while flooding.write_all(&[7; 64 * 1024]).await.is_ok() {}
        });
        let (application, received) = accepted.recv().await.unwrap();
        held.push(application);
        pairs.push((sent, received));
    }
    // What was taken is told to the sender by half a window; what waits on the far side was copied, far behind.
    let is_full = |(sent, received): &(Arc<Transfer>, Arc<Transfer>)| {
        sent.sent().saturating_sub(received.received()) >= WINDOW / 2
    };
    let most = STALLED * 1024 + 36 * 1024;
    let settled = async {
        let mut looks = 0;
        while looks < 50 {
            let rests = pairs.iter().all(is_full) && buffer_bytes() <= most;
            looks = if rests { looks + 1 } else { 0 };
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let settled = timeout(PATIENCE, settled).await;
    let full = pairs.iter().filter(|pair| is_full(pair)).count();
    let lent = buffer_bytes() / 1024;
    assert!(
        settled.is_ok(),
        "{full} windows of {STALLED} are full, {lent} KiB are lent"
    );
}
