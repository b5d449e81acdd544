//! Endpoints: what a snapshot says of them, and what is remembered of them from one snapshot to the next.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tulle_model::service::Service;
use tulle_model::workload::{TunnelProtocol, Workload};
use tulle_model::{Identity, NetworkAddress, Str, WorkloadUid};
use xxhash_rust::xxh3::xxh3_128;

use super::balance::peak_ewma::Latency;
use super::outlier::Health;
use super::via::Via;
use crate::clock::Time;
use crate::telemetry::party::Party;

/// What an endpoint is known by within its backend.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointKey {
    /// The workload.
    pub uid: WorkloadUid,
    /// Its own port.
    pub port: u16,
}

/// What is remembered of an endpoint. All of it is atomic: requests share it without waiting.
#[derive(Debug)]
pub struct EndpointState {
    key: EndpointKey,
    /// What it is hashed by: the same in every replica.
    name: Str,
    since: Time,
    in_flight: AtomicU32,
    pub(super) latency: Latency,
    pub(super) health: Health,
}

impl EndpointState {
    pub(super) fn new(key: EndpointKey, since: Time) -> Self {
        Self {
            name: format!("{}:{}", key.uid, key.port).into(),
            key,
            since,
            in_flight: AtomicU32::new(0),
            latency: Latency::default(),
            health: Health::default(),
        }
    }

    /// What it is known by.
    #[must_use]
    pub fn key(&self) -> &EndpointKey {
        &self.key
    }

    /// What it is hashed by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// When it was first seen.
    #[must_use]
    pub fn since(&self) -> Time {
        self.since
    }

    /// Requests, or connections, that are with it now.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Average time to the head of its answers; `None` if there was none.
    #[must_use]
    pub fn latency(&self, now: Time) -> Option<std::time::Duration> {
        let nanos = self.latency.nanos(now)?;
        Some(std::time::Duration::from_secs_f64(nanos.clamp(0.0, 1e15) / 1e9))
    }

    /// What outlier detection takes it for.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }
}

/// An endpoint in one snapshot.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its own port; `None` is the one that is asked for.
    pub target_port: Option<u16>,
    /// The identities it may prove: its own, and those its service allows.
    pub expected: Arc<BTreeSet<Identity>>,
    /// How it is reached, if not at its own address.
    pub via: Option<Arc<Via>>,
    /// Whose addresses it stands for: it is wherever its callers meant to go, as long as that is one of them.
    pub original: Option<Arc<Service>>,
    /// How metrics know it.
    pub party: Arc<Party>,
    /// What is remembered of it.
    pub state: Arc<EndpointState>,
}

impl Endpoint {
    /// How many waypoints were passed, as it counts them: 0 for who is no waypoint, and counts none.
    #[must_use]
    pub fn counted(&self, hops: u8) -> u8 {
        self.via.as_ref().map_or(0, |_| hops)
    }

    /// Where it is, for somebody who asked for this address.
    #[must_use]
    pub fn address(&self, asked: SocketAddr) -> Option<SocketAddr> {
        if let Some(via) = &self.via {
            return Some(via.asked);
        }
        let port = self.target_port.unwrap_or_else(|| asked.port());
        let addresses = &self.workload.addresses;
        // The family that was asked for, if there is a choice.
        let same = addresses.iter().find(|ip| ip.is_ipv4() == asked.is_ipv4());
        let ip = same.or_else(|| addresses.first())?;
        Some(SocketAddr::new(*ip, port))
    }

    /// Whether it stands for this address.
    #[must_use]
    pub fn stands_for(&self, address: IpAddr) -> bool {
        let at = NetworkAddress::new(self.workload.network.clone(), address);
        self.original.as_ref().is_some_and(|service| {
            let mut ranges = service.cidrs.iter();
            let in_range =
                ranges.any(|range| range.network == at.network && range.cidr.contains(&at.address));
            in_range || service.addresses.contains(&at)
        })
    }

    /// Whether it is known by a name alone, which has to be looked up.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.via.is_none() && self.workload.addresses.is_empty() && !self.workload.hostname.is_empty()
    }

    /// Whom it must have proven to be on a connection that is shared; `None` without tunnels.
    #[must_use]
    pub fn proven(&self) -> Option<Arc<BTreeSet<Identity>>> {
        self.is_tunnelled().then(|| Arc::clone(&self.expected))
    }

    /// Whether it is reached by a tunnel.
    #[must_use]
    pub fn is_tunnelled(&self) -> bool {
        self.via.is_some() || self.workload.tunnel_protocol == TunnelProtocol::Hbone
    }

    pub(super) fn capacity(&self) -> f64 {
        f64::from(self.workload.capacity.max(1))
    }
}

/// One more request is with an endpoint, until this is dropped.
#[derive(Debug)]
pub(super) struct InFlight(Arc<EndpointState>);

impl InFlight {
    pub(super) fn new(state: &Arc<EndpointState>) -> Self {
        state.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(state))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a session remembers of an endpoint of a backend. No address can be told from it.
#[must_use]
pub fn fingerprint(backend: &str, uid: &WorkloadUid) -> u128 {
    let mut text = Vec::with_capacity(backend.len() + uid.0.len() + 1);
    text.extend_from_slice(backend.as_bytes());
    text.push(0);
    text.extend_from_slice(uid.0.as_bytes());
    xxh3_128(&text)
}
