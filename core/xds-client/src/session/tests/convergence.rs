//! A client against a model of a server, with responses and streams lost at any point.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// What a resource is on the server now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quality {
    Good,
    Malformed,
}

/// One thing that happens.
#[derive(Debug, Clone)]
enum Step {
    /// A resource appears or changes.
    Set(ResourceType, usize, Quality),
    /// A resource disappears.
    Remove(ResourceType, usize),
    /// The server sends what the client lacks, and it arrives.
    Push(ResourceType),
    /// The server sends what the client lacks, and the stream is lost on the way: the client never sees it.
    PushLost(ResourceType),
    /// The stream is lost and opened anew.
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just(ResourceType::Address), Just(ResourceType::Authorization)];
    let quality = prop_oneof![3 => Just(Quality::Good), 2 => Just(Quality::Malformed)];
    prop_oneof![
        4 => (kind.clone(), 0..NAMES, quality).prop_map(|(kind, name, quality)| Step::Set(kind, name, quality)),
        2 => (kind.clone(), 0..NAMES).prop_map(|(kind, name)| Step::Remove(kind, name)),
        4 => kind.clone().prop_map(Step::Push),
        1 => kind.prop_map(Step::PushLost),
        1 => Just(Step::Reconnect),
    ]
}

/// Names per type.
const NAMES: usize = 4;

type Table = BTreeMap<String, (String, Quality)>;

/// The server's truth, and what it believes the client to have on this stream.
#[derive(Default)]
struct Server {
    tables: BTreeMap<ResourceType, Table>,
    believed: BTreeMap<ResourceType, BTreeMap<String, String>>,
    changes: usize,
}

impl Server {
    fn open(&mut self, session: &Session) {
        self.believed.clear();
        for request in session.on_open() {
            let kind = ResourceType::from_type_url(&request.type_url).unwrap();
            self.believed.insert(kind, request.initial_resource_versions);
        }
    }

    fn set(&mut self, kind: ResourceType, name: String, quality: Quality) {
        self.changes += 1;
        self.tables
            .entry(kind)
            .or_default()
            .insert(name, (format!("v{}", self.changes), quality));
    }

    /// Everything the client lacks; from then on the server believes it has it.
    fn push(&mut self, kind: ResourceType) -> DeltaDiscoveryResponse {
        let table = self.tables.entry(kind).or_default();
        let believed = self.believed.entry(kind).or_default();
        let lacking = table
            .iter()
            .filter(|(name, (version, _))| believed.get(*name) != Some(version));
        let resources = lacking
            .map(|(name, (version, quality))| encode(kind, name, version, *quality))
            .collect();
        let removed: Vec<String> = believed
            .keys()
            .filter(|name| !table.contains_key(*name))
            .cloned()
            .collect();
        *believed = table
            .iter()
            .map(|(name, (version, _))| (name.clone(), version.clone()))
            .collect();
        let removed: Vec<&str> = removed.iter().map(String::as_str).collect();
        response(kind, resources, &removed)
    }
}

fn encode(kind: ResourceType, name: &str, version: &str, quality: Quality) -> Envelope {
    let value = if quality == Quality::Good { 1 } else { 77 };
    match kind {
        ResourceType::Address => workload(name, version, value),
        ResourceType::Authorization => policy(name, version, value),
        _ => unreachable!("not asked for here"),
    }
}

fn name(kind: ResourceType, index: usize) -> String {
    match kind {
        ResourceType::Address => format!("uid-{index}"),
        ResourceType::Authorization => format!("ns{}/p", index),
        _ => unreachable!("not asked for here"),
    }
}

/// Client and server, and what the client was given of each name that was good.
struct World {
    client: Client,
    server: Server,
    last_good: BTreeSet<(ResourceType, String)>,
}

impl World {
    fn new() -> Self {
        let (client, mut server) = (Client::new(), Server::default());
        server.open(&client.session);
        Self {
            client,
            server,
            last_good: BTreeSet::new(),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Set(kind, index, quality) => self.server.set(kind, name(kind, index), quality),
            Step::Remove(kind, index) => {
                self.server
                    .tables
                    .entry(kind)
                    .or_default()
                    .remove(&name(kind, index));
            }
            Step::Push(kind) => self.push(kind),
            Step::PushLost(kind) => {
                drop(self.server.push(kind));
                self.server.open(&self.client.session);
            }
            Step::Reconnect => self.server.open(&self.client.session),
        }
        self.check_nothing_good_is_lost();
    }

    fn push(&mut self, kind: ResourceType) {
        let response = self.server.push(kind);
        let malformed = response
            .resources
            .iter()
            .any(|envelope| self.quality(kind, &envelope.name) == Quality::Malformed);
        for envelope in &response.resources {
            if self.quality(kind, &envelope.name) == Quality::Good {
                self.last_good.insert((kind, envelope.name.clone()));
            }
        }
        for removed in &response.removed_resources {
            self.last_good.remove(&(kind, removed.clone()));
        }
        assert_eq!(
            self.client.take(response).is_some(),
            malformed,
            "NACK exactly if something is malformed"
        );
    }

    fn quality(&self, kind: ResourceType, name: &str) -> Quality {
        self.server.tables[&kind][name].1
    }

    fn check_nothing_good_is_lost(&self) {
        for (kind, name) in &self.last_good {
            assert_eq!(
                self.held(*kind, name),
                Some(Quality::Good),
                "{name} was good and must stay"
            );
        }
    }

    /// What the mesh holds under a name: the resource, or a stub.
    fn held(&self, kind: ResourceType, name: &str) -> Option<Quality> {
        let snapshot = self.client.mesh.snapshot();
        match kind {
            ResourceType::Address => snapshot.workload(&name.into()).map(|_| Quality::Good),
            ResourceType::Authorization => {
                let (namespace, name) = name.split_once('/').unwrap();
                let policy = snapshot.policy(&NamespacedName::new(namespace, name))?;
                Some(if policy.untranslatable {
                    Quality::Malformed
                } else {
                    Quality::Good
                })
            }
            _ => unreachable!("not asked for here"),
        }
    }

    /// After a quiet reconnect the client has what the server has.
    fn check_converged(&mut self) {
        self.server.open(&self.client.session);
        ResourceType::NODE.into_iter().for_each(|kind| self.push(kind));
        for kind in ResourceType::NODE {
            for index in 0..NAMES {
                self.check_name(kind, &name(kind, index));
            }
        }
        let refused = self
            .client
            .session
            .refused()
            .map(|(name, _)| name.to_owned())
            .collect::<BTreeSet<_>>();
        assert_eq!(refused, self.malformed_without_last_good());
    }

    fn check_name(&self, kind: ResourceType, name: &str) {
        let expected = match self.server.tables.get(&kind).and_then(|table| table.get(name)) {
            None => None,
            Some((_, Quality::Good)) => Some(Quality::Good),
            Some((_, Quality::Malformed)) if self.last_good.contains(&(kind, name.to_owned())) => {
                Some(Quality::Good)
            }
            Some((_, Quality::Malformed)) if kind == ResourceType::Authorization => Some(Quality::Malformed),
            Some((_, Quality::Malformed)) => None,
        };
        assert_eq!(self.held(kind, name), expected, "{name}");
        let held = self.client.versions(kind).remove(name);
        match self.server.tables.get(&kind).and_then(|table| table.get(name)) {
            None => assert_eq!(held, None, "{name} is gone"),
            Some((version, Quality::Good)) => {
                assert_eq!(held.as_ref(), Some(version));
                let current = kind == ResourceType::Authorization || self.client.name_of(name) == held;
                assert!(current, "{name} has the newest value");
            }
            Some((version, Quality::Malformed)) => {
                assert_ne!(held.as_ref(), Some(version), "rejected, not recorded")
            }
        }
    }

    fn malformed_without_last_good(&self) -> BTreeSet<String> {
        let table = self
            .server
            .tables
            .get(&ResourceType::Address)
            .into_iter()
            .flatten();
        table
            .filter(|(name, (_, quality))| {
                *quality == Quality::Malformed
                    && !self.last_good.contains(&(ResourceType::Address, (*name).clone()))
            })
            .map(|(name, _)| name.clone())
            .collect()
    }
}

proptest! {
    #[test]
    fn a_client_converges_and_never_loses_a_good_resource(steps in prop::collection::vec(step(), 0..60)) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.step(step));
        world.check_converged();
    }
}
