//! What became of an object among the clients: who must have what it means, and who said yes or no to it.

use serde::Serialize;
use tulle_k8s::Kind;
use tulle_k8s::translate::condition::{Condition, PROGRAMMED, Status};
use tulle_model::Str;

use crate::serve::admit::Kind as ClientKind;
use crate::serve::push::wants;
use crate::serve::viewer::Viewer;
use crate::snapshot::{ObjectStatus, ResourceType, Slot, Snapshot};
use crate::status::{ClientStatus, TypeStatus};
use std::sync::Arc;

/// Clients named that rejected an object; more are counted.
pub const REJECTED_NAMED_MAX: usize = 16;

/// Objects and clients that are compared at once; with more, answers are told object by object.
pub const COMPARED_MAX: usize = 200_000;

/// The answers of the clients that must have what an object means.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Acks {
    /// Clients that hold its newest form.
    pub acked: usize,
    /// Clients that have not answered yet.
    pub pending: usize,
    /// Clients that said no.
    pub rejected: usize,
    /// The first of those, with their words.
    pub said: Vec<(Str, Str)>,
}

impl Acks {
    /// Clients that must have it.
    #[must_use]
    pub fn all(&self) -> usize {
        self.acked + self.pending + self.rejected
    }

    fn reject(&mut self, client: &ClientStatus, text: Str) {
        self.rejected += 1;
        if self.said.len() < REJECTED_NAMED_MAX {
            self.said.push((client.node.clone(), text));
        }
    }
}

impl std::fmt::Display for Acks {
    /// `acked 41/42, rejected 1: node-17 "..."`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "acked {}/{}", self.acked, self.all())?;
        if self.rejected > 0 {
            write!(f, ", rejected {}:", self.rejected)?;
            for (client, text) in &self.said {
                write!(f, " {client} {:?}", &**text)?;
            }
        }
        Ok(())
    }
}

/// What one client says of a set of resources.
enum Answer {
    NotConcerned,
    Acked,
    Pending,
    Rejected(Str),
}

/// The answers to what an object became.
#[must_use]
pub fn acks(snapshot: &Arc<Snapshot>, clients: &[ClientStatus], object: &ObjectStatus) -> Acks {
    let slots = slots(snapshot, object);
    let mut acks = Acks::default();
    if slots.is_empty() {
        return acks;
    }
    for client in clients {
        match answer(snapshot, client, &slots) {
            Answer::NotConcerned => {}
            Answer::Acked => acks.acked += 1,
            Answer::Pending => acks.pending += 1,
            Answer::Rejected(text) => acks.reject(client, text),
        }
    }
    acks
}

/// The answers of all clients to everything that was served up to a cut.
#[must_use]
pub fn all_acks(clients: &[ClientStatus], cut: u64) -> Acks {
    let mut acks = Acks::default();
    for client in clients {
        match client.rejections.first() {
            Some(rejection) => acks.reject(client, rejection.text.clone()),
            None if has_accepted(client, cut) => acks.acked += 1,
            None => acks.pending += 1,
        }
    }
    acks
}

/// Whether a client has asked for something, and has said yes to all of it up to a cut.
fn has_accepted(client: &ClientStatus, cut: u64) -> bool {
    let is_there = |ty: &TypeStatus| {
        // A cut is told whole before any of the next is; who has answered the next one had this one, whatever came since.
        let is_past = ty.acked.is_some_and(|acked| acked > cut);
        is_past || ty.acked.is_some() && ty.head >= cut && ty.behind == 0 && ty.unacked == 0
    };
    !client.types.is_empty() && client.types.values().all(|ty| is_there(ty))
}

/// What is served of an object. Bare workloads say nothing that addresses do not.
fn slots<'a>(snapshot: &'a Snapshot, object: &ObjectStatus) -> Vec<(ResourceType, &'a Arc<Slot>)> {
    let types = ResourceType::ALL
        .into_iter()
        .filter(|ty| *ty != ResourceType::Workload);
    let of = |ty: ResourceType| {
        object
            .resources
            .iter()
            .filter_map(move |name| Some((ty, snapshot.resource(ty, name)?)))
    };
    types.flat_map(of).collect()
}

fn answer(snapshot: &Arc<Snapshot>, client: &ClientStatus, slots: &[(ResourceType, &Arc<Slot>)]) -> Answer {
    let viewer = match client.kind {
        ClientKind::Waypoint => Viewer::of_waypoint(client.node.clone()),
        ClientKind::Ztunnel | ClientKind::Agent => match client.node.parse() {
            Ok(identity) => Viewer::of_workload(identity),
            Err(_) => Viewer::node(client.node.clone()),
        },
    };
    let viewer = viewer.with(client.features);
    let mut concerned = slots
        .iter()
        .filter_map(|(ty, slot)| {
            let state = client.types.get(ty.type_url())?;
            let wanted = wants(*ty, snapshot, &viewer, &state.subscription, slot);
            wanted.then_some((*ty, *slot, state))
        })
        .peekable();
    if concerned.peek().is_none() {
        return Answer::NotConcerned;
    }
    let mut pending = false;
    for (ty, slot, state) in concerned {
        let rejection = client.rejections.iter();
        let mut rejection = rejection.filter(|one| one.type_url == ty.type_url() && one.name == slot.name);
        if let Some(rejection) = rejection.find(|one| *one.version == *slot.version) {
            return Answer::Rejected(rejection.text.clone());
        }
        let told = state
            .acked
            .is_some_and(|acked| state.subscription.has_by(acked, slot));
        pending |= !(told || state.behind == 0 && state.unacked == 0 && state.head >= slot.sequence);
    }
    if pending { Answer::Pending } else { Answer::Acked }
}

/// The conditions of an object, given the answers: a gateway acts once a waypoint has said yes to it.
#[must_use]
pub fn conditions(object: &ObjectStatus, acks: &Acks) -> Vec<Condition> {
    let mut conditions = object.conditions.clone();
    if object.key.kind != Kind::Gateway {
        return conditions;
    }
    // Of the gateway, and of each of its listeners.
    let programmed = conditions
        .iter_mut()
        .filter(|one| one.kind == PROGRAMMED && one.status == Status::True);
    for condition in programmed.filter(|_| acks.acked == 0) {
        let pending = match acks.said.first() {
            Some((_, text)) if acks.pending == 0 => Condition::fails(
                PROGRAMMED,
                "Invalid",
                format!("every waypoint rejects it: {text}"),
            ),
            _ => {
                let text =
                    "no waypoint has accepted it yet; see that its pods run and reach the control plane";
                Condition::fails(PROGRAMMED, "Pending", text)
            }
        };
        *condition = Condition {
            of: condition.of.take(),
            observed_generation: condition.observed_generation,
            ..pending
        };
    }
    conditions
}

#[cfg(test)]
mod tests;
