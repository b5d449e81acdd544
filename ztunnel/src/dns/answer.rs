//! What the mesh knows of a name: a pure function from question and snapshot to an answer, or to "ask elsewhere".

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::Query as Question;
use hickory_proto::rr::{DNSClass, RecordType};
use tulle_model::mesh::Snapshot;
use tulle_model::service::{HealthPolicy, IpFamilies, Service};
use tulle_model::workload::{HealthStatus, Workload};
use tulle_model::{NamespacedHostname, Str};

use super::name::{Origin, candidates, host_name, with_wildcards};

/// What answers depend on beside the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Domain of the cluster.
    pub domain: Str,
    /// Search domains of the client; `None` = those that Kubernetes gives a pod.
    pub search: Option<Vec<String>>,
    /// Namespace whose service is meant when several have one host name and none is nearer.
    pub preferred_namespace: Option<Str>,
    /// Whether IPv6 addresses are given out.
    pub ipv6: bool,
}

/// What is done with a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The mesh knows the name.
    Answer(Answer),
    /// A name server is to be asked.
    Forward,
}

/// What the mesh knows of a name. Without addresses the name exists, and has none of the kind that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// The name that the asked one stands for, where a search domain was cut.
    pub alias_of: Option<String>,
    /// Addresses in no order that matters.
    pub addresses: Vec<IpAddr>,
}

/// Which addresses are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(question: &Question) -> Option<Self> {
        match (question.query_class(), question.query_type()) {
            (DNSClass::IN, RecordType::A) => Some(Self::V4),
            (DNSClass::IN, RecordType::AAAA) => Some(Self::V6),
            _ => None,
        }
    }

    fn has(self, address: &IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }

    fn is_of(self, service: &Service) -> bool {
        match service.ip_families {
            IpFamilies::Ipv4Only => self == Self::V4,
            IpFamilies::Ipv6Only => self == Self::V6,
            IpFamilies::Automatic | IpFamilies::Dual => true,
        }
    }
}

/// Answers a question of `source`, if the mesh knows the name.
#[must_use]
pub fn decide(question: &Question, snapshot: &Snapshot, source: &Workload, settings: &Settings) -> Decision {
    let known = Family::of(question).zip(host_name(question.name()));
    let Some((family, asked)) = known else {
        return Decision::Forward;
    };
    let Some(found) = find(&asked, snapshot, source, settings) else {
        return Decision::Forward;
    };
    let addresses = if family == Family::V6 && !settings.ipv6 || !family.is_of(&found.service) {
        Vec::new()
    } else {
        addresses(&found.service, snapshot, source, family)
    };
    Decision::Answer(Answer {
        alias_of: found.alias_of.filter(|_| !addresses.is_empty()),
        addresses,
    })
}

/// The services of Kubernetes that a question for a name of the mesh's domain may mean, in the order in which they are
/// tried: such names say which namespace they are of.
#[must_use]
pub fn mesh_hosts(question: &Question, source: &Workload, settings: &Settings) -> Vec<NamespacedHostname> {
    let known = Family::of(question).zip(host_name(question.name()));
    let Some((_, asked)) = known.filter(|(_, asked)| asked.ends_with(&*settings.domain)) else {
        return Vec::new();
    };
    let usual = usual_search(&source.namespace, &settings.domain);
    let origin = Origin {
        namespace: &source.namespace,
        domain: &settings.domain,
        search: settings.search.as_ref().unwrap_or(&usual),
    };
    let of_mesh = |candidate: super::name::Candidate| {
        let rest = candidate.host.strip_suffix(&*settings.domain)?;
        let mut labels = rest.strip_suffix(".svc.")?.rsplit('.');
        let namespace = labels.next().filter(|namespace| !namespace.is_empty())?;
        labels.next()?;
        Some(NamespacedHostname::new(namespace, candidate.host.as_str()))
    };
    candidates(&asked, origin)
        .into_iter()
        .filter_map(of_mesh)
        .collect()
}

/// A service and how its name was come by.
struct Found {
    service: Arc<Service>,
    alias_of: Option<String>,
}

fn find(asked: &str, snapshot: &Snapshot, source: &Workload, settings: &Settings) -> Option<Found> {
    let usual;
    let search = match &settings.search {
        Some(search) => search,
        None => {
            usual = usual_search(&source.namespace, &settings.domain);
            &usual
        }
    };
    let origin = Origin {
        namespace: &source.namespace,
        domain: &settings.domain,
        search,
    };
    for candidate in candidates(asked, origin) {
        for (depth, host) in with_wildcards(&candidate.host).enumerate() {
            if let Some(service) = service_of(&host, snapshot, source, settings) {
                let alias_of = candidate.cut.filter(|_| depth == 0);
                return Some(Found { service, alias_of });
            }
        }
    }
    None
}

/// The search list that Kubernetes gives a pod.
fn usual_search(namespace: &str, domain: &str) -> Vec<String> {
    vec![
        format!("{namespace}.svc.{domain}"),
        format!("svc.{domain}"),
        domain.to_owned(),
    ]
}

/// Which service a host name means: the own namespace's, else a canonical one, else the preferred namespace's, else
/// the first. Those that cannot be seen or have nothing to answer with stand in no other's way.
fn service_of(
    host: &str,
    snapshot: &Snapshot,
    source: &Workload,
    settings: &Settings,
) -> Option<Arc<Service>> {
    let sharers = snapshot.services_by_hostname(&source.namespace, host);
    let rank = |service: &&Arc<Service>| {
        let preferred = settings.preferred_namespace.as_ref();
        Reverse((
            service.namespace == source.namespace,
            service.canonical,
            preferred == Some(&service.namespace),
        ))
    };
    sharers
        .filter(|service| is_answerable(service, &settings.domain))
        .min_by_key(rank)
        .cloned()
}

/// A name without addresses is left to name servers, unless it is a headless service of Kubernetes.
fn is_answerable(service: &Service, domain: &str) -> bool {
    let of_kubernetes = || {
        let rest = service.hostname.strip_suffix(domain);
        rest.is_some_and(|rest| rest.ends_with(".svc."))
    };
    !service.addresses.is_empty() || of_kubernetes()
}

fn addresses(service: &Service, snapshot: &Snapshot, source: &Workload, family: Family) -> Vec<IpAddr> {
    if service.addresses.is_empty() {
        return endpoint_addresses(service, snapshot, source, family);
    }
    let own_network = service
        .addresses
        .iter()
        .filter(|vip| vip.network == source.network);
    own_network
        .map(|vip| vip.address)
        .filter(|address| family.has(address))
        .collect()
}

/// One address of each endpoint that could be called by it: an address means something in its own network only.
fn endpoint_addresses(
    service: &Service,
    snapshot: &Snapshot,
    source: &Workload,
    family: Family,
) -> Vec<IpAddr> {
    let policy = service.load_balancing.as_ref().map(|how| how.health_policy);
    let all = policy == Some(HealthPolicy::AllowAll);
    snapshot
        .endpoints(&service.key())
        .filter(|endpoint| endpoint.network == source.network)
        .filter(|endpoint| all || endpoint.status == HealthStatus::Healthy)
        .filter_map(|endpoint| {
            endpoint
                .addresses
                .iter()
                .copied()
                .find(|address| family.has(address))
        })
        .collect()
}

#[cfg(test)]
mod tests;
