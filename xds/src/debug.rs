//! Pages for operators on the unix socket: status, and what is served to whom.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tulle_model::{Str, Workload};
use tulle_proto::convert::{self, Resource};
use tulle_runtime::admin::profile;
use tulle_runtime::build_info;
use tulle_runtime::ready::Ready;

use crate::ca::Authority;
use crate::ca::keeper::{CaStatus, Keeper};
use crate::engine::Question;
use crate::history::View;
use crate::metrics::EngineMetrics;
use crate::snapshot::{Objects, ResourceType, Scope, Slot, Snapshot};
use crate::status::acks::{Acks, all_acks};
use crate::status::{ClientStatus, Clients, TypeStatus};

mod limit;
pub mod look;
mod objects;
pub mod remote;
pub mod serving;

use limit::{Limit, More, SomeClients, SomeHistory, SomeResources};
use serving::{KindSync, Server, Serving, sync};

/// What the pages read.
#[derive(Debug, Clone)]
pub struct Pages {
    /// What is served.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Asks how objects became what they are.
    pub questions: mpsc::Sender<Question>,
    /// Who is connected.
    pub clients: Clients,
    /// Which control plane this is.
    pub serving: Arc<Serving>,
    /// What the engine counts.
    pub engine: EngineMetrics,
    /// Who signs.
    pub authority: Arc<Authority>,
    /// Who keeps its roots.
    pub keeper: Arc<Keeper>,
    /// What the process waits for.
    pub ready: Ready,
    /// The mesh as this process was told to serve it.
    pub mesh: Arc<MeshSettings>,
    /// What was recorded of the configuration.
    pub history: Arc<View>,
}

/// What `/debug/mesh` tells.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshSettings {
    /// Name of the cluster in resource names.
    pub cluster_id: String,
    /// Namespace whose policies hold for the whole mesh.
    pub root_namespace: String,
    /// Domain of service names.
    pub cluster_domain: String,
}

/// Answer of `GET /status`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    version: String,
    trust_domain: Str,
    /// This control plane and, if that is another one, the owner of its state folder.
    replicas: Vec<Server>,
    /// How far each kind of object is.
    sync: Vec<KindSync>,
    /// What the process waits for before it is ready.
    pending: Vec<String>,
    synced: bool,
    /// The newest cut.
    head: u64,
    /// Number of resources by type URL.
    resources: BTreeMap<&'static str, usize>,
    issuer: IssuerStatus,
    /// Phase of the roots' rotation, what it waits for, and the size of the deny-list.
    ca: CaStatus,
    source: Objects,
    /// By object: how many of the clients that must have it accepted it.
    answers: BTreeMap<String, String>,
    /// How many of the clients have accepted everything.
    accepted: Accepted,
    clients: Vec<ClientStatus>,
    /// What is left out of problems, objects, answers and clients.
    more: More,
}

/// Answers of all clients, also as one line.
#[derive(Debug, Serialize)]
struct Accepted {
    #[serde(flatten)]
    acks: Acks,
    summary: String,
}

impl From<Acks> for Accepted {
    fn from(acks: Acks) -> Self {
        let summary = acks.to_string();
        Self { acks, summary }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct IssuerStatus {
    serial: Str,
    /// RFC 3339.
    not_after: String,
    expires_in_seconds: i64,
}

impl Pages {
    /// Every page.
    pub fn router(self) -> Router {
        Router::new()
            .route("/status", get(status))
            .route("/debug/ambientz", get(ambientz))
            .route("/debug/authorizationz", get(authorizationz))
            .route("/debug/ca", get(ca))
            .route("/debug/clusterz", get(clusterz))
            .route("/debug/config_dump", get(config_dump))
            .route("/debug/connections", get(connections))
            .route("/debug/explain", get(objects::explain))
            .route("/debug/history", get(history))
            .route("/debug/mesh", get(mesh))
            .route("/debug/resources", get(resources))
            .route("/debug/syncz", get(syncz))
            .route("/debug/world", get(objects::world))
            .with_state(self)
            .merge(profile::pages(String::new))
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    fn status(&self) -> Status {
        let snapshot = self.snapshot();
        let types = ResourceType::ALL.into_iter();
        let clients = self.clients.list(Instant::now());
        Status {
            version: build_info::tag(),
            trust_domain: self.authority.trust_domain().clone(),
            replicas: self.serving.servers(),
            sync: sync(&snapshot, &self.engine),
            pending: self.ready.pending(),
            synced: snapshot.synced(),
            head: snapshot.sequence(),
            resources: types.map(|ty| (ty.type_url(), snapshot.count(ty))).collect(),
            issuer: self.issuer(),
            ca: self.keeper.status(&snapshot),
            source: self.objects(),
            answers: self.answers(),
            accepted: all_acks(&clients, snapshot.sequence()).into(),
            clients,
            more: More::default(),
        }
    }

    fn issuer(&self) -> IssuerStatus {
        let root = self.authority.root();
        let not_after = root.not_after().unix_timestamp();
        let end = jiff::Timestamp::from_second(not_after);
        IssuerStatus {
            serial: root.serial().clone(),
            not_after: end.map_or_else(|_| not_after.to_string(), |end| end.to_string()),
            expires_in_seconds: not_after - jiff::Timestamp::now().as_second(),
        }
    }
}

async fn status(State(pages): State<Pages>, Query(limit): Query<Limit>) -> Json<Status> {
    Json(limit.status(pages.status()))
}

async fn ca(State(pages): State<Pages>) -> Json<CaStatus> {
    Json(pages.keeper.status(&pages.snapshot()))
}

/// Which cut clients are to have accepted.
#[derive(Debug, Default, Deserialize)]
struct ClusterQuery {
    /// Its number; the newest without one.
    cut: Option<u64>,
}

/// How the source stands, and how many clients have accepted what it meant at a cut. Small, whatever the size of the mesh.
async fn clusterz(State(pages): State<Pages>, Query(query): Query<ClusterQuery>) -> Json<Value> {
    let snapshot = pages.snapshot();
    let objects = snapshot.objects();
    let clients = pages.clients.list(Instant::now());
    let cut = query.cut.unwrap_or_else(|| snapshot.sequence());
    Json(json!({
        "clusterId": pages.mesh.cluster_id,
        "replicas": pages.serving.servers(),
        "synced": snapshot.synced(),
        "head": snapshot.sequence(),
        "generation": objects.generation,
        "degraded": objects.degraded,
        "refused": objects.errors().count(),
        "stale": objects.stale(),
        "accepted": Accepted::from(all_acks(&clients, cut)),
    }))
}

async fn connections(
    State(pages): State<Pages>,
    Query(limit): Query<Limit>,
) -> Json<SomeClients<ClientStatus>> {
    Json(limit.clients(pages.clients.list(Instant::now())))
}

/// Who changed what and when, the newest generation last.
async fn history(
    State(pages): State<Pages>,
    Query(limit): Query<Limit>,
) -> Result<Json<SomeHistory>, StatusCode> {
    let listed = tokio::task::spawn_blocking(move || limit.history(pages.history.list())).await;
    listed.map(Json).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

async fn mesh(State(pages): State<Pages>) -> Json<Value> {
    let trust_domain = pages.authority.trust_domain();
    Json(json!({ "trustDomain": trust_domain, "settings": *pages.mesh }))
}

async fn ambientz(
    State(pages): State<Pages>,
    Query(limit): Query<Limit>,
    Query(query): Query<DumpQuery>,
) -> Json<SomeResources> {
    Json(dump(&pages.snapshot(), ResourceType::Address, &query, limit))
}

async fn authorizationz(
    State(pages): State<Pages>,
    Query(limit): Query<Limit>,
    Query(query): Query<DumpQuery>,
) -> Json<SomeResources> {
    Json(dump(
        &pages.snapshot(),
        ResourceType::Authorization,
        &query,
        limit,
    ))
}

/// Names and versions, by type.
async fn resources(State(pages): State<Pages>, Query(limit): Query<Limit>) -> Json<Value> {
    let snapshot = pages.snapshot();
    let (mut all, mut left_out) = (BTreeMap::new(), BTreeMap::new());
    // Bare workloads say nothing that addresses do not, and are made only for those who ask.
    for ty in ResourceType::ALL
        .into_iter()
        .filter(|ty| *ty != ResourceType::Workload)
    {
        let (slots, more) = limit.resources(snapshot.by_name(ty));
        let versions = slots.into_iter().map(|slot| (&*slot.name, &*slot.version));
        all.insert(ty.type_url(), versions.collect::<BTreeMap<&str, &str>>());
        left_out.insert(ty.type_url(), more);
    }
    Json(json!({ "head": snapshot.sequence(), "resources": all, "more": left_out }))
}

/// Narrows a dump.
#[derive(Debug, Default, Deserialize)]
struct DumpQuery {
    /// Part of the type URL, such as `Authorization`.
    r#type: Option<String>,
    /// Name or alias.
    name: Option<String>,
    /// Only what this node may receive.
    node: Option<String>,
}

async fn config_dump(
    State(pages): State<Pages>,
    Query(limit): Query<Limit>,
    Query(query): Query<DumpQuery>,
) -> Json<Value> {
    let snapshot = pages.snapshot();
    let wanted = |ty: &ResourceType| {
        query
            .r#type
            .as_ref()
            .map_or(*ty != ResourceType::Workload, |part| {
                ty.type_url().contains(part.as_str())
            })
    };
    let types = ResourceType::ALL.into_iter().filter(wanted);
    let (mut all, mut left_out) = (BTreeMap::new(), BTreeMap::new());
    for ty in types {
        let SomeResources { resources, more } = dump(&snapshot, ty, &query, limit);
        all.insert(ty.type_url(), resources);
        left_out.insert(ty.type_url(), more);
    }
    Json(json!({ "head": snapshot.sequence(), "resources": all, "more": left_out }))
}

/// What is served of a type, as far as it is asked for and fits.
fn dump(snapshot: &Snapshot, ty: ResourceType, query: &DumpQuery, limit: Limit) -> SomeResources {
    let reaches = |slot: &&Arc<Slot>| query.node.as_ref().is_none_or(|node| slot.scope.reaches(node));
    let mut slots: Vec<&Arc<Slot>> = match &query.name {
        Some(name) => snapshot.resolve(ty, name),
        None => snapshot.by_name(ty),
    };
    slots.retain(reaches);
    let (slots, more) = limit.resources(slots);
    SomeResources {
        resources: slots.into_iter().map(|slot| describe(ty, slot)).collect(),
        more,
    }
}

fn describe(ty: ResourceType, slot: &Slot) -> Value {
    let decoded = match ty {
        ResourceType::Address => convert::decode_address(&slot.name, &slot.body),
        ResourceType::Workload => convert::decode_workload(&slot.name, &slot.body),
        ResourceType::Authorization => convert::decode_authorization(&slot.name, &slot.body),
        ResourceType::Trust => convert::decode_trust(&slot.name, &slot.body),
        ResourceType::Waypoint | ResourceType::Route | ResourceType::Policy => {
            return describe_of_waypoint(ty, slot);
        }
    };
    let (kind, value) = match decoded {
        Ok(Resource::Workload(workload)) => ("workload", workload_value(&workload)),
        Ok(Resource::Service(service)) => ("service", to_value(&service)),
        Ok(Resource::Authorization(policy)) => ("authorization", to_value(&policy)),
        Ok(Resource::Trust(trust)) => ("trust", to_value(&trust)),
        Ok(Resource::Waypoint(waypoint)) => ("waypoint", to_value(&waypoint)),
        Ok(Resource::Route(route)) => ("route", to_value(&route)),
        Ok(Resource::Policy(policy)) => ("policy", to_value(&policy)),
        Err(error) => ("undecodable", json!(error.to_string())),
    };
    let nodes = match &slot.scope {
        Scope::Everyone => Value::Null,
        Scope::Namespace(of) => json!(of.nodes),
        Scope::Workloads { nodes } => json!(
            nodes
                .iter()
                .filter(|node| !node.contains('/'))
                .collect::<Vec<_>>()
        ),
        Scope::Waypoints { .. } => json!([]),
    };
    json!({
        "name": slot.name,
        "aliases": slot.aliases,
        "version": slot.version,
        "changedAt": slot.sequence,
        "nodes": nodes,
        kind: value,
    })
}

/// Configuration of waypoints, and which of them it is for.
fn describe_of_waypoint(ty: ResourceType, slot: &Slot) -> Value {
    let waypoints = match &slot.scope {
        Scope::Waypoints { waypoints } => json!(waypoints),
        _ => Value::Null,
    };
    let (name, body) = (&slot.name, &slot.body);
    let (kind, value) = match ty {
        ResourceType::Route => ("route", decoded(tulle_proto::decode_route(name, body))),
        ResourceType::Policy => ("policy", decoded(tulle_proto::decode_policy(name, body))),
        _ => ("waypoint", decoded(tulle_proto::decode_waypoint(name, body))),
    };
    json!({
        "name": name,
        "version": slot.version,
        "changedAt": slot.sequence,
        "waypoints": waypoints,
        kind: value,
    })
}

fn decoded<T: Serialize>(value: Result<T, tulle_proto::Malformed>) -> Value {
    value.map_or_else(
        |error| json!({ "undecodable": error.to_string() }),
        |value| to_value(&value),
    )
}

/// A workload with its services under their names: JSON has no keys but text.
fn workload_value(workload: &Workload) -> Value {
    let mut bare = workload.clone();
    let services = std::mem::take(&mut bare.services).into_iter();
    let services: BTreeMap<String, _> = services.map(|(key, ports)| (key.to_string(), ports)).collect();
    let mut value = to_value(&bare);
    if let Value::Object(fields) = &mut value {
        fields.insert("services".to_owned(), to_value(&services));
    }
    value
}

/// What cannot be written as JSON says so in its place: a dump never fails as a whole.
fn to_value(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_else(|error| json!({ "unwritable": error.to_string() }))
}

/// One line per client: how far it is with each type.
#[derive(Debug, Serialize)]
struct SyncLine {
    node: Str,
    kind: crate::serve::admit::Kind,
    types: BTreeMap<&'static str, Value>,
}

async fn syncz(State(pages): State<Pages>, Query(limit): Query<Limit>) -> Json<SomeClients<SyncLine>> {
    let clients = limit.clients(pages.clients.list(Instant::now()));
    Json(clients.map(|client| {
        SyncLine {
            node: client.node,
            kind: client.kind,
            types: ResourceType::ALL
                .into_iter()
                .map(|ty| sync_of(ty, &client.types))
                .collect(),
        }
    }))
}

fn sync_of(ty: ResourceType, types: &BTreeMap<&'static str, Box<TypeStatus>>) -> (&'static str, Value) {
    let state = match types.get(ty.type_url()) {
        None => json!("not subscribed"),
        Some(status) if status.behind > 0 || status.unacked > 0 => json!({
            "behind": status.behind,
            "behind_ms": status.lag_ms,
            "unacked": status.unacked,
            "opening_left": status.opening_left,
        }),
        Some(_) => json!("synced"),
    };
    (ty.type_url(), state)
}
