//! A backend with its endpoints: a service's port as one snapshot has it, and what is remembered from one to the next.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tulle_model::policy::traffic::{self, Algorithm, LoadBalancing};
use tulle_model::service::Service;
use tulle_model::upstream::Serving;
use tulle_model::workload::{TunnelProtocol, Workload};
use tulle_model::{Identity, Str};

use super::balance::{Balance, Weighted, peak_ewma};
use super::breaker::{Breaker, Limits};
use super::endpoint::{Endpoint, EndpointKey, EndpointState, fingerprint};
use super::locality::{Places, Spread};
use super::metrics::Events;
use super::origination::Origination;
use super::outlier::{self, Bench, Phase};
use super::via::{Via, is_passthrough};
use crate::clock::Time;
use crate::telemetry::party::{Party, ServiceLabels};

mod pick;
#[cfg(test)]
mod tests;

pub use pick::{Ask, Pick};

/// Endpoints whose times to answer are looked at to say what is usual.
const SAMPLE_MAX: usize = 101;
/// How often what is usual is looked at.
const USUAL_AGE_MAX: Duration = Duration::from_secs(1);

/// What is remembered of a backend.
#[derive(Debug, Default)]
pub struct ClusterState {
    /// Who is full.
    pub breaker: Arc<Breaker>,
    /// Who is out.
    pub bench: Bench,
    turn: AtomicU64,
    /// The usual time to answer in nanoseconds, and when it was looked at.
    usual: AtomicU64,
    usual_at: AtomicU64,
    compared_at: AtomicU64,
    /// Locked by who builds snapshots only.
    endpoints: Mutex<HashMap<EndpointKey, Arc<EndpointState>>>,
}

impl ClusterState {
    /// Nothing is remembered yet. What happens is counted there, too.
    #[must_use]
    pub fn new(events: Events) -> Self {
        Self {
            bench: Bench::new(events),
            ..Self::default()
        }
    }

    /// What is remembered of these endpoints; those that are not among them are forgotten.
    fn keep(&self, serving: &[Serving], now: Time) -> Vec<Arc<EndpointState>> {
        let mut known = self.endpoints.lock();
        let mut kept = HashMap::with_capacity(serving.len());
        let state = |one: &Serving| {
            let key = EndpointKey {
                uid: one.workload.uid.clone(),
                port: one.target_port,
            };
            let state = known
                .remove(&key)
                .or_else(|| kept.get(&key).cloned())
                .unwrap_or_else(|| Arc::new(EndpointState::new(key.clone(), now)));
            kept.insert(key, Arc::clone(&state));
            state
        };
        let states = serving.iter().map(state).collect();
        for gone in known.values() {
            gone.health.remove(&self.bench);
        }
        *known = kept;
        states
    }

    fn usual(&self) -> f64 {
        match self.usual.load(Ordering::Relaxed) {
            0 => peak_ewma::UNKNOWN.as_secs_f64() * 1e9,
            bits => f64::from_bits(bits),
        }
    }

    /// Whether the caller is the one who does what is done once in `every`.
    fn is_turn(mark: &AtomicU64, every: Duration, now: Time) -> bool {
        let last = mark.load(Ordering::Relaxed);
        now.since(Time::from_nanos(last)) >= every
            && mark
                .compare_exchange(last, now.nanos(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

/// What the policies in force say of a backend.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClusterPolicy {
    /// How endpoints are chosen.
    pub balancing: LoadBalancing,
    /// When they are left out.
    pub outlier: Option<outlier::Settings>,
    /// How much at once.
    pub limits: Limits,
    /// TLS to endpoints without tunnels; without it they are spoken to in clear.
    pub tls: Option<Arc<Origination>>,
}

/// What is spoken to a backend: it decides how endpoints are chosen by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Requests of HTTP or gRPC.
    Requests,
    /// Connections of TCP or TLS.
    Connections,
}

/// A backend in one snapshot.
pub struct Cluster {
    /// `<namespace>/<hostname>:<port>`, or a workload's uid.
    name: Str,
    service: Option<Arc<Service>>,
    labels: Arc<ServiceLabels>,
    /// Those that take new requests, place by place.
    endpoints: Box<[Endpoint]>,
    places: Box<[Place]>,
    spread: Spread,
    /// Fingerprints in their order, with the endpoint of each.
    sessions: Box<[(u128, usize)]>,
    policy: ClusterPolicy,
    passthrough: bool,
    state: Arc<ClusterState>,
}

/// How it stands with an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Standing {
    /// It takes requests.
    Usable,
    /// It is left out.
    Ejected,
    /// It gets one request at a time.
    Probation,
    /// It is no endpoint any more.
    Removed,
}

impl Standing {
    /// As dumps and metrics say it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Usable => "usable",
            Self::Ejected => "ejected",
            Self::Probation => "probation",
            Self::Removed => "removed",
        }
    }
}

/// Endpoints of one place.
#[derive(Debug)]
struct Place {
    range: Range<usize>,
    /// How many there are, those that take nothing included.
    total: usize,
    balance: Balance,
    /// How many are usable (low half), as of this epoch of the bench (high half).
    usable: AtomicU64,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("name", &self.name)
            .field("endpoints", &self.endpoints.len())
            .finish_non_exhaustive()
    }
}

/// What a cluster is built of.
#[derive(Debug)]
pub struct Sources<'a> {
    /// The waypoint itself: what is near is near to it.
    pub here: &'a Workload,
    /// What it is called: `<namespace>/<hostname>:<port>`, or a workload's uid.
    pub name: Str,
    /// The service; `None` for a workload that is reached by its own address, on the port that is asked for.
    pub service: Option<&'a Arc<Service>>,
    /// Who serves it.
    pub serving: &'a [Serving],
    /// How each of them is reached, as far as that is not at its own address.
    pub via: &'a [Option<Arc<Via>>],
    /// How the waypoints in front of it share its requests, if there are several: how many of `serving` are of each, and
    /// its weight.
    pub shares: &'a [(usize, u32)],
    /// What policies say.
    pub policy: ClusterPolicy,
    /// What is spoken.
    pub unit: Unit,
}

impl Cluster {
    /// Builds it, off the path of requests. What `state` remembers is kept.
    #[must_use]
    pub fn new(sources: Sources<'_>, state: &Arc<ClusterState>, now: Time) -> Self {
        let Sources {
            name,
            service,
            serving,
            ..
        } = sources;
        let states = state.keep(serving, now);
        let policy = sources.policy;
        let places = match sources.shares {
            [] | [_] => Places::new(sources.here, policy.balancing.locality.as_ref(), serving),
            shares => Places::of_shares(shares),
        };
        let algorithm = policy.balancing.algorithm.unwrap_or(match sources.unit {
            Unit::Requests => Algorithm::PeakEwma,
            Unit::Connections => Algorithm::LeastRequest,
        });
        let mut endpoints = Vec::with_capacity(serving.len());
        let via = |index: usize| sources.via.get(index).and_then(Option::as_ref);
        let passthrough = service.is_some_and(|service| is_passthrough(service));
        let original = |index: usize| {
            let workload = &serving[index].workload;
            let stands_in = workload.addresses.is_empty() && workload.hostname.is_empty();
            let is_one = passthrough && stands_in && via(index).is_none();
            service.filter(|_| is_one).cloned()
        };
        let build = |members: &Vec<usize>| {
            let start = endpoints.len();
            let taking = members.iter().filter(|index| serving[**index].healthy);
            endpoints.extend(taking.map(|index| Endpoint {
                workload: Arc::clone(&serving[*index].workload),
                target_port: service.map(|_| serving[*index].target_port),
                expected: Arc::new(expected(&serving[*index].workload, service, via(*index))),
                via: via(*index).cloned(),
                original: original(*index),
                party: Arc::new(party(&serving[*index].workload)),
                state: Arc::clone(&states[*index]),
            }));
            let weighted: Vec<_> = endpoints[start..].iter().map(weighted).collect();
            Place {
                range: start..endpoints.len(),
                total: members.len(),
                balance: Balance::new(algorithm, &policy.balancing, &weighted),
                usable: AtomicU64::new(u64::MAX),
            }
        };
        let spread = places.spread;
        let places = places.members.iter().map(build).collect();
        Self {
            sessions: sessions(&name, &endpoints),
            name,
            service: service.cloned(),
            labels: Arc::new(ServiceLabels::new(service.map(|service| &**service))),
            endpoints: endpoints.into(),
            places,
            spread,
            policy,
            passthrough,
            state: Arc::clone(state),
        }
    }

    /// `<namespace>/<hostname>:<port>`, or a workload's uid.
    #[must_use]
    pub fn name(&self) -> &Str {
        &self.name
    }

    /// The service, unless it is a workload.
    #[must_use]
    pub fn service(&self) -> Option<&Arc<Service>> {
        self.service.as_ref()
    }

    /// How metrics know the service.
    #[must_use]
    pub fn labels(&self) -> &Arc<ServiceLabels> {
        &self.labels
    }

    /// Endpoints that take new requests, also those that are out.
    #[must_use]
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// TLS to an endpoint: never inside of a tunnel.
    #[must_use]
    pub fn tls_to(&self, endpoint: &Endpoint) -> Option<&Origination> {
        self.policy.tls.as_deref().filter(|_| !endpoint.is_tunnelled())
    }

    /// How connections to an endpoint are encrypted: `mutual_tls` in tunnels, `tls` where a policy begins it, else `none`.
    #[must_use]
    pub fn encryption_to(&self, endpoint: &Endpoint) -> &'static str {
        match self.tls_to(endpoint) {
            _ if endpoint.is_tunnelled() => "mutual_tls",
            Some(_) => "tls",
            None => "none",
        }
    }

    /// What policies say.
    #[must_use]
    pub fn policy(&self) -> &ClusterPolicy {
        &self.policy
    }

    /// What is remembered.
    #[must_use]
    pub fn state(&self) -> &Arc<ClusterState> {
        &self.state
    }

    /// What requests are hashed by, in order; empty where no hash decides.
    #[must_use]
    pub fn hash_keys(&self) -> &[traffic::Key] {
        let hashes = self.places.first().is_some_and(|place| place.balance.hashes());
        if hashes { &self.policy.balancing.hash } else { &[] }
    }

    /// What a session remembers of an endpoint.
    #[must_use]
    pub fn fingerprint(&self, endpoint: &Endpoint) -> u128 {
        fingerprint(&self.name, &endpoint.workload.uid)
    }

    /// Whether a session's endpoint is one of these.
    #[must_use]
    pub fn knows(&self, fingerprint: u128) -> bool {
        self.session(fingerprint).is_some()
    }

    /// How it stands with one of its endpoints.
    #[must_use]
    pub fn state_of(&self, endpoint: &Endpoint, now: Time) -> Standing {
        match endpoint.state.health.phase() {
            _ if self.policy.outlier.is_none() => Standing::Usable,
            Phase::Closed => Standing::Usable,
            Phase::Ejected(until) if until > now => Standing::Ejected,
            Phase::Ejected(_) | Phase::Probing => Standing::Probation,
            Phase::Removed => Standing::Removed,
        }
    }

    fn session(&self, fingerprint: u128) -> Option<usize> {
        let found = self
            .sessions
            .binary_search_by_key(&fingerprint, |(print, _)| *print);
        found.ok().map(|position| self.sessions[position].1)
    }

    /// Who has an address, or else who stands for it.
    fn at(&self, address: IpAddr) -> Option<usize> {
        let address = address.to_canonical();
        let has = |endpoint: &Endpoint| {
            endpoint
                .workload
                .addresses
                .iter()
                .any(|own| own.to_canonical() == address)
        };
        let stands_for = |endpoint: &Endpoint| endpoint.stands_for(address);
        let mut endpoints = self.endpoints.iter();
        let found = endpoints.position(has);
        found.or_else(|| self.endpoints.iter().position(stands_for))
    }

    /// Whether outlier detection leaves the endpoint alone.
    fn is_in(&self, index: usize) -> bool {
        let health = &self.endpoints[index].state.health;
        if self.policy.outlier.is_some() {
            health.is_closed()
        } else {
            !health.is_removed()
        }
    }

    /// Which share of its requests a new endpoint takes.
    fn warmth(&self, index: usize, now: Time) -> f64 {
        let Some(slow_start) = &self.policy.balancing.slow_start else {
            return 1.0;
        };
        warmth(slow_start, now.since(self.endpoints[index].state.since()))
    }
}

/// `max(least, (age / window) ^ (1 / aggression))`, up to 1.
fn warmth(slow_start: &traffic::SlowStart, age: Duration) -> f64 {
    if age >= slow_start.window {
        return 1.0;
    }
    let least = f64::from(slow_start.percent_min.unwrap_or(10)) / 100.0;
    let aggression = f64::from(slow_start.aggression_milli.unwrap_or(1_000).max(1)) / 1_000.0;
    let grown = (age.as_secs_f64() / slow_start.window.as_secs_f64()).powf(1.0 / aggression);
    grown.max(least).min(1.0)
}

/// The identities a workload may prove when it answers for a service.
fn expected(
    workload: &Workload,
    service: Option<&Arc<Service>>,
    via: Option<&Arc<Via>>,
) -> BTreeSet<Identity> {
    if let Some(via) = via {
        return via.expected.clone();
    }
    let further = service
        .into_iter()
        .flat_map(|service| service.subject_alt_names.iter().cloned());
    std::iter::once(workload.identity()).chain(further).collect()
}

/// Whoever is reached by a tunnel has proven to be who is expected before any byte goes there.
fn party(workload: &Workload) -> Party {
    let proven = (workload.tunnel_protocol == TunnelProtocol::Hbone).then(|| workload.identity());
    Party::new(Some(workload), proven.as_ref())
}

fn weighted(endpoint: &Endpoint) -> Weighted<'_> {
    Weighted {
        name: endpoint.state.name(),
        capacity: endpoint.workload.capacity,
    }
}

fn sessions(name: &str, endpoints: &[Endpoint]) -> Box<[(u128, usize)]> {
    let print = |(index, endpoint): (usize, &Endpoint)| (fingerprint(name, &endpoint.workload.uid), index);
    let mut sessions: Vec<_> = endpoints.iter().enumerate().map(print).collect();
    sessions.sort_unstable();
    sessions.into()
}
