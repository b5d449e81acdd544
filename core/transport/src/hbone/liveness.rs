//! Whether a tunnel connection lives and is used: open streams, last sign of the peer, PING, idleness.
//!
//! ```text
//!            stream opens              5 s without a byte            5 s without an answer
//!   unused ───────────────▶ watched ───────────────────────▶ asked ───────────────────────▶ lost
//!      ▲                     │    ▲                             │
//!      └── last one closes ──┘    └───── anything arrives ──────┘
//! ```
//!
//! What is waited for a peer is [time in which this process ran](lived), so that no peer is lost by ours standing still.

use std::future::{pending, poll_fn};
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tulle_identity::{HandshakeError, PeerProof};
use tulle_model::Reason;

use super::error::StreamError;
use super::held::Held;
use super::load::{BULK_AFTER, Traffic};
use super::seam::Ping;
use super::settings::Settings;
use super::stream::ResetCode;
use super::window::Window;

/// Set in [`Vitals::streams`] once no further stream may open.
const RETIRED: u32 = 1 << 31;

/// What the driver of a connection, its streams and the pool know in common.
#[derive(Debug)]
pub(super) struct Vitals {
    /// Open streams, and [`RETIRED`].
    streams: AtomicU32,
    /// Streams that may be open at once.
    limit: AtomicU32,
    activity: watch::Sender<Activity>,
    gone: CancellationToken,
    epoch: Instant,
    /// When the peer was last heard, in milliseconds after `epoch`.
    heard_ms: AtomicU64,
    lost: OnceLock<Arc<str>>,
    /// The connection is no more.
    over: CancellationToken,
    /// Why this side wants it to be no more, and that it does.
    cut_for: OnceLock<Reason>,
    cut: CancellationToken,
    peer: OnceLock<PeerProof>,
    refused: OnceLock<Arc<HandshakeError>>,
    window: Window,
    held: Held,
    traffic: Traffic,
}

/// What those who watch a connection wait for.
#[derive(Debug, Default)]
struct Activity {
    /// Streams are open.
    busy: bool,
    /// Since when the peer owes the rest of what it has begun.
    owes_since: Option<Instant>,
}

impl Vitals {
    pub(super) fn new(settings: &Settings) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            streams: AtomicU32::new(0),
            limit: AtomicU32::new(settings.streams_max.max(1)),
            activity: watch::Sender::default(),
            gone: CancellationToken::new(),
            epoch: now,
            heard_ms: AtomicU64::new(0),
            lost: OnceLock::new(),
            over: CancellationToken::new(),
            cut_for: OnceLock::new(),
            cut: CancellationToken::new(),
            peer: OnceLock::new(),
            refused: OnceLock::new(),
            window: Window::new(settings.connection_window),
            held: Held::default(),
            traffic: Traffic::new(now),
        })
    }

    /// Takes a place for one stream, if there is one.
    pub(super) fn acquire(self: &Arc<Self>) -> Option<Slot> {
        let limit = self.limit();
        let free = |streams: u32| (streams & RETIRED == 0 && streams < limit).then_some(streams + 1);
        self.streams
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, free)
            .ok()?;
        Some(self.occupied())
    }

    /// Takes a place for a stream that is already there: a peer's, who was told the limit.
    pub(super) fn occupy(self: &Arc<Self>) -> Slot {
        self.streams.fetch_add(1, Ordering::AcqRel);
        self.occupied()
    }

    fn occupied(self: &Arc<Self>) -> Slot {
        self.announce();
        Slot {
            vitals: Arc::clone(self),
            moved: AtomicU64::new(0),
            stream: AtomicU32::new(0),
        }
    }

    /// Tells the watchers whether streams are open. Read under the channel's lock, so the last word is true.
    fn announce(&self) {
        self.activity.send_if_modified(|activity| {
            let now = self.active() > 0;
            std::mem::replace(&mut activity.busy, now) != now
        });
    }

    pub(super) fn active(&self) -> u32 {
        self.streams.load(Ordering::Acquire) & !RETIRED
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    pub(super) fn set_limit(&self, limit: u32) {
        self.limit.store(limit.max(1), Ordering::Relaxed);
    }

    /// No further stream opens here; those that are open go on.
    pub(super) fn retire(&self) {
        self.streams.fetch_or(RETIRED, Ordering::AcqRel);
        self.gone.cancel();
    }

    /// Retires only if no stream is open.
    fn retire_unused(&self) -> bool {
        let unused = self
            .streams
            .compare_exchange(0, RETIRED, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        if unused {
            self.gone.cancel();
        }
        unused
    }

    pub(super) fn is_retired(&self) -> bool {
        self.streams.load(Ordering::Acquire) & RETIRED != 0
    }

    /// Waits until no further stream can open here.
    pub(super) async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// The connection is no more, for this reason.
    pub(super) fn lose(&self, why: &str) {
        let _ = self.lost.set(why.into());
        self.retire();
        self.over.cancel();
    }

    /// Waits until the connection is no more.
    pub(super) async fn over(&self) {
        self.over.cancelled().await;
    }

    /// Asks the driver to end the connection, with all its streams. The first reason stays.
    pub(super) fn cut(&self, reason: Reason) {
        let _ = self.cut_for.set(reason);
        self.retire();
        self.cut.cancel();
    }

    /// Waits until the connection is to be ended.
    pub(super) async fn cut_asked(&self) -> Reason {
        self.cut.cancelled().await;
        *self.cut_for.get().expect("set before the wake-up")
    }

    pub(super) fn cut_for(&self) -> Option<Reason> {
        self.cut_for.get().copied()
    }

    /// Keeps what the peer has proven.
    pub(super) fn proven(&self, peer: PeerProof) {
        let _ = self.peer.set(peer);
    }

    pub(super) fn peer(&self) -> Option<&PeerProof> {
        self.peer.get()
    }

    pub(super) fn lost(&self) -> Option<&Arc<str>> {
        self.lost.get()
    }

    /// What TLS said after the handshake: a client learns only then that its certificate was refused.
    pub(super) fn refused(&self) -> Option<&Arc<HandshakeError>> {
        self.refused.get()
    }

    pub(super) fn window(&self) -> &Window {
        &self.window
    }

    pub(super) fn held(&self) -> &Held {
        &self.held
    }

    pub(super) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// The peer sent something.
    pub(super) fn heard(&self, now: Instant) {
        let elapsed = now.duration_since(self.epoch).as_millis();
        self.heard_ms
            .store(u64::try_from(elapsed).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn last_heard(&self) -> Instant {
        self.epoch + Duration::from_millis(self.heard_ms.load(Ordering::Relaxed))
    }

    /// The peer owes the rest of what it has begun, or has finished it.
    pub(super) fn owes(&self, since: Option<Instant>) {
        self.activity.send_modify(|activity| activity.owes_since = since);
    }

    /// Keeps what TLS said.
    pub(super) fn failed(&self, error: &io::Error) {
        if let Some(tls) = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            let _ = self.refused.set(Arc::new(tls.clone().into()));
        }
    }
}

/// A place for one stream; given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    vitals: Arc<Vitals>,
    /// Payload of both directions.
    moved: AtomicU64,
    /// The number of the stream, where what it holds is counted.
    stream: AtomicU32,
}

impl Slot {
    pub(super) fn window(&self) -> &Window {
        self.vitals.window()
    }

    pub(super) fn vitals(&self) -> &Arc<Vitals> {
        &self.vitals
    }

    /// It is the place of a stream that the peer has opened.
    pub(super) fn is_of(&self, stream: u32) {
        self.stream.store(stream, Ordering::Relaxed);
    }

    /// It is the place of a stream that we open.
    pub(super) fn opens(&self, stream: u32) {
        self.is_of(stream);
        self.vitals.held.opened(stream);
    }

    /// The stream has moved `bytes` more.
    pub(super) fn moved(&self, bytes: usize) {
        let before = self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
        if before < BULK_AFTER && before + bytes as u64 >= BULK_AFTER {
            self.vitals.traffic.bulk_began();
        }
    }

    /// How the connection ended, if it did.
    pub(super) fn lost(&self) -> Option<StreamError> {
        match self.vitals.cut_for() {
            Some(reason) => Some(StreamError::Cut(reason)),
            None => self.vitals.lost().cloned().map(StreamError::Lost),
        }
    }

    /// The peer's reset, unless it is only how the end of the connection looks.
    pub(super) fn reset_or_lost(&self, code: ResetCode) -> StreamError {
        self.lost().unwrap_or(StreamError::Reset(code))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.vitals.held.closed(self.stream.load(Ordering::Relaxed));
        if *self.moved.get_mut() >= BULK_AFTER {
            self.vitals.traffic.bulk_ended();
        }
        self.vitals.streams.fetch_sub(1, Ordering::AcqRel);
        self.vitals.announce();
    }
}

/// Ends when the peer stopped answering while streams were open.
pub(super) async fn peer_lost(mut ping: impl Ping, vitals: Arc<Vitals>, settings: Settings) {
    let mut activity = vitals.activity.subscribe();
    let mut asked = false;
    loop {
        if activity.wait_for(|activity| activity.busy).await.is_err() {
            return pending().await;
        }
        let due = vitals.last_heard() + settings.ping_after;
        if Instant::now() < due {
            sleep_until(due).await;
            continue;
        }
        if !asked && !ping.send() {
            // The connection is ending by itself.
            return pending().await;
        }
        asked = true;
        let since = Instant::now();
        let answer = tokio::select! {
            biased;
            answer = poll_fn(|cx| ping.poll_answer(cx)) => Some(answer),
            () = lived(settings.ping_timeout) => None,
        };
        match answer {
            Some(true) => asked = false,
            Some(false) => return pending().await,
            None if vitals.last_heard() <= since => return,
            // Not an answer, but a sign of life.
            None => {}
        }
    }
}

/// Parts in which a peer is waited for.
const PARTS: u32 = 5;

/// Ends when so much time has passed in which this process ran.
///
/// A process that is stopped, or is given no processor or memory for seconds, finds its time over when it goes on, and
/// what came meanwhile unread. So the time is waited in parts, and one that ends much too late does not count. As many of
/// these as there are parts: a peer that is gone is found even by a process that never runs in time.
async fn lived(time: Duration) {
    let part = time / PARTS;
    let (mut left, mut late) = (PARTS, PARTS);
    while left > 0 {
        let began = Instant::now();
        sleep(part).await;
        if late > 0 && began.elapsed() >= 2 * part {
            late -= 1;
        } else {
            left -= 1;
        }
    }
}

/// Ends when the peer has not finished within `after` what it has begun.
pub(super) async fn head_overdue(vitals: Arc<Vitals>, after: Duration) {
    let mut activity = vitals.activity.subscribe();
    loop {
        let Ok(since) = activity
            .wait_for(|activity| activity.owes_since.is_some())
            .await
            .map(|activity| activity.owes_since)
        else {
            return pending().await;
        };
        let Some(since) = since else { continue };
        tokio::select! {
            () = lived(after) => return,
            _ = activity.wait_for(|activity| activity.owes_since != Some(since)) => {}
        }
    }
}

/// Ends when no stream was open for `after`, with the connection retired.
pub(super) async fn unused(vitals: Arc<Vitals>, after: Duration) {
    let mut activity = vitals.activity.subscribe();
    loop {
        if activity.wait_for(|activity| !activity.busy).await.is_err() {
            return pending().await;
        }
        tokio::select! {
            () = sleep(after) => {
                if vitals.retire_unused() || vitals.is_retired() {
                    return;
                }
            }
            _ = activity.wait_for(|activity| activity.busy) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tulle_runtime::tasks;

    use super::*;

    const TIME: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn time_that_passes_as_it_should_counts_in_full() {
        let began = Instant::now();
        lived(TIME).await;
        assert!(
            began.elapsed() >= TIME && began.elapsed() < TIME + Duration::from_millis(100),
            "{:?}",
            began.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_the_process_stood_still_does_not_count() {
        let waiting = tasks::spawn("waiting", lived(TIME));
        sleep(Duration::from_millis(4_500)).await;
        tokio::time::advance(Duration::from_secs(3600)).await;
        sleep(Duration::from_millis(500)).await;
        assert!(!waiting.is_finished(), "the last second is still to come");
        sleep(Duration::from_millis(600)).await;
        assert!(waiting.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_never_runs_in_time_does_not_wait_for_ever() {
        let waiting = tasks::spawn("waiting", lived(TIME));
        tokio::task::yield_now().await;
        let mut steps = 0;
        while !waiting.is_finished() {
            tokio::time::advance(Duration::from_secs(30)).await;
            steps += 1;
            assert!(steps <= 20);
        }
    }
}
