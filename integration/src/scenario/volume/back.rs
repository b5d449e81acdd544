//! A node's proxy that comes back and lacks nothing: how many bytes that costs, as they travel.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tulle_model::Mesh;
use tulle_runtime::drain::{self, DrainTrigger};
use tulle_runtime::metrics::Registry;
use tulle_runtime::ready::Ready;
use tulle_xds_client::{Client, MeshState, Metrics, Options};

use super::plane::{Plane, node};
use crate::ads;
use crate::traffic::spawn;

/// Silence after which an exchange counts as over.
const QUIET: Duration = Duration::from_secs(2);
/// How long a table, or a return, may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Hands connections on, and counts what passes.
#[derive(Debug)]
struct Relay {
    port: u16,
    bytes: Arc<AtomicU64>,
    open: Arc<Mutex<Vec<tokio::task::JoinHandle<()>>>>,
    /// Callers are turned away.
    shut: Arc<AtomicBool>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Relay {
    async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (bytes, open) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Vec::new())));
        let shut = Arc::new(AtomicBool::new(false));
        let (counted, kept, turns_away) = (Arc::clone(&bytes), Arc::clone(&open), Arc::clone(&shut));
        let accepting = spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                if turns_away.load(Ordering::Relaxed) {
                    continue;
                }
                // While the server is away, callers are turned away here as they would be there.
                let Ok(far) = TcpStream::connect(("127.0.0.1", to)).await else {
                    continue;
                };
                let counted = Arc::clone(&counted);
                kept.lock().push(spawn(async move {
                    let (near, far) = (near.into_split(), far.into_split());
                    tokio::select! {
                        () = pass(near.0, far.1, &counted) => {}
                        () = pass(far.0, near.1, &counted) => {}
                    }
                }));
            }
        });
        Self {
            port,
            bytes,
            open,
            shut,
            accepting,
        }
    }

    /// Ends every connection.
    fn cut(&self) {
        self.open.lock().drain(..).for_each(|task| task.abort());
    }

    /// Waits until something passed and nothing passes any more; gives the bytes since the last time.
    async fn settled(&self) -> u64 {
        let begun = Instant::now();
        let mut last = (0, Instant::now());
        while begun.elapsed() < PATIENCE {
            let now = self.bytes.load(Ordering::Relaxed);
            if now != last.0 {
                last = (now, Instant::now());
            } else if now > 0 && last.1.elapsed() >= QUIET {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.bytes.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, bytes: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        bytes.fetch_add(count as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// A node proxy's own client, behind a relay.
#[derive(Debug)]
pub(super) struct Returning {
    relay: Relay,
    state: MeshState,
    _drain: DrainTrigger,
    /// Bytes of the first time, when it held nothing.
    pub full: u64,
}

impl Returning {
    pub(super) async fn start(plane: &Plane) -> Self {
        let relay = Relay::start(plane.port()).await;
        let name = node(1);
        let channel = ads::channel(&plane.address_at(relay.port), &plane.root(), &plane.token(&name));
        let state = MeshState::new(Mesh::new());
        let (trigger, watcher) = drain::new();
        let metrics = Metrics::register(&Registry::default(), &state);
        let client = Client::new(
            Options::new(ads::node_info(&name)),
            state.clone(),
            metrics,
            &Ready::new(),
        );
        spawn(client.run(channel, watcher));
        let full = relay.settled().await;
        let held = state.snapshot().workloads().count();
        assert_eq!(
            held,
            plane.size.pods,
            "the client holds the mesh\n{}",
            plane.log()
        );
        Self {
            relay,
            state,
            _drain: trigger,
            full,
        }
    }

    /// Cuts the connection; gives the bytes until all is quiet again.
    pub(super) async fn after_a_cut(&self) -> u64 {
        self.relay.cut();
        let bytes = self.relay.settled().await;
        assert!(self.state.status().connected, "it came back");
        bytes
    }

    /// Cuts the connection and lets no other come about.
    pub(super) fn part(&self) {
        self.relay.shut.store(true, Ordering::Relaxed);
        self.relay.cut();
    }

    /// Lets it come back; gives the bytes until all is quiet again.
    pub(super) async fn rejoin(&self) -> u64 {
        self.relay.bytes.store(0, Ordering::Relaxed);
        self.relay.shut.store(false, Ordering::Relaxed);
        let bytes = self.relay.settled().await;
        assert!(self.state.status().connected, "it came back");
        bytes
    }

    /// As [`Self::after_a_cut`], for a control plane that was started anew.
    pub(super) async fn after_a_restart(&self, plane: &mut Plane) -> (u64, Duration) {
        plane.kill();
        self.relay.bytes.store(0, Ordering::Relaxed);
        let started = plane.start().await;
        // Attempts that were turned away while it still read its configuration are no part of the return.
        if !self.state.status().connected {
            self.relay.bytes.store(0, Ordering::Relaxed);
        }
        let bytes = self.relay.settled().await;
        assert!(self.state.status().connected, "it came back");
        (bytes, started)
    }
}
