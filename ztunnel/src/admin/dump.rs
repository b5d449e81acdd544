//! `/config_dump`: everything known, in one JSON document. Keys and tokens are not part of it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use tulle_model::{Service, Snapshot, Workload};

use super::Pages;

pub(super) async fn config_dump(State(pages): State<Pages>) -> Json<Value> {
    let node = &pages.node;
    let snapshot = node.mesh.snapshot();
    Json(json!({
        "workloads": workloads(&snapshot),
        "services": services(&snapshot),
        "policies": policies(&snapshot),
        "stagedServices": {},
        "staticConfig": {},
        "version": {
            "version": tulle_runtime::build_info::tag(),
            "gitRevision": tulle_runtime::build_info::REVISION,
        },
        "config": node.config,
        "certificates": node.secrets.list(),
        "workloadState": pages.fleet.list(),
        "configuration": {
            "generation": snapshot.generation(),
            "synced": node.mesh.synced(),
            "status": node.mesh.status(),
        },
    }))
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
