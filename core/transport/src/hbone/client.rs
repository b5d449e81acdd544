//! The client side of a tunnel connection: establish it, drive it, open streams on it.

use std::fmt;
use std::future::{pending, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use h2::client::{Builder, Connection, SendRequest};
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tulle_identity::{Clock, HandshakeError, PeerProof};
use tulle_model::Reason;
use tulle_runtime::tasks;

use super::connect::{ConnectRequest, ConnectResponse};
use super::error::OpenError;
use super::expiry::Expiry;
use super::liveness::{Slot, Vitals, peer_lost, unused};
use super::load::{Outgoing, Traffic};
use super::settings::Settings;
use super::stream::HboneStream;
use super::watched::Watched;
use super::{h2_stream, stream::ResetCode};
use crate::socket::keep_queue_short;

/// Bytes of one stream that wait inside the process to be sent; two of the largest copy buffers.
const SEND_BUFFER_MAX: usize = 512 * 1024;

/// An established connection to one peer. Clones share it; it is driven by a task of its own until it ends.
///
/// It ends by itself when it is unused for [`Settings::idle_timeout`], when the last handle and stream are gone,
/// and when the peer is lost or goes away.
#[derive(Clone)]
pub struct ClientConnection {
    shared: Arc<Shared>,
}

struct Shared {
    /// Gone once the connection takes no new streams.
    sender: Mutex<Option<SendRequest<Outgoing>>>,
    vitals: Arc<Vitals>,
    streams_max: u32,
}

impl fmt::Debug for ClientConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConnection")
            .field("active", &self.active())
            .finish_non_exhaustive()
    }
}

/// TLS, then HTTP/2, over a connected socket. `tls` decides which identities the peer may have.
pub async fn connect(
    socket: TcpStream,
    tls: Arc<ClientConfig>,
    settings: &Settings,
) -> Result<ClientConnection, OpenError> {
    let broken = |error| tls_failed(HandshakeError::Io(error));
    let peer = socket.peer_addr().map_err(broken)?;
    keep_queue_short(&socket).map_err(broken)?;
    connect_over(socket, peer, tls, settings).await
}

/// TLS, then HTTP/2, over any byte stream to `peer`: the inner session of a double tunnel runs over an
/// [`HboneStream`]. The stream ends with the connection.
pub async fn connect_over<S>(
    stream: S,
    peer: SocketAddr,
    tls: Arc<ClientConfig>,
    settings: &Settings,
) -> Result<ClientConnection, OpenError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handshake = async {
        let stream = tulle_identity::tls::connect(tls, stream)
            .await
            .map_err(tls_failed)?;
        let peer = tulle_identity::tls::connected(&stream).map_err(tls_failed)?;
        let connection = handshake(stream, settings).await?;
        connection.shared.vitals.proven(peer);
        Ok(connection)
    };
    let late = |_| OpenError::ConnectTimeout {
        peer,
        after: settings.handshake_timeout,
    };
    timeout(settings.handshake_timeout, handshake)
        .await
        .map_err(late)?
}

fn tls_failed(error: HandshakeError) -> OpenError {
    OpenError::Tls {
        source: Arc::new(error),
    }
}

/// HTTP/2 over a stream that is already protected, or needs no protection.
pub async fn handshake<S>(stream: S, settings: &Settings) -> Result<ClientConnection, OpenError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let vitals = Vitals::new(settings);
    let (sender, connection) = builder(settings)
        .handshake::<_, Outgoing>(Watched::client(stream, Arc::clone(&vitals)))
        .await
        .map_err(|error| OpenError::Http2 {
            detail: error.to_string().into(),
        })?;
    let sender = Mutex::new(Some(sender));
    let shared = Arc::new(Shared {
        sender,
        vitals: Arc::clone(&vitals),
        streams_max: settings.streams_max,
    });
    tasks::spawn(
        "hbone client",
        drive(connection, vitals, Arc::downgrade(&shared), *settings),
    );
    Ok(ClientConnection { shared })
}

fn builder(settings: &Settings) -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_frame_size(settings.frame_size)
        .max_header_list_size(settings.client_header_list)
        .max_send_buffer_size(SEND_BUFFER_MAX)
        .data_frame_budget(settings.small_frame_budget())
        .enable_push(false);
    builder
}

/// Moves frames until the connection ends, and says why it did.
async fn drive<S>(
    mut connection: Connection<S, Outgoing>,
    vitals: Arc<Vitals>,
    shared: Weak<Shared>,
    settings: Settings,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let ping = connection.ping_pong().expect("only taken here");
    let mut lost = pin!(peer_lost(ping, Arc::clone(&vitals), settings));
    let mut retired = pin!(async {
        tokio::select! {
            () = unused(Arc::clone(&vitals), settings.idle_timeout) => {}
            () = vitals.gone() => {}
        }
        // Without a sender, h2 says GOAWAY(NO_ERROR) and closes as soon as the last stream has ended.
        drop(take_sender(&shared));
        pending::<()>().await;
    });
    loop {
        tokio::select! {
            result = &mut connection => {
                let why = result.map_or_else(|error| error.to_string(), |()| "the connection was closed".to_owned());
                vitals.lose(&why);
                break;
            }
            () = &mut lost => {
                vitals.lose("no answer to PING");
                break;
            }
            reason = vitals.cut_asked() => {
                vitals.lose(reason.token());
                break;
            }
            target = poll_fn(|cx| vitals.window().poll_target(cx)) => connection.set_target_window_size(target),
            () = &mut retired => {}
        }
    }
    drop(take_sender(&shared));
}

fn take_sender(shared: &Weak<Shared>) -> Option<SendRequest<Outgoing>> {
    shared.upgrade().and_then(|shared| shared.sender.lock().take())
}

impl ClientConnection {
    /// Asks the peer for a tunnel. No payload is sent before its 200.
    pub async fn open(&self, request: &ConnectRequest) -> Result<(HboneStream, ConnectResponse), OpenError> {
        let slot = self.reserve().ok_or(if self.is_retired() {
            OpenError::GoingAway
        } else {
            OpenError::Overload
        })?;
        self.open_in(slot, request).await
    }

    /// Opens a stream in a place that was reserved.
    pub(super) async fn open_in(
        &self,
        slot: Slot,
        request: &ConnectRequest,
    ) -> Result<(HboneStream, ConnectResponse), OpenError> {
        let head = request.to_http().map_err(|error| OpenError::Request {
            detail: error.to_string().into(),
        })?;
        let sender = self.shared.sender.lock().clone().ok_or_else(|| self.ended())?;
        let mut sender = sender.ready().await.map_err(|error| self.explain(&error))?;
        let (response, mut send) = sender
            .send_request(head, false)
            .map_err(|error| self.explain(&error))?;
        let peer_max = u32::try_from(sender.current_max_send_streams()).unwrap_or(u32::MAX);
        self.shared
            .vitals
            .set_limit(self.shared.streams_max.min(peer_max));
        drop(sender);
        let response = response.await.map_err(|error| self.explain(&error))?;
        match ConnectResponse::from_http(&response) {
            Ok(answer) => Ok((h2_stream::join(send, response.into_body(), slot), answer)),
            Err(refusal) => {
                send.send_reset(ResetCode::NoError.into());
                Err(OpenError::Refused(refusal))
            }
        }
    }

    /// Reserves a place for a stream, if there is one.
    pub(super) fn reserve(&self) -> Option<Slot> {
        self.shared.vitals.acquire()
    }

    /// Streams open now.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.shared.vitals.active()
    }

    /// Streams that may be open at once: our own limit or the peer's, whichever is lower.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.shared.vitals.limit()
    }

    /// Whether no further stream can be opened.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.shared.vitals.is_retired()
    }

    /// Ends when no further stream can be opened; holds no handle meanwhile.
    pub fn retired(&self) -> impl Future<Output = ()> + Send + use<> {
        let vitals = Arc::clone(&self.shared.vitals);
        async move { vitals.gone().await }
    }

    /// Retires the connection at the end of its certificate, as `clock` or the time that was left tells, whichever is
    /// first. Open streams go on. Ends with [`Self::retired`]; holds no handle meanwhile.
    pub fn retire_after(
        &self,
        not_after: SystemTime,
        clock: Clock,
    ) -> impl Future<Output = ()> + Send + use<> {
        let vitals = Arc::clone(&self.shared.vitals);
        let expiry = Expiry::new(not_after, clock.now(), Instant::now());
        async move {
            tokio::select! {
                () = vitals.gone() => {}
                () = expiry.passed(&clock) => vitals.retire(),
            }
        }
    }

    pub(super) fn traffic(&self) -> &Traffic {
        self.shared.vitals.traffic()
    }

    /// Opens no further stream. Those that are open go on; then the connection closes with GOAWAY(NO_ERROR).
    pub fn drain(&self) {
        self.shared.vitals.retire();
    }

    /// Ends the connection at once, with all its streams, which learn of the reason.
    pub fn cut(&self, reason: Reason) {
        self.shared.vitals.cut(reason);
    }

    /// As [`Self::cut`], for somebody who must not keep the connection open meanwhile.
    pub fn cutter(&self) -> impl FnOnce(Reason) + Send + use<> {
        let vitals = Arc::clone(&self.shared.vitals);
        move |reason| vitals.cut(reason)
    }

    /// Ends when the connection is no more, its streams included; holds no handle meanwhile.
    pub fn over(&self) -> impl Future<Output = ()> + Send + use<> {
        let vitals = Arc::clone(&self.shared.vitals);
        async move { vitals.over().await }
    }

    /// What the server has proven; nothing without TLS.
    #[must_use]
    pub fn peer(&self) -> Option<&PeerProof> {
        self.shared.vitals.peer()
    }

    fn ended(&self) -> OpenError {
        match self.shared.vitals.lost() {
            Some(detail) => OpenError::PeerLost {
                detail: Arc::clone(detail),
            },
            None => OpenError::GoingAway,
        }
    }

    /// Says why a stream was not opened.
    fn explain(&self, error: &h2::Error) -> OpenError {
        if let Some(source) = self.shared.vitals.refused() {
            return OpenError::Tls {
                source: Arc::clone(source),
            };
        }
        match error.reason() {
            Some(reason) if error.is_reset() => OpenError::Reset(reason.into()),
            Some(_) if error.is_go_away() && error.is_remote() => {
                self.drain();
                OpenError::GoingAway
            }
            Some(_) => OpenError::Http2 {
                detail: error.to_string().into(),
            },
            None => OpenError::PeerLost {
                detail: self
                    .shared
                    .vitals
                    .lost()
                    .cloned()
                    .unwrap_or_else(|| error.to_string().into()),
            },
        }
    }
}
