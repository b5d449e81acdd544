//! The client side of a tunnel connection: establish it, drive it, open streams on it.

use std::fmt;
use std::future::{pending, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tulle_identity::{Clock, HandshakeError, PeerProof, tls};
use tulle_model::Reason;
use tulle_runtime::tasks;

use super::connect::{ConnectRequest, ConnectResponse};
use super::error::OpenError;
use super::expiry::Expiry;
use super::liveness::{Slot, Vitals, peer_lost, unused};
use super::load::Traffic;
use super::seam::{ClientFrames, Framing, Opener};
use super::settings::Settings;
use super::stream::HboneStream;
use super::{h2, own};
use crate::socket::keep_queue_short;

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
    opener: Mutex<Option<Opener>>,
    vitals: Arc<Vitals>,
}

impl fmt::Debug for ClientConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConnection")
            .field("active", &self.active())
            .finish_non_exhaustive()
    }
}

/// TLS, then HTTP/2, over a connected socket. `config` decides which identities the peer may have.
pub async fn connect(
    socket: TcpStream,
    config: Arc<ClientConfig>,
    settings: &Settings,
) -> Result<ClientConnection, OpenError> {
    let broken = |error| tls_failed(HandshakeError::Io(error));
    let peer = socket.peer_addr().map_err(broken)?;
    keep_queue_short(&socket).map_err(broken)?;
    connect_over(socket, peer, config, settings).await
}

/// TLS, then HTTP/2, over any byte stream to `peer`: the inner session of a double tunnel runs over an
/// [`HboneStream`]. The stream ends with the connection.
pub async fn connect_over<S>(
    stream: S,
    peer: SocketAddr,
    config: Arc<ClientConfig>,
    settings: &Settings,
) -> Result<ClientConnection, OpenError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handshake = async {
        let (connection, peer) = if settings.framing.takes_keys() {
            let handover = tls::connect_and_hand_over(config, stream)
                .await
                .map_err(tls_failed)?;
            let (peer, vitals) = (handover.peer.clone(), Vitals::new(settings));
            let (opener, frames) = own::connect_over_records(handover, settings, &vitals)
                .map_err(|fault| tls_failed(io::Error::from(fault).into()))?;
            (begin(Opener::Own(opener), frames, vitals, settings), peer)
        } else {
            let stream = tls::connect(config, stream).await.map_err(tls_failed)?;
            let peer = tls::connected(&stream).map_err(tls_failed)?;
            (handshake(stream, settings).await?, peer)
        };
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
    let (opener, frames) = match settings.framing {
        Framing::H2 => {
            let (opener, frames) = h2::connect(stream, settings, &vitals).await?;
            (Opener::H2(opener), frames)
        }
        Framing::Own | Framing::Records => {
            let (opener, frames) = own::connect(stream, settings, &vitals);
            (Opener::Own(opener), frames)
        }
    };
    Ok(begin(opener, frames, vitals, settings))
}

/// Moves frames in a task of their own.
fn begin(
    opener: Opener,
    frames: Box<dyn ClientFrames>,
    vitals: Arc<Vitals>,
    settings: &Settings,
) -> ClientConnection {
    let shared = Arc::new(Shared {
        opener: Mutex::new(Some(opener)),
        vitals: Arc::clone(&vitals),
    });
    tasks::spawn(
        "hbone client",
        drive(frames, vitals, Arc::downgrade(&shared), *settings),
    );
    ClientConnection { shared }
}

/// Moves frames until the connection ends, and says why it did.
async fn drive(
    mut frames: Box<dyn ClientFrames>,
    vitals: Arc<Vitals>,
    shared: Weak<Shared>,
    settings: Settings,
) {
    let mut lost = pin!(peer_lost(frames.ping(), Arc::clone(&vitals), settings));
    let mut retired = pin!(async {
        tokio::select! {
            () = unused(Arc::clone(&vitals), settings.idle_timeout) => {}
            () = vitals.gone() => {}
        }
        // Without an opener, the framing says GOAWAY(NO_ERROR) and closes as soon as the last stream has ended.
        drop(take_opener(&shared));
        pending::<()>().await;
    });
    loop {
        tokio::select! {
            result = poll_fn(|cx| frames.poll(cx)) => {
                let why = result.map_or_else(|error| error, |()| "the connection was closed".to_owned());
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
            target = poll_fn(|cx| vitals.window().poll_target(cx)) => frames.set_window(target),
            () = &mut retired => {}
        }
    }
    drop(take_opener(&shared));
}

fn take_opener(shared: &Weak<Shared>) -> Option<Opener> {
    shared.upgrade().and_then(|shared| shared.opener.lock().take())
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
        let opener = self.shared.opener.lock().clone().ok_or_else(|| self.ended())?;
        opener.open(slot, request).await
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
}
