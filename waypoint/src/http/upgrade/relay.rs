//! The bytes of a stream that both sides have agreed on: copied until both have finished, one breaks off, nothing moves
//! for too long, policies deny it, or the process ends.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tulle_model::Reason;

use crate::context::Waypoint;
use crate::http::body::Held;
use crate::http::cut::Cut;
use crate::http::idle::{HALF_CLOSED_MAX, STREAM_IDLE_MAX};
use crate::http::record::Ending;
use crate::upstream::pool::Lease;

/// Bytes of the buffer of one direction while little moves …
const BUFFER_MIN: usize = 2 * 1024;
/// … and while much does.
const BUFFER_MAX: usize = 16 * 1024;

/// The endpoint's side of a stream that was agreed on, with what it holds until its end.
pub struct Switched {
    /// Its bytes, once its answer has been read.
    pub upstream: OnUpgrade,
    /// Its place on a connection.
    pub lease: Lease,
    /// Its place in counts.
    pub held: Option<Held>,
    /// Done when policies deny it.
    pub cut: Option<Cut>,
}

impl fmt::Debug for Switched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switched").finish_non_exhaustive()
    }
}

/// Carries a stream to its end, and tells it then.
pub async fn carry(waypoint: Arc<Waypoint>, client: OnUpgrade, switched: Switched, ending: Ending) {
    let Switched {
        upstream,
        lease: _lease,
        held: _held,
        cut,
    } = switched;
    let denied = async {
        match cut {
            Some(cut) => cut.await,
            None => std::future::pending().await,
        }
    };
    let idle = waypoint.view.load().settings.limits.stream_idle;
    let moved = Moved::new();
    let carrying = async {
        // The client's comes about when its answer has been written.
        match tokio::try_join!(client, upstream) {
            Ok((client, endpoint)) => {
                let (client, endpoint) = (TokioIo::new(client), TokioIo::new(endpoint));
                relay(client, endpoint, &moved, idle.unwrap_or(STREAM_IDLE_MAX)).await
            }
            Err(error) => {
                tracing::debug!(%error, "a stream was agreed on and did not come about");
                Some(Reason::ClientGone)
            }
        }
    };
    let reason = tokio::select! {
        reason = carrying => reason,
        () = denied => Some(Reason::PolicyChanged),
        () = waypoint.drain.urgent() => Some(Reason::DrainClosed),
    };
    if let Some(reason @ (Reason::StreamIdle | Reason::DrainClosed)) = reason {
        waypoint.metrics.replied(reason);
    }
    ending.switched(
        moved.up.load(Ordering::Relaxed),
        moved.down.load(Ordering::Relaxed),
        reason,
    );
}

/// What was moved, and when the last of it.
#[derive(Debug)]
struct Moved {
    up: AtomicU64,
    down: AtomicU64,
    begun: Instant,
    /// Nanoseconds since it began.
    last: AtomicU64,
    /// One side has finished.
    half_closed: AtomicBool,
    closed: Notify,
}

impl Moved {
    fn new() -> Self {
        Self {
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            begun: Instant::now(),
            last: AtomicU64::new(0),
            half_closed: AtomicBool::new(false),
            closed: Notify::new(),
        }
    }

    fn touch(&self) {
        let nanos = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.last.store(nanos, Ordering::Relaxed);
    }

    /// One side has finished; that is the last it moves.
    fn finished(&self) {
        self.touch();
        self.half_closed.store(true, Ordering::Relaxed);
        self.closed.notify_one();
    }

    /// Waits until nothing has moved for so long, or for as long as it may once one side has finished.
    async fn idle(&self, max: Duration) {
        loop {
            let last = self.begun + Duration::from_nanos(self.last.load(Ordering::Relaxed));
            let max = match self.half_closed.load(Ordering::Relaxed) {
                true => max.min(HALF_CLOSED_MAX),
                false => max,
            };
            let still = last.elapsed();
            if still >= max {
                return;
            }
            tokio::select! {
                () = sleep(max - still) => {}
                () = self.closed.notified() => {}
            }
        }
    }
}

/// Why it ended, if not because both sides have finished.
async fn relay<C, E>(client: C, endpoint: E, moved: &Moved, idle: Duration) -> Option<Reason>
where
    C: AsyncRead + AsyncWrite,
    E: AsyncRead + AsyncWrite,
{
    let (client_read, client_write) = split(client);
    let (endpoint_read, endpoint_write) = split(endpoint);
    let (client_gone, endpoint_gone) = (Reason::ClientGone, Reason::UpstreamReset);
    let up = pump(
        (client_read, client_gone),
        (endpoint_write, endpoint_gone),
        &moved.up,
        moved,
    );
    let down = pump(
        (endpoint_read, endpoint_gone),
        (client_write, client_gone),
        &moved.down,
        moved,
    );
    tokio::select! {
        both = async { tokio::try_join!(up, down) } => both.err(),
        () = moved.idle(idle) => Some(Reason::StreamIdle),
    }
}

/// One direction, to the end of what comes. Fails with the side that broke off.
async fn pump<R, W>(
    (mut from, lost_source): (R, Reason),
    (mut to, lost_target): (W, Reason),
    count: &AtomicU64,
    moved: &Moved,
) -> Result<(), Reason>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER_MIN];
    loop {
        let length = from.read(&mut buffer).await.map_err(|_| lost_source)?;
        if length == 0 {
            moved.finished();
            return to.shutdown().await.map_err(|_| lost_target);
        }
        moved.touch();
        to.write_all(&buffer[..length]).await.map_err(|_| lost_target)?;
        to.flush().await.map_err(|_| lost_target)?;
        count.fetch_add(length as u64, Ordering::Relaxed);
        moved.touch();
        if length == buffer.len() {
            buffer.resize(BUFFER_MAX, 0);
        } else if length <= BUFFER_MIN && buffer.len() > BUFFER_MIN {
            buffer.truncate(BUFFER_MIN);
            buffer.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn each_side_finishes_on_its_own() {
        let ((near, mut client), (far, mut endpoint)) = (duplex(64), duplex(64));
        let moved = Moved::new();
        let talking = async {
            client.write_all(b"bye").await.unwrap();
            client.shutdown().await.unwrap();
            let mut heard = String::new();
            endpoint.read_to_string(&mut heard).await.unwrap();
            assert_eq!(heard, "bye");
            let long = "still here ".repeat(1_000);
            let (sent, mut back) = (long.clone(), String::new());
            let sending = async {
                endpoint.write_all(sent.as_bytes()).await.unwrap();
                endpoint.shutdown().await.unwrap();
            };
            let (_, ()) = tokio::join!(client.read_to_string(&mut back), sending);
            assert_eq!(back, long);
        };
        let (reason, ()) = tokio::join!(relay(near, far, &moved, LONG), talking);
        assert_eq!(reason, None);
        assert_eq!(moved.up.load(Ordering::Relaxed), 3);
        assert_eq!(moved.down.load(Ordering::Relaxed), 11_000);
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_move_ends() {
        let ((near, mut client), (far, _endpoint)) = (duplex(64), duplex(64));
        let moved = Moved::new();
        let talking = async {
            sleep(LONG / 2).await;
            client.write_all(b"x").await.unwrap();
        };
        let begun = Instant::now();
        let (reason, ()) = tokio::join!(relay(near, far, &moved, LONG), talking);
        assert_eq!(reason, Some(Reason::StreamIdle));
        assert!(begun.elapsed() >= LONG + LONG / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_left_alone_has_less_time() {
        let ((near, mut client), (far, _endpoint)) = (duplex(64), duplex(64));
        let moved = Moved::new();
        let talking = async {
            sleep(LONG).await;
            client.shutdown().await.unwrap();
        };
        let begun = Instant::now();
        let (reason, ()) = tokio::join!(relay(near, far, &moved, 2 * HALF_CLOSED_MAX), talking);
        assert_eq!(reason, Some(Reason::StreamIdle));
        assert!((LONG + HALF_CLOSED_MAX..LONG + HALF_CLOSED_MAX + LONG).contains(&begun.elapsed()));
    }
}
