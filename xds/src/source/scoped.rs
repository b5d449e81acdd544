//! A control plane for some namespaces: what lives in any other is hidden from the engine, as if nobody had written it.
//!
//! Objects without a namespace and those of the root namespace are always shown: they say how the mesh is. What is
//! hidden is held, so that it can be shown as soon as its namespace gets the label.

use std::collections::BTreeMap;

use tokio::sync::mpsc;
use tulle_k8s::api::gateway::NamespaceSelector;
use tulle_k8s::api::meta::Labels;
use tulle_k8s::{Key, Kind};
use tulle_model::Str;
use tulle_runtime::tasks::Scope;

use crate::engine::{Batch, Event, InForce};

/// The label that every namespace has: its name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Hides what lives in namespaces that the selector does not mean.
#[derive(Debug)]
pub(super) struct Scoped {
    selector: NamespaceSelector,
    root_namespace: Str,
    /// Of every namespace that there is an object of.
    labels: BTreeMap<Str, Labels>,
    /// What lives in each namespace, shown or hidden.
    objects: BTreeMap<Str, BTreeMap<Key, InForce>>,
}

impl Scoped {
    /// Shows the namespaces that the selector means, and the root namespace.
    pub(super) fn new(selector: NamespaceSelector, root_namespace: Str) -> Self {
        Self {
            selector,
            root_namespace,
            labels: BTreeMap::new(),
            objects: BTreeMap::new(),
        }
    }

    /// What of the batches is to be shown, on their way from a source to the engine.
    pub(super) fn between(
        mut self,
        mut batches: mpsc::Receiver<Batch>,
        scope: &Scope,
    ) -> mpsc::Receiver<Batch> {
        // The source has a line of its own.
        let (shown, waiting) = mpsc::channel(1);
        scope.spawn_vital("scope of namespaces", async move {
            while let Some(batch) = batches.recv().await {
                if shown.send(self.show(batch)).await.is_err() {
                    return;
                }
            }
        });
        waiting
    }

    /// What of a batch is to be shown, and what comes and goes because labels of namespaces changed.
    fn show(&mut self, batch: Batch) -> Batch {
        let turned = self.relabel(&batch.events);
        let mut events = Vec::new();
        for namespace in turned
            .iter()
            .filter_map(|(namespace, shown)| (!shown).then_some(namespace))
        {
            // As it was before this batch: that is what the engine knows.
            let known = self.objects.get(namespace).into_iter().flatten();
            events.extend(known.map(|(key, _)| Event {
                key: key.clone(),
                object: None,
            }));
        }
        for event in batch.events {
            self.hold(&event);
            if !event.key.kind.is_namespaced()
                || (self.shows(&event.key.namespace) && !turned.contains_key(&event.key.namespace))
            {
                events.push(event);
            }
        }
        for namespace in turned
            .iter()
            .filter_map(|(namespace, shown)| shown.then_some(namespace))
        {
            let held = self.objects.get(namespace).into_iter().flatten();
            events.extend(held.map(|(key, object)| Event {
                key: key.clone(),
                object: Some(object.clone()),
            }));
        }
        Batch { events, ..batch }
    }

    /// Whether what lives in this namespace is shown.
    fn shows(&self, namespace: &Str) -> bool {
        let name: Labels = [(NAME_LABEL.into(), namespace.clone())].into_iter().collect();
        let labels = match self.labels.get(namespace) {
            Some(labels) => name.over(labels),
            None => name,
        };
        *namespace == self.root_namespace || self.selector.matches(&labels)
    }

    /// Takes over the labels of namespaces, and says which of these are shown now or hidden now, other than before.
    fn relabel(&mut self, events: &[Event]) -> BTreeMap<Str, bool> {
        let mut before = BTreeMap::new();
        for event in events.iter().filter(|event| event.key.kind == Kind::Namespace) {
            let name = &event.key.name;
            if !before.contains_key(name) {
                before.insert(name.clone(), self.shows(name));
            }
            match &event.object {
                Some(namespace) => {
                    let labels = namespace.object.meta().labels.clone();
                    self.labels.insert(name.clone(), labels);
                }
                None => drop(self.labels.remove(name)),
            }
        }
        let now = before.into_iter().filter_map(|(name, was_shown)| {
            let is_shown = self.shows(&name);
            (is_shown != was_shown).then_some((name, is_shown))
        });
        now.collect()
    }

    fn hold(&mut self, event: &Event) {
        if !event.key.kind.is_namespaced() {
            return;
        }
        let held = self.objects.entry(event.key.namespace.clone()).or_default();
        match &event.object {
            Some(object) => drop(held.insert(event.key.clone(), object.clone())),
            None => drop(held.remove(&event.key)),
        }
        if held.is_empty() {
            self.objects.remove(&event.key.namespace);
        }
    }
}

#[cfg(test)]
mod tests;
