//! Texts that many objects have in common, held once: names of nodes, namespaces and accounts, and labels.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use tulle_model::Str;

use super::{Key, Object};
use crate::api::core::{Container, Pod, Service};
use crate::api::meta::{Labels, Meta, Owner, StatusCondition};

/// The texts of objects that are read together.
#[derive(Debug, Default)]
pub struct Pool {
    texts: HashSet<Str>,
    labels: HashSet<Labels>,
    conditions: HashSet<Arc<[StatusCondition]>>,
    containers: HashSet<Arc<[Container]>>,
    owners: HashSet<Arc<[Owner]>>,
}

impl Pool {
    /// Lets an object that was just read share what others before it have, and gives back what reading it left over.
    pub fn share(&mut self, key: &mut Key, object: &mut Arc<Object>) {
        if let Some(key) = key.parts_mut() {
            self.text(&mut key.namespace);
        }
        // Nobody else holds an object that was just read.
        let Some(object) = Arc::get_mut(object) else {
            return;
        };
        self.meta(object.meta_mut());
        match object {
            Object::Pod(pod) => self.pod(pod),
            Object::Service(service) => self.service(service),
            Object::WorkloadEntry(entry) => {
                let spec = &mut entry.spec;
                self.labels(&mut spec.labels);
                for text in [&mut spec.service_account, &mut spec.network, &mut spec.locality] {
                    self.text(text);
                }
                self.conditions(&mut entry.status.conditions);
            }
            _ => {}
        }
    }

    fn pod(&mut self, pod: &mut Pod) {
        self.text(&mut pod.spec.node_name);
        self.text(&mut pod.spec.service_account_name);
        self.text(&mut pod.status.phase);
        self.conditions(&mut pod.status.conditions);
        for containers in [&mut pod.spec.containers, &mut pod.spec.init_containers] {
            let texts = &mut self.texts;
            list(&mut self.containers, containers, |container| {
                text(texts, &mut container.restart_policy);
                container.ports.shrink_to_fit();
                for port in &mut container.ports {
                    text(texts, &mut port.name);
                    text(texts, &mut port.protocol);
                }
            });
        }
    }

    fn service(&mut self, service: &mut Service) {
        let spec = &mut service.spec;
        self.labels(&mut spec.selector);
        for text in [
            &mut spec.kind,
            &mut spec.internal_traffic_policy,
            &mut spec.traffic_distribution,
        ] {
            self.text(text);
        }
        spec.cluster_ips.shrink_to_fit();
        spec.ip_families.shrink_to_fit();
        spec.ip_families.iter_mut().for_each(|family| self.text(family));
        spec.ports.shrink_to_fit();
        for port in &mut spec.ports {
            self.text(&mut port.name);
            self.text(&mut port.protocol);
            self.text(&mut port.app_protocol);
        }
    }

    fn meta(&mut self, meta: &mut Meta) {
        self.text(&mut meta.namespace);
        self.labels(&mut meta.labels);
        self.labels(&mut meta.annotations);
        let texts = &mut self.texts;
        list(&mut self.owners, &mut meta.owner_references, |owner| {
            text(texts, &mut owner.kind);
            text(texts, &mut owner.name);
        });
    }

    fn conditions(&mut self, conditions: &mut Arc<[StatusCondition]>) {
        let texts = &mut self.texts;
        list(&mut self.conditions, conditions, |condition| {
            text(texts, &mut condition.kind);
            text(texts, &mut condition.status);
        });
    }

    /// Lets a text be the one that others before it have.
    pub fn text(&mut self, one: &mut Str) {
        text(&mut self.texts, one);
    }

    fn labels(&mut self, labels: &mut Labels) {
        match self.labels.get(labels) {
            Some(known) => labels.clone_from(known),
            None => {
                // The first with these labels may still have names and values in common with others.
                let mut shared: Vec<(Str, Str)> = Vec::new();
                for (name, value) in labels.iter() {
                    let (mut name, mut value) = (name.clone(), value.clone());
                    self.text(&mut name);
                    self.text(&mut value);
                    shared.push((name, value));
                }
                *labels = shared.into_iter().collect();
                self.labels.insert(labels.clone());
            }
        }
    }
}

fn text(known: &mut HashSet<Str>, text: &mut Str) {
    match known.get(text) {
        Some(known) => text.clone_from(known),
        None => drop(known.insert(text.clone())),
    }
}

/// Lets a list be the one that others before it have. The first of its kind may still have parts in common with others.
fn list<T: Eq + Hash>(known: &mut HashSet<Arc<[T]>>, list: &mut Arc<[T]>, mut share: impl FnMut(&mut T)) {
    if let Some(known) = known.get(list) {
        list.clone_from(known);
        return;
    }
    // Nobody else holds what was just read.
    if let Some(parts) = Arc::get_mut(list) {
        parts.iter_mut().for_each(&mut share);
    }
    known.insert(list.clone());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::documents;
    use crate::object::{Reading, read};

    fn pod(name: &str) -> (Key, Arc<Object>) {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: web}}}}\nspec: {{nodeName: n1, serviceAccountName: web}}\nstatus: {{phase: Running, conditions: [{{type: Ready, status: 'True'}}]}}\n"
        );
        match read(&documents(&text).remove(0).unwrap()) {
            Reading::Good { key, object, .. } => (key, object),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn objects_share_texts_and_say_what_they_said() {
        let mut pool = Pool::default();
        let mut read: Vec<(Key, Arc<Object>)> = ["a", "b"].into_iter().map(pod).collect();
        for (key, object) in &mut read {
            pool.share(key, object);
        }
        for ((key, object), name) in read.iter().zip(["a", "b"]) {
            assert_eq!((key, object), (&pod(name).0, &pod(name).1));
        }
        let [(one_key, one), (other_key, other)] = read.as_slice() else {
            panic!("two were read")
        };
        let (Object::Pod(one), Object::Pod(other)) = (&**one, &**other) else {
            panic!("two pods were read")
        };
        let same = |one: &Str, other: &Str| Arc::ptr_eq(one, other);
        assert!(same(&one_key.namespace, &other.metadata.namespace));
        assert!(same(&one_key.name, &one.metadata.name) && other_key.name == other.metadata.name);
        assert!(same(&one.spec.node_name, &other.spec.node_name));
        // An account that is called like the value of a label is one text with it.
        let labelled = other.metadata.labels.get("app").expect("it has one");
        assert!(same(&one.spec.service_account_name, labelled));
        assert!(Arc::ptr_eq(&one.status.conditions, &other.status.conditions));
        assert!(Arc::ptr_eq(&one.spec.containers, &other.spec.containers));
    }
}
