//! The tables: istioctl's columns in istioctl's order and words, and ours behind them where they are asked for.

use serde_json::Value;

use super::What;

/// How much of an item a table shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// What `istioctl ztunnel-config` shows.
    Usual,
    /// More, behind it.
    Wide,
}

/// The items as rows, in an order that does not depend on the proxy. Rows that say the same, as those of policies that
/// several nodes have, are one.
pub(super) fn table(what: What, width: Width, items: &[Value]) -> comfy_table::Table {
    let mut header = usual_header(what).to_vec();
    if width == Width::Wide {
        header.extend(wide_header(what));
    }
    let mut table = crate::output::table(&header);
    for row in rows(what, width, items) {
        table.add_row(row);
    }
    table
}

fn rows(what: What, width: Width, items: &[Value]) -> Vec<Vec<String>> {
    let mut rows: Vec<_> = items.iter().map(|item| row(what, width, item)).collect();
    match what {
        What::Workloads | What::Services => rows.sort(),
        What::Policies => {
            rows.sort();
            rows.dedup();
        }
        // By identity, or by age, as the proxies list them.
        What::Certificates | What::Connections => {}
    }
    rows
}

fn row(what: What, width: Width, item: &Value) -> Vec<String> {
    let mut row = usual(what, item);
    if width == Width::Wide {
        row.extend(wide(what, item));
    }
    row
}

fn usual_header(what: What) -> &'static [&'static str] {
    match what {
        What::Workloads => &["NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"],
        What::Services => &[
            "NAMESPACE",
            "SERVICE NAME",
            "SERVICE VIP",
            "WAYPOINT",
            "ENDPOINTS",
        ],
        What::Policies => &["NAMESPACE", "POLICY NAME", "ACTION", "SCOPE"],
        What::Certificates => &[
            "CERTIFICATE NAME",
            "TYPE",
            "STATUS",
            "VALID CERT",
            "SERIAL NUMBER",
            "NOT AFTER",
            "NOT BEFORE",
        ],
        What::Connections => &[
            "WORKLOAD",
            "DIRECTION",
            "LOCAL",
            "REMOTE",
            "REMOTE TARGET",
            "PROTOCOL",
        ],
    }
}

fn usual(what: What, item: &Value) -> Vec<String> {
    match what {
        What::Workloads => vec![
            text(&item["namespace"]),
            text(&item["name"]),
            match list(&item["addresses"]) {
                none if none == "-" => text(&item["hostname"]),
                addresses => addresses,
            },
            text(&item["node"]),
            waypoint(&item["waypoint"]),
            match &item["tunnelProtocol"] {
                Value::String(protocol) if protocol == "NONE" => "TCP".to_owned(),
                protocol => text(protocol),
            },
        ],
        What::Services => vec![
            text(&item["namespace"]),
            text(&item["name"]),
            list(&item["addresses"]),
            waypoint(&item["waypoint"]),
            endpoints(&item["endpoints"]),
        ],
        What::Policies => vec![
            text(&item["namespace"]),
            text(&item["name"]),
            words(&item["action"]),
            words(&item["scope"]),
        ],
        What::Certificates => certificate(item),
        What::Connections => connection(item),
    }
}

fn certificate(item: &Value) -> Vec<String> {
    let or_na = |value: &Value| value.as_str().unwrap_or("NA").to_owned();
    let held = !item["serial"].is_null();
    let status = match item["state"].as_str() {
        _ if held => "Available",
        Some("pending") if item["lastError"].is_null() => "Initializing",
        _ => "Unavailable",
    };
    vec![
        text(&item["identity"]),
        if held { "Leaf" } else { "NA" }.to_owned(),
        status.to_owned(),
        (item["state"] == "valid").to_string(),
        or_na(&item["serial"]),
        or_na(&item["notAfter"]),
        or_na(&item["notBefore"]),
    ]
}

/// An end of a connection is one of a pod of this node.
fn is_inbound(item: &Value) -> bool {
    item["direction"] == "inbound"
}

fn connection(item: &Value) -> Vec<String> {
    let (own, local, remote) = if is_inbound(item) {
        ("destination", &item["dst"], &item["src"])
    } else {
        ("source", &item["src"], &item["dst"])
    };
    let target = match &item["service"] {
        Value::Null => text(&item["authority"]),
        service => text(service),
    };
    vec![
        party(item, own),
        words(&item["direction"]),
        text(local),
        text(remote),
        target,
        if item["mutualTls"] == true { "HBONE" } else { "TCP" }.to_owned(),
    ]
}

/// `<name>.<namespace>` of an end.
fn party(item: &Value, end: &str) -> String {
    let part = |part: &str| item[format!("{end}{part}")].as_str();
    match (part("Workload"), part("Namespace")) {
        (Some(name), Some(namespace)) => format!("{name}.{namespace}"),
        (name, _) => name.unwrap_or("-").to_owned(),
    }
}

fn wide_header(what: What) -> &'static [&'static str] {
    match what {
        What::Workloads => &["SERVICE ACCOUNT", "STATUS", "NETWORK", "CLUSTER"],
        What::Services => &["HOSTNAME", "PORTS", "NETWORK"],
        What::Policies => &["RULES", "DRY RUN", "ON NODE"],
        What::Certificates => &["RENEW AT", "WORKLOADS", "LAST ERROR", "ON NODE"],
        What::Connections => &["PEER", "BYTES", "OPEN", "ID", "ON NODE"],
    }
}

fn wide(what: What, item: &Value) -> Vec<String> {
    match what {
        What::Workloads => vec![
            text(&item["serviceAccount"]),
            words(&item["status"]),
            text(&item["network"]),
            text(&item["clusterId"]),
        ],
        What::Services => vec![
            text(&item["hostname"]),
            ports(&item["ports"]),
            networks(&item["addresses"]),
        ],
        What::Policies => vec![
            item["rules"].as_array().map_or(0, Vec::len).to_string(),
            text(&item["dryRun"]),
            text(&item["onNode"]),
        ],
        What::Certificates => vec![
            text(&item["renewAt"]),
            text(&item["workloads"]),
            text(&item["lastError"]),
            text(&item["onNode"]),
        ],
        What::Connections => {
            let bytes = |name: &str| item[name].as_u64().unwrap_or(0);
            let peer = if is_inbound(item) { "source" } else { "destination" };
            vec![
                party(item, peer),
                (bytes("bytesSent") + bytes("bytesRecv")).to_string(),
                format!("{}ms", bytes("openMs")),
                text(&item["id"]),
                text(&item["onNode"]),
            ]
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() => text.clone(),
        Value::Null | Value::String(_) => "-".to_owned(),
        other => other.to_string(),
    }
}

/// `WORKLOAD_SELECTOR` as istioctl says it: `WorkloadSelector`.
fn words(value: &Value) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        let first = letters.next().map(|first| first.to_ascii_uppercase());
        let rest = letters.map(|letter| letter.to_ascii_lowercase());
        first.into_iter().chain(rest).collect::<String>()
    };
    match value.as_str() {
        Some(text) => text.split('_').map(word).collect(),
        None => "-".to_owned(),
    }
}

/// Addresses, without their network.
fn list(value: &Value) -> String {
    let address = |item: &Value| match &item["address"] {
        Value::Null => text(item),
        address => text(address),
    };
    joined(value.as_array().into_iter().flatten().map(address))
}

/// The networks of addresses, each once.
fn networks(value: &Value) -> String {
    let networks = value.as_array().into_iter().flatten();
    let named = networks.filter_map(|item| item["network"].as_str());
    let distinct: std::collections::BTreeSet<_> = named.filter(|network| !network.is_empty()).collect();
    joined(distinct.into_iter().map(str::to_owned))
}

/// The ports of a service, in their order.
fn ports(value: &Value) -> String {
    let ports = value.as_object().into_iter().flatten();
    let mut ports: Vec<u16> = ports.filter_map(|(port, _)| port.parse().ok()).collect();
    ports.sort_unstable();
    joined(ports.iter().map(u16::to_string))
}

fn joined(items: impl Iterator<Item = String>) -> String {
    let items: Vec<_> = items.collect();
    if items.is_empty() {
        "-".to_owned()
    } else {
        items.join(",")
    }
}

/// Healthy ones, of all.
fn endpoints(value: &Value) -> String {
    let all: Vec<_> = value.as_array().into_iter().flatten().collect();
    let healthy = all.iter().filter(|one| one["status"] == "HEALTHY").count();
    format!("{healthy}/{}", all.len())
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

#[cfg(test)]
mod tests;
