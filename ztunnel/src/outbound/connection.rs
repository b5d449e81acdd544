//! One captured connection: *identify → plan → connect → copy → record*.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tulle_model::Workload;
use tulle_model::upstream::Endpoint;
use tulle_transport::copy::Endpoint as Remote;
use tulle_transport::hbone::{ConnectRequest, Retry, TunnelKey};
use tulle_transport::{Baggage, Forwarded, TraceParent, socket};

use super::ATTEMPT_TIME_MAX;
use super::attempts::Attempts;
use super::plan::{Plan, plan, refuse_self_call};
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
    let established = match pod.place() {
        Ok(place) => establish(&pod, peer, destination, &mut story)
            .await
            .map(|upstream| (upstream, place)),
        Err(error) => Err(error),
    };
    match established {
        Ok((upstream, _place)) => carry::run(&pod, client, upstream, story, None).await,
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
    let source = pod.workload().await?;
    story.source_is(&source);
    pod.refuse_rejected(destination)?;
    let mut attempts = Attempts::new(pod.node.config.connect_retries, pod.failures.list());
    loop {
        let snapshot = pod.node.mesh.snapshot();
        let mut random = |bound: u64| rand::random_range(0..bound.max(1));
        let plan = plan(&snapshot, &source, destination, &mut random, attempts.avoid())?;
        attempts.begin(&plan)?;
        story.generation = snapshot.generation();
        tell(story, &source, &plan);
        if let Plan::Tunnel(_) = plan {
            // Before the attempt, so that waiting for it is not taken for a slow peer.
            pod.certificate(&source).await?;
        }
        let until = attempts.deadline().min(Instant::now() + ATTEMPT_TIME_MAX);
        let attempt = connect(pod, &source, client, &plan, story);
        let error = match timeout_at(until, attempt)
            .await
            .unwrap_or_else(|_| Err(late(&plan)))
        {
            Ok(upstream) => return Ok(upstream),
            Err(error) => error,
        };
        if let (Some(endpoint), Retry::OtherEndpoint) = (plan.endpoint(), error.retry()) {
            pod.failures.note(&endpoint.workload.uid);
        }
        tokio::time::sleep(attempts.after(&plan, error)?).await;
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
