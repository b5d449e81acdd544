//! Which pods tokens can be bound to, told by the pods themselves.

use tulle_k8s::Object;
use tulle_k8s::translate::workload::is_over;

use crate::snapshot::bearers::Moves;
use crate::snapshot::{Bearer, Bearers};

/// Who came and went since that was last published.
#[derive(Debug, Default)]
pub(super) struct Bearing {
    moves: Moves,
}

impl Bearing {
    /// Takes the change of an object.
    pub(super) fn change(&mut self, old: Option<&Object>, new: Option<&Object>) {
        let (old, new) = (old.and_then(bearer), new.and_then(bearer));
        if old != new {
            old.iter().for_each(|old| self.moves.went(old));
            new.iter().for_each(|new| self.moves.came(new));
        }
    }

    /// Brings what is published up to date.
    pub(super) fn publish(&mut self, bearers: &mut Bearers) {
        bearers.change(std::mem::take(&mut self.moves));
    }
}

/// The pod that tokens can be bound to: one that has not ended, and that an API server told from all others.
fn bearer(object: &Object) -> Option<Bearer> {
    let Object::Pod(pod) = object else { return None };
    let (meta, account) = (&pod.metadata, &pod.spec.service_account_name);
    let account = match account.is_empty() {
        true => "default".into(),
        false => account.clone(),
    };
    let is_there = !is_over(pod) && !meta.uid.is_empty();
    is_there.then(|| Bearer {
        namespace: meta.namespace.clone(),
        account,
        pod: meta.name.clone(),
        uid: meta.uid.clone(),
    })
}
