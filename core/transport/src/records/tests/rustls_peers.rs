//! The other end is the TLS library, as a client and as a server.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tulle_identity::testing::certificate;
use tulle_identity::tls::{self, Handover};
use tulle_model::Identity;

use super::*;

/// Our end of a connection.
pub(super) struct Ours<S> {
    stream: S,
    pub(super) session: Session,
    waiting: Vec<u8>,
}

impl<S: AsyncReadExt + AsyncWriteExt + Unpin> Ours<S> {
    pub(super) fn new(handover: Handover<S>) -> Self {
        let session = Session::new(&handover.secrets, &handover.traffic, Instant::now()).unwrap();
        Self {
            stream: handover.stream,
            session,
            waiting: handover.received,
        }
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) {
        let records = seal(&mut self.session, &[bytes], ROOM);
        self.stream.write_all(&records).await.unwrap();
    }

    /// Reads until `length` bytes were found, or the connection is over.
    pub(super) async fn read(&mut self, length: usize) -> Vec<u8> {
        let mut found = Vec::new();
        while found.len() < length && self.session.end().is_none() {
            self.step(&mut found).await;
        }
        found
    }

    /// Opens what waits, or reads more.
    pub(super) async fn step(&mut self, found: &mut Vec<u8>) {
        let mut ranges = Vec::new();
        let opened = self
            .session
            .open(&mut self.waiting, Instant::now(), |range| ranges.push(range));
        for range in &ranges {
            found.extend_from_slice(&self.waiting[range.clone()]);
        }
        self.waiting.drain(..opened);
        if opened > 0 || self.session.end().is_some() {
            return;
        }
        match self.stream.read_buf(&mut self.waiting).await {
            Ok(0) => self.session.cut(),
            read => drop(read.unwrap()),
        }
    }
}

pub(super) fn id(name: &str) -> Identity {
    Identity::new("cluster.local", "shop", name)
}

type Theirs = tokio_rustls_stream::Either;

/// Either end of the library, behind one type.
mod tokio_rustls_stream {
    use super::*;

    pub(super) enum Either {
        Client(tls::ClientStream<DuplexStream>),
        Server(tls::AcceptedStream<DuplexStream>),
    }

    impl Either {
        pub(super) async fn write(&mut self, bytes: &[u8]) {
            match self {
                Self::Client(stream) => stream.write_all(bytes).await.unwrap(),
                Self::Server(stream) => stream.write_all(bytes).await.unwrap(),
            }
            match self {
                Self::Client(stream) => stream.flush().await.unwrap(),
                Self::Server(stream) => stream.flush().await.unwrap(),
            }
        }

        pub(super) async fn read(&mut self, length: usize) -> io::Result<Vec<u8>> {
            let mut bytes = vec![0; length];
            match self {
                Self::Client(stream) => stream.read_exact(&mut bytes).await?,
                Self::Server(stream) => stream.read_exact(&mut bytes).await?,
            };
            Ok(bytes)
        }

        pub(super) async fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            match self {
                Self::Client(stream) => stream.read_to_end(&mut bytes).await?,
                Self::Server(stream) => stream.read_to_end(&mut bytes).await?,
            };
            Ok(bytes)
        }

        pub(super) async fn close(&mut self) {
            match self {
                Self::Client(stream) => stream.shutdown().await.unwrap(),
                Self::Server(stream) => stream.shutdown().await.unwrap(),
            }
        }

        pub(super) fn change_key(&mut self) {
            match self {
                Self::Client(stream) => stream.get_mut().1.refresh_traffic_keys().unwrap(),
                Self::Server(stream) => stream.get_mut().1.refresh_traffic_keys().unwrap(),
            }
        }
    }
}

/// A connection whose client, or server, is ours.
async fn meet(we_are_client: bool) -> (Ours<DuplexStream>, Theirs) {
    let (near, far) = duplex(1024 * 1024);
    let (web, reviews) = (certificate(&id("web")), certificate(&id("reviews")));
    let (client, server) = (web.client_config(&[id("reviews")]), reviews.server_config());
    if we_are_client {
        let (ours, theirs) = tokio::join!(tls::connect_and_hand_over(client, near), tls::accept(server, far));
        let ours = ours.unwrap();
        assert_eq!(&ours.peer, reviews.proof());
        (Ours::new(ours), Theirs::Server(theirs.unwrap().0))
    } else {
        let (theirs, ours) = tokio::join!(tls::connect(client, near), tls::accept_and_hand_over(server, far));
        let ours = ours.unwrap();
        assert_eq!(&ours.peer, web.proof());
        (Ours::new(ours), Theirs::Client(theirs.unwrap()))
    }
}

#[tokio::test]
async fn bytes_go_both_ways() {
    for we_are_client in [true, false] {
        let (mut ours, mut theirs) = meet(we_are_client).await;
        for length in [1, 16_383, 16_384, 16_385, 300_000] {
            let bytes: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
            ours.write(&bytes).await;
            assert!(theirs.read(length).await.unwrap() == bytes);
            theirs.write(&bytes).await;
            assert!(ours.read(length).await == bytes);
        }
    }
}

#[tokio::test]
async fn keys_change_in_mid_stream_from_either_side() {
    for we_are_client in [true, false] {
        let (mut ours, mut theirs) = meet(we_are_client).await;
        for turn in 0..5 {
            theirs.write(b"before").await;
            theirs.change_key();
            theirs.write(b" after").await;
            assert_eq!(ours.read(12).await, b"before after");
            // The library does not ask for ours; we may change it all the same, and ask for its own.
            ours.session.change_key(turn % 2 == 0);
            ours.write(b"one ").await;
            ours.session.change_key(false);
            ours.write(b"two").await;
            assert_eq!(theirs.read(7).await.unwrap(), b"one two");
        }
        theirs.write(b"still there").await;
        assert_eq!(ours.read(11).await, b"still there");
    }
}

#[tokio::test]
async fn keys_that_seal_few_records_are_changed_in_time() {
    for we_are_client in [true, false] {
        let (mut ours, mut theirs) = meet(we_are_client).await;
        ours.session.seal_few(4);
        let bytes = vec![7; 60 * PLAINTEXT_MAX];
        let (_, read) = tokio::join!(ours.write(&bytes), theirs.read(bytes.len()));
        assert!(read.unwrap() == bytes);
    }
}

#[tokio::test]
async fn an_end_is_told_from_a_cut_by_both() {
    for we_are_client in [true, false] {
        let (mut ours, mut theirs) = meet(we_are_client).await;
        ours.write(b"all").await;
        ours.session.close();
        ours.write(b"").await;
        assert_eq!(theirs.read_to_end().await.unwrap(), b"all");
        theirs.write(b"as well").await;
        theirs.close().await;
        assert_eq!(ours.read(100).await, b"as well");
        assert_eq!(ours.session.end(), Some(&Ok(())));

        let (mut ours, theirs) = meet(we_are_client).await;
        drop(theirs);
        assert_eq!(ours.read(1).await, b"");
        assert_eq!(ours.session.end(), Some(&Err(Fault::Truncated)));
        let (ours, mut theirs) = meet(we_are_client).await;
        drop(ours);
        let error = theirs.read(1).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[tokio::test]
async fn a_forged_record_is_told_by_an_alert_that_the_library_knows() {
    for we_are_client in [true, false] {
        let (mut ours, mut theirs) = meet(we_are_client).await;
        ours.waiting.extend([&header(40)[..], &[7; 40]].concat());
        assert_eq!(ours.read(1).await, b"");
        ours.write(b"").await;
        let error = theirs.read(1).await.unwrap_err();
        let inner = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        assert_eq!(
            inner,
            Some(&rustls::Error::AlertReceived(AlertDescription::BadRecordMac))
        );
    }
}

#[tokio::test]
async fn a_client_hears_why_its_certificate_was_refused() {
    let (near, far) = duplex(64 * 1024);
    let foreign = certificate(&Identity::new("elsewhere.local", "shop", "web"));
    let reviews = certificate(&id("reviews"));
    let (ours, theirs) = tokio::join!(
        tls::connect_and_hand_over(foreign.client_config(&[id("reviews")]), near),
        tls::accept(reviews.server_config(), far),
    );
    assert!(theirs.is_err());
    let mut ours = Ours::new(ours.unwrap());
    ours.read(1).await;
    assert!(matches!(ours.session.end(), Some(Err(Fault::Alert(_)))));
}

#[tokio::test]
async fn what_comes_behind_the_handshake_is_ours_to_open() {
    let (near, far) = duplex(1024 * 1024);
    let (web, reviews) = (certificate(&id("web")), certificate(&id("reviews")));
    let client = async {
        let mut stream = tls::connect(web.client_config(&[id("reviews")]), near)
            .await
            .unwrap();
        // In the same breath as the end of the handshake, as far as the server can see.
        stream.write_all(&[7; 40_000]).await.unwrap();
        stream.flush().await.unwrap();
        stream
    };
    let server = async {
        tokio::task::yield_now().await;
        tls::accept_and_hand_over(reviews.server_config(), far)
            .await
            .unwrap()
    };
    let (_stream, handover) = tokio::join!(client, server);
    let mut ours = Ours::new(handover);
    assert!(ours.read(40_000).await == [7; 40_000]);
}

#[tokio::test]
async fn both_ends_ours() {
    let (near, far) = duplex(1024 * 1024);
    let (web, reviews) = (certificate(&id("web")), certificate(&id("reviews")));
    let (near, far) = tokio::join!(
        tls::connect_and_hand_over(web.client_config(&[id("reviews")]), near),
        tls::accept_and_hand_over(reviews.server_config(), far),
    );
    let (mut near, mut far) = (Ours::new(near.unwrap()), Ours::new(far.unwrap()));
    for _ in 0..3 {
        near.session.change_key(true);
        near.write(b"hello").await;
        assert_eq!(far.read(5).await, b"hello");
        far.write(b"there").await;
        assert_eq!(near.read(5).await, b"there");
    }
}
