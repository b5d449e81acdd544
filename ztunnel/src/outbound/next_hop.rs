//! Connects to a planned next hop: plain TCP, a tunnel, or a tunnel inside of one.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::{Instant, timeout, timeout_at};
use tulle_model::upstream::{Crossing, Endpoint, Lookup, NoUpstream};
use tulle_model::{Identity, Workload};
use tulle_transport::copy::Endpoint as Remote;
use tulle_transport::hbone::{ConnectRequest, TunnelKey, client};
use tulle_transport::{Baggage, Forwarded, socket};

use super::ATTEMPT_TIME_MAX;
use super::names::pick;
use super::plan::Plan;
use crate::dial::client_settings;
use crate::error::Error;
use crate::inbound::claimed;
use crate::metrics::labels::Party;
use crate::pod::Pod;
use crate::record::Story;
use crate::same_node;

/// The calling end of a connection.
pub(super) struct Caller<'a> {
    pub(super) pod: &'a Pod,
    pub(super) source: &'a Arc<Workload>,
    pub(super) client: SocketAddr,
}

impl Caller<'_> {
    /// Looks up the host name of a plan that has one; a name that is not found by `until` is none.
    pub(super) async fn resolve(&self, plan: Plan, until: Instant) -> Result<Plan, Error> {
        let Some(lookup) = plan.lookup() else {
            return Ok(plan);
        };
        let servers = &self.pod.dns.upstream;
        let ipv6 = self.pod.node.config.ipv6;
        let metrics = &self.pod.node.metrics;
        let source = metrics.described.party(self.source, Some(self.source.identity()));
        metrics.count_looked_up(source, &lookup.hostname);
        let looking = self.pod.names.lookup(servers, &lookup.hostname, ipv6);
        let addresses = timeout_at(until, looking).await.unwrap_or_default();
        let mut random = |bound: u64| rand::random_range(0..bound.max(1));
        let allows = |address| lookup.allows(address);
        let picked = pick(&addresses, lookup.prefers_ipv4, allows, &mut random);
        let address = picked.ok_or_else(|| not_resolved(lookup))?;
        Ok(plan.at(address))
    }

    /// Connects; what is learned on the way goes into the story.
    pub(super) async fn connect(&self, plan: &Plan, story: &mut Story) -> Result<Remote, Error> {
        match plan {
            Plan::Passthrough(to) => self.plain(*to).await,
            Plan::Plain(endpoint) => self.plain(endpoint.dial).await,
            Plan::Tunnel(endpoint) => self.tunnel(endpoint, story).await,
            Plan::Crossing(crossing) => self.cross(crossing, story).await,
            Plan::Named(named) => Err(not_resolved(&named.lookup)),
        }
    }

    async fn plain(&self, to: SocketAddr) -> Result<Remote, Error> {
        let options = self.pod.node.socket_options();
        let connecting = socket::connect(&*self.pod.sockets, to, None, &options);
        let connected = timeout(ATTEMPT_TIME_MAX, connecting).await;
        let after = ATTEMPT_TIME_MAX;
        let connected = connected.map_err(|_| Error::ConnectTimeout { to, after })?;
        let failed = |source: io::Error| Error::Connect { to, source };
        connected.map(Into::into).map_err(failed)
    }

    async fn tunnel(&self, endpoint: &Endpoint, story: &mut Story) -> Result<Remote, Error> {
        let Self { pod, source, client } = *self;
        let request = self.request(endpoint.authority.to_string(), story);
        let (stream, _response) = match same_node::neighbour(pod, source, client, endpoint) {
            Some(neighbour) => same_node::open(pod, source, endpoint, neighbour, request).await?,
            None => {
                let key = self.key(endpoint.dial, &endpoint.expected);
                pod.pool.open(&key, &request).await?
            }
        };
        Ok(stream.into())
    }

    /// The inner session is this connection's own: only the tunnel to the gateway is pooled.
    async fn cross(&self, crossing: &Crossing, story: &mut Story) -> Result<Remote, Error> {
        let Self { pod, source, .. } = *self;
        let outer = self.request(crossing.authority(), story);
        let key = self.key(crossing.dial, &crossing.gateway_identities);
        let (tunnel, _response) = pod.pool.open(&key, &outer).await?;
        let tls = pod.certificate(source).await?.client_config(&crossing.expected);
        let settings = client_settings(&pod.node);
        let session = client::connect_over(tunnel, crossing.dial, tls, &settings).await?;
        let inner = ConnectRequest {
            forwarded_network: Some(pod.node.config.network.to_string()),
            ..outer
        };
        let (stream, response) = session.open(&inner).await?;
        let told = claimed(&response.baggage);
        if told != Party::default() {
            story.destination = told.proven(only(&crossing.expected)).into();
        }
        Ok(stream.into())
    }

    fn key(&self, destination: SocketAddr, expected: &[Identity]) -> TunnelKey {
        TunnelKey {
            source: self.source.identity(),
            expected: expected.iter().cloned().collect::<BTreeSet<_>>(),
            destination,
            source_ip: self.client.ip(),
        }
    }

    fn request(&self, authority: String, story: &mut Story) -> ConnectRequest {
        ConnectRequest {
            authority,
            baggage: Baggage::of(self.source),
            forwarded: Some(Forwarded {
                client: self.client,
                host: story.service.hostname.as_ref().map(ToString::to_string),
            }),
            traceparent: Some(story.traced().step()),
            ..ConnectRequest::default()
        }
    }
}

/// Who the far end has proven to be, where only one may be it.
pub(super) fn only(expected: &[Identity]) -> Option<Identity> {
    match expected {
        [one] => Some(one.clone()),
        _ => None,
    }
}

fn not_resolved(lookup: &Lookup) -> Error {
    Error::NoUpstream(NoUpstream::NameNotResolved {
        workload: lookup.workload.clone(),
        hostname: Arc::clone(&lookup.hostname),
    })
}
