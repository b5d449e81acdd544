//! A scripted node proxy.

use std::os::fd::OwnedFd;
use std::path::Path;

use tulle_linux::seqpacket::SeqPacket;
use tulle_proto::convert::zds::{Added, Answer, Hello, PACKET_MAX, Request};
use tulle_proto::zds::Abilities;

/// A proxy that says what the test wants.
pub(crate) struct Proxy {
    socket: SeqPacket,
}

impl Proxy {
    /// Dials and introduces itself, as a plain V1 proxy or one of ours.
    pub(crate) async fn connect(path: &Path, generation: Option<&str>) -> Self {
        let socket = SeqPacket::connect(path).unwrap();
        let abilities = generation.map(|generation| Abilities {
            sockets: true,
            generation: generation.into(),
            lingering: false,
        });
        socket.send(&Hello { abilities }.encode(), &[]).await.unwrap();
        Self { socket }
    }

    /// The next request with its descriptors, however long it takes; nothing when the agent is gone.
    pub(crate) async fn next(&self) -> Option<(Request, Vec<OwnedFd>)> {
        let mut buffer = [0; PACKET_MAX];
        let received = self
            .socket
            .recv(&mut buffer)
            .await
            .ok()
            .filter(|received| received.len > 0)?;
        Some((Request::decode(&buffer[..received.len]).ok()?, received.fds))
    }

    /// The next request with its descriptors.
    pub(crate) async fn request(&self) -> (Request, Vec<OwnedFd>) {
        let mut buffer = [0; PACKET_MAX];
        let received = tokio::time::timeout(crate::pod::PATIENCE, self.socket.recv(&mut buffer));
        let received = received.await.expect("a request comes in time").unwrap();
        assert!(!received.truncated);
        (Request::decode(&buffer[..received.len]).unwrap(), received.fds)
    }

    /// The next request, which must be an `add`.
    pub(crate) async fn added(&self) -> (Added, Vec<OwnedFd>) {
        match self.request().await {
            (Request::Add(added), fds) => (added, fds),
            (other, _) => panic!("expected an add, not {other:?}"),
        }
    }

    /// Answers a request.
    pub(crate) async fn answer(&self, answer: &Answer, fds: &[std::os::fd::BorrowedFd<'_>]) {
        self.socket.send(&answer.encode(), fds).await.unwrap();
    }

    /// Accepts a request.
    pub(crate) async fn accept(&self) {
        self.answer(&Answer::accepted(), &[]).await;
    }

    /// Sends bytes as they are.
    pub(crate) async fn raw(&self, bytes: &[u8]) {
        self.socket.send(bytes, &[]).await.unwrap();
    }

    /// Waits for the agent to close the connection.
    pub(crate) async fn ended(&self) {
        let mut buffer = [0; PACKET_MAX];
        let ended = tokio::time::timeout(crate::pod::PATIENCE, self.socket.recv(&mut buffer));
        assert!(matches!(ended.await.expect("in time"), Ok(received) if received.len == 0));
    }

    /// Accepts requests up to and with the end of the snapshot; returns those before it.
    pub(crate) async fn snapshot(&self) -> Vec<(Request, Vec<OwnedFd>)> {
        let mut requests = Vec::new();
        loop {
            let (request, fds) = self.request().await;
            self.accept().await;
            if request == Request::SnapshotSent {
                return requests;
            }
            requests.push((request, fds));
        }
    }
}
