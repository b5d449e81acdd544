//! One proxy's connection: strictly one request, one answer, each within its time.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use tokio::time::timeout;
use tulle_linux::seqpacket::{Received, SeqPacket};
use tulle_proto::Malformed;
use tulle_proto::convert::zds::{Answer, Hello, PACKET_MAX, Request};

/// How long one read or write may take.
const IO_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a connection to a proxy ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("the proxy closed the connection")]
    Closed,
    #[error("no packet within {}", tulle_runtime::config::format_duration(IO_TIMEOUT))]
    Timeout,
    #[error("a packet or its descriptors were cut off")]
    Truncated,
    #[error("{0} descriptors came with an answer that names {1}")]
    Descriptors(usize, usize),
    #[error("a packet came that nothing had asked for")]
    Unasked,
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A connection on which the proxy has introduced itself.
#[derive(Debug)]
pub(super) struct Connection {
    socket: SeqPacket,
}

impl Connection {
    /// Waits for the proxy's first words.
    pub(super) async fn greet(socket: SeqPacket) -> Result<(Self, Hello), ConnectionError> {
        let connection = Self { socket };
        let (packet, _) = connection.receive().await?;
        let hello = Hello::decode(&packet)?;
        Ok((connection, hello))
    }

    /// Sends a request with its descriptors and waits for the answer with those that come back.
    pub(super) async fn exchange(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Answer, Vec<OwnedFd>), ConnectionError> {
        let packet = request.encode();
        timeout(IO_TIMEOUT, self.socket.send(&packet, fds))
            .await
            .map_err(|_| ConnectionError::Timeout)??;
        let (packet, fds) = self.receive().await?;
        let answer = Answer::decode(&packet)?;
        let named = answer.sockets.as_ref().map_or(0, |sockets| sockets.kinds.len());
        if named != fds.len() {
            return Err(ConnectionError::Descriptors(fds.len(), named));
        }
        Ok((answer, fds))
    }

    /// The proxy's process, as the kernel knows it; nothing if it is in another process namespace.
    pub(super) fn peer_pid(&self) -> Option<i32> {
        self.socket.peer_pid().ok().filter(|pid| *pid > 0)
    }

    /// Waits until the proxy goes away; a packet outside of an exchange breaks the protocol.
    pub(super) async fn ended(&self) -> ConnectionError {
        match self.socket.recv(&mut [0; PACKET_MAX]).await {
            Ok(Received { len: 0, .. }) => ConnectionError::Closed,
            Ok(_) => ConnectionError::Unasked,
            Err(error) => ConnectionError::Io(error),
        }
    }

    async fn receive(&self) -> Result<(Vec<u8>, Vec<OwnedFd>), ConnectionError> {
        let mut buffer = vec![0; PACKET_MAX];
        let received = timeout(IO_TIMEOUT, self.socket.recv(&mut buffer))
            .await
            .map_err(|_| ConnectionError::Timeout)??;
        if received.truncated {
            return Err(ConnectionError::Truncated);
        }
        if received.len == 0 {
            return Err(ConnectionError::Closed);
        }
        buffer.truncate(received.len);
        Ok((buffer, received.fds))
    }
}
