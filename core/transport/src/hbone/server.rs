//! The server side of a tunnel connection: establish it, accept streams, answer or refuse them.

use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use futures_util::task::AtomicWaker;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tulle_identity::{Clock, HandshakeError, PeerProof, tls};
use tulle_model::Identity;

use super::connect::{ConnectRequest, ConnectResponse, MalformedConnect, Refusal};
use super::error::{AcceptError, StreamError};
use super::expiry::Expiry;
use super::liveness::{Slot, Vitals, head_overdue, peer_lost, unused};
use super::seam::{Answer, Asked, Framing, Ping, ServerFrames};
use super::settings::Settings;
use super::stream::HboneStream;
use super::{h2, own};
use crate::ReasonHeader;
use crate::socket::{canonical, keep_queue_short};

/// A connection and who is at its other end.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub connection: ServerConnection,
    /// The identity the client has proven.
    pub identity: Identity,
    /// The chain that proved it.
    pub peer: PeerProof,
    /// Where it connects from.
    pub address: SocketAddr,
}

/// TLS, then HTTP/2, over an accepted socket.
pub async fn accept(
    socket: TcpStream,
    config: Arc<ServerConfig>,
    settings: &Settings,
) -> Result<Accepted, AcceptError> {
    let address = canonical(socket.peer_addr().map_err(HandshakeError::Io)?);
    keep_queue_short(&socket).map_err(HandshakeError::Io)?;
    accept_over(socket, address, config, settings).await
}

/// TLS, then HTTP/2, over any byte stream from `address`, such as the outer tunnel of a double one.
pub async fn accept_over<S>(
    stream: S,
    address: SocketAddr,
    config: Arc<ServerConfig>,
    settings: &Settings,
) -> Result<Accepted, AcceptError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handshake = async {
        let (connection, peer) = if settings.framing.takes_keys() {
            let handover = tls::accept_and_hand_over(config, stream).await?;
            let (peer, vitals) = (handover.peer.clone(), Vitals::new(settings));
            let frames = own::accept_over_records(handover, settings, &vitals).await?;
            (ServerConnection::new(frames, vitals, settings), peer)
        } else {
            let (stream, _) = tls::accept(config, stream).await?;
            let peer = tls::accepted(&stream)?;
            (handshake(stream, settings).await?, peer)
        };
        Ok(Accepted {
            connection,
            identity: peer.identity().clone(),
            peer,
            address,
        })
    };
    let late = |_| AcceptError::Timeout(settings.handshake_timeout);
    timeout(settings.handshake_timeout, handshake)
        .await
        .map_err(late)?
}

/// HTTP/2 over a stream that is already protected, or needs no protection.
pub async fn handshake<S>(stream: S, settings: &Settings) -> Result<ServerConnection, AcceptError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let vitals = Vitals::new(settings);
    let frames = match settings.framing {
        Framing::H2 => h2::accept(stream, settings, &vitals).await?,
        Framing::Own | Framing::Records => own::accept(stream, settings, &vitals).await?,
    };
    Ok(ServerConnection::new(frames, vitals, settings))
}

/// Ends, with the reason, when the peer is not to be waited for any longer.
async fn peer_gone(ping: impl Ping, vitals: Arc<Vitals>, settings: Settings) -> &'static str {
    tokio::select! {
        () = peer_lost(ping, Arc::clone(&vitals), settings) => "no answer to PING",
        () = head_overdue(vitals, settings.handshake_timeout) => "the peer did not finish what it began",
    }
}

type Event = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One client's connection. It moves frames only while [`Self::accept`] is being awaited, which is to go on until
/// that says `None`, also while streams are open.
pub struct ServerConnection {
    frames: Box<dyn ServerFrames>,
    lost: Pin<Box<dyn Future<Output = &'static str> + Send>>,
    /// Runs until it fired once.
    unused: Option<Event>,
    handle: ServerHandle,
    vitals: Arc<Vitals>,
}

/// Ends a [`ServerConnection`] from elsewhere.
#[derive(Debug, Clone)]
pub struct ServerHandle {
    wish: Arc<Wish>,
}

#[derive(Debug, Default)]
struct Wish {
    what: AtomicU8,
    /// Why it is to end.
    reason: OnceLock<tulle_model::Reason>,
    waker: AtomicWaker,
}

const DRAIN: u8 = 1;
const CLOSE: u8 = 2;

impl ServerHandle {
    /// GOAWAY(NO_ERROR): no further stream is accepted, those that are open go on.
    pub fn drain(&self) {
        self.ask(DRAIN);
    }

    /// As [`Self::drain`], at the end of a certificate of either side, as `clock` or the time that was left tells,
    /// whichever is first. Ends then.
    pub fn retire_after(
        &self,
        not_after: SystemTime,
        clock: Clock,
    ) -> impl Future<Output = ()> + Send + use<> {
        let handle = self.clone();
        let expiry = Expiry::new(not_after, clock.now(), Instant::now());
        async move {
            expiry.passed(&clock).await;
            handle.drain();
        }
    }

    /// As [`Self::close`]; the streams learn of the reason.
    pub fn cut(&self, reason: tulle_model::Reason) {
        let _ = self.wish.reason.set(reason);
        self.ask(CLOSE);
    }

    /// GOAWAY(NO_ERROR), and every open stream ends at once.
    pub fn close(&self) {
        self.ask(CLOSE);
    }

    fn ask(&self, what: u8) {
        self.wish.what.fetch_or(what, Ordering::AcqRel);
        self.wish.waker.wake();
    }
}

impl ServerConnection {
    fn new(mut frames: Box<dyn ServerFrames>, vitals: Arc<Vitals>, settings: &Settings) -> Self {
        let lost = peer_gone(frames.ping(), Arc::clone(&vitals), *settings);
        let unused = unused(Arc::clone(&vitals), settings.idle_timeout);
        Self {
            frames,
            lost: Box::pin(lost),
            unused: Some(Box::pin(unused)),
            handle: ServerHandle { wish: Arc::default() },
            vitals,
        }
    }

    /// A handle that can end this connection while [`Self::accept`] is awaited.
    #[must_use]
    pub fn handle(&self) -> ServerHandle {
        self.handle.clone()
    }

    /// Streams open now.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.vitals.active()
    }

    /// The next stream, or `None` once the connection has ended. May be cancelled and called again.
    pub async fn accept(&mut self) -> Option<Incoming> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        self.poll_wishes(cx);
        if let Poll::Ready(why) = self.lost.as_mut().poll(cx) {
            self.vitals.lose(why);
            return Poll::Ready(None);
        }
        if let Poll::Ready(target) = self.vitals.window().poll_target(cx) {
            self.frames.set_window(target);
        }
        match ready!(self.frames.poll_accept(cx)) {
            Some(Ok(asked)) => {
                let slot = self.vitals.occupy();
                slot.is_of(asked.answer.stream());
                Poll::Ready(Some(Incoming::new(asked, slot)))
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "tunnel connection failed");
                self.vitals.lose(&error);
                Poll::Ready(None)
            }
            None => {
                self.vitals.lose("the connection was closed");
                Poll::Ready(None)
            }
        }
    }

    fn poll_wishes(&mut self, cx: &mut Context<'_>) {
        self.handle.wish.waker.register(cx.waker());
        let wish = self.handle.wish.what.swap(0, Ordering::AcqRel);
        if wish & CLOSE != 0 {
            if let Some(reason) = self.handle.wish.reason.get() {
                self.vitals.cut(*reason);
            }
            self.vitals.lose("closed by this side");
            self.frames.close();
        }
        let unused = self
            .unused
            .as_mut()
            .is_some_and(|unused| unused.as_mut().poll(cx).is_ready());
        if unused {
            self.unused = None;
        }
        if unused || wish & DRAIN != 0 {
            self.vitals.retire();
            self.frames.drain();
        }
    }
}

impl fmt::Debug for ServerConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerConnection")
            .field("active", &self.active())
            .finish_non_exhaustive()
    }
}

/// A stream that asks to become a tunnel. Dropping it unanswered resets it.
pub struct Incoming {
    request: Result<ConnectRequest, MalformedConnect>,
    answer: Box<dyn Answer>,
    slot: Slot,
}

impl Incoming {
    fn new(asked: Asked, slot: Slot) -> Self {
        Self {
            request: asked.request,
            answer: asked.answer,
            slot,
        }
    }

    /// What is asked for, or why it is no tunnel request; then the answer is 400 with that reason.
    pub fn request(&self) -> Result<&ConnectRequest, MalformedConnect> {
        self.request.as_ref().map_err(|error| *error)
    }

    /// Answers 200. The application must be connected by now.
    pub fn accept(self, response: &ConnectResponse) -> Result<HboneStream, StreamError> {
        self.answer.accept(response, self.slot)
    }

    /// Answers `status`, with the reason if there is one to tell.
    pub fn reject(self, status: u16, reason: Option<ReasonHeader>) {
        let refusal = Refusal {
            status,
            header: reason,
        };
        if let Err(error) = self.answer.reject(&refusal) {
            tracing::debug!(%error, status, "refusal not delivered");
        }
    }

    /// Waits until the client no longer wants the stream, for example because it was reset.
    pub async fn cancelled(&mut self) {
        poll_fn(|cx| self.answer.poll_cancelled(cx)).await;
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("request", &self.request)
            .finish_non_exhaustive()
    }
}
