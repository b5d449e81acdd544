//! `/config_dump`: everything known, in one JSON document. Keys and tokens are not part of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use tulle_model::{Service, Snapshot, Workload};

use super::Pages;
use crate::config::LocalXds;
use crate::connections::ConnectionDump;
use crate::fleet::PodView;
use crate::metrics::labels::Direction;

pub(super) async fn config_dump(State(pages): State<Pages>) -> Json<Value> {
    let node = &pages.node;
    let snapshot = node.mesh.snapshot();
    Json(json!({
        "workloads": workloads(&snapshot),
        "services": services(&snapshot),
        "policies": policies(&snapshot),
        "stagedServices": staged(&snapshot),
        "staticConfig": static_config(node.config.local_xds.as_ref()),
        "version": {
            "version": tulle_runtime::build_info::tag(),
            "gitRevision": tulle_runtime::build_info::REVISION,
        },
        "config": node.config,
        "certificates": node.secrets.list(),
        "trust": node.trust.view().summary(),
        "workloadState": states(&pages),
        "configuration": {
            "generation": snapshot.generation(),
            "synced": node.mesh.synced(),
            "status": node.mesh.status(),
        },
    }))
}

/// Endpoints by the service that they name and that has not arrived yet.
fn staged(snapshot: &Snapshot) -> BTreeMap<String, Vec<String>> {
    let mut staged: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for workload in snapshot.workloads() {
        for key in workload
            .services
            .keys()
            .filter(|key| snapshot.service(key).is_none())
        {
            staged
                .entry(key.to_string())
                .or_default()
                .push(workload.uid.to_string());
        }
    }
    staged
}

/// The local source, as it is written.
fn static_config(local: Option<&LocalXds>) -> Value {
    let text = match local {
        None => return json!({}),
        Some(LocalXds::Text(text)) => text.clone(),
        Some(LocalXds::Path(path)) => std::fs::read_to_string(path).unwrap_or_default(),
    };
    serde_saphyr::from_str(&text).unwrap_or_else(|error| json!({ "error": error.to_string() }))
}

/// Each pod that is served, with its open connections.
fn states(pages: &Pages) -> BTreeMap<String, Value> {
    let open = pages.node.connections.list();
    let with_connections = |(uid, pod): (String, PodView)| {
        let of = |direction| {
            let of_pod = open.iter().filter(|live| live.is_of(&pod.info, direction));
            of_pod
                .map(|live| json!(ConnectionDump::from(&**live)))
                .collect::<Vec<_>>()
        };
        let connections = json!({ "inbound": of(Direction::Inbound), "outbound": of(Direction::Outbound) });
        let mut value = serde_json::to_value(&pod).unwrap_or_default();
        if let Value::Object(fields) = &mut value {
            fields.insert("connections".to_owned(), connections);
        }
        (uid, value)
    };
    pages.fleet.list().into_iter().map(with_connections).collect()
}

fn workloads(snapshot: &Snapshot) -> Vec<&Arc<Workload>> {
    let mut workloads: Vec<_> = snapshot.workloads().collect();
    workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
    workloads
}

/// Each service with its endpoints, as both are looked at together.
fn services(snapshot: &Snapshot) -> Vec<Value> {
    let mut services: Vec<&Arc<Service>> = snapshot.services().collect();
    services.sort_by_key(|service| service.key());
    services
        .into_iter()
        .map(|service| with_endpoints(snapshot, service))
        .collect()
}

fn with_endpoints(snapshot: &Snapshot, service: &Service) -> Value {
    let endpoints: Vec<_> = snapshot
        .endpoints(&service.key())
        .map(|workload| json!({ "workloadUid": workload.uid, "status": workload.status }))
        .collect();
    let mut value = serde_json::to_value(service).unwrap_or_default();
    if let Value::Object(fields) = &mut value {
        fields.insert("endpoints".to_owned(), endpoints.into());
    }
    value
}

fn policies(snapshot: &Snapshot) -> Vec<Value> {
    let mut policies: Vec<_> = snapshot.policies().collect();
    policies.sort_by_key(|policy| policy.key());
    policies
        .into_iter()
        .map(|policy| serde_json::to_value(policy).unwrap_or_default())
        .collect()
}
