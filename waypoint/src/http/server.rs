//! Connections of clients inside of tunnels: HTTP/1 and HTTP/2, bounded, and ended in order.
//!
//! A connection of HTTP/1 that is quiet rests: the library gives back its bytes and goes, with its two buffers and all
//! that serves requests, and another begins when the client says something.
//!
//! ```text
//!          bytes, or their end
//! resting ────────────────────▶ awake ──▶ ended
//!         ◀────────────────────
//!           between two requests, for a second
//! ```

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use rand::RngExt;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep};
use tulle_model::Reason;
use tulle_transport::hbone::HboneStream;

use super::body::ResponseBody;
use super::exchange::exchange;
use super::farewell;
use super::flood::Meter;
use super::heads::Heads;
use super::pace::{Overdue, Pace};
use super::respond;
use super::session::{Http1Bytes, Session};
use super::wire::{Aside, Tap, Wire};
use crate::buffers;
use crate::context::Waypoint;
use crate::listener::arrival::Arrival;
use crate::upstream::pool::Tasks;

/// Header fields of a request.
const HEAD_FIELDS_MAX: usize = 100;
/// Bytes of the head of a request, unless the settings say otherwise.
const HEAD_BYTES_MAX: u32 = 64 * 1024;
/// Requests at once on one connection of HTTP/2.
const STREAMS_MAX: u32 = 256;
/// Requests that a client may reset before we looked at them.
const EARLY_RESETS_MAX: usize = 20;
/// Requests that a client may make us reset.
const FORCED_RESETS_MAX: usize = 1024;
/// Bytes of answers that wait on one request.
const SEND_BUFFER_MAX: usize = 64 * 1024;
/// After this long a connection of HTTP/2 is to be opened anew, so that long-lived clients spread over replicas.
const AGE_MAX: Duration = Duration::from_secs(10 * 60);
/// By this part of it the age differs from connection to connection: one fifth, either way.
const AGE_JITTER: f64 = 0.2;

/// What the library reads and writes.
type Bytes<T> = TokioIo<Wire<HboneStream, T>>;
/// What lies under the library while it serves HTTP/1.
type Http1Wire = Wire<HboneStream, Seen>;

/// What is seen of the bytes of a connection of HTTP/1.
#[derive(Debug)]
struct Seen {
    pace: Arc<Pace>,
    heads: Arc<Mutex<Heads>>,
}

impl Tap for Seen {
    fn arrived(&mut self, bytes: &[u8]) -> Result<(), bytes::Bytes> {
        self.heads.lock().see(bytes);
        // The library reads no more than a head, or what a body has room for.
        let _ = self.pace.carried().arrived(bytes.len());
        self.pace.arrived(bytes)
    }
}

/// What is seen of the bytes of a connection of HTTP/2.
#[derive(Debug)]
struct SeenFrames {
    pace: Arc<Pace>,
    meter: Meter,
}

impl Tap for SeenFrames {
    fn arrived(&mut self, bytes: &[u8]) -> Result<(), bytes::Bytes> {
        let seen = self.meter.see(bytes, Instant::now());
        let data = seen.map_err(|flood| {
            tracing::info!(%flood, "a client is sent away");
            self.meter.goodbye()
        })?;
        self.pace.carried().arrived(data).map_err(|no_room| {
            tracing::info!(%no_room, "a client is sent away");
            self.meter.goodbye()
        })
    }
}

/// Serves a connection of HTTP/1 to its end, and to that of a stream of bytes that it may have become.
///
/// Not an async function, whose state would have room for what it is given.
pub fn http1(
    waypoint: Arc<Waypoint>,
    arrival: Arrival,
    stream: HboneStream,
) -> impl Future<Output = ()> + Send {
    let head_timeout = waypoint.view.load().settings.limits.head_timeout;
    let pace = Pace::resting(head_timeout);
    let aside = Aside::speaking(waypoint.detail_for(&arrival.peer, arrival.is_gateway));
    let heads = Arc::default();
    let seen = Seen {
        pace: Arc::clone(&pace),
        heads: Arc::clone(&heads),
    };
    let known = Http1Bytes {
        aside: Arc::clone(&aside),
        heads,
    };
    let session = Session::new(waypoint, arrival, &pace, Some(known.clone()));
    let mut wire = Wire::new(stream, seen, aside);
    async move {
        // Boxed: a connection that rests has no room for what serves one.
        while let Some(resting) = Box::pin(awake(&session, &known, wire)).await {
            wire = resting;
            if !rest(&session, &mut wire).await {
                break;
            }
        }
        session.ended().await;
    }
}

/// Serves requests until the connection ends, or is to rest.
async fn awake(session: &Session, known: &Http1Bytes, wire: Http1Wire) -> Option<Http1Wire> {
    let serving = session.clone();
    let service = service_fn(move |request| {
        let session = serving.clone();
        async move {
            let drain = session.waypoint().drain.clone();
            let answer = exchange(session, request).await;
            Ok::<_, Infallible>(farewell::mark(drain.is_draining(), answer))
        }
    });
    let head_bytes = session.waypoint().view.load().settings.limits.header_bytes;
    let mut connection = http1::Builder::new()
        .max_headers(HEAD_FIELDS_MAX)
        .max_buf_size(head_bytes.unwrap_or(HEAD_BYTES_MAX) as usize)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(wire), service)
        .with_upgrades();
    if serve_http1(session, known, Pin::new(&mut connection)).await == Over::Ended {
        return None;
    }
    let parts = connection.into_parts()?;
    // Every byte was a request's, so what the library has not used is empty lines. Were it anything else, where the last
    // request ended would not be certain, and nothing after it could be believed.
    let is_certain = parts.read_buf.iter().all(|byte| matches!(byte, b'\r' | b'\n'));
    is_certain.then(|| {
        let mut wire = parts.io.into_inner();
        wire.give_back(&parts.read_buf);
        wire
    })
}

/// Waits without the library until the client says something; false if the connection is to end.
async fn rest(session: &Session, wire: &mut Http1Wire) -> bool {
    let drain = &session.waypoint().drain;
    tokio::select! {
        biased;
        stirred = wire.stirs() => return stirred.is_ok(),
        () = drain.urgent() => return false,
        () = farewell::due(drain) => {}
        _ = session.pace().overdue(|| false) => {}
    }
    // The end that the library would write.
    let _ = wire.shutdown().await;
    false
}

/// Why a connection of HTTP/1 is not served any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Ended,
    /// It is between two requests, and quiet.
    Rests,
}

async fn serve_http1<S, F>(
    session: &Session,
    known: &Http1Bytes,
    mut connection: Pin<&mut http1::UpgradeableConnection<Bytes<Seen>, S>>,
) -> Over
where
    S: Service<Request<Incoming>, Response = Response<ResponseBody>, Error = Infallible, Future = F>,
    F: Future<Output = Result<Response<ResponseBody>, Infallible>> + Send + 'static,
{
    let Http1Bytes { aside, heads } = known;
    // Every byte that came was a request that was answered, and the answer has left: nothing is lost with the library.
    let may_rest = || aside.is_silent() && heads.lock().is_between();
    let (drain, mut draining, mut leaving) = (session.waypoint().drain.clone(), false, false);
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection of a client ended");
                    // The library has said so already.
                    if error.is_parse() {
                        session.unread(aside.refused().unwrap_or_else(|| unreadable(&error)));
                    }
                }
                return Over::Ended;
            }
            () = drain.urgent() => return Over::Ended,
            // Its last word has been said, or it does not take it.
            () = std::future::ready(()), if leaving => return Over::Ended,
            () = farewell::due(&drain), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            overdue = session.pace().overdue(may_rest), if !draining => match overdue {
                Overdue::Rest => return Over::Rests,
                Overdue::Idle => {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
                Overdue::Head => {
                    session.unread(Reason::HeadTimeout);
                    let arrival = session.arrival();
                    let detail = session
                        .waypoint()
                        .detail_for(&arrival.peer, arrival.is_gateway);
                    aside.leave(&respond::last_word(Reason::HeadTimeout, detail));
                    leaving = true;
                }
            },
        }
    }
}

fn unreadable(error: &hyper::Error) -> Reason {
    if error.is_parse_too_large() {
        Reason::HeadersTooLarge
    } else {
        Reason::BadFraming
    }
}

/// Serves a connection of HTTP/2 to its end.
pub fn http2(
    waypoint: Arc<Waypoint>,
    arrival: Arrival,
    stream: HboneStream,
) -> impl Future<Output = ()> + Send {
    let limits = waypoint.view.load().settings.limits.clone();
    let http2 = waypoint.config.http2;
    let pace = Pace::begin(limits.head_timeout);
    let session = Session::new(waypoint, arrival, &pace, None);
    let serving = session.clone();
    let service = service_fn(move |request| {
        let session = serving.clone();
        async move { Ok::<_, Infallible>(exchange(session, request).await) }
    });
    let seen = SeenFrames {
        pace: Arc::clone(&pace),
        meter: Meter::new(Instant::now()),
    };
    let wire = Wire::new(stream, seen, Aside::new());
    let connection = http2::Builder::new(Tasks)
        .timer(TokioTimer::new())
        .initial_stream_window_size(http2.stream_window)
        .initial_connection_window_size(buffers::window(http2.connection_window))
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(limits.header_bytes.unwrap_or(HEAD_BYTES_MAX))
        .max_frame_size(http2.frame_size)
        .max_pending_accept_reset_streams(EARLY_RESETS_MAX)
        .max_local_error_reset_streams(FORCED_RESETS_MAX)
        .max_send_buf_size(SEND_BUFFER_MAX)
        .enable_connect_protocol()
        .serve_connection(TokioIo::new(wire), service);
    async move {
        serve_http2(&session, &pace, pin!(connection)).await;
        session.ended().await;
    }
}

async fn serve_http2<S, F>(
    session: &Session,
    pace: &Arc<Pace>,
    mut connection: Pin<&mut http2::Connection<Bytes<SeenFrames>, S, Tasks>>,
) where
    S: Service<Request<Incoming>, Response = Response<ResponseBody>, Error = Infallible, Future = F>,
    F: Future<Output = Result<Response<ResponseBody>, Infallible>> + Send + 'static,
{
    let mut age = pin!(sleep(age()));
    let (drain, mut draining) = (session.waypoint().drain.clone(), false);
    loop {
        let leave = async {
            tokio::select! {
                _ = drain.signaled() => {}
                () = &mut age => {}
                _ = pace.overdue(|| false) => {}
            }
        };
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection of a client ended");
                }
                return;
            }
            // In two steps: what the client sent before it heard of the first is still served.
            () = leave, if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            () = drain.urgent() => return,
        }
    }
}

fn age() -> Duration {
    AGE_MAX.mul_f64(rand::rng().random_range(1.0 - AGE_JITTER..=1.0 + AGE_JITTER))
}
