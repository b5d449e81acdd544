//! Pages about objects: all of them, one explained, and who holds what came of it.

use std::collections::BTreeMap;
use std::time::Instant;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tulle_k8s::Kind;
use tulle_model::Str;

use super::limit::{Limit, World};
use super::{Pages, describe};
use crate::engine::Question;
use crate::engine::trace::Step;
use crate::snapshot::{ObjectKey, ObjectStatus, Objects, ResourceType};
use crate::status::acks::{COMPARED_MAX, acks, conditions};

/// Names one object.
#[derive(Debug, Deserialize)]
pub(super) struct OneObject {
    /// `<Kind>/<namespace>/<name>`, or `<Kind>/<name>` without a namespace.
    object: String,
}

impl Pages {
    /// The state of the source, with what clients say of gateways.
    pub(super) fn objects(&self) -> Objects {
        let (snapshot, clients) = (self.snapshot(), self.clients.list(Instant::now()));
        let mut objects = snapshot.objects().clone();
        let gateways = objects
            .objects
            .values()
            .filter(|object| object.key.kind == Kind::Gateway);
        let judged: Vec<ObjectStatus> = gateways
            .map(|gateway| ObjectStatus {
                conditions: conditions(gateway, &acks(&snapshot, &clients, gateway)),
                ..ObjectStatus::clone(gateway)
            })
            .collect();
        for object in judged {
            objects.objects.insert_mut(object.key.clone(), object.into());
        }
        objects
    }

    /// The answers of the clients by object, for those that some client must have.
    pub(super) fn answers(&self) -> BTreeMap<String, String> {
        let (snapshot, clients) = (self.snapshot(), self.clients.list(Instant::now()));
        let objects = &snapshot.objects().objects;
        if objects.size() * clients.len() > COMPARED_MAX {
            return BTreeMap::new();
        }
        let answers = objects
            .values()
            .map(|object| (object.key.to_string(), acks(&snapshot, &clients, object)));
        answers
            .filter(|(_, acks)| acks.all() > 0)
            .map(|(key, acks)| (key, acks.to_string()))
            .collect()
    }

    /// How an object became what it is; nothing where nobody answers any more.
    async fn steps(&self, key: &ObjectKey) -> Vec<Step> {
        let (answer, steps) = oneshot::channel();
        let question = Question {
            key: key.clone(),
            answer,
        };
        match self.questions.send(question).await {
            Ok(()) => steps.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    fn explain(&self, key: &ObjectKey, steps: &[Step]) -> Option<Value> {
        let snapshot = self.snapshot();
        let object = snapshot.objects().object(key)?;
        let acks = acks(&snapshot, &self.clients.list(Instant::now()), object);
        let types = ResourceType::ALL.into_iter();
        let of = |ty| object.resources.iter().map(move |name| (ty, name));
        let resources: Vec<Value> = types
            .flat_map(of)
            .filter_map(|(ty, name)| Some((ty, snapshot.resource(ty, name)?)))
            .map(|(ty, slot)| json!({ "type": ty.type_url(), "resource": describe(ty, slot) }))
            .collect();
        Some(json!({
            "object": object.key,
            "file": object.file,
            "generation": object.generation,
            "staleSince": object.stale_since,
            "conditions": conditions(object, &acks),
            "resources": resources,
            "answers": acks,
            "summary": acks.to_string(),
            "steps": steps,
        }))
    }
}

/// Narrows the objects.
#[derive(Debug, Deserialize)]
pub(super) struct OfKind {
    /// Only those of this kind.
    kind: Option<Str>,
}

/// Every object in force, as far as the page goes.
pub(super) async fn world(
    State(pages): State<Pages>,
    Query(limit): Query<Limit>,
    Query(OfKind { kind }): Query<OfKind>,
) -> Json<World> {
    let mut objects = pages.objects();
    if let Some(kind) = kind {
        let all = std::mem::take(&mut objects.objects);
        let wanted = all.iter().filter(|(key, _)| *key.kind.as_str() == *kind);
        objects.objects = wanted
            .map(|(key, object)| (key.clone(), object.clone()))
            .collect();
    }
    Json(limit.world(objects))
}

/// One object: where it comes from, what it became, and who holds that.
pub(super) async fn explain(
    State(pages): State<Pages>,
    Query(query): Query<OneObject>,
) -> Result<Json<Value>, (StatusCode, String)> {
    let Some(key) = parse(&query.object) else {
        let text = "name an object as KIND/NAMESPACE/NAME".to_owned();
        return Err((StatusCode::BAD_REQUEST, text));
    };
    let explained = pages.explain(&key, &pages.steps(&key).await);
    explained
        .map(Json)
        .ok_or_else(|| (StatusCode::NOT_FOUND, format!("there is no {key}")))
}

fn parse(text: &str) -> Option<ObjectKey> {
    let mut parts = text.splitn(3, '/');
    let (kind, second, third) = (parts.next()?, parts.next()?, parts.next());
    let kind = Kind::ALL
        .iter()
        .copied()
        .find(|known| known.as_str().eq_ignore_ascii_case(kind))?;
    let (namespace, name) = third.map_or(("", second), |name| (second, name));
    Some(ObjectKey::new(kind, namespace, name))
}
