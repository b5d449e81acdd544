//! Attacks on a tunnel port by peers that have a certificate and mean harm, and by some that have none: what each sends
//! on a connection of its own, again and again.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tulle_identity::WorkloadCertificate;
use tulle_linux::NetNs;
use tulle_transport::hbone::raw::{self, Peer};

use super::Figure;
use crate::hbone::identity;
use crate::traffic::{connect, spawn};

/// Connections of the flood of handshakes that are open at a time.
const FLOOD: usize = 1_500;
/// How long one connection of an attack lasts at most.
const STRIKE_MAX: Duration = Duration::from_secs(5);
/// Between two of them, so that attackers do not take all of the processors from those they attack.
const PAUSE: Duration = Duration::from_millis(20);
/// Frames that are sent in one write.
const BATCH: u32 = 100;
/// Writes of one connection, as far as the other side takes them.
const BATCHES: u32 = 200;
/// What the other side may be sent on a stream, and on a connection, before it gives anything back.
const STREAM_WINDOW: usize = 4 << 20;
const CONNECTION_WINDOW: usize = 16 << 20;
/// Connections at a time whose windows are filled: together they hold more than any of the limits that are tested.
const FILLERS: usize = 4;

/// What an attacker does once it is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attack {
    /// Streams that are opened and reset at once.
    RapidReset,
    /// Frames for which the server has to reset a stream, whose window is 0.
    ForcedReset,
    /// A head that never ends.
    EndlessHead,
    /// A head of a few KiB that stands for megabytes.
    HeadBomb,
    /// DATA that carries nothing.
    EmptyData,
    /// Streams that are refused.
    Refusals,
    /// PING.
    Pings,
    /// SETTINGS.
    Settings,
    /// DATA of one byte each, whose echo is never taken.
    TinyData,
    /// Full windows, whose echo is never taken.
    FullWindows,
    /// Nothing, once TLS is done.
    Silence,
    /// The beginning of a head.
    HalfHead,
}

const ALL: [(&str, Attack); 12] = [
    ("r101_rapid_reset", Attack::RapidReset),
    ("r102_forced_reset", Attack::ForcedReset),
    ("r103_endless_head", Attack::EndlessHead),
    ("r105_head_bomb", Attack::HeadBomb),
    ("r104_empty_data", Attack::EmptyData),
    ("r106_refusals", Attack::Refusals),
    ("r107_pings", Attack::Pings),
    ("r107_settings", Attack::Settings),
    ("r114_tiny_data", Attack::TinyData),
    ("full_windows", Attack::FullWindows),
    ("silence", Attack::Silence),
    ("half_head", Attack::HalfHead),
];

/// A peer that does what a test says, over TLS or not.
trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Stream for S {}

impl Attack {
    /// Says and does what it is for, until the other side has had enough.
    async fn strike<S: Stream>(self, peer: &mut Peer<S>, target: SocketAddr) -> io::Result<()> {
        let open = raw::frame(raw::HEADERS, raw::END_HEADERS, 1, &head(target));
        match self {
            Self::RapidReset => {
                let both = |stream| [raw::connect(stream), raw::cancel(stream)].concat();
                many(peer, |n| both(2 * n + 1)).await
            }
            Self::ForcedReset => {
                let no_window = raw::frame(raw::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
                peer.try_send(&no_window).await?;
                let no_increment = |stream| raw::frame(raw::WINDOW_UPDATE, 0, stream, &[0; 4]);
                let both = |stream| [raw::connect(stream), no_increment(stream)].concat();
                many(peer, |n| both(2 * n + 1)).await
            }
            Self::EndlessHead => {
                peer.try_send(&raw::frame(raw::HEADERS, 0, 1, &head(target)))
                    .await?;
                let part = [b"\x00\x01x\x7f\x80\x07".as_slice(), &[b'x'; 1024]].concat();
                many(peer, |_| raw::frame(raw::CONTINUATION, 0, 1, &part)).await
            }
            Self::HeadBomb => {
                // One field of 4,000 bytes enters the table, then is named by its index.
                let mut block = head(target);
                block.extend(b"\x40\x01a\x7f\xa1\x1e");
                block.extend([b'v'; 4_000]);
                block.extend([0xbe; 6_000]);
                peer.try_send(&raw::frame(raw::HEADERS, raw::END_HEADERS, 1, &block))
                    .await?;
                wait_for_the_end(peer).await
            }
            Self::EmptyData => {
                peer.try_send(&open).await?;
                many(peer, |_| raw::frame(raw::DATA, 0, 1, &[])).await
            }
            Self::Refusals => many(peer, |n| raw::connect(2 * n + 1)).await,
            Self::Pings => many(peer, |_| raw::frame(raw::PING, 0, 0, &[7; 8])).await,
            Self::Settings => many(peer, |_| raw::frame(raw::SETTINGS, 0, 0, &[])).await,
            Self::TinyData => {
                peer.try_send(&open).await?;
                many(peer, |_| raw::frame(raw::DATA, 0, 1, b"x")).await?;
                wait_for_the_end(peer).await
            }
            Self::FullWindows => fill_windows(peer, target).await,
            Self::Silence => wait_for_the_end(peer).await,
            Self::HalfHead => {
                peer.try_send(&open[..12]).await?;
                wait_for_the_end(peer).await
            }
        }
    }

    /// How many of it strike at a time.
    fn at_a_time(self) -> usize {
        if self == Self::FullWindows { FILLERS } else { 1 }
    }
}

/// `:method: CONNECT` and the target as `:authority`, both literal.
fn head(target: SocketAddr) -> Vec<u8> {
    let authority = target.to_string();
    let length = u8::try_from(authority.len()).expect("an address is short");
    [b"\x02\x07CONNECT\x01", &[length][..], authority.as_bytes()].concat()
}

/// Sends frame after frame, whoever answers.
async fn many<S: Stream>(peer: &mut Peer<S>, frame: impl Fn(u32) -> Vec<u8>) -> io::Result<()> {
    for batch in 0..BATCHES {
        let numbers = batch * BATCH..(batch + 1) * BATCH;
        let frames: Vec<u8> = numbers.flat_map(&frame).collect();
        peer.try_send(&frames).await?;
    }
    Ok(())
}

/// As much as the windows allow without a word from the other side, on streams whose echo is never taken.
async fn fill_windows<S: Stream>(peer: &mut Peer<S>, target: SocketAddr) -> io::Result<()> {
    let piece = vec![7; 16 * 1024];
    let streams = (0..CONNECTION_WINDOW / STREAM_WINDOW).map(|n| 2 * u32::try_from(n).expect("few") + 1);
    for stream in streams {
        let open = raw::frame(raw::HEADERS, raw::END_HEADERS, stream, &head(target));
        peer.try_send(&open).await?;
        for _ in 0..STREAM_WINDOW / piece.len() {
            peer.try_send(&raw::frame(raw::DATA, 0, stream, &piece)).await?;
        }
    }
    wait_for_the_end(peer).await
}

async fn wait_for_the_end<S: Stream>(peer: &mut Peer<S>) -> io::Result<()> {
    loop {
        peer.read().await?;
    }
}

/// Attackers at work; they end with the value.
#[derive(Debug)]
pub(super) struct Attackers {
    /// Connections of each kind, and how many of these the other side has ended.
    counts: Arc<Vec<[AtomicU64; 2]>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Attackers {
    /// Begins to attack the tunnel port of a pod whose application listens at `target`, as a peer with a certificate for
    /// the account `db`'s callers know.
    pub(super) fn start(from: &NetNs, certificate: &Arc<WorkloadCertificate>, target: SocketAddr) -> Self {
        let counts: Vec<_> = ALL.iter().map(|_| Default::default()).collect();
        let mut this = Self {
            counts: Arc::new(counts),
            tasks: vec![spawn(flood(from.clone(), port(target)))],
        };
        for (index, (_, attack)) in ALL.into_iter().enumerate() {
            for _ in 0..attack.at_a_time() {
                let attacker = Attacker {
                    from: from.clone(),
                    certificate: Arc::clone(certificate),
                    target,
                };
                let counts = Arc::clone(&this.counts);
                this.tasks.push(spawn(async move {
                    attacker.strike_again(attack, &counts[index]).await;
                }));
            }
        }
        this
    }

    /// The counts of each kind, each of which must have struck.
    pub(super) fn told(&self, figure: Figure) -> Figure {
        ALL.iter()
            .zip(self.counts.iter())
            .fold(figure, |figure, ((name, _), [struck, cut])| {
                let (struck, cut) = (struck.load(Ordering::Relaxed), cut.load(Ordering::Relaxed));
                figure.expect(name, format!("{cut}/{struck}"), struck > 0, "at least one")
            })
    }
}

impl Drop for Attackers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Who attacks, and whom.
struct Attacker {
    from: NetNs,
    certificate: Arc<WorkloadCertificate>,
    target: SocketAddr,
}

impl Attacker {
    async fn strike_again(&self, attack: Attack, [struck, cut]: &[AtomicU64; 2]) {
        loop {
            // Who is refused tries again.
            if let Ok(mut peer) = self.meet().await {
                struck.fetch_add(1, Ordering::Relaxed);
                let ended = tokio::time::timeout(STRIKE_MAX, attack.strike(&mut peer, self.target)).await;
                cut.fetch_add(u64::from(matches!(ended, Ok(Err(_)))), Ordering::Relaxed);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Connects, and begins as any peer does.
    async fn meet(&self) -> io::Result<Peer<impl Stream>> {
        let meeting = async {
            let socket = connect(&self.from, port(self.target)).await?;
            let config = self.certificate.client_config(&[identity("db")]);
            let stream = tulle_identity::tls::connect(config, socket).await;
            let mut peer = Peer::try_client(stream.map_err(io::Error::other)?).await?;
            peer.read().await?;
            Ok(peer)
        };
        tokio::time::timeout(STRIKE_MAX, meeting).await?
    }
}

/// Callers without a certificate that open the tunnel port, send rubbish or nothing, and stay.
async fn flood(from: NetNs, to: SocketAddr) {
    let mut held = VecDeque::new();
    for round in 0_usize.. {
        if let Ok(stream) = connect(&from, to).await {
            if round % 2 == 0 {
                // Whether it is taken does not matter.
                let _ = stream.try_write(&[0x16, 0x03, 0x01, 0x40, 0x00, 0x01]);
            }
            held.push_back(stream);
        } else {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if held.len() > FLOOD {
            held.pop_front();
        }
    }
}

/// Where tunnels are taken.
fn port(target: SocketAddr) -> SocketAddr {
    SocketAddr::new(target.ip(), 15008)
}
