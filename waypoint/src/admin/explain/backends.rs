//! Where a request may go.

use std::net::SocketAddr;
use std::sync::Arc;

use tulle_model::policy::authz::Attributes;
use tulle_model::waypoint::FrontOf;
use tulle_model::{Reason, RequestHead};

use super::policies::authorize;
use super::{End, Ended, Share, Walk};
use crate::http::routing::Way;
use crate::http::rule::Rule;
use crate::listener::arrival::Arrival;
use crate::policy;
use crate::snapshot::{PortState, Snapshot};
use crate::upstream::backend::{Backend, BackendKey};

/// Where it may go, and what policies of backends say that are not what was asked for.
pub(super) fn onward(
    snapshot: &Snapshot,
    port: &PortState,
    way: &Way,
    arrival: &Arrival,
    head: &RequestHead,
    walk: &mut Walk,
) -> Result<(), Ended> {
    let asked = arrival.destination.address.port();
    spread(
        way.rule.as_ref(),
        (&port.backend, asked),
        walk,
        |backend, walk| backend_policy(snapshot, backend, arrival, head, walk),
    )
}

/// The backends of a rule, or what was asked for without one, so far as `judge` lets it go there. `asked` is the port that
/// was asked for.
pub(super) fn spread(
    rule: Option<&Arc<Rule>>,
    (default, asked): (&Backend, u16),
    walk: &mut Walk,
    mut judge: impl FnMut(&Backend, &mut Walk) -> Result<(), Ended>,
) -> Result<(), Ended> {
    let Some(rule) = rule else {
        walk.backends.push(share(default, 1, asked));
        return usable(walk);
    };
    let weights = rule.route.backends.iter().map(|backend| backend.weight);
    let mut refused = None;
    for (weighted, weight) in rule.backends().iter().zip(weights) {
        let backend = weighted.backend.as_ref().filter(|backend| rule.may_use(backend));
        let Some(backend) = backend.filter(|_| weight > 0) else {
            continue;
        };
        if let Err(ended) = judge(backend, walk) {
            refused.get_or_insert(ended);
            continue;
        }
        walk.backends.push(share(backend, weight, asked));
    }
    match refused.filter(|_| walk.backends.is_empty()) {
        Some(ended) => Err(ended),
        None => usable(walk),
    }
}

fn backend_policy(
    snapshot: &Snapshot,
    backend: &Backend,
    arrival: &Arrival,
    head: &RequestHead,
    walk: &mut Walk,
) -> Result<(), Ended> {
    let BackendKey::Service(service, port) = &backend.key else {
        return Ok(());
    };
    let of = FrontOf::Service(service.clone());
    let Some(front) = snapshot.front(&of).filter(|_| of != arrival.front) else {
        return Ok(());
    };
    policy::admit(front)?;
    let Some(port) = front.port(*port) else {
        return Ok(());
    };
    let attributes = Attributes::of_request(&arrival.source, arrival.destination, head, None);
    authorize(
        "backend",
        &port.policies_as_backend().authorizer,
        &attributes,
        walk,
    )
}

/// Somebody must be there to take it.
fn usable(walk: &mut Walk) -> Result<(), Ended> {
    let names = walk.backends.iter().map(|share| {
        let alive = share.endpoints.len();
        let clear = share
            .endpoints
            .iter()
            .filter(|end| end.encryption == "none")
            .count();
        let clear = match clear {
            0 => String::new(),
            clear => format!(", {clear} of them unencrypted"),
        };
        format!(
            "{} weight {}, {alive} endpoints{clear}",
            share.backend, share.weight
        )
    });
    let details = names.collect();
    if walk.backends.is_empty() {
        walk.step("backend", "there is none that may be used");
        return Err(Reason::BackendInvalid.into());
    }
    let any = walk.backends.iter().any(|share| !share.endpoints.is_empty());
    walk.detailed("backend", if any { "found" } else { "nobody serves it" }, details);
    if any {
        Ok(())
    } else {
        Err(Reason::NoHealthyEndpoint.into())
    }
}

/// A backend with who serves it now.
fn share(backend: &Backend, weight: u32, asked: u16) -> Share {
    let now = backend.now();
    let cluster = backend.cluster();
    let endpoints = cluster.iter().flat_map(|cluster| {
        let ends = cluster.endpoints().iter().filter_map(move |endpoint| {
            // A workload is reached on the port that is asked for.
            let port = endpoint.target_port.unwrap_or(asked);
            let address = match endpoint.workload.addresses.first() {
                Some(address) => SocketAddr::new(*address, port).to_string(),
                None if endpoint.is_named() => format!("{}:{port}", endpoint.workload.hostname),
                None if endpoint.original.is_some() => format!("the address that is asked for, port {port}"),
                None => return None,
            };
            Some(End {
                workload: endpoint.workload.uid.to_string(),
                address,
                tunnelled: endpoint.is_tunnelled(),
                encryption: cluster.encryption_to(endpoint),
                state: cluster.state_of(endpoint, now).as_str(),
            })
        });
        ends.collect::<Vec<_>>()
    });
    Share {
        backend: backend.key.told(),
        weight,
        endpoints: endpoints.collect(),
    }
}
