//! `/explain`: the decisions of a connection that does not exist, by the functions that decide real ones.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tulle_model::authz::AllowBecause;
use tulle_model::workload::TunnelProtocol;
use tulle_model::{Authority, Connection, Identity, NetworkAddress, Snapshot, Str, Verdict, Workload};

use super::Pages;
use crate::config::WorkloadName;
use crate::error::Error;
use crate::inbound::{Asks, refuse_own_port};
use crate::on_demand;
use crate::outbound::plan::{Plan, plan, refuse_self_call};
use crate::pod::Node;

/// A connection to explain.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// Only one end; both without it.
    #[serde(default)]
    pub direction: Option<Direction>,
    /// The client, as the control plane names it.
    #[serde(default)]
    pub source: Option<Source>,
    /// The client's identity, where its workload is not known here.
    #[serde(default)]
    pub identity: Option<Identity>,
    /// Where it connects to.
    pub destination: SocketAddr,
    /// Where it connects from; by default the source's first address.
    #[serde(default)]
    pub source_ip: Option<IpAddr>,
    /// Whom a waypoint speaks for; believed as on a real tunnel.
    #[serde(default)]
    pub original_source: Option<Identity>,
}

/// Which end decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Where the client's proxy sends it.
    Outbound,
    /// Whether the server's proxy lets it pass.
    Inbound,
}

/// The client's workload.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    namespace: Str,
    name: Str,
    service_account: Str,
}

/// What would happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct Explanation {
    /// The way the client's proxy takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Way>,
    /// `allow` or `deny`, where the server is known; absent if the client's proxy refuses already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<&'static str>,
    /// Code and token, if it is refused.
    pub reason: Option<String>,
    /// What the refusal says.
    pub error: Option<String>,
    /// The policy that decides, if one does.
    pub policy: Option<String>,
    /// Generation of the configuration.
    pub generation: u64,
}

/// A way outbound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct Way {
    /// `passthrough`, `plain`, `hbone`, `double-hbone` through a gateway, or `by-name` if a host name is looked up first.
    pub kind: &'static str,
    /// Where TCP goes.
    pub next_hop: String,
    /// The workload that answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// The service that was addressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// What the tunnel asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// Who may answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub expected: Vec<String>,
}

pub(super) async fn answer(
    State(pages): State<Pages>,
    Json(question): Json<Question>,
) -> Result<Json<Explanation>, (StatusCode, String)> {
    learn(&pages.node, &question).await;
    let explanation = explain(&pages.node, &question);
    explanation
        .map(Json)
        .map_err(|error| (StatusCode::NOT_FOUND, format!("{error}\n")))
}

/// Asks for what the connection would ask for.
async fn learn(node: &Node, question: &Question) {
    let snapshot = node.mesh.snapshot();
    let source = question.source.as_ref().map(|source| find(&snapshot, source));
    if let (Some(Ok(source)), None | Some(Direction::Outbound)) = (source, question.direction) {
        on_demand::learn_destination(node, &source, question.destination).await;
    }
    let address = NetworkAddress::new(Arc::clone(&node.config.network), question.destination.ip());
    if let Some(workload) = snapshot.workload_by_address(&address) {
        on_demand::learn_own(node, &workload, on_demand::Said::default()).await;
    }
}

/// Explains a connection.
///
/// # Errors
/// When the source is not known.
pub fn explain(node: &Node, question: &Question) -> Result<Explanation, Error> {
    let snapshot = &node.mesh.snapshot();
    let source = question
        .source
        .as_ref()
        .map(|source| find(snapshot, source))
        .transpose()?;
    let mut explanation = Explanation {
        generation: snapshot.generation(),
        ..Explanation::default()
    };
    let mut arrival = Arrival::by_tunnel(question.destination);
    if let (Some(source), None | Some(Direction::Outbound)) = (&source, question.direction) {
        match send(node, snapshot, source, question.destination) {
            Ok(plan) => {
                arrival = Arrival::of(&plan, question.destination);
                explanation.plan = Some(way(&plan));
            }
            Err(error) => {
                explanation.refuse(&error);
                return Ok(explanation);
            }
        }
    }
    if question.direction != Some(Direction::Outbound) {
        match judge(node, snapshot, question, source.as_deref(), arrival) {
            Ok(Some(because)) => explanation.allow(because),
            Ok(None) => {}
            Err(error) => explanation.refuse(&error),
        }
    }
    Ok(explanation)
}

/// The way of the client's proxy, after what it refuses before it looks for one.
fn send(node: &Node, snapshot: &Snapshot, source: &Workload, destination: SocketAddr) -> Result<Plan, Error> {
    refuse_self_call(destination, &node.config.ports)?;
    node.refuse_rejected(destination)?;
    // Always the same choice among equals, so that two answers do not differ for no reason.
    plan(snapshot, source, destination, &mut |_| 0, &[])
}

fn find(snapshot: &Snapshot, source: &Source) -> Result<Arc<Workload>, Error> {
    let Source {
        namespace,
        name,
        service_account,
    } = source;
    snapshot
        .workload_by_name(namespace, name, service_account)
        .ok_or_else(|| Error::WorkloadUnknown {
            namespace: namespace.to_string(),
            name: name.to_string(),
        })
}

/// Where a connection arrives, and how.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    target: SocketAddr,
    tunnelled: bool,
}

impl Arrival {
    fn by_tunnel(target: SocketAddr) -> Self {
        Self {
            target,
            tunnelled: true,
        }
    }

    fn plain(target: SocketAddr) -> Self {
        Self {
            target,
            tunnelled: false,
        }
    }

    fn of(plan: &Plan, destination: SocketAddr) -> Self {
        match plan {
            // What the far ends of these say is not known here.
            Plan::Passthrough(_) | Plan::Crossing(_) | Plan::Named(_) => Self::plain(destination),
            Plan::Plain(endpoint) => Self::plain(endpoint.dial),
            Plan::Tunnel(endpoint) => Self::by_tunnel(endpoint.authority),
        }
    }
}

fn way(plan: &Plan) -> Way {
    let way = Way {
        kind: match plan {
            Plan::Passthrough(_) => "passthrough",
            Plan::Plain(_) => "plain",
            Plan::Tunnel(_) => "hbone",
            Plan::Crossing(_) => "double-hbone",
            Plan::Named(_) => "by-name",
        },
        next_hop: match plan.lookup() {
            Some(lookup) => format!("{}:{}", lookup.hostname, plan.next_hop().port()),
            None => plan.next_hop().to_string(),
        },
        ..Way::default()
    };
    let expected = match plan {
        Plan::Crossing(crossing) => &crossing.gateway_identities[..],
        other => other.endpoint().map_or(&[][..], |endpoint| &endpoint.expected),
    };
    Way {
        workload: plan.workload().map(|workload| workload.uid.to_string()),
        service: plan.service().map(|service| service.key().to_string()),
        authority: plan.authority(),
        expected: expected.iter().map(ToString::to_string).collect(),
        ..way
    }
}

/// What the server's proxy says; nothing if no workload is known there, or none that has a proxy.
fn judge(
    node: &Node,
    snapshot: &Snapshot,
    question: &Question,
    source: Option<&Workload>,
    Arrival { target, tunnelled }: Arrival,
) -> Result<Option<AllowBecause>, Error> {
    let address = NetworkAddress::new(Arc::clone(&node.config.network), target.ip());
    let Some(workload) = snapshot.workload_by_address(&address) else {
        return Ok(None);
    };
    if !tunnelled && workload.tunnel_protocol == TunnelProtocol::None {
        return Ok(None);
    }
    let identity = question
        .identity
        .clone()
        .or_else(|| source.map(Workload::identity));
    let source_ip = question
        .source_ip
        .or_else(|| source.and_then(|source| source.addresses.first().copied()));
    let source_ip = source_ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let peer = identity.filter(|_| tunnelled);
    let original_source = question.original_source.clone().filter(|_| tunnelled);
    let asks = Asks {
        workload: &workload,
        local: target,
        peer: peer.as_ref(),
        peer_ip: source_ip,
        original_source: original_source.as_ref(),
    };
    let target = match tunnelled {
        true => asks.target(snapshot, &Authority::Ip(target))?,
        false => target,
    };
    refuse_own_port(&node.config.ports, target)?;
    asks.refuse_untrusted_source(snapshot)?;
    let connection = Connection {
        peer,
        original_source,
        source_ip,
        destination: target,
    };
    match snapshot.policies_for(&workload).check(&connection) {
        Verdict::Allow { because } => Ok(Some(because)),
        Verdict::Deny { because } => Err(Error::Denied(because)),
    }
}

impl Explanation {
    fn allow(&mut self, because: AllowBecause) {
        self.verdict = Some("allow");
        if let AllowBecause::Policy { policy, .. } = because {
            self.policy = Some(policy.to_string());
        }
    }

    fn refuse(&mut self, error: &Error) {
        self.verdict = Some("deny");
        self.reason = error.reason().map(|reason| reason.to_string());
        self.error = Some(error.to_string());
        self.policy = error.policy();
    }
}

impl From<&WorkloadName> for Source {
    fn from(name: &WorkloadName) -> Self {
        Self {
            namespace: Arc::clone(&name.namespace),
            name: Arc::clone(&name.name),
            service_account: Arc::clone(&name.service_account),
        }
    }
}
