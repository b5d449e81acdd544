//! One captured connection: *identify → plan → connect → copy → record*.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tulle_identity::CertificateError;
use tulle_transport::copy::Endpoint as Remote;
use tulle_transport::hbone::Retry;
use tulle_transport::{OpenError, socket};

use super::attempts::Attempts;
use super::next_hop::{Caller, only};
use super::plan::{Plan, plan, refuse_self_call};
use super::{ATTEMPT_TIME_MAX, CONNECT_BUDGET};
use crate::carry;
use crate::error::Error;
use crate::metrics::labels::Direction;
use crate::on_demand;
use crate::pod::{Place, Pod};
use crate::record::Story;

/// Serves one captured connection to its end. Its socket has the options of its listener.
pub async fn serve(pod: Arc<Pod>, client: TcpStream, peer: SocketAddr) {
    match socket::original_destination(&client).map_err(Error::OriginalDestination) {
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
    // Boxed: what it needs, the story included, is given back before the connection is carried.
    let opened = Box::pin(async {
        let mut story = Story::begin(Direction::Outbound, peer, destination);
        match open(&pod, peer, destination, &mut story).await {
            Ok((upstream, place)) => Some((carry::track(&pod, story, None), upstream, place)),
            Err(error) => {
                story.fail(&pod.node.metrics, &error);
                None
            }
        }
    });
    match opened.await {
        Some((tracked, upstream, _place)) => carry::run(&pod, client, upstream, tracked).await,
        None => carry::reset(client),
    }
}

/// Everything before the first byte; the place is held as long as the connection is open.
pub(crate) async fn open(
    pod: &Pod,
    client: SocketAddr,
    destination: SocketAddr,
    story: &mut Story,
) -> Result<(Remote, Place), Error> {
    let place = pod.place()?;
    let upstream = establish(pod, client, destination, story).await?;
    Ok((upstream, place))
}

/// Finds out who calls, then plans and connects until one attempt succeeds.
async fn establish(
    pod: &Pod,
    client: SocketAddr,
    destination: SocketAddr,
    story: &mut Story,
) -> Result<Remote, Error> {
    let deadline = Instant::now() + CONNECT_BUDGET;
    refuse_self_call(destination, &pod.node.config.ports)?;
    let source = pod.workload().await?;
    story.source_is(&pod.node.metrics, &source);
    let learning = on_demand::learn_destination(&pod.node, &source, destination);
    let learned = timeout_at(deadline, learning).await;
    learned.map_err(|_| Error::ConnectTimeout {
        to: destination,
        after: CONNECT_BUDGET,
    })?;
    pod.node.refuse_rejected(destination)?;
    let caller = Caller {
        pod,
        source: &source,
        client,
    };
    let mut attempts = Attempts::new(pod.node.config.connect_retries, pod.failures.list(), deadline);
    loop {
        let plan = {
            // Not held while it is connected: what is replaced meanwhile can be freed.
            let snapshot = pod.node.mesh.snapshot();
            story.generation = snapshot.generation();
            let mut random = |bound: u64| rand::random_range(0..bound.max(1));
            plan(&snapshot, &source, destination, &mut random, attempts.avoid())?
        };
        attempts.begin(&plan)?;
        let uid = plan.workload().map(|workload| &workload.uid);
        let began = Instant::now();
        let probe = uid.and_then(|uid| pod.failures.begin(uid));
        let error = match attempt(&caller, plan.clone(), attempts.deadline(), story).await {
            Ok(upstream) => {
                uid.inspect(|uid| pod.failures.clear(uid));
                return Ok(upstream);
            }
            Err(error) => error,
        };
        if let (Some(uid), Retry::OtherEndpoint) = (uid, error.retry()) {
            pod.failures.note(uid, error.failure(), began);
        }
        drop(probe);
        tokio::time::sleep(attempts.after(&plan, error)?).await;
    }
}

/// One attempt at one next hop.
async fn attempt(
    caller: &Caller<'_>,
    plan: Plan,
    deadline: Instant,
    story: &mut Story,
) -> Result<Remote, Error> {
    let plan = caller.resolve(plan, deadline).await?;
    tell(story, caller, &plan);
    if let Plan::Tunnel(_) | Plan::Crossing(_) = plan {
        // Before the attempt, so that waiting for it is not taken for a slow peer.
        let certificate = timeout_at(deadline, caller.pod.certificate(caller.source)).await;
        certificate.unwrap_or_else(|_| Err(no_certificate(caller)))?;
    }
    let until = deadline.min(Instant::now() + ATTEMPT_TIME_MAX);
    let attempt = timeout_at(until, caller.connect(&plan, story)).await;
    let after = if until == deadline {
        CONNECT_BUDGET
    } else {
        ATTEMPT_TIME_MAX
    };
    attempt.unwrap_or_else(|_| Err(late(&plan, after)))
}

fn no_certificate(caller: &Caller<'_>) -> Error {
    Error::Certificate(CertificateError::Unavailable {
        identity: caller.source.identity(),
        last: None,
    })
}

fn late(plan: &Plan, after: Duration) -> Error {
    let peer = plan.next_hop();
    match plan {
        Plan::Tunnel(_) | Plan::Crossing(_) => OpenError::ConnectTimeout { peer, after }.into(),
        Plan::Passthrough(_) | Plan::Plain(_) | Plan::Named(_) => Error::ConnectTimeout { to: peer, after },
    }
}

/// Writes what the plan says into the story.
fn tell(story: &mut Story, caller: &Caller<'_>, plan: &Plan) {
    let metrics = &caller.pod.node.metrics;
    story.planned = true;
    story.destination_address = plan.next_hop();
    story.authority = plan.authority();
    story.mutual_tls = story.authority.is_some();
    let own = story.mutual_tls.then(|| caller.source.identity());
    story.source = metrics.described.party(caller.source, own);
    let proven = match plan {
        Plan::Tunnel(endpoint) => Some(endpoint.workload.identity()),
        Plan::Crossing(crossing) => only(&crossing.expected),
        Plan::Passthrough(_) | Plan::Plain(_) | Plan::Named(_) => None,
    };
    story.destination = plan
        .workload()
        .map(|workload| metrics.described.party(workload, proven))
        .unwrap_or_default();
    if let Some(service) = plan.service() {
        story.service_is(metrics, service);
    }
}
