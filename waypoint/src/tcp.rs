//! Streams that are not read: bytes, and TLS that is not opened. One endpoint is drawn, and bytes are copied.

mod record;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tulle_model::{Reason, Str};
use tulle_transport::Transfer;
use tulle_transport::copy;
use tulle_transport::hbone::{HboneStream, ResetCode};

use self::record::{Carried, Record};
use crate::context::Waypoint;
use crate::listener::arrival::Arrival;
use crate::policy::live::{Ended, Open};
use crate::snapshot::{PortState, Snapshot};
use crate::upstream::breaker::Guard;
use crate::upstream::cluster::{Ask, Pick};
use crate::upstream::connect::{self, Behalf, Opened};
use crate::upstream::dial::Socket;
use crate::upstream::outcome::Outcome;

/// Endpoints that are tried: one, and two more if no connection is had.
const ENDPOINTS_MAX: usize = 3;
/// How often what an open stream has moved is counted.
const COUNT_EVERY: Duration = Duration::from_secs(15);

/// Carries a stream to its end. `server_name` is what a ClientHello asked for, if there was one.
pub async fn forward(
    waypoint: &Arc<Waypoint>,
    arrival: &Arrival,
    state: &PortState,
    mut stream: HboneStream,
    server_name: Option<String>,
) {
    let snapshot = waypoint.view.load();
    let record = Record::begin(waypoint, arrival, &snapshot, server_name.clone());
    let opening = open(waypoint, arrival, state, &snapshot, server_name.as_deref());
    let opened = tokio::select! {
        opened = opening => opened,
        error = std::future::poll_fn(|cx| stream.poll_reset(cx)) => {
            tracing::debug!(%error, "the caller left before an endpoint was reached");
            return record.refused(&state.backend, Reason::ClientGone, None);
        }
        () = waypoint.drain.urgent() => Err((Reason::DrainClosed, None)),
    };
    drop(snapshot);
    match opened {
        Ok((opened, (pick, _connection))) => {
            let open = Open {
                front: arrival.front.clone(),
                route: None,
                source: arrival.source.clone(),
                destination: arrival.destination,
                head: None,
                claims: None,
                sni: server_name,
                rules: Arc::clone(state.policies_of(None)),
            };
            let carried = record.opened(&state.backend, pick.endpoint());
            let denied = open.ended(Arc::clone(waypoint));
            let (carried, reason) = carry(waypoint, (stream, opened), carried, denied).await;
            record.ended(carried, reason);
        }
        Err((reason, policy)) => {
            waypoint.metrics.replied(reason);
            tracing::info!(
                source = %arrival.peer,
                destination = %arrival.destination.address,
                server_name,
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

async fn open(
    waypoint: &Waypoint,
    arrival: &Arrival,
    state: &PortState,
    snapshot: &Snapshot,
    server_name: Option<&str>,
) -> Result<(Opened, (Pick, Guard)), (Reason, Option<Str>)> {
    let front = snapshot.front(&arrival.front).ok_or((Reason::NotFronted, None))?;
    crate::policy::admit_stream(waypoint, front, state, arrival, server_name)?;
    let behalf = Behalf::of(arrival, snapshot);
    let backend = &state.backend;
    let mut tried = Vec::new();
    let mut last = Reason::NoHealthyEndpoint;
    while tried.len() < ENDPOINTS_MAX {
        let ask = Ask {
            now: backend.now(),
            tried: &tried,
            address: Some(arrival.destination.address.ip()),
            ..Ask::default()
        };
        let Some(mut pick) = backend.pick(&ask) else {
            break;
        };
        let endpoint = pick.endpoint();
        if tried.iter().any(|one| Arc::ptr_eq(one, &endpoint.state)) {
            break;
        }
        tried.push(Arc::clone(&endpoint.state));
        let Some(address) = endpoint.address(arrival.destination.address) else {
            continue;
        };
        let (breaker, limits) = (&pick.cluster().state().breaker, pick.cluster().policy().limits);
        let Ok(guard) = breaker.connection(limits).await else {
            return Err((Reason::Overflow, None));
        };
        let connected = connect::open(waypoint, endpoint, address, &behalf, limits.connect).await;
        pick.settle(&connect::outcome(&connected), backend.now());
        match connected {
            Ok(opened) => return Ok((opened, (pick, guard))),
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

/// Copies bytes until both sides are done, or until `denied` is, and says why it ended if not by the two sides.
async fn carry(
    waypoint: &Waypoint,
    (stream, opened): (HboneStream, Opened),
    mut carried: Carried,
    denied: impl Future<Output = Ended>,
) -> (Carried, Option<Reason>) {
    let transfer = Transfer::new();
    let copying = async {
        match opened {
            Opened::Tunnel(upstream) => copy::bidirectional(stream, upstream, &transfer).await.error,
            Opened::Plain(Socket::Tcp(upstream)) => {
                copy::bidirectional(stream, upstream, &transfer).await.error
            }
            #[cfg(any(test, feature = "testing"))]
            Opened::Plain(Socket::Memory(mut upstream)) => {
                let mut stream = stream;
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
                None
            }
        }
    };
    let counting = async {
        loop {
            sleep(COUNT_EVERY).await;
            carried.count(&transfer);
        }
    };
    let reason = tokio::select! {
        error = copying => error.and_then(|error| error.reason()),
        () = counting => None,
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
