//! Names for the applications of a workload: those of the mesh are answered here, all others are forwarded unchanged.
//!
//! ```text
//!            ┌─ not a query: ignored; not readable: FORMERR; not a question: NOTIMP
//! server ── wire ── answer: known to the mesh? ─┬─ yes: reply ───────────┬─ cut to the client's size
//!                                               └─ no: forward, pod's net ┘
//! ```
//!
//! The packet rules of a pod decide whether anything arrives here at all.

pub mod answer;
pub mod complaint;
pub mod forward;
pub mod frame;
pub mod metrics;
pub mod name;
pub mod network;
pub mod reply;
pub mod resolv_conf;
pub mod server;
pub mod sockets;
pub mod stale;
pub mod wire;

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::answer::Settings;
use self::complaint::Complaints;
use self::forward::Upstream;
use self::network::PodNetwork;
use self::resolv_conf::ResolvConf;
use self::stale::Stale;
use crate::config::{Config, ProxyMode};

/// Datagrams of one workload that are answered at once; what exceeds them is dropped, and clients ask again.
pub const QUESTIONS_MAX: usize = 512;

/// Connections of one workload at once.
pub const STREAMS_MAX: usize = 64;

/// What answers the questions of one workload.
#[derive(Debug)]
pub struct Dns {
    /// What local answers depend on.
    pub settings: Settings,
    /// Who answers everything else.
    pub upstream: Upstream,
    /// What they answered before.
    pub stale: Stale,
    /// What is said when they do not answer.
    pub complaints: Complaints,
    questions: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

impl Dns {
    /// `of_pod` is what the agent says of the pod's resolver; without it the node's servers are asked.
    #[must_use]
    pub fn new(config: &Config, network: Arc<dyn PodNetwork>, of_pod: Option<ResolvConf>) -> Self {
        let (servers, search) = match (of_pod, &config.mode) {
            (Some(of_pod), _) => (of_pod.servers, Some(of_pod.search)),
            (None, ProxyMode::Shared) => (ResolvConf::system(true).servers, None),
            (None, ProxyMode::Dedicated(_)) => {
                let system = ResolvConf::system(false);
                (system.servers, Some(system.search))
            }
        };
        Self {
            settings: Settings {
                domain: Arc::clone(&config.dns.domain),
                search,
                preferred_namespace: config.dns.preferred_namespace.clone(),
                ipv6: config.ipv6,
            },
            upstream: Upstream {
                network,
                mark: config.packet_mark,
                servers,
            },
            stale: Stale::default(),
            complaints: Complaints::default(),
            questions: Arc::new(Semaphore::new(QUESTIONS_MAX)),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
        }
    }

    /// The same with this mark on what it sends.
    #[must_use]
    pub fn marked(mut self, mark: Option<u32>) -> Self {
        self.upstream.mark = mark;
        self
    }

    /// A place for one more datagram.
    #[must_use]
    pub fn question_place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.questions).try_acquire_owned().ok()
    }

    /// A place for one more connection.
    #[must_use]
    pub fn stream_place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.streams).try_acquire_owned().ok()
    }
}
