//! Streams that are not read: bytes, and TLS that is not opened. One endpoint is drawn, and bytes are copied.

mod record;
pub(crate) mod way;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use http::HeaderValue;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep};
use tulle_model::{Reason, Str};
use tulle_transport::Transfer;
use tulle_transport::copy;
use tulle_transport::hbone::{HboneStream, ResetCode};

use self::record::{Carried, Record};
use crate::context::Waypoint;
use crate::detect::Greeting;
use crate::http::idle::{HALF_CLOSED_MAX, STREAM_IDLE_MAX};
use crate::http::rule::Rule;
use crate::listener::arrival::Arrival;
use crate::policy::live::{Ended, Open, Passed};
use crate::policy::rules::Rules;
use crate::snapshot::{FrontState, PortState, Snapshot};
use crate::upstream::backend::Backend;
use crate::upstream::breaker::Guard;
use crate::upstream::cluster::{Ask, Pick};
use crate::upstream::connect::{self, Behalf, Opened, To};
use crate::upstream::dial::Socket;
use crate::upstream::endpoint::EndpointState;
use crate::upstream::hash;
use crate::upstream::outcome::Outcome;
use crate::upstream::walk::Walk;
use crate::watched::{Look, Watched};

/// How often what an open stream has moved is counted.
const COUNT_EVERY: Duration = Duration::from_secs(15);

/// Carries a stream to its end. `greeting` is what the client said first, where that was looked at.
pub async fn forward(
    waypoint: &Arc<Waypoint>,
    arrival: &Arrival,
    state: &PortState,
    mut stream: HboneStream,
    greeting: Greeting,
) {
    let snapshot = waypoint.view.load();
    let mut record = Record::begin(waypoint, arrival, &snapshot, greeting.server_name.clone());
    let namespace = arrival
        .source
        .identity
        .as_ref()
        .map(|identity| &*identity.namespace);
    let Ok(rule) = way::choose(&state.rules, namespace, &greeting) else {
        // Nobody asked for this name; nothing is wrong with the stream.
        waypoint.metrics.replied(Reason::RouteNotFound);
        record.refused(&state.backend, Reason::RouteNotFound, None);
        return drop(stream.shutdown().await);
    };
    let route = rule.map(|rule| &rule.name);
    record.routed(route);
    let taken = Taken {
        snapshot: &snapshot,
        state,
        rule,
        server_name: greeting.server_name.as_deref(),
        on_trial: record.on_trial(),
    };
    let opened = tokio::select! {
        opened = open(waypoint, arrival, &taken) => opened,
        error = std::future::poll_fn(|cx| stream.poll_reset(cx)) => {
            tracing::debug!(%error, "the caller left before an endpoint was reached");
            return record.refused(&state.backend, Reason::ClientGone, None);
        }
        () = waypoint.drain.urgent() => Err((Reason::DrainClosed, None)),
    };
    let idle = snapshot.settings.limits.stream_idle.unwrap_or(STREAM_IDLE_MAX);
    match opened {
        Ok(reached) => {
            let backend = Arc::clone(&reached.backend);
            let open = Open {
                front: arrival.front.clone(),
                route: route.cloned(),
                source: arrival.source.clone(),
                destination: arrival.destination,
                head: None,
                passed: taken.let_pass(arrival, &backend),
                sni: greeting.server_name,
                id: HeaderValue::from_static(""),
                hops: connect::hops(arrival),
            };
            drop(snapshot);
            let carried = record.opened(&reached);
            let Reached { opened, held, .. } = reached;
            let denied = open.ended(Arc::clone(waypoint));
            let (carried, reason) = carry(waypoint, (stream, opened), carried, denied, idle).await;
            drop(held);
            record.ended(carried, reason);
        }
        Err((reason, policy)) => {
            waypoint.metrics.replied(reason);
            tracing::info!(
                source = %arrival.peer,
                destination = %arrival.destination.address,
                server_name = greeting.server_name,
                policy = policy.as_deref(),
                code = reason.code(),
                token = reason.token(),
                "stream reset"
            );
            stream.reset(ResetCode::Connect);
            record.refused(&state.backend, reason, policy.as_deref());
        }
    }
}

/// What a stream takes.
struct Taken<'a> {
    snapshot: &'a Snapshot,
    state: &'a PortState,
    rule: Option<&'a Arc<Rule>>,
    server_name: Option<&'a str>,
    /// Is set where a policy on trial would have refused it.
    on_trial: &'a AtomicBool,
}

impl Taken<'_> {
    /// The policies that let it pass to a backend.
    fn let_pass(&self, arrival: &Arrival, backend: &Arc<Backend>) -> Passed {
        let route = self.rule.map(|rule| &*rule.name);
        let behind = self.snapshot.behind(&backend.key, &arrival.front);
        Passed {
            rules: Arc::clone(self.state.policies_of(route)),
            claims: None,
            backend: Arc::clone(backend),
            behind: behind.map(|(_, port)| Arc::clone(port.policies_as_backend())),
            claims_behind: None,
        }
    }
}

/// An endpoint that was reached, and what holds its place.
struct Reached {
    backend: Arc<Backend>,
    opened: Opened,
    address: SocketAddr,
    attempts: u32,
    /// Its place among what is with the endpoint.
    held: (Pick, Guard),
}
/// Why a stream is refused, and the policy or route that says so.
type Refusal = (Reason, Option<Str>);

async fn open(waypoint: &Waypoint, arrival: &Arrival, taken: &Taken<'_>) -> Result<Reached, Refusal> {
    let Taken {
        snapshot,
        state,
        rule,
        server_name,
        on_trial,
    } = *taken;
    let front = snapshot.front(&arrival.front).ok_or((Reason::NotFronted, None))?;
    if !front.is_visible_from(&arrival.source) {
        return Err((Reason::NotVisible, None));
    }
    let route = rule.map(|rule| &*rule.name);
    let may = |front: &FrontState, rules: &Rules| {
        crate::policy::admit_stream(waypoint, (front, rules), arrival, server_name, on_trial)
    };
    may(front, state.policies_of(route))?;
    let invalid = || (Reason::BackendInvalid, rule.map(|rule| rule.name.clone()));
    let backend = way::backend(rule, &state.backend, rand::random()).ok_or_else(invalid)?;
    if let Some((front, port)) = snapshot.behind(&backend.key, &arrival.front) {
        may(front, port.policies_as_backend())?;
    }
    reach(waypoint, arrival, taken, backend).await
}

/// An endpoint of a backend for a stream, of which none in `tried` was reached.
fn pick(backend: &Backend, arrival: &Arrival, tried: &[Arc<EndpointState>]) -> Option<Pick> {
    let cluster = backend.cluster()?;
    backend.pick(&Ask {
        now: backend.now(),
        hash: hash::of_stream(cluster.hash_keys(), &arrival.source),
        session: None,
        tried,
        // Nothing was said to the one that was not reached.
        moves_on: true,
        address: Some(arrival.destination.address.ip()),
    })
}

/// Opens a stream to an endpoint, or to the next one if that is not reached.
async fn reach(
    waypoint: &Waypoint,
    arrival: &Arrival,
    taken: &Taken<'_>,
    backend: &Arc<Backend>,
) -> Result<Reached, Refusal> {
    let behalf = Behalf::of(arrival, taken.snapshot);
    let mut walk = Walk::default();
    let mut last = Reason::NoHealthyEndpoint;
    while let Some(mut pick) = pick(backend, arrival, walk.tried()) {
        let around = (waypoint, taken.snapshot);
        let asked = arrival.destination.address;
        let address = match walk.turn_to(around, &pick, taken.server_name, asked).await {
            None => break,
            Some(Ok(address)) => address,
            Some(Err(reason)) => {
                last = reason;
                continue;
            }
        };
        let endpoint = pick.endpoint();
        let (breaker, limits) = (&pick.cluster().state().breaker, pick.cluster().policy().limits);
        let Ok(guard) = breaker.connection(limits).await else {
            return Err((Reason::Overflow, None));
        };
        let to = To {
            endpoint,
            address,
            tls: pick.cluster().tls_to(endpoint),
            speaks: None,
        };
        let connected = connect::open(waypoint, to, &behalf, limits.connect).await;
        pick.settle(&connect::outcome(&connected), backend.now());
        match connected {
            Ok(opened) => {
                return Ok(Reached {
                    backend: Arc::clone(backend),
                    opened,
                    address,
                    attempts: u32::try_from(walk.tried().len()).unwrap_or(u32::MAX),
                    held: (pick, guard),
                });
            }
            Err(error) => {
                tracing::debug!(%error, %address, "an endpoint was not reached");
                last = connect::reason(&error);
                if connect::outcome_of(&error) == Outcome::Refused {
                    break;
                }
            }
        }
    }
    Err((last, None))
}

/// Copies bytes until both sides are done, until `denied` is, or until none has moved for so long, and says why it ended
/// if not by the two sides.
async fn carry(
    waypoint: &Waypoint,
    (stream, opened): (HboneStream, Opened),
    mut carried: Carried,
    denied: impl Future<Output = Ended>,
    idle: Duration,
) -> (Carried, Option<Reason>) {
    let transfer = Transfer::new();
    let copying = async {
        match opened {
            Opened::Tunnel(upstream) => copy::bidirectional(stream, upstream, &transfer).await.error,
            Opened::Plain(Socket::Tcp(upstream)) => {
                copy::bidirectional(stream, upstream, &transfer).await.error
            }
            Opened::Secured(mut upstream) => {
                let mut stream = counted(stream, &transfer);
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
                None
            }
            #[cfg(any(test, feature = "testing"))]
            Opened::Plain(Socket::Memory(mut upstream)) => {
                let mut stream = counted(stream, &transfer);
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
                None
            }
        }
    };
    let counting = async {
        let (mut known, mut since) = ((0, 0), Instant::now());
        loop {
            sleep(COUNT_EVERY.min(idle)).await;
            carried.count(&transfer);
            let moved = (transfer.sent(), transfer.received());
            if moved != known {
                (known, since) = (moved, Instant::now());
            } else if since.elapsed() >= idle
                || (transfer.is_half_closed() && since.elapsed() >= HALF_CLOSED_MAX)
            {
                return;
            }
        }
    };
    let reason = tokio::select! {
        error = copying => error.and_then(|error| error.reason()),
        () = counting => {
            waypoint.metrics.replied(Reason::StreamIdle);
            Some(Reason::StreamIdle)
        }
        () = waypoint.drain.urgent() => Some(Reason::DrainClosed),
        ended = denied => {
            let reason = Reason::PolicyChanged;
            waypoint.metrics.replied(reason);
            tracing::info!(?ended, code = reason.code(), token = reason.token(), "stream reset");
            Some(reason)
        }
    };
    carried.count(&transfer);
    (carried, reason)
}

/// Counts what moves where the copy itself does not.
struct Moved<'t>(&'t Transfer);

impl Look for Moved<'_> {
    fn look(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.moved(bytes.len(), 0);
        Ok(())
    }

    fn sent(&mut self, count: usize) {
        self.0.moved(0, count);
    }
}

/// The caller's side of a copy.
fn counted<S>(stream: S, transfer: &Transfer) -> Watched<S, Moved<'_>> {
    Watched {
        stream,
        look: Moved(transfer),
    }
}
