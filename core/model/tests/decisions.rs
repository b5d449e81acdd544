//! Decision tables: given this mesh, this connection is decided so, because.
//!
//! Each file in `fixtures/` is a mesh and a list of questions; the answers are kept in `snapshots/`, one line each.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Deserialize;
use tulle_model::authz::policy::Authorization;
use tulle_model::authz::{AllowBecause, Connection, Verdict};
use tulle_model::service::Scope;
use tulle_model::testing::{mesh, name, service, workload};
use tulle_model::{Authority, Identity, MeshUpdate, Snapshot, Upstream, Workload};

/// A mesh and what is asked of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(default)]
    workloads: Vec<WorkloadRow>,
    #[serde(default)]
    services: Vec<ServiceRow>,
    #[serde(default)]
    policies: Vec<Authorization>,
    #[serde(default)]
    verdicts: Vec<VerdictQuestion>,
    #[serde(default)]
    upstreams: Vec<UpstreamQuestion>,
    #[serde(default)]
    targets: Vec<TargetQuestion>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkloadRow {
    name: String,
    #[serde(default)]
    ips: Vec<String>,
    #[serde(default)]
    plain: bool,
    #[serde(default)]
    unhealthy: bool,
    #[serde(default)]
    network: String,
    #[serde(default)]
    locality: String,
    #[serde(default)]
    serves: Vec<String>,
    #[serde(default)]
    policies: Vec<String>,
    waypoint: Option<String>,
    tunnel: Option<u16>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceRow {
    name: String,
    #[serde(default)]
    vips: Vec<String>,
    #[serde(default)]
    cidrs: Vec<String>,
    #[serde(default)]
    ports: BTreeMap<u16, u16>,
    #[serde(default)]
    private: bool,
    #[serde(default)]
    failover: Vec<Scope>,
    waypoint: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VerdictQuestion {
    from: Option<String>,
    behind: Option<String>,
    #[serde(default = "client_ip")]
    ip: IpAddr,
    to: String,
    port: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpstreamQuestion {
    from: String,
    to: SocketAddr,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetQuestion {
    at: String,
    authority: String,
}

fn client_ip() -> IpAddr {
    [10, 0, 0, 1].into()
}

fn workload_of(row: WorkloadRow) -> MeshUpdate {
    let mut one = workload(&row.name).network(&row.network).locality(&row.locality);
    one = row.ips.iter().fold(one, |one, ip| one.ip(ip));
    one = row.serves.iter().fold(one, |one, service| one.serves(service));
    one = row.policies.iter().fold(one, |one, policy| one.policy(policy));
    one = if row.plain { one } else { one.hbone() };
    one = if row.unhealthy { one.unhealthy() } else { one };
    one = row
        .waypoint
        .iter()
        .fold(one, |one, waypoint| one.waypoint(waypoint));
    row.tunnel
        .iter()
        .fold(one, |one, port| one.application_tunnel(Some(*port)))
        .into()
}

fn service_of(row: ServiceRow) -> MeshUpdate {
    let mut one = service(&row.name);
    one = row.vips.iter().fold(one, |one, vip| one.vip(vip));
    one = row.cidrs.iter().fold(one, |one, cidr| one.cidr(cidr));
    one = row
        .ports
        .iter()
        .fold(one, |one, (port, target)| one.port(*port, *target));
    one = if row.private { one.private() } else { one };
    one = if row.failover.is_empty() {
        one
    } else {
        one.failover(row.failover)
    };
    row.waypoint
        .iter()
        .fold(one, |one, waypoint| one.waypoint(waypoint))
        .into()
}

/// `ns/name` in the default trust domain.
fn identity(text: &str) -> Identity {
    let own = name(text);
    Identity::new("cluster.local", own.namespace, own.name)
}

fn known(snapshot: &Snapshot, text: &str) -> Arc<Workload> {
    let uid = name(text).to_string();
    Arc::clone(
        snapshot
            .workload(&uid.as_str().into())
            .unwrap_or_else(|| panic!("no workload {uid}")),
    )
}

fn verdict(snapshot: &Snapshot, question: &VerdictQuestion) -> String {
    let local = known(snapshot, &question.to);
    let connection = Connection {
        peer: question.from.as_deref().map(identity),
        original_source: question.behind.as_deref().map(identity),
        source_ip: question.ip,
        destination: SocketAddr::new(local.addresses[0], question.port),
    };
    match snapshot.policies_for(&local).check(&connection) {
        Verdict::Allow {
            because: AllowBecause::NoAllowPolicy,
        } => "allow, no ALLOW applies".into(),
        Verdict::Allow {
            because: AllowBecause::Policy { policy, rule },
        } => {
            format!("allow, {policy} rule {rule}")
        }
        Verdict::Deny { because } => {
            let policy = because
                .policy()
                .map(|policy| format!(", {policy}"))
                .unwrap_or_default();
            format!("deny, {}{policy}", because.reason())
        }
    }
}

fn upstream(snapshot: &Snapshot, question: &UpstreamQuestion) -> String {
    let source = known(snapshot, &question.from);
    match snapshot.upstream_for(&source, question.to, &mut |_| 0, &[]) {
        Ok(Upstream::Passthrough) => "passthrough".into(),
        Ok(Upstream::Direct(one)) => format!(
            "direct {} via {} to {}",
            one.workload.uid, one.dial, one.authority
        ),
        Ok(Upstream::Waypoint(one)) => {
            format!(
                "waypoint {} via {} to {}",
                one.workload.uid, one.dial, one.authority
            )
        }
        Ok(Upstream::Gateway(one)) => {
            format!(
                "gateway {} via {} to {}",
                one.gateway.uid,
                one.dial,
                one.authority()
            )
        }
        Ok(Upstream::Named(one)) => format!("look up {}", one.lookup.hostname),
        Err(error) => format!("{}: {error}", error.reason()),
    }
}

fn target(snapshot: &Snapshot, question: &TargetQuestion) -> String {
    let local = known(snapshot, &question.at);
    let own = SocketAddr::new(local.addresses[0], 15008);
    let authority = match question.authority.parse::<Authority>() {
        Ok(authority) => authority,
        Err(error) => return format!("T0420 bad_authority: {error}"),
    };
    match snapshot.inbound_target(&local, own, &authority) {
        Ok(target) => target.to_string(),
        Err(reason) => reason.to_string(),
    }
}

/// Every question of a table with its answer.
fn answers(yaml: &str) -> String {
    let table: Table = serde_saphyr::from_str(yaml).expect("a table");
    let mut mesh = mesh();
    for update in table
        .workloads
        .into_iter()
        .map(workload_of)
        .chain(table.services.into_iter().map(service_of))
    {
        mesh = mesh.with(update);
    }
    for policy in table.policies {
        mesh = mesh.with(MeshUpdate::Policy(Arc::new(policy)));
    }
    let snapshot = mesh.snapshot();
    let mut answers = String::new();
    for one in &table.verdicts {
        let from = one.from.as_deref().unwrap_or("plaintext");
        let behind = one
            .behind
            .as_ref()
            .map(|source| format!(" for {source}"))
            .unwrap_or_default();
        let VerdictQuestion { ip, to, port, .. } = one;
        let _ = writeln!(
            answers,
            "{from}{behind} at {ip} → {to}:{port} = {}",
            verdict(&snapshot, one)
        );
    }
    for one in &table.upstreams {
        let _ = writeln!(
            answers,
            "{} → {} = {}",
            one.from,
            one.to,
            upstream(&snapshot, one)
        );
    }
    for one in &table.targets {
        let _ = writeln!(
            answers,
            "CONNECT {} at {} = {}",
            one.authority,
            one.at,
            target(&snapshot, one)
        );
    }
    answers
}

#[test]
fn policies_decide_by_action_scope_and_identity() {
    insta::assert_snapshot!(answers(include_str!("fixtures/policies.yaml")));
}

#[test]
fn waypoints_change_who_is_judged() {
    insta::assert_snapshot!(answers(include_str!("fixtures/waypoint_policies.yaml")));
}

#[test]
fn destinations_lead_to_next_hops() {
    insta::assert_snapshot!(answers(include_str!("fixtures/upstreams.yaml")));
}

#[test]
fn authorities_lead_to_targets() {
    insta::assert_snapshot!(answers(include_str!("fixtures/targets.yaml")));
}
