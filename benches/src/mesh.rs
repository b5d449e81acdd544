//! Meshes of any size, as the control plane reads them.

use std::fmt::Write as _;
use std::sync::Arc;

use tulle_k8s::Object;
use tulle_k8s::document::documents;
use tulle_k8s::object::{Reading, read};
use tulle_runtime::usage;
use tulle_xds::engine::{Batch, Event, InForce};

/// Pods per service.
pub const REPLICAS: usize = 10;
/// Namespaces.
pub const NAMESPACES: usize = 10;

/// The manifests of a mesh with this many pods.
#[must_use]
pub fn manifests(pods: usize) -> String {
    let mut text = String::new();
    for namespace in 0..NAMESPACES {
        push(
            &mut text,
            format_args!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: ns{namespace}, labels: {{istio.io/dataplane-mode: ambient}}}}\n"
            ),
        );
    }
    for service in 0..pods / REPLICAS {
        let (namespace, high, low) = (service % NAMESPACES, service / 250, service % 250);
        push(
            &mut text,
            format_args!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: s{service}, namespace: ns{namespace}}}\nspec: {{selector: {{app: s{service}}}, clusterIPs: [10.96.{}.{low}], ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n",
                high % 250
            ),
        );
    }
    for pod in 0..pods {
        let service = pod / REPLICAS;
        let namespace = service % NAMESPACES;
        let ip = format!("10.{}.{}.{}", 100 + pod / 62_500, (pod / 250) % 250, pod % 250);
        push(
            &mut text,
            format_args!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: s{service}-{pod}, namespace: ns{namespace}, uid: u{pod}, labels: {{app: s{service}}}}}\nspec: {{nodeName: n{}, serviceAccountName: s{service}}}\nstatus: {{phase: Running, podIP: {ip}, conditions: [{{type: Ready, status: 'True'}}]}}\n",
                pod % 200
            ),
        );
    }
    text
}

fn push(text: &mut String, object: std::fmt::Arguments<'_>) {
    writeln!(text, "{object}---").expect("writing to a string does not fail");
}

fn event(object: Arc<Object>) -> Event {
    let in_force = InForce {
        object: object.clone(),
        file: "bench.yaml".into(),
        generation: 1,
        stale_since: None,
    };
    Event {
        key: object.key(),
        object: Some(in_force),
    }
}

/// The objects of manifests, as a source tells them.
///
/// # Panics
/// If one of them is none.
#[must_use]
pub fn parse(text: &str) -> Vec<Event> {
    // A file has at most 4 MiB; parts of one are read as files of their own.
    let mut events = Vec::new();
    for part in text.split_inclusive("---\n").collect::<Vec<_>>().chunks(5_000) {
        for node in documents(&part.concat()).iter().flatten() {
            match read(node) {
                Reading::Good { object, .. } => events.push(event(object)),
                other => panic!("no object: {other:?}"),
            }
        }
    }
    events
}

/// What a source has to say once everything was read.
#[must_use]
pub fn batch(events: Vec<Event>) -> Batch {
    Batch {
        events,
        synced: true,
        ..Batch::default()
    }
}

/// Memory of this process.
#[must_use]
pub fn resident_kib() -> u64 {
    usage::memory(usage::Process::Own, usage::Memory::Resident).unwrap_or(0) / 1024
}
