//! What was computed, as far as it has to be known later: to take it back, and to say what became of an object.
//!
//! Workloads and services are not kept a second time beside their tables; they are read back from there when they go.

use std::collections::BTreeMap;
use std::sync::Arc;

use tulle_k8s::translate::condition::Condition;
use tulle_k8s::{Key, Kind};
use tulle_model::{Str, Workload};
use tulle_proto::convert::{Resource, decode_address};

use super::compute::{Emitted, OutKey, Part};
use super::table::Table;
use crate::few::Few;
use crate::snapshot::Order;

/// Outputs from which on a map that was filled in order is packed: its nodes are only half full.
const PACKED_MIN: usize = 1_000;

/// Everything that was computed.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    /// Names of the workloads of sources that became one, and of which nothing is to be said. Apart, as most are of these.
    plain: BTreeMap<Key, Str>,
    /// Every other output.
    parts: BTreeMap<OutKey, Box<[Kept]>>,
    /// Outputs that say something of an object, beside the workloads it is itself the source of.
    owned: BTreeMap<Key, Few<OutKey>>,
    /// Outputs that came since the maps were packed.
    fresh: usize,
}

/// What came of one object.
#[derive(Debug)]
struct Kept {
    owner: Key,
    sent: Box<[Sent]>,
    conditions: Box<[Condition]>,
}

/// One resource.
#[derive(Debug)]
enum Sent {
    /// It stands in the table of addresses under this name.
    Address(Str),
    /// It stands here.
    Here(Emitted),
}

impl Sent {
    fn name(&self) -> Str {
        match self {
            Self::Address(name) => name.clone(),
            Self::Here(emitted) => emitted.name(),
        }
    }

    fn restored(self, addresses: &Table) -> Option<Emitted> {
        match self {
            Self::Address(name) => read_back(&name, addresses),
            Self::Here(emitted) => Some(emitted),
        }
    }
}

/// An address as it was computed.
fn read_back(name: &Str, addresses: &Table) -> Option<Emitted> {
    let slot = addresses.get(name)?;
    let of_waypoint = matches!(slot.order, Order::WaypointWorkload | Order::WaypointService);
    match decode_address(name, &slot.body) {
        Ok(Resource::Workload(workload)) => Some(Emitted::Workload(workload, of_waypoint)),
        Ok(Resource::Service(service)) => Some(Emitted::Service(service, of_waypoint)),
        Ok(_) => None,
        Err(error) => {
            tracing::error!(%error, "what is served cannot be read back");
            None
        }
    }
}

/// Whether each resource of such an output has a name of its own: endpoints that stand in a list may come twice.
fn is_read_back(out: &OutKey) -> bool {
    match out {
        OutKey::Workloads(key) => matches!(key.kind, Kind::Pod | Kind::WorkloadEntry),
        OutKey::Services(_) => true,
        _ => false,
    }
}

impl Kept {
    fn of(part: Part, is_read_back: bool) -> Self {
        let sent = part.emitted.into_iter().map(|emitted| match emitted {
            Emitted::Workload(..) | Emitted::Service(..) if is_read_back => Sent::Address(emitted.name()),
            emitted => Sent::Here(emitted),
        });
        Self {
            owner: part.owner,
            sent: sent.collect(),
            conditions: part.conditions.into(),
        }
    }
}

impl Outputs {
    /// The outputs there are.
    pub(super) fn keys(&self) -> impl Iterator<Item = OutKey> {
        let plain = self.plain.keys().cloned().map(OutKey::Workloads);
        plain.chain(self.parts.keys().cloned())
    }

    /// The workload that an output is, if it is a plain one.
    fn plain_of(&self, out: &OutKey) -> Option<&Str> {
        match out {
            OutKey::Workloads(key) => self.plain.get(key),
            _ => None,
        }
    }

    /// Takes an output away, to be computed anew or not at all. `addresses` still has what it became.
    pub(super) fn take(&mut self, out: &OutKey, addresses: &Table) -> Vec<Part> {
        if let OutKey::Workloads(owner) = out
            && let Some(name) = self.plain.remove(owner)
        {
            return vec![Part {
                owner: owner.clone(),
                emitted: read_back(&name, addresses).into_iter().collect(),
                conditions: Vec::new(),
            }];
        }
        let restored = |kept: Kept| Part {
            owner: kept.owner,
            emitted: kept
                .sent
                .into_iter()
                .filter_map(|sent| sent.restored(addresses))
                .collect(),
            conditions: kept.conditions.into(),
        };
        let kept = self.parts.remove(out).unwrap_or_default();
        let parts: Vec<Part> = kept.into_iter().map(restored).collect();
        for part in parts.iter().filter(|part| !is_own(out, &part.owner)) {
            if let Some(outputs) = self.owned.get_mut(&part.owner) {
                outputs.remove(out);
                if outputs.is_empty() {
                    self.owned.remove(&part.owner);
                }
            }
        }
        parts
    }

    /// Keeps an output, once it is in the tables.
    pub(super) fn put(&mut self, out: OutKey, parts: Vec<Part>) {
        if parts.is_empty() {
            return;
        }
        for part in parts.iter().filter(|part| !is_own(&out, &part.owner)) {
            let outputs = self.owned.entry(part.owner.clone()).or_default();
            outputs.insert(out.clone());
        }
        self.fresh += 1;
        let is_read_back = is_read_back(&out);
        if let ([part], OutKey::Workloads(key)) = (parts.as_slice(), &out)
            && is_read_back
            && part.owner == *key
            && let Some(name) = plain(part)
        {
            // The key is that of the object itself, which everybody shares.
            self.plain.insert(part.owner.clone(), name);
            return;
        }
        let kept = parts.into_iter().map(|part| Kept::of(part, is_read_back));
        self.parts.insert(out, kept.collect());
    }

    /// Gives back what maps take that were filled in order, once that is much.
    pub(super) fn pack(&mut self) {
        if std::mem::take(&mut self.fresh) >= PACKED_MIN {
            self.plain = std::mem::take(&mut self.plain).into_iter().collect();
            self.parts = std::mem::take(&mut self.parts).into_iter().collect();
            self.owned = std::mem::take(&mut self.owned).into_iter().collect();
        }
    }

    /// The outputs that say something of an object.
    pub(super) fn of(&self, owner: &Key) -> Vec<OutKey> {
        let own = OutKey::Workloads(owner.clone());
        let others = self.owned.get(owner).into_iter().flat_map(Few::iter);
        let all = std::iter::once(&own).chain(others);
        all.filter(|out| self.plain_of(out).is_some() || self.parts.contains_key(out))
            .cloned()
            .collect()
    }

    /// What is to be said of an object, and the names of what it became.
    pub(super) fn tell(&self, owner: &Key) -> (Vec<Condition>, Vec<Str>) {
        let (mut conditions, mut resources) = (Vec::new(), Vec::new());
        resources.extend(self.plain.get(owner).cloned());
        let own = OutKey::Workloads(owner.clone());
        let others = self.owned.get(owner).into_iter().flat_map(Few::iter);
        let kept = std::iter::once(&own).chain(others);
        let kept = kept.filter_map(|out| self.parts.get(out)).flatten();
        for part in kept.filter(|part| part.owner == *owner) {
            conditions.extend(part.conditions.iter().cloned());
            resources.extend(part.sent.iter().map(Sent::name));
        }
        conditions.shrink_to_fit();
        resources.shrink_to_fit();
        (conditions, resources)
    }

    /// The workloads of an output.
    pub(super) fn workloads(&self, out: &OutKey, addresses: &Table) -> Vec<Arc<Workload>> {
        let of = |emitted: Emitted| match emitted {
            Emitted::Workload(workload, _) => Some(workload),
            _ => None,
        };
        let plain = self.plain_of(out).and_then(|name| read_back(name, addresses));
        let kept = self.parts.get(out).into_iter().flatten();
        let emitted = kept.flat_map(|kept| &kept.sent).filter_map(|sent| match sent {
            Sent::Address(name) => read_back(name, addresses),
            Sent::Here(emitted) => Some(emitted.clone()),
        });
        plain.into_iter().chain(emitted).filter_map(of).collect()
    }
}

/// Whether an output is the workloads of its owner.
fn is_own(out: &OutKey, owner: &Key) -> bool {
    matches!(out, OutKey::Workloads(key) if key == owner)
}

/// The name of the workload that a part is, if there is nothing else in it.
fn plain(part: &Part) -> Option<Str> {
    match part.emitted.as_slice() {
        [Emitted::Workload(workload, _)] if part.conditions.is_empty() => Some(workload.uid.0.clone()),
        _ => None,
    }
}
