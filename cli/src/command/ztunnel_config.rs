//! `tulle ztunnel-config`: what the node proxies know and do, in istioctl's columns.

use clap::Subcommand;
use serde_json::Value;
use tulle_runtime::exit::Exit;

use super::Reading;
use crate::running::{Component, Kind};

/// Show what the node proxies know and do: workloads, policies, certificates, connections
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tulle ztunnel-config workloads\n  tulle ztunnel-config certificates --node n1 -o json"
)]
pub(crate) struct ZtunnelConfig {
    #[command(subcommand)]
    what: What,
    /// Only this node [default: every node; what all nodes share is taken from the first]
    #[arg(long, global = true)]
    node: Option<String>,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
enum What {
    /// Workloads the proxies know
    #[command(alias = "workload")]
    Workloads,
    /// Services the proxies know
    #[command(alias = "service")]
    Services,
    /// Authorization policies in force
    #[command(alias = "policy")]
    Policies,
    /// Certificates held, per node
    #[command(alias = "certificate")]
    Certificates,
    /// Open connections, per node
    #[command(alias = "connection")]
    Connections,
}

impl What {
    fn schema(self) -> &'static str {
        match self {
            Self::Workloads => "ztunnel-config.workloads",
            Self::Services => "ztunnel-config.services",
            Self::Policies => "ztunnel-config.policies",
            Self::Certificates => "ztunnel-config.certificates",
            Self::Connections => "ztunnel-config.connections",
        }
    }

    /// Whether every node proxy has the same, so that one answer is enough.
    fn is_shared(self) -> bool {
        matches!(self, Self::Workloads | Self::Services)
    }

    /// Page of the admin socket, and the field of it.
    fn page(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Workloads => ("/config_dump", Some("workloads")),
            Self::Services => ("/config_dump", Some("services")),
            Self::Policies => ("/config_dump", Some("policies")),
            Self::Certificates => ("/config_dump", Some("certificates")),
            Self::Connections => ("/connections", None),
        }
    }

    fn header(self) -> &'static [&'static str] {
        match self {
            Self::Workloads => &["NAMESPACE", "NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"],
            Self::Services => &[
                "NAMESPACE",
                "SERVICE NAME",
                "SERVICE VIP",
                "WAYPOINT",
                "ENDPOINTS",
            ],
            Self::Policies => &["NODE", "NAMESPACE", "POLICY NAME", "ACTION", "SCOPE", "RULES"],
            Self::Certificates => &[
                "NODE",
                "CERTIFICATE NAME",
                "STATUS",
                "SERIAL NUMBER",
                "NOT AFTER",
                "NOT BEFORE",
            ],
            Self::Connections => &[
                "NODE",
                "WORKLOAD",
                "DIRECTION",
                "LOCAL",
                "REMOTE",
                "REMOTE TARGET",
                "PROTOCOL",
                "BYTES",
            ],
        }
    }

    fn row(self, item: &Value) -> Vec<String> {
        match self {
            Self::Workloads => vec![
                text(&item["namespace"]),
                text(&item["name"]),
                list(&item["addresses"]),
                text(&item["node"]),
                waypoint(&item["waypoint"]),
                text(&item["tunnelProtocol"]),
            ],
            Self::Services => vec![
                text(&item["namespace"]),
                text(&item["name"]),
                list(&item["addresses"]),
                waypoint(&item["waypoint"]),
                item["endpoints"].as_array().map_or(0, Vec::len).to_string(),
            ],
            Self::Policies => vec![
                text(&item["onNode"]),
                text(&item["namespace"]),
                text(&item["name"]),
                text(&item["action"]),
                text(&item["scope"]),
                item["rules"].as_array().map_or(0, Vec::len).to_string(),
            ],
            Self::Certificates => vec![
                text(&item["onNode"]),
                text(&item["identity"]),
                text(&item["state"]),
                text(&item["serial"]),
                text(&item["notAfter"]),
                text(&item["notBefore"]),
            ],
            Self::Connections => connection_row(item),
        }
    }
}

fn connection_row(item: &Value) -> Vec<String> {
    let inbound = item["direction"] == "inbound";
    let (own, other) = if inbound {
        ("destinationWorkload", "sourceWorkload")
    } else {
        ("sourceWorkload", "destinationWorkload")
    };
    let (local, remote) = if inbound {
        (&item["dst"], &item["src"])
    } else {
        (&item["src"], &item["dst"])
    };
    let bytes = item["bytesSent"].as_u64().unwrap_or(0) + item["bytesRecv"].as_u64().unwrap_or(0);
    vec![
        text(&item["onNode"]),
        text(&item[own]),
        text(&item["direction"]),
        text(local),
        text(remote),
        text(&item[other]),
        if item["mutualTls"] == true { "HBONE" } else { "TCP" }.to_owned(),
        bytes.to_string(),
    ]
}

pub(crate) async fn run(config: ZtunnelConfig) -> anyhow::Result<Exit> {
    let components = config.reading.run_dir().of_kind(Kind::Ztunnel)?;
    let wanted = |component: &Component| config.node.as_ref().is_none_or(|node| *node == component.node);
    let components: Vec<_> = components.into_iter().filter(wanted).collect();
    anyhow::ensure!(
        !components.is_empty(),
        "no node proxy answers{}",
        match &config.node {
            Some(node) => format!(" for node {node}"),
            None => String::new(),
        }
    );
    let what = config.what;
    let asked = if what.is_shared() {
        &components[..1]
    } else {
        &components[..]
    };
    let mut items = Vec::new();
    for component in asked {
        items.extend(fetch(component, what).await?);
    }
    crate::output::print(config.reading.output(), what.schema(), &items, || {
        let mut table = crate::output::table(what.header());
        for item in &items {
            table.add_row(what.row(item));
        }
        table
    })?;
    Ok(Exit::Ok)
}

/// The items of one node, each with the node it is from.
async fn fetch(component: &Component, what: What) -> anyhow::Result<Vec<Value>> {
    let (page, field) = what.page();
    let mut answer: Value = component.json(page).await?;
    let items = match field {
        Some(field) => answer[field].take(),
        None => answer,
    };
    let Value::Array(mut items) = items else {
        anyhow::bail!("{page} of node {} is no list", component.node)
    };
    for item in items.iter_mut().filter_map(Value::as_object_mut) {
        item.insert("onNode".to_owned(), component.node.clone().into());
    }
    Ok(items)
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() => text.clone(),
        Value::Null | Value::String(_) => "-".to_owned(),
        other => other.to_string(),
    }
}

/// Addresses, with or without their network.
fn list(value: &Value) -> String {
    let address = |item: &Value| match &item["address"] {
        Value::Null => text(item),
        address => text(address),
    };
    let items: Vec<_> = value.as_array().into_iter().flatten().map(address).collect();
    if items.is_empty() {
        "-".to_owned()
    } else {
        items.join(",")
    }
}

fn waypoint(value: &Value) -> String {
    let destination = &value["destination"];
    match &destination["hostname"]["hostname"] {
        Value::String(hostname) => hostname.split('.').next().unwrap_or(hostname).to_owned(),
        _ => match &destination["address"]["address"] {
            Value::String(address) => address.clone(),
            _ => "None".to_owned(),
        },
    }
}
