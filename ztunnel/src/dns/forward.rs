//! Questions that the mesh does not answer, passed on to a name server. Nothing of them changes but the id, which is
//! ours while they are under way, and nothing of the reply but the id again.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::Domain;
use tokio::net::UdpSocket;
use tokio::time::timeout;
use tulle_model::Reason;
use tulle_transport::socket::{self, SocketOptions};

use super::frame;
use super::network::PodNetwork;
use super::wire::{self, DATAGRAM_BYTES_MAX, Query, Transport};

/// How long all name servers together may take.
pub const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// How often a datagram is sent to a server that does not answer.
const SENDS: u32 = 2;

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// Nobody to ask.
    #[error("no name server is known that the pod could reach")]
    NoServers,
    /// Nobody answered.
    #[error("no name server answered within {} s", ANSWER_WAIT.as_secs())]
    NoAnswer,
    /// The last server could not be asked.
    #[error("name server {server} cannot be asked: {source}")]
    Server {
        /// Which.
        server: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ForwardError {
    /// The stable reason.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoAnswer => Reason::DnsUpstreamTimeout,
            Self::NoServers | Self::Server { .. } => Reason::NameNotResolved,
        }
    }
}

/// The name servers of a workload.
#[derive(Debug)]
pub struct Upstream {
    /// Opens sockets where the workload lives.
    pub network: Arc<dyn PodNetwork>,
    /// SO_MARK, so that what is forwarded is not captured again.
    pub mark: Option<u32>,
    /// Asked in this order.
    pub servers: Vec<SocketAddr>,
}

impl Upstream {
    /// Asks one server after the other; the first that replies is believed, whatever it says.
    ///
    /// # Errors
    /// When none replies in time.
    pub async fn ask(&self, query: &Query<'_>, transport: Transport) -> Result<Vec<u8>, ForwardError> {
        let servers = u32::try_from(self.servers.len()).unwrap_or(u32::MAX);
        let share = ANSWER_WAIT.checked_div(servers).ok_or(ForwardError::NoServers)?;
        let mut sent = query.bytes.to_vec();
        let mut last = ForwardError::NoAnswer;
        for server in self.servers.iter().copied() {
            wire::set_id(&mut sent, rand::random());
            let asked = async {
                match transport {
                    Transport::Udp => self.ask_datagram(server, &sent, share).await,
                    Transport::Tcp => self.ask_stream(server, &sent).await,
                }
            };
            match timeout(share, asked).await {
                Ok(Ok(mut reply)) => {
                    wire::set_id(&mut reply, query.id());
                    return Ok(reply);
                }
                Ok(Err(source)) => last = ForwardError::Server { server, source },
                Err(_) => last = ForwardError::NoAnswer,
            }
        }
        Err(last)
    }

    /// A socket for each question: its port is as hard to guess as its id. It is connected, so the kernel drops what
    /// others send to it.
    async fn ask_datagram(&self, server: SocketAddr, query: &[u8], share: Duration) -> io::Result<Vec<u8>> {
        let socket = self.network.udp(Domain::for_address(server))?;
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket.into())?;
        socket.connect(server).await?;
        loop {
            socket.send(query).await?;
            if let Ok(received) = timeout(share / SENDS, receive(&socket, query)).await {
                return received;
            }
        }
    }

    async fn ask_stream(&self, server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        let options = SocketOptions {
            mark: self.mark,
            ..SocketOptions::default()
        };
        let mut stream = socket::connect(&*self.network, server, None, &options).await?;
        frame::write(&mut stream, query).await?;
        let reply = frame::read(&mut stream)
            .await?
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        if wire::answers(&reply, query) {
            return Ok(reply);
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the reply is one to another question",
        ))
    }
}

/// Waits for the reply to this question; others are ignored, since anyone may have sent them.
async fn receive(socket: &UdpSocket, query: &[u8]) -> io::Result<Vec<u8>> {
    // What is longer than any client is told about shows by the byte too many, and is cut as other replies are.
    let mut buffer = vec![0; usize::from(DATAGRAM_BYTES_MAX) + 1];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if wire::answers(&buffer[..length], query) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

#[cfg(test)]
mod tests;
