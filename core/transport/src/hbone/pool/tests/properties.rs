//! Whatever happens to its connections, a pool never mixes keys and forgets what has ended.

use proptest::prelude::*;

use super::*;
use crate::hbone::ResetCode;

/// What may happen next. Numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Op {
    Open { key: u8 },
    OpenMany { key: u8, count: u8 },
    Finish { stream: usize },
    Reset { stream: usize },
    GoAway { server: usize },
    Kill { server: usize },
    Idle { seconds: u16 },
    FailNextDials { count: u8 },
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0u8..3).prop_map(|key| Op::Open { key }),
        2 => (0u8..3, 1u8..12).prop_map(|(key, count)| Op::OpenMany { key, count }),
        3 => any::<usize>().prop_map(|stream| Op::Finish { stream }),
        3 => any::<usize>().prop_map(|stream| Op::Reset { stream }),
        1 => any::<usize>().prop_map(|server| Op::GoAway { server }),
        1 => any::<usize>().prop_map(|server| Op::Kill { server }),
        1 => (0u16..400).prop_map(|seconds| Op::Idle { seconds }),
        1 => (0u8..3).prop_map(|count| Op::FailNextDials { count }),
    ]
}

/// Servers of three identities; each stream that arrives must be meant for the one it arrives at.
#[derive(Default)]
struct Servers {
    handles: Mutex<Vec<ServerHandle>>,
    running: AtomicUsize,
    mixed: AtomicUsize,
    dials_to_fail: AtomicUsize,
}

struct World(Arc<Servers>);

/// Three callers with different identities and the same way to go.
fn caller(number: u8) -> TunnelKey {
    TunnelKey {
        source: Identity::new("td", "shop", format!("caller-{number}")),
        ..key(1)
    }
}

fn authority(key: &TunnelKey) -> String {
    format!("{}:80", key.source.service_account)
}

impl Dial for World {
    fn dial<'a>(&'a self, key: &'a TunnelKey) -> DialFuture<'a> {
        Box::pin(async move {
            let take_one = |left: usize| left.checked_sub(1);
            let fails = self
                .0
                .dials_to_fail
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take_one);
            if fails.is_ok() {
                return Err(OpenError::GoingAway);
            }
            let (near, far) = duplex(64 * 1024);
            let connection = server::handshake(far, &const { Settings::server() });
            let client = client::handshake(near, &const { Settings::client() });
            let (client, connection) = tokio::join!(client, connection);
            let mut connection = connection.unwrap();
            self.0.handles.lock().push(connection.handle());
            self.0.running.fetch_add(1, Ordering::SeqCst);
            let (servers, expect) = (Arc::clone(&self.0), authority(key));
            tasks::spawn("test server", async move {
                while let Some(incoming) = connection.accept().await {
                    if incoming.request().unwrap().authority != expect {
                        servers.mixed.fetch_add(1, Ordering::SeqCst);
                    }
                    tasks::spawn("test stream", echo_end(incoming));
                }
                servers.running.fetch_sub(1, Ordering::SeqCst);
            });
            client
        })
    }
}

/// Finishes once the client has.
async fn echo_end(incoming: Incoming) {
    let Ok(mut stream) = incoming.accept(&ConnectResponse::default()) else {
        return;
    };
    if stream.read_to_end(&mut Vec::new()).await.is_ok() {
        let _ = stream.shutdown().await;
    }
}

struct Run {
    pool: HbonePool,
    servers: Arc<Servers>,
    streams: Vec<HboneStream>,
}

impl Run {
    fn new() -> Self {
        let servers = Arc::new(Servers::default());
        let config = PoolConfig {
            streams_per_connection: 4,
            connections_per_key: 2,
            ..PoolConfig::default()
        };
        Self {
            pool: HbonePool::new(config, World(Arc::clone(&servers))),
            servers,
            streams: Vec::new(),
        }
    }

    async fn open(&mut self, key: u8, count: u8) {
        let key = caller(key);
        let request = ConnectRequest::new(authority(&key));
        let opening = (0..count).map(|_| self.pool.open(&key, &request));
        let opened = futures_util::future::join_all(opening).await;
        self.streams
            .extend(opened.into_iter().filter_map(|result| Some(result.ok()?.0)));
    }

    async fn perform(&mut self, op: Op) {
        let server = |at: usize| {
            let handles = self.servers.handles.lock();
            (!handles.is_empty()).then(|| handles[at % handles.len()].clone())
        };
        match op {
            Op::Open { key } => self.open(key, 1).await,
            Op::OpenMany { key, count } => self.open(key, count).await,
            Op::Finish { stream } if !self.streams.is_empty() => {
                let mut stream = self.streams.swap_remove(stream % self.streams.len());
                if stream.shutdown().await.is_ok() {
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                }
            }
            Op::Reset { stream } if !self.streams.is_empty() => {
                self.streams
                    .swap_remove(stream % self.streams.len())
                    .reset(ResetCode::Cancel);
            }
            Op::Finish { .. } | Op::Reset { .. } => {}
            Op::GoAway { server: at } => drop(server(at).inspect(ServerHandle::drain)),
            Op::Kill { server: at } => drop(server(at).inspect(ServerHandle::close)),
            Op::Idle { seconds } => tokio::time::sleep(Duration::from_secs(seconds.into())).await,
            Op::FailNextDials { count } => self.servers.dials_to_fail.store(count.into(), Ordering::SeqCst),
        }
    }

    /// What holds at any time: caps are kept, and no key is held for nothing.
    fn check(&self) {
        assert_eq!(
            self.servers.mixed.load(Ordering::SeqCst),
            0,
            "a stream reached another key's server"
        );
        let state = self.pool.inner.state.lock();
        for peer in state.peers.values() {
            assert!(!peer.connections.is_empty() || !peer.dials.is_empty());
            assert!(peer.connections.iter().all(|connection| connection.active() <= 4));
        }
    }

    /// What holds in the end: nothing is left of connections, dials and servers.
    async fn end(mut self) {
        self.streams.clear();
        tokio::time::sleep(Duration::from_secs(301)).await;
        assert_eq!(self.pool.peers(), []);
        assert_eq!(
            self.servers.running.load(Ordering::SeqCst),
            0,
            "connections outlived the pool's idle time"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn keys_never_mix_and_nothing_leaks(ops in proptest::collection::vec(any_op(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut run = Run::new();
            for op in ops {
                run.perform(op).await;
                run.check();
            }
            run.end().await;
        });
    }
}
