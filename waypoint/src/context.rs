//! What everything in the process shares: who the waypoint is, what it knows, and how it reaches others.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tulle_identity::{SecretManager, TrustStore};
use tulle_model::Identity;
use tulle_runtime::drain::DrainWatcher;
use tulle_runtime::tasks;
use tulle_runtime::telemetry::LogHandle;
use tulle_xds_client::MeshState;

use crate::clock::Clock;
use crate::config::{Config, ReasonDetail};
use crate::listener::limits::Limits;
use crate::metrics::Metrics;
use crate::policy::carry::{AskedServices, Fetcher};
use crate::policy::engine::Engine;
use crate::policy::jwt::ahead;
use crate::snapshot::View;
use crate::snapshot::build::Builder;
use crate::telemetry::provider::ToProvider;
use crate::telemetry::requests;
use crate::telemetry::spans::Spans;
use crate::upstream::Upstreams;
use crate::upstream::dial::{Dialer, Network};

/// Copies of requests that run at once. Beyond it there are none: a mirror is worth no request.
const MIRRORS_MAX: usize = 1_024;

/// One waypoint, shared by all its tunnels and requests.
#[derive(Debug)]
pub struct Waypoint {
    /// Configuration of the process.
    pub config: Config,
    /// Who it is for its peers.
    pub identity: Identity,
    /// What is known of the mesh.
    pub mesh: MeshState,
    /// Its certificate.
    pub secrets: SecretManager,
    /// What peers are judged by, beside their certificates.
    pub trust: TrustStore,
    /// What requests are decided by.
    pub view: View,
    /// Connections to endpoints.
    pub upstreams: Upstreams,
    /// How much may be open.
    pub limits: Limits,
    /// Copies of requests that may run at once.
    pub mirrors: Arc<Semaphore>,
    /// What is counted.
    pub metrics: Metrics,
    /// What policies of requests share.
    pub policies: Engine,
    /// Services that policies and collectors ask.
    pub asked_services: AskedServices,
    /// What time it is for metrics.
    pub clock: Clock,
    /// Where spans go.
    pub spans: Spans,
    /// Where access lines go; `None` where logging is not ours.
    pub log: Option<LogHandle>,
    /// Ends everything.
    pub drain: DrainWatcher,
}

/// What a waypoint is made of.
#[derive(Debug)]
pub struct Parts {
    /// Configuration of the process.
    pub config: Config,
    /// What is known of the mesh.
    pub mesh: MeshState,
    /// Where its certificate comes from.
    pub secrets: SecretManager,
    /// What peers are judged by.
    pub trust: TrustStore,
    /// How sockets are opened.
    pub network: Arc<dyn Network>,
    /// What is counted.
    pub metrics: Metrics,
    /// Where access lines go.
    pub log: Option<LogHandle>,
    /// Ends everything.
    pub drain: DrainWatcher,
}

impl Waypoint {
    /// Puts it together, and starts what follows configuration and looks after connections.
    #[must_use]
    pub fn start(parts: Parts) -> Arc<Self> {
        let Parts {
            config,
            mesh,
            secrets,
            trust,
            network,
            metrics,
            log,
            drain,
        } = parts;
        let identity = config.identity();
        secrets.retain(&identity);
        let dialer = Dialer::new(
            identity.clone(),
            secrets.clone(),
            trust.clone(),
            Arc::clone(&network),
            config.stream_window,
        );
        let builder = Builder::new(&config, mesh.clone(), &metrics);
        let view = builder.view();
        let upstreams = Upstreams::new(dialer, config.http2, network, &drain);
        tasks::spawn("snapshot", builder.follow());
        tasks::spawn("upstream-idle", upstreams.clone().sweep(drain.clone()));
        let clock = Clock::start();
        let name = format!("{}/{}", config.namespace, config.gateway);
        let sweeping = requests::sweep(metrics.traffic.clone(), clock, drain.clone());
        tasks::spawn("series", sweeping);
        let this = Arc::new_cyclic(|this| Self {
            policies: Engine::new(Arc::new(Fetcher(this.clone())), metrics.policies.clone()),
            spans: Spans::start(&name, ToProvider(this.clone()), metrics.spans_dropped.clone()),
            limits: Limits::default(),
            asked_services: AskedServices::default(),
            mirrors: Arc::new(Semaphore::new(MIRRORS_MAX)),
            config,
            identity,
            mesh,
            secrets,
            trust,
            view,
            upstreams,
            metrics,
            clock,
            log,
            drain,
        });
        let (view, jwks) = (this.view.clone(), Arc::clone(&this.policies.jwks));
        tasks::spawn("jwks", ahead::follow(view, jwks, this.drain.clone()));
        this
    }

    /// How much of a reason this peer is told. A gateway hands it on to who is outside of the mesh, and who is of another
    /// trust domain is outside, too: names of policies are not for them.
    #[must_use]
    pub fn detail_for(&self, peer: &Identity, is_gateway: bool) -> ReasonDetail {
        let (own, other) = (&self.identity.trust_domain, &peer.trust_domain);
        let is_ours = own == other || self.trust.view().is_alias(other);
        match self.config.reason_detail {
            ReasonDetail::Full if is_gateway || !is_ours => ReasonDetail::Code,
            detail => detail,
        }
    }
}
