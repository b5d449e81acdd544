//! Who talks to whom, as the node proxies counted it at the destination.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::prometheus::Sample;
use crate::running::{Component, Kind, RunDir};

/// One pair of workloads that talk, or tried to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Edge {
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) source_identity: String,
    pub(crate) destination_identity: String,
    /// Connections that were let pass.
    pub(crate) connections: u64,
    /// Those of them that were mutual TLS.
    pub(crate) mtls_connections: u64,
    /// Bytes both ways.
    pub(crate) bytes: u64,
    /// Connections refused by policy.
    pub(crate) denied: u64,
}

impl Edge {
    /// What was counted since an earlier look.
    fn since(mut self, earlier: Option<&Self>) -> Self {
        if let Some(earlier) = earlier {
            self.connections = self.connections.saturating_sub(earlier.connections);
            self.mtls_connections = self.mtls_connections.saturating_sub(earlier.mtls_connections);
            self.bytes = self.bytes.saturating_sub(earlier.bytes);
            self.denied = self.denied.saturating_sub(earlier.denied);
        }
        self
    }

    fn joins(&self, other: &Self) -> bool {
        (&self.source, &self.destination) == (&other.source, &other.destination)
    }

    /// Every connection was mutual TLS.
    pub(crate) fn all_mtls(&self) -> bool {
        self.connections > 0 && self.mtls_connections == self.connections
    }
}

/// The edges of a mesh; a node that does not answer is named, never left out silently.
pub(crate) async fn collect(run_dir: &RunDir) -> anyhow::Result<(Vec<Edge>, Vec<String>)> {
    let mut samples = Vec::new();
    let mut silent = Vec::new();
    for component in run_dir.of_kind(Kind::Ztunnel)? {
        match metrics(&component).await {
            Ok(found) => samples.extend(found),
            Err(error) => silent.push(format!("node {}: {error:#}", component.node)),
        }
    }
    Ok((fold(&samples), silent))
}

/// What was counted since an earlier look, edge by edge.
pub(crate) fn since(edges: Vec<Edge>, earlier: &[Edge]) -> Vec<Edge> {
    let before = |edge: &Edge| earlier.iter().find(|earlier| earlier.joins(edge));
    edges
        .into_iter()
        .map(|edge| {
            let before = before(&edge);
            edge.since(before)
        })
        .collect()
}

/// The metrics of one component.
pub(crate) async fn metrics(component: &Component) -> anyhow::Result<Vec<Sample>> {
    Ok(crate::prometheus::parse(&component.text("/metrics").await?))
}

/// Series of the destinations' proxies → edges, by source and destination.
fn fold(samples: &[Sample]) -> Vec<Edge> {
    let mut edges: BTreeMap<(String, String), Edge> = BTreeMap::new();
    let counted = |sample: &&Sample| {
        sample.label("reporter") == "destination" && sample.labels.contains_key("destination_workload")
    };
    for sample in samples.iter().filter(counted) {
        let key = (
            sample.label("source_workload").to_owned(),
            sample.label("destination_workload").to_owned(),
        );
        let edge = edges.entry(key.clone()).or_default();
        (edge.source, edge.destination) = key;
        let mtls = sample.label("connection_security_policy") == "mutual_tls";
        if mtls || edge.destination_identity.is_empty() {
            edge.source_identity = sample.label("source_principal").to_owned();
            edge.destination_identity = sample.label("destination_principal").to_owned();
        }
        count(edge, sample, mtls);
    }
    edges.into_values().collect()
}

/// The value of a counter.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counters are whole and never negative; the text form writes them as floating point"
)]
pub(crate) fn whole(sample: &Sample) -> u64 {
    sample.value as u64
}

fn count(edge: &mut Edge, sample: &Sample, mtls: bool) {
    let value = whole(sample);
    match sample.name.as_str() {
        "istio_tcp_connections_opened_total" => {
            edge.connections += value;
            edge.mtls_connections += if mtls { value } else { 0 };
        }
        "istio_tcp_received_bytes_total" | "istio_tcp_sent_bytes_total" => edge.bytes += value,
        "istio_tcp_connections_failed_total" if sample.label("response_flags") == "DENY" => {
            edge.denied += value
        }
        _ => {}
    }
}

/// The edges as a table for people.
pub(crate) fn table(edges: &[Edge]) -> comfy_table::Table {
    let header = [
        "SOURCE",
        "DESTINATION",
        "SOURCE-ID",
        "DESTINATION-ID",
        "CONNS",
        "BYTES",
        "MTLS",
        "DENIED",
        "VERDICT",
    ];
    let mut table = crate::output::table(&header);
    for edge in edges {
        table.add_row([
            edge.source.clone(),
            edge.destination.clone(),
            short(&edge.source_identity),
            short(&edge.destination_identity),
            edge.connections.to_string(),
            edge.bytes.to_string(),
            mtls_share(edge),
            edge.denied.to_string(),
            if edge.denied > 0 { "denied" } else { "allowed" }.to_owned(),
        ]);
    }
    table
}

/// The share of mutual TLS, never rounded up to a full lock.
fn mtls_share(edge: &Edge) -> String {
    match (edge.mtls_connections, edge.connections) {
        (_, 0) => "-".to_owned(),
        (0, _) => "○ 0 %".to_owned(),
        (mtls, all) if mtls == all => "● 100 %".to_owned(),
        (mtls, all) => format!("◐ {} %", mtls * 100 / all),
    }
}

/// An identity without its scheme and trust domain, as people read it.
fn short(identity: &str) -> String {
    match identity.split_once("/ns/") {
        Some((_, rest)) => rest.replace("/sa/", "/"),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
istio_tcp_connections_opened_total{reporter="destination",source_workload="web",destination_workload="db",source_principal="spiffe://td/ns/a/sa/web",destination_principal="spiffe://td/ns/a/sa/db",connection_security_policy="mutual_tls"} 3
istio_tcp_connections_opened_total{reporter="source",source_workload="web",destination_workload="db",connection_security_policy="mutual_tls"} 3
istio_tcp_connections_opened_total{reporter="destination",source_workload="web",destination_workload="db",connection_security_policy="unknown"} 1
istio_tcp_connections_failed_total{reporter="destination",source_workload="web",destination_workload="db",response_flags="DENY"} 2
istio_tcp_sent_bytes_total{reporter="destination",source_workload="web",destination_workload="db"} 40
"#;

    #[test]
    fn an_edge_counts_what_its_destination_saw() {
        let edges = fold(&crate::prometheus::parse(TEXT));
        assert_eq!(edges.len(), 1);
        let edge = &edges[0];
        assert_eq!(
            (edge.connections, edge.mtls_connections, edge.denied, edge.bytes),
            (4, 3, 2, 40)
        );
        assert!(!edge.all_mtls());
        assert_eq!(mtls_share(edge), "◐ 75 %");
        assert_eq!(short(&edge.source_identity), "a/web");
    }
}
