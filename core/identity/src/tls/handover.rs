//! A handshake of which only the keys remain: whoever takes them seals and opens records without the TLS library.
//!
//! The library is given one record at a time, so that what comes behind the handshake stays untouched with the keys.

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::BufMut;
use parking_lot::Mutex;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::CertificateDer;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{ClientConfig, ExtractedSecrets, KeyLog, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

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
    /// What these keys were made from, and later ones will be.
    pub traffic: TrafficSecrets,
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

/// The secrets that the keys of both directions are made from (RFC 8446, 7.3), and by which the next ones follow (7.2).
///
/// Plain data: together with the number of records, they are all that another process needs to go on.
#[derive(Clone)]
pub struct TrafficSecrets {
    /// Of the direction in which this end seals.
    pub sealing: Zeroizing<Vec<u8>>,
    /// Of the direction in which it opens.
    pub opening: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for TrafficSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TrafficSecrets")
    }
}

/// Notes the secrets of one handshake as they are made: the library gives out keys at its end, and not these.
#[derive(Default)]
struct Notes {
    client: Mutex<Option<Zeroizing<Vec<u8>>>>,
    server: Mutex<Option<Zeroizing<Vec<u8>>>>,
}

impl Notes {
    fn of(&self, label: &str) -> Option<&Mutex<Option<Zeroizing<Vec<u8>>>>> {
        match label {
            "CLIENT_TRAFFIC_SECRET_0" => Some(&self.client),
            "SERVER_TRAFFIC_SECRET_0" => Some(&self.server),
            _ => None,
        }
    }

    fn take(&self, sealing: &str, opening: &str) -> Option<TrafficSecrets> {
        Some(TrafficSecrets {
            sealing: self.of(sealing)?.lock().take()?,
            opening: self.of(opening)?.lock().take()?,
        })
    }
}

impl fmt::Debug for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Notes")
    }
}

impl KeyLog for Notes {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        if let Some(note) = self.of(label) {
            *note.lock() = Some(secret.to_vec().into());
        }
    }

    fn will_log(&self, label: &str) -> bool {
        self.of(label).is_some()
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
    let notes = Arc::new(Notes::default());
    let mut config = ClientConfig::clone(&config);
    config.key_log = Arc::clone(&notes) as Arc<dyn KeyLog>;
    let connection = UnbufferedClientConnection::new(Arc::new(config), unnamed_server())?;
    hand_over(connection, stream, &notes).await
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
    let notes = Arc::new(Notes::default());
    let mut config = ServerConfig::clone(&config);
    config.key_log = Arc::clone(&notes) as Arc<dyn KeyLog>;
    let connection = UnbufferedServerConnection::new(Arc::new(config))?;
    hand_over(connection, stream, &notes).await
}

async fn hand_over<C, S>(
    mut connection: C,
    mut stream: S,
    notes: &Notes,
) -> Result<Handover<S>, HandshakeError>
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
    let traffic = notes.take(C::SEALING, C::OPENING);
    let traffic = traffic.ok_or_else(|| rustls::Error::General("no secrets were noted".to_owned()))?;
    let secrets = connection.into_keys()?;
    Ok(Handover {
        stream,
        secrets,
        traffic,
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

    /// What the secrets of its two directions are called.
    const SEALING: &'static str;
    const OPENING: &'static str;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// Whether records wait to be sent.
    fn has_more_to_say(&self) -> bool;

    /// The chain that the peer has shown.
    fn presented(&self) -> &[CertificateDer<'static>];

    fn into_keys(self) -> Result<ExtractedSecrets, rustls::Error>;
}

impl Unbuffered for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    const SEALING: &'static str = "CLIENT_TRAFFIC_SECRET_0";
    const OPENING: &'static str = "SERVER_TRAFFIC_SECRET_0";

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn has_more_to_say(&self) -> bool {
        self.wants_write()
    }

    fn presented(&self) -> &[CertificateDer<'static>] {
        self.peer_certificates().unwrap_or_default()
    }

    fn into_keys(self) -> Result<ExtractedSecrets, rustls::Error> {
        Ok(self.dangerous_into_kernel_connection()?.0)
    }
}

impl Unbuffered for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    const SEALING: &'static str = "SERVER_TRAFFIC_SECRET_0";
    const OPENING: &'static str = "CLIENT_TRAFFIC_SECRET_0";

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn has_more_to_say(&self) -> bool {
        self.wants_write()
    }

    fn presented(&self) -> &[CertificateDer<'static>] {
        self.peer_certificates().unwrap_or_default()
    }

    fn into_keys(self) -> Result<ExtractedSecrets, rustls::Error> {
        Ok(self.dangerous_into_kernel_connection()?.0)
    }
}
