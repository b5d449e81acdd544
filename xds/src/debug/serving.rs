//! Which control planes serve over one state folder, and how far what they read is.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use tulle_k8s::Kind;
use tulle_model::Str;

use crate::metrics::EngineMetrics;
use crate::snapshot::Snapshot;
use crate::state_dir::StateDir;

/// What a control plane does beside serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It owns the state folder: it decides, records, signs.
    Owner,
    /// It serves what the owner decided.
    Replica,
}

/// This control plane among those over its state folder.
#[derive(Debug, Clone)]
pub struct Serving {
    /// What it is called.
    pub name: Str,
    /// What it does.
    pub role: Role,
    /// Where the owner says who it is.
    pub state_dir: PathBuf,
}

/// One control plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Server {
    name: Str,
    role: Role,
}

/// How far a kind of object is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct KindSync {
    kind: Kind,
    /// Whether what is in force stands for all there is.
    synced: bool,
    /// Objects in force.
    objects: usize,
    /// From when the newest of them that came while this process runs was written until it was in force.
    lag_ms: Option<f64>,
}

impl Serving {
    /// This control plane, and the owner if that is another one. Other replicas leave no trace that could be read.
    pub(super) fn servers(&self) -> Vec<Server> {
        let this = Server {
            name: self.name.clone(),
            role: self.role,
        };
        let owner = match self.role {
            Role::Owner => None,
            Role::Replica => StateDir::owner(&self.state_dir),
        };
        let owner = owner.map(|name| Server {
            name: name.into(),
            role: Role::Owner,
        });
        [this].into_iter().chain(owner).collect()
    }
}

/// How far every kind is of which there is an object, or was while this process runs.
pub(super) fn sync(snapshot: &Snapshot, metrics: &EngineMetrics) -> Vec<KindSync> {
    let lags = metrics.lags();
    let mut objects: BTreeMap<Kind, usize> = lags.keys().map(|kind| (*kind, 0)).collect();
    for key in snapshot.objects().objects.keys() {
        *objects.entry(key.kind).or_default() += 1;
    }
    let of = |(kind, objects)| KindSync {
        kind,
        synced: snapshot.synced(),
        objects,
        lag_ms: lags.get(&kind).map(|lag| (lag * 1_000.0).round()),
    };
    objects.into_iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn a_replica_names_the_owner_for_as_long_as_there_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let owner = StateDir::open(folder.path()).unwrap();
        owner.sign("a:15012").unwrap();
        let serving = |name: &str, role| Serving {
            name: name.into(),
            role,
            state_dir: folder.path().to_owned(),
        };
        let told = |serving: &Serving| serde_json::to_value(serving.servers()).unwrap();
        let replica = serving("b:15112", Role::Replica);
        let own = serde_json::json!({"name": "b:15112", "role": "replica"});
        let other = serde_json::json!({"name": "a:15012", "role": "owner"});
        assert_eq!(told(&serving("a:15012", Role::Owner)), serde_json::json!([other]));
        assert_eq!(told(&replica), serde_json::json!([own, other]));
        drop(owner);
        assert_eq!(told(&replica), serde_json::json!([own]));
    }

    #[test]
    fn a_kind_that_came_late_says_by_how_much() {
        let (metrics, now) = (EngineMetrics::default(), SystemTime::now());
        let written = BTreeMap::from([(Kind::Service, now - Duration::from_millis(31))]);
        metrics.on_turn(&written, now);
        let told = sync(&Snapshot::default(), &metrics);
        let expect = KindSync {
            kind: Kind::Service,
            synced: false,
            objects: 0,
            lag_ms: Some(31.0),
        };
        assert_eq!(told, [expect]);
    }
}
