//! A handshake of which only the keys remain: whoever takes them seals and opens records without the TLS library.
//!
//! The library is given one record at a time, so that what comes behind the handshake stays untouched with the keys.

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::BufMut;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::pki_types::CertificateDer;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{ClientConfig, ConnectionTrafficSecrets, ExtractedSecrets, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{HandshakeError, Library, unnamed_server};
use crate::proof::PeerProof;

/// Bytes that may wait for the rest of a handshake message: the longest that the library takes, and as much again for
/// the records around it.
const WAITING_MAX: usize = 128 * 1024;

/// Bytes that are read at once.
const READ_AT_ONCE: usize = 4 * 1024;

/// Bytes before each record's content.
const HEADER: usize = 5;

/// Longest content of a record that the library looks at.
const CONTENT_MAX: usize = (1 << 14) + 2048;

/// Whether connections can be handed over in this build: keys stay with the library whose cryptography was asked for.
#[must_use]
pub fn hands_over() -> bool {
    Library::default() == Library::AwsLc
}

/// A connection after its handshake.
pub struct Handover<S> {
    /// The byte stream.
    pub stream: S,
    /// The keys of both directions, and how many records each has sealed.
    pub secrets: ExtractedSecrets,
    /// Where later keys come from.
    pub updates: Updates,
    /// What the peer has proven.
    pub peer: PeerProof,
    /// Records, or the start of one, that came behind the handshake; as they came.
    pub received: Vec<u8>,
}

impl<S> fmt::Debug for Handover<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handover")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// Makes the keys that follow the first ones.
pub struct Updates(Kernel);

enum Kernel {
    Client(Box<KernelConnection<ClientConnectionData>>),
    Server(Box<KernelConnection<ServerConnectionData>>),
}

impl fmt::Debug for Updates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Updates")
    }
}

impl Updates {
    /// The next key to seal with, counting from record 0.
    ///
    /// # Errors
    /// Never for a connection of this module.
    pub fn next_sealing(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error> {
        let (_, secrets) = match &mut self.0 {
            Kernel::Client(kernel) => kernel.update_tx_secret(),
            Kernel::Server(kernel) => kernel.update_tx_secret(),
        }?;
        Ok(secrets)
    }

    /// The next key to open with, counting from record 0.
    ///
    /// # Errors
    /// Never for a connection of this module.
    pub fn next_opening(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error> {
        let (_, secrets) = match &mut self.0 {
            Kernel::Client(kernel) => kernel.update_rx_secret(),
            Kernel::Server(kernel) => kernel.update_rx_secret(),
        }?;
        Ok(secrets)
    }
}

/// As [`super::connect`], and hands over the keys.
///
/// # Errors
/// When the handshake fails, or the server is none of the identities that the configuration expects.
pub async fn connect_and_hand_over<S>(
    config: Arc<ClientConfig>,
    stream: S,
) -> Result<Handover<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let connection = UnbufferedClientConnection::new(config, unnamed_server())?;
    hand_over(connection, stream).await
}

/// As [`super::accept`], and hands over the keys.
///
/// # Errors
/// When the handshake fails, or the client's certificate is not acceptable.
pub async fn accept_and_hand_over<S>(
    config: Arc<ServerConfig>,
    stream: S,
) -> Result<Handover<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let connection = UnbufferedServerConnection::new(config)?;
    hand_over(connection, stream).await
}

async fn hand_over<C, S>(mut connection: C, mut stream: S) -> Result<Handover<S>, HandshakeError>
where
    C: Unbuffered,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut waiting = Waiting::default();
    loop {
        let turn = waiting.turn(&mut connection);
        if !waiting.outgoing.is_empty() {
            let sent = send(&mut stream, &std::mem::take(&mut waiting.outgoing)).await;
            if turn.is_ok() {
                sent?;
            }
        }
        match turn? {
            Turn::Done => break,
            Turn::More => waiting.read(&mut stream).await?,
        }
    }
    let peer = PeerProof::of(connection.presented()).map_err(HandshakeError::Peer)?;
    let (secrets, updates) = connection.into_keys()?;
    Ok(Handover {
        stream,
        secrets,
        updates: Updates(updates),
        peer,
        received: waiting.incoming,
    })
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// What is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    More,
    Done,
}

/// What the library did with what it was given.
enum Did {
    Sent,
    Blocked,
    Finished,
}

/// Bytes of both directions that wait.
#[derive(Default)]
struct Waiting {
    incoming: Vec<u8>,
    /// Of these, whole records that the library may see.
    shown: usize,
    outgoing: Vec<u8>,
}

impl Waiting {
    /// Goes on as far as what has come allows. An error is final; what is to be said of it is in `outgoing`.
    fn turn<C: Unbuffered>(&mut self, connection: &mut C) -> Result<Turn, rustls::Error> {
        loop {
            match self.step(connection) {
                Ok(Did::Sent) => {}
                Ok(Did::Finished) => return Ok(Turn::Done),
                Ok(Did::Blocked) => match next_record(&self.incoming[self.shown..]) {
                    Some(length) => self.shown += length,
                    None => return Ok(Turn::More),
                },
                Err(error) => {
                    // What waits to be said comes first: nothing is looked at again.
                    while connection.has_more_to_say() && self.step(connection).is_ok() {}
                    return Err(error);
                }
            }
        }
    }

    fn step<C: Unbuffered>(&mut self, connection: &mut C) -> Result<Did, rustls::Error> {
        let outgoing = &mut self.outgoing;
        let UnbufferedStatus { discard, state, .. } = connection.process(&mut self.incoming[..self.shown]);
        let did = match state {
            Ok(ConnectionState::EncodeTlsData(data)) => encode(data, outgoing).map(|()| Did::Sent),
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Ok(Did::Sent)
            }
            Ok(ConnectionState::WriteTraffic(_)) => Ok(Did::Finished),
            Ok(ConnectionState::BlockedHandshake) => Ok(Did::Blocked),
            // Closed, or spoke, before it had finished.
            Ok(_) => Err(rustls::Error::HandshakeNotComplete),
            Err(error) => Err(error),
        };
        self.incoming.drain(..discard);
        self.shown -= discard;
        did
    }

    async fn read<S: AsyncRead + Unpin>(&mut self, stream: &mut S) -> io::Result<()> {
        if self.incoming.len() > WAITING_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a TLS handshake message is too long",
            ));
        }
        self.incoming.reserve(READ_AT_ONCE);
        let mut room = (&mut self.incoming).limit(READ_AT_ONCE);
        if stream.read_buf(&mut room).await? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the peer closed the connection during the TLS handshake",
            ));
        }
        Ok(())
    }
}

/// Length of the first record, once all of it is there. What is no record is shown as it is, to be refused.
fn next_record(bytes: &[u8]) -> Option<usize> {
    let [kind, major, _, a, b] = *bytes.first_chunk::<HEADER>()?;
    let length = usize::from(u16::from_be_bytes([a, b]));
    if !(20..=23).contains(&kind) || major != 3 || length > CONTENT_MAX {
        return Some(bytes.len());
    }
    (bytes.len() >= HEADER + length).then_some(HEADER + length)
}

fn encode<D>(mut data: EncodeTlsData<'_, D>, outgoing: &mut Vec<u8>) -> Result<(), rustls::Error> {
    let at = outgoing.len();
    let needed = match data.encode(&mut []) {
        Err(EncodeError::InsufficientSize(error)) => error.required_size,
        Ok(_) => return Ok(()),
        Err(error) => return Err(rustls::Error::General(error.to_string())),
    };
    outgoing.resize(at + needed, 0);
    let encoded = data.encode(&mut outgoing[at..]);
    encoded
        .map(drop)
        .map_err(|error| rustls::Error::General(error.to_string()))
}

/// Either end of a handshake.
trait Unbuffered {
    type Data;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// Whether records wait to be sent.
    fn has_more_to_say(&self) -> bool;

    /// The chain that the peer has shown.
    fn presented(&self) -> &[CertificateDer<'static>];

    fn into_keys(self) -> Result<(ExtractedSecrets, Kernel), rustls::Error>;
}

impl Unbuffered for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn has_more_to_say(&self) -> bool {
        self.wants_write()
    }

    fn presented(&self) -> &[CertificateDer<'static>] {
        self.peer_certificates().unwrap_or_default()
    }

    fn into_keys(self) -> Result<(ExtractedSecrets, Kernel), rustls::Error> {
        let (secrets, kernel) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Kernel::Client(Box::new(kernel))))
    }
}

impl Unbuffered for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn has_more_to_say(&self) -> bool {
        self.wants_write()
    }

    fn presented(&self) -> &[CertificateDer<'static>] {
        self.peer_certificates().unwrap_or_default()
    }

    fn into_keys(self) -> Result<(ExtractedSecrets, Kernel), rustls::Error> {
        let (secrets, kernel) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Kernel::Server(Box::new(kernel))))
    }
}
