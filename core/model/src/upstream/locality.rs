//! How near an endpoint is to its caller, in the terms of the service's routing preference.

use crate::name::Str;
use crate::service::{LoadBalancing, LoadBalancingMode, Scope};
use crate::workload::Workload;

/// The rank of an endpoint, higher is better; `None` if it must not be chosen.
pub(super) fn rank(
    balancing: Option<&LoadBalancing>,
    source: &Workload,
    endpoint: &Workload,
) -> Option<usize> {
    let Some(balancing) = balancing else {
        return Some(0);
    };
    let scopes = &balancing.routing_preference;
    match balancing.mode {
        LoadBalancingMode::Unspecified => Some(0),
        LoadBalancingMode::Passthrough => None,
        LoadBalancingMode::Strict => (shared(scopes, source, endpoint) == scopes.len()).then_some(0),
        LoadBalancingMode::Failover => {
            Some(shared(scopes, source, endpoint) + bonus(scopes, source, endpoint))
        }
    }
}

/// How many scopes are shared before the first that is not. Where NETWORK comes first, an endpoint elsewhere is
/// still compared by the scopes after it.
fn shared(scopes: &[Scope], source: &Workload, endpoint: &Workload) -> usize {
    let compared = match scopes {
        [Scope::Network, rest @ ..] if !shares(Scope::Network, source, endpoint) => rest,
        all => all,
    };
    compared
        .iter()
        .take_while(|scope| shares(**scope, source, endpoint))
        .count()
}

/// What lifts any endpoint of the caller's own network above every other one, if NETWORK comes first.
fn bonus(scopes: &[Scope], source: &Workload, endpoint: &Workload) -> usize {
    match scopes {
        [Scope::Network, rest @ ..] if shares(Scope::Network, source, endpoint) => rest.len(),
        _ => 0,
    }
}

fn shares(scope: Scope, source: &Workload, endpoint: &Workload) -> bool {
    place(scope, source) == place(scope, endpoint)
}

/// Where a workload is, in terms of one scope.
pub(super) fn place(scope: Scope, workload: &Workload) -> &Str {
    match scope {
        Scope::Region => &workload.locality.region,
        Scope::Zone => &workload.locality.zone,
        Scope::Subzone => &workload.locality.subzone,
        Scope::Node => &workload.node,
        Scope::Cluster => &workload.cluster_id,
        Scope::Network => &workload.network,
    }
}
