//! One captured connection: *identify → plan → connect → copy → record*.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tulle_model::upstream::Endpoint;
use tulle_model::{Workload, WorkloadUid};
use tulle_transport::copy::Endpoint as Remote;
use tulle_transport::hbone::{ConnectRequest, Retry, TunnelKey};
use tulle_transport::{Baggage, Forwarded, TraceParent, socket};

use super::plan::{Plan, plan, refuse_self_call};
use super::{ATTEMPT_TIME_MAX, CAPTURE_PAUSE, CAPTURE_WAIT, CONNECT_BUDGET};
use crate::carry;
use crate::error::Error;
use crate::metrics::labels::{Direction, Party};
use crate::pod::Pod;
use crate::record::Story;

/// Serves one captured connection to its end.
pub async fn serve(pod: Arc<Pod>, client: TcpStream, peer: SocketAddr) {
    match identify(&pod, &client) {
        Ok(destination) => serve_to(pod, client, peer, destination).await,
        Err(error) => {
            let story = Story::begin(Direction::Outbound, peer, peer);
            story.fail(&pod.node.metrics, &error);
            carry::reset(client);
        }
    }
}

/// Serves a connection whose original destination is known.
pub async fn serve_to(pod: Arc<Pod>, client: TcpStream, peer: SocketAddr, destination: SocketAddr) {
    let _socket = pod.node.metrics.socket(Direction::Outbound);
    let mut story = Story::begin(Direction::Outbound, peer, destination);
    match establish(&pod, peer, destination, &mut story).await {
        Ok(upstream) => carry::run(&pod, client, upstream, story, None).await,
        Err(error) => {
            story.fail(&pod.node.metrics, &error);
            carry::reset(client);
        }
    }
}

/// What the application wanted to reach.
fn identify(pod: &Pod, client: &TcpStream) -> Result<SocketAddr, Error> {
    // A socket that cannot take its options is already dead; the copy will find out.
    let _ = pod.node.socket_options().apply(client);
    let destination = socket::original_destination(client).map_err(Error::OriginalDestination)?;
    Ok(destination)
}

/// Finds out who calls, then plans and connects until one attempt succeeds.
async fn establish(
    pod: &Pod,
    client: SocketAddr,
    destination: SocketAddr,
    story: &mut Story,
) -> Result<Remote, Error> {
    refuse_self_call(destination, &pod.node.config.ports)?;
    let deadline = Instant::now() + CONNECT_BUDGET;
    let source = pod.workload().await?;
    story.source_is(&source);
    pod.refuse_rejected(destination)?;
    let mut attempts = Attempts::new(pod.node.config.connect_retries);
    loop {
        let snapshot = pod.node.mesh.snapshot();
        let mut random = |bound: u64| rand::random_range(0..bound.max(1));
        let plan = plan(&snapshot, &source, destination, &mut random, &attempts.tried)?;
        story.generation = snapshot.generation();
        tell(story, &source, &plan);
        if let Plan::Tunnel(_) = plan {
            // Before the attempt, so that waiting for it is not taken for a slow peer.
            pod.certificate(&source).await?;
        }
        let until = deadline.min(Instant::now() + ATTEMPT_TIME_MAX);
        let attempt = connect(pod, &source, client, &plan, story);
        let outcome = timeout_at(until, attempt)
            .await
            .unwrap_or_else(|_| Err(late(&plan)));
        let error = match outcome {
            Ok(upstream) => return Ok(upstream),
            Err(error) => error,
        };
        attempts.after(&plan, &error, deadline).ok_or(error)?.await;
    }
}

/// What was tried, and what may still be.
struct Attempts {
    left: usize,
    tried: Vec<WorkloadUid>,
    capture_until: Instant,
}

impl Attempts {
    fn new(retries: usize) -> Self {
        Self {
            left: retries,
            tried: Vec::new(),
            capture_until: Instant::now() + CAPTURE_WAIT,
        }
    }

    /// The pause before the next attempt; `None` if there is none. Nothing of the application was sent so far.
    fn after(
        &mut self,
        plan: &Plan,
        error: &Error,
        deadline: Instant,
    ) -> Option<impl Future<Output = ()> + use<>> {
        let now = Instant::now();
        if now >= deadline {
            return None;
        }
        let capture_may_come = error.tunnel_port_refused() && now < self.capture_until;
        if !capture_may_come {
            self.left = match error.retry() {
                Retry::Never => None,
                Retry::OtherEndpoint | Retry::FreshConnection => self.left.checked_sub(1),
            }?;
        }
        // A fresh connection is tried to the same endpoint.
        if error.retry() == Retry::OtherEndpoint {
            self.mark_tried(plan);
        }
        tracing::debug!(%error, next_hop = %plan.next_hop(), "attempt failed, trying again");
        Some(async move {
            if capture_may_come {
                tokio::time::sleep(CAPTURE_PAUSE).await;
            }
        })
    }

    fn mark_tried(&mut self, plan: &Plan) {
        if let Some(endpoint) = plan.endpoint()
            && !self.tried.contains(&endpoint.workload.uid)
        {
            self.tried.push(endpoint.workload.uid.clone());
        }
    }
}

fn late(plan: &Plan) -> Error {
    let peer = plan.next_hop();
    let after = ATTEMPT_TIME_MAX;
    match plan {
        Plan::Tunnel(_) => tulle_transport::OpenError::ConnectTimeout { peer, after }.into(),
        Plan::Passthrough(_) | Plan::Plain(_) => Error::ConnectTimeout { to: peer, after },
    }
}

/// Writes what the plan says into the story.
fn tell(story: &mut Story, source: &Workload, plan: &Plan) {
    story.planned = true;
    story.destination_address = plan.next_hop();
    story.mutual_tls = matches!(plan, Plan::Tunnel(_));
    story.source.principal = story.mutual_tls.then(|| source.identity());
    story.authority = None;
    let Some(endpoint) = plan.endpoint() else {
        story.destination = Party::default();
        return;
    };
    let proven = story.mutual_tls.then(|| endpoint.workload.identity());
    story.destination = Party::of(&endpoint.workload).proven(proven);
    if let Some(service) = &endpoint.service {
        story.service_is(service);
    }
    if story.mutual_tls {
        story.authority = Some(endpoint.authority.to_string());
    }
}

async fn connect(
    pod: &Pod,
    source: &Workload,
    client: SocketAddr,
    plan: &Plan,
    story: &Story,
) -> Result<Remote, Error> {
    match plan {
        Plan::Passthrough(to) => plain(pod, *to).await,
        Plan::Plain(endpoint) => plain(pod, endpoint.dial).await,
        Plan::Tunnel(endpoint) => tunnel(pod, source, client, endpoint, story).await,
    }
}

async fn plain(pod: &Pod, to: SocketAddr) -> Result<Remote, Error> {
    let options = pod.node.socket_options();
    let connecting = socket::connect(&*pod.sockets, to, None, &options);
    let connected = timeout(ATTEMPT_TIME_MAX, connecting).await;
    let after = ATTEMPT_TIME_MAX;
    let connected = connected.map_err(|_| Error::ConnectTimeout { to, after })?;
    let failed = |source: io::Error| Error::Connect { to, source };
    connected.map(Into::into).map_err(failed)
}

async fn tunnel(
    pod: &Pod,
    source: &Workload,
    client: SocketAddr,
    endpoint: &Endpoint,
    story: &Story,
) -> Result<Remote, Error> {
    let key = TunnelKey {
        source: source.identity(),
        expected: endpoint.expected.iter().cloned().collect::<BTreeSet<_>>(),
        destination: endpoint.dial,
        source_ip: client.ip(),
    };
    let request = ConnectRequest {
        authority: endpoint.authority.to_string(),
        baggage: Baggage::of(source),
        forwarded: Some(Forwarded {
            client,
            host: story.service.hostname.as_ref().map(ToString::to_string),
        }),
        traceparent: Some(TraceParent::random()),
        ..ConnectRequest::default()
    };
    let (stream, _response) = pod.pool.open(&key, &request).await?;
    Ok(stream.into())
}
