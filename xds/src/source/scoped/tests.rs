//! What is shown step by step is what is meant of the whole.

use std::sync::Arc;

use proptest::prelude::*;
use tulle_k8s::testing::objects;
use tulle_k8s::translate::MeshConfig;

use super::*;
use crate::engine::Engine;
use crate::snapshot::ResourceType;

const SELECTOR: &str = "env in (canary, both)";

fn scoped() -> Scoped {
    Scoped::new(SELECTOR.parse().expect("a selector"), "istio-system".into())
}

fn event(text: &str, generation: u64, gone: bool) -> Event {
    let object = objects(text).remove(0);
    let key = object.key();
    let in_force = InForce {
        object: Arc::new(object),
        file: "test.yaml".into(),
        generation,
        stale_since: None,
    };
    Event {
        key,
        object: (!gone).then_some(in_force),
    }
}

fn namespace(name: &str, env: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{env: {env}}}}}\n")
}

fn service(namespace: &str, name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{clusterIPs: [10.9.0.1], ports: [{{name: http, port: 80}}]}}\n"
    )
}

fn batch(events: Vec<Event>) -> Batch {
    Batch {
        generation: 1,
        events,
        synced: true,
        ..Batch::default()
    }
}

/// Objects by key, after events in their order.
#[derive(Debug, Default, PartialEq)]
struct Folded(BTreeMap<Key, InForce>);

impl Folded {
    fn take(&mut self, events: &[Event]) {
        for Event { key, object } in events {
            match object {
                Some(object) => drop(self.0.insert(key.clone(), object.clone())),
                None => assert!(self.0.remove(key).is_some(), "{key:?} was there"),
            }
        }
    }

    /// What is meant, told from the whole: namespaces by their labels, and always what is of the mesh.
    fn meant(&self) -> BTreeMap<Key, InForce> {
        let is_meant = |namespace: &Str| {
            let object = self.0.get(&Key::new(Kind::Namespace, "", namespace.clone()));
            let env = object.and_then(|object| object.object.meta().label("env").map(str::to_owned));
            &**namespace == "istio-system" || matches!(env.as_deref(), Some("canary" | "both"))
        };
        let meant = self.0.iter();
        let meant = meant.filter(|(key, _)| !key.kind.is_namespaced() || is_meant(&key.namespace));
        meant.map(|(key, object)| (key.clone(), object.clone())).collect()
    }
}

fn any_text() -> impl Strategy<Value = String> {
    let name = || prop::sample::select(vec!["a", "b", "istio-system"]);
    let env = prop::sample::select(vec!["canary", "both", "live"]);
    prop_oneof![
        1 => (name(), env).prop_map(|(name, env)| namespace(name, env)),
        2 => (name(), prop::sample::select(vec!["x", "y"])).prop_map(|(namespace, name)| service(namespace, name)),
        1 => (name(), prop::sample::select(vec!["x", "y"])).prop_map(|(namespace, name)| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: {namespace}}}\n")),
        1 => Just("apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n".to_owned()),
    ]
}

proptest! {
    #[test]
    fn after_any_steps_exactly_what_is_meant_is_shown(steps in prop::collection::vec(prop::collection::vec((any::<bool>(), any_text()), 0..6), 1..30)) {
        let (mut scoped, mut all, mut shown) = (scoped(), Folded::default(), Folded::default());
        let mut engine = Engine::new(MeshConfig::default());
        let mut last = None;
        for (number, step) in steps.iter().enumerate() {
            let generation = number as u64;
            let mut events = Vec::new();
            for (gone, text) in step {
                let event = event(text, generation, *gone);
                // Nothing goes that is not there, as no source says so.
                if event.object.is_none() && !all.0.contains_key(&event.key) {
                    continue;
                }
                all.take(std::slice::from_ref(&event));
                events.push(event);
            }
            let batch = scoped.show(batch(events));
            shown.take(&batch.events);
            prop_assert_eq!(&shown.0, &all.meant());
            last = Some(engine.apply(batch));
        }
        let mut fresh = Engine::new(MeshConfig::default());
        let whole = all.meant().into_iter().map(|(key, object)| Event { key, object: Some(object) });
        let whole = fresh.apply(batch(whole.collect()));
        let last = last.expect("there was a step");
        for ty in ResourceType::ALL {
            let slots = |snapshot: &crate::snapshot::Snapshot| -> Vec<(Str, String)> {
                let slots = snapshot.by_name(ty).into_iter();
                slots.map(|slot| (slot.name.clone(), slot.version.to_string())).collect()
            };
            prop_assert_eq!(slots(&last), slots(&whole));
        }
    }
}

#[test]
fn a_namespace_that_gets_the_label_is_shown_whole_and_one_that_loses_it_is_gone() {
    let mut scoped = scoped();
    let names = |batch: &Batch| -> Vec<(String, bool)> {
        let events = batch.events.iter();
        let events = events.map(|event| (event.key.name.to_string(), event.object.is_some()));
        events.collect()
    };
    let first = scoped.show(batch(vec![
        event(&namespace("shop", "live"), 1, false),
        event(&service("shop", "web"), 1, false),
    ]));
    assert_eq!(names(&first), [("shop".to_owned(), true)]);
    let labelled = scoped.show(batch(vec![event(&namespace("shop", "canary"), 2, false)]));
    assert_eq!(
        names(&labelled),
        [("shop".to_owned(), true), ("web".to_owned(), true)]
    );
    let again = scoped.show(batch(vec![event(&namespace("shop", "live"), 3, false)]));
    assert_eq!(
        names(&again),
        [("web".to_owned(), false), ("shop".to_owned(), true)]
    );
}

#[test]
fn a_namespace_is_called_by_its_name_whether_or_not_there_is_an_object_of_it() {
    let selector = "kubernetes.io/metadata.name=shop".parse().expect("a selector");
    let mut scoped = Scoped::new(selector, "istio-system".into());
    let shown = scoped.show(batch(vec![
        event(&service("shop", "web"), 1, false),
        event(&service("other", "web"), 1, false),
    ]));
    assert_eq!(shown.events.len(), 1);
    assert_eq!(&*shown.events[0].key.namespace, "shop");
}

#[test]
fn what_a_source_says_beside_its_objects_passes_as_it_is() {
    let batch = Batch {
        generation: 7,
        events: vec![event(&service("shop", "web"), 1, false)],
        degraded: Some("the folder is empty".into()),
        synced: true,
        ..Batch::default()
    };
    let expected = Batch {
        events: Vec::new(),
        ..batch.clone()
    };
    assert_eq!(scoped().show(batch), expected);
}
