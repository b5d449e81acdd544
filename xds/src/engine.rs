//! The engine: objects in, immutable cuts out, by a single writer.
//!
//! A turn takes one batch of changes, computes what they touch, and publishes one cut. Everything that means
//! something in the mesh is decided in [`compute`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};
use tokio::sync::{mpsc, oneshot, watch};
use tulle_k8s::translate::MeshConfig;
use tulle_k8s::{Key, Kind, Object};
use tulle_model::{Str, Trust};
use tulle_runtime::tasks::Scope;

use crate::drains::{RELEASES_WAITING_MAX, Release};
use crate::metrics::EngineMetrics;
use crate::snapshot::{FileProblem, ObjectStatus, Order, Snapshot};

pub(crate) mod advice;
pub mod affected;
mod around;
mod bearing;
pub mod compute;
mod draining;
mod fronting;
pub mod index;
mod kept;
mod placement;
mod reach;
mod replicas;
pub mod table;
#[cfg(test)]
mod tests;
pub mod trace;
pub mod world;

use advice::Advice;
use affected::{Affected, affected, differs, everything, extent};
use bearing::Bearing;
use compute::{Emitted, OutKey, Part, compute};
use draining::Draining;
use fronting::Fronting;
use kept::Outputs;
use placement::Placed;
use reach::{Reach, Shares};
use table::Table;
use trace::{NoTrace, Step};
use world::World;

/// Changes from which computing everything is cheaper than asking each what it touches.
const CHANGES_INCREMENTAL_MAX: usize = 1_000;

/// Outputs that are computed before the first of them is kept: what comes of them is much larger until then.
const OUTPUTS_TOGETHER: usize = 4_096;

/// Outputs from which on they are computed on every core.
const OUTPUTS_ALONE_MAX: usize = 1_000;

/// One change of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Which object.
    pub key: Key,
    /// Its new form; `None` once it is gone.
    pub object: Option<InForce>,
}

/// An object that is in force, and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct InForce {
    /// The object.
    pub object: Arc<Object>,
    /// File that defines it.
    pub file: Str,
    /// Generation that brought this form.
    pub generation: u64,
    /// Generation that tried to replace it and was refused.
    pub stale_since: Option<u64>,
}

/// What a source has to say at once; it becomes one cut.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Generation of the source.
    pub generation: u64,
    /// The changes.
    pub events: Vec<Event>,
    /// Every finding that holds now.
    pub problems: Arc<Vec<FileProblem>>,
    /// Why the source keeps an older state than the one it sees.
    pub degraded: Option<Str>,
    /// The source has been read completely at least once.
    pub synced: bool,
    /// When the newest of the objects was written, by kind, as far as that is known.
    pub written: BTreeMap<Kind, SystemTime>,
    /// Number of the look at the source that this is the end of.
    pub look: Option<u64>,
}

impl Batch {
    /// The same once more, to who has taken the changes.
    #[must_use]
    pub fn without_changes(&self) -> Self {
        Self {
            generation: self.generation,
            problems: self.problems.clone(),
            degraded: self.degraded.clone(),
            synced: self.synced,
            ..Self::default()
        }
    }
}

/// The engine's state; one writer owns it.
#[derive(Debug)]
pub struct Engine {
    world: World,
    outputs: Outputs,
    reach: Reach,
    shares: Shares,
    placed: Placed,
    bearing: Bearing,
    fronting: Fronting,
    draining: Draining,
    /// What the certificate authority says; aliases are the mesh's own to say.
    trust: Option<Arc<Trust>>,
    snapshot: Snapshot,
}

/// Questions that wait for the engine; who asks more waits.
const QUESTIONS_WAITING_MAX: usize = 16;

/// Asks how an object became what it is.
#[derive(Debug)]
pub struct Question {
    /// The object.
    pub key: Key,
    /// Where the steps go; none of them if there is no such object.
    pub answer: oneshot::Sender<Vec<Step>>,
}

/// The way to a running engine.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    /// The newest cut.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Ends the draining of a waypoint.
    pub releases: mpsc::Sender<Release>,
    /// Asks how objects became what they are.
    pub questions: mpsc::Sender<Question>,
}

impl Engine {
    /// An engine that knows nothing yet.
    #[must_use]
    pub fn new(mesh: MeshConfig) -> Self {
        Self {
            world: World::new(mesh),
            outputs: Outputs::default(),
            reach: Reach::default(),
            shares: Shares::default(),
            placed: Placed::default(),
            bearing: Bearing::default(),
            fronting: Fronting::default(),
            draining: Draining::default(),
            trust: None,
            snapshot: Snapshot::default(),
        }
    }

    /// Runs the engine as a task of its own; it ends with its source.
    #[must_use]
    pub fn spawn(
        mesh: MeshConfig,
        mut batches: mpsc::Receiver<Batch>,
        mut trust: watch::Receiver<Option<Arc<Trust>>>,
        metrics: EngineMetrics,
        scope: &Scope,
    ) -> EngineHandle {
        let mut engine = Self::new(mesh);
        let (publish, snapshots) = watch::channel(Arc::new(engine.snapshot.clone()));
        let (releases, mut released) = mpsc::channel(RELEASES_WAITING_MAX);
        let (questions, mut asked) = mpsc::channel::<Question>(QUESTIONS_WAITING_MAX);
        scope.spawn_vital("engine", async move {
            trust.mark_changed();
            loop {
                let before = engine.snapshot.sequence;
                let mut snapshot = tokio::select! {
                    batch = batches.recv() => match batch {
                        Some(batch) => {
                            metrics.on_batch(&batch);
                            let (begin, written) = (Instant::now(), batch.written.clone());
                            let snapshot = engine.apply(batch);
                            metrics.on_turn(&written, SystemTime::now());
                            metrics.turns.observe(begin.elapsed().as_secs_f64());
                            snapshot
                        }
                        None => break,
                    },
                    Ok(()) = trust.changed() => {
                        let trust = trust.borrow_and_update().clone();
                        engine.trust(trust)
                    }
                    Some((waypoint, since)) = released.recv() => engine.release(&waypoint, since),
                    Some(question) = asked.recv() => {
                        // Who asked may have given up.
                        let _ = question.answer.send(engine.explain(&question.key));
                        continue;
                    }
                };
                if snapshot.sequence > before {
                    metrics.cuts.inc();
                }
                snapshot.published = Some(Instant::now());
                publish.send_replace(Arc::new(snapshot));
            }
            // Readers keep the last cut until the process ends.
            publish.closed().await;
        });
        EngineHandle {
            snapshots,
            releases,
            questions,
        }
    }

    /// Applies a batch as one turn and returns the new cut.
    pub fn apply(&mut self, batch: Batch) -> Snapshot {
        let one_by_one = batch.events.len() <= CHANGES_INCREMENTAL_MAX;
        self.turn(&batch, one_by_one)
    }

    /// How an object became what it is, as computed now.
    #[must_use]
    pub fn explain(&self, key: &Key) -> Vec<Step> {
        let mut steps = Vec::new();
        for out in self.outputs.of(key) {
            drop(compute(&out, &self.world, &mut steps));
        }
        steps
    }

    /// What is probably not as it is meant.
    pub(crate) fn advice(&self) -> BTreeSet<Advice> {
        advice::advice(&self.world)
    }

    /// Takes what is trusted as one turn and returns the new cut.
    pub fn trust(&mut self, trust: Option<Arc<Trust>>) -> Snapshot {
        self.trust = trust;
        let sequence = self.snapshot.sequence + 1;
        if self.publish_trust(sequence) {
            self.snapshot.sequence = sequence;
        }
        self.snapshot.clone()
    }

    fn publish_trust(&mut self, sequence: u64) -> bool {
        let Some(trust) = &self.trust else {
            return false;
        };
        let aliases = self.world.mesh().trust_domain_aliases.clone();
        let trust = Trust {
            aliases,
            ..Trust::clone(trust)
        };
        let resource = table::Resource {
            name: trust.trust_domain.clone(),
            aliases: Vec::new(),
            body: tulle_proto::encode_trust(&trust).into(),
            order: Order::Policy,
            scope: crate::snapshot::Scope::Everyone,
        };
        self.snapshot.trust.set(resource, sequence)
    }

    /// One turn: asks each change what it touches, or computes everything.
    fn turn(&mut self, batch: &Batch, one_by_one: bool) -> Snapshot {
        let affected = self.take(&batch.events, one_by_one);
        self.bearing.publish(&mut self.snapshot.bearers);
        self.snapshot.workloads = self.snapshot.workloads.next();
        let sequence = self.snapshot.sequence + 1;
        let mut told: BTreeSet<Key> = batch.events.iter().map(|event| event.key.clone()).collect();
        let mut changed = false;
        let mut affected: Vec<OutKey> = affected.into_iter().collect();
        while !affected.is_empty() {
            // The last ones of a list are taken off cheaply; in which order outputs are computed means nothing.
            let some = affected.split_off(affected.len().saturating_sub(OUTPUTS_TOGETHER));
            for (out, parts) in self.compute(some) {
                told.extend(parts.iter().map(|part| part.owner.clone()));
                changed |= self.replace(out, parts, sequence, &mut told);
            }
        }
        changed |= self.keep_draining(sequence);
        changed |= self.publish_trust(sequence);
        changed |= self.rescope(sequence);
        changed |= self.placed.publish(&mut self.snapshot.placement);
        changed |= self.publish_fronted();
        self.tell(batch, told);
        self.outputs.pack();
        self.world.pack();
        self.snapshot.addresses.pack();
        if changed || batch.synced != self.snapshot.synced {
            self.snapshot.sequence = sequence;
        }
        self.snapshot.synced |= batch.synced;
        self.snapshot.clone()
    }

    /// Computes outputs, on every core where there are many: the world is only read.
    fn compute(&self, affected: Vec<OutKey>) -> Vec<(OutKey, Vec<Part>)> {
        let one = |out: OutKey| {
            let parts = compute(&out, &self.world, &mut NoTrace);
            (out, parts)
        };
        if affected.len() < OUTPUTS_ALONE_MAX {
            affected.into_iter().map(one).collect()
        } else {
            affected.into_par_iter().map(one).collect()
        }
    }

    /// Takes the changes into the world and says what they touch.
    fn take(&mut self, events: &[Event], one_by_one: bool) -> Affected {
        let mut out = Affected::new();
        for Event { key, object } in events {
            let new = object.as_ref().map(|in_force| in_force.object.clone());
            if !differs(self.world.get(key), new.as_deref()) {
                continue;
            }
            let extent = extent(key, new.as_deref(), &self.world);
            if one_by_one {
                out.extend(affected(key, extent, &self.world));
            }
            self.placed
                .change(key, self.world.get(key), new.as_deref(), self.world.mesh());
            self.bearing.change(self.world.get(key), new.as_deref());
            self.fronting.touch(key);
            self.world.set(key, new);
            if one_by_one {
                out.extend(affected(key, extent, &self.world));
            }
        }
        if !one_by_one {
            everything(&self.world, &mut out);
            out.extend(self.outputs.keys());
        }
        out
    }

    /// Puts the new parts of an output in the place of the old ones.
    fn replace(&mut self, out: OutKey, parts: Vec<Part>, sequence: u64, told: &mut BTreeSet<Key>) -> bool {
        let old = self.outputs.take(&out, &self.snapshot.addresses);
        told.extend(old.iter().map(|part| part.owner.clone()));
        let mut changed = false;
        let mut gone: BTreeMap<Str, &Emitted> = BTreeMap::new();
        for emitted in emitted(&old) {
            if self.shares.give_up(emitted) {
                self.reach.remove(emitted);
                self.fronting.count(emitted, false);
                self.relate(emitted, false);
                gone.insert(emitted.name(), emitted);
            }
        }
        for new in emitted(&parts) {
            gone.remove(&new.name());
            self.shares.take(new);
            self.reach.add(new);
            self.fronting.count(new, true);
            self.relate(new, true);
            changed |= self.set(new, sequence);
        }
        for emitted in gone.into_values() {
            if !self.draining.take(emitted) {
                changed |= self.remove(emitted, sequence);
            }
        }
        self.outputs.put(out, parts);
        changed
    }

    /// Brings up to date what each waypoint needs; says whether anything moved.
    fn publish_fronted(&mut self) -> bool {
        let snapshot = &mut self.snapshot;
        let computed = (&self.outputs, &snapshot.addresses);
        self.fronting
            .publish(&self.world, &snapshot.around, computed, &mut snapshot.fronted)
    }

    fn relate(&mut self, emitted: &Emitted, add: bool) {
        if let Emitted::Workload(..) | Emitted::Service(..) = emitted {
            self.snapshot
                .around
                .set(&emitted.name(), &emitted.relations(), add);
        }
    }

    fn set(&mut self, new: &Emitted, sequence: u64) -> bool {
        let resource = new.encode(self.reach.scope(new));
        let mut changed = false;
        self.forget_kept(new.resource_type(), &resource.name);
        if let Emitted::Route(..) | Emitted::Policy(..) = new {
            let before = self.snapshot.table(new.resource_type()).get(&resource.name);
            self.draining.narrow(new, before.map(|slot| &slot.scope));
        }
        if let Some(workloads) = self.snapshot.workloads.asked()
            && let Some(bare) = resource.bare()
        {
            changed |= workloads.set(bare, sequence);
        }
        let table = self.snapshot.table_mut(new.resource_type());
        table.set(resource, sequence) | changed
    }

    fn remove(&mut self, gone: &Emitted, sequence: u64) -> bool {
        let name = gone.name();
        let mut changed = false;
        self.forget_kept(gone.resource_type(), &name);
        if let Emitted::Workload(..) = gone
            && let Some(workloads) = self.snapshot.workloads.asked()
        {
            changed |= workloads.remove(&name, sequence);
        }
        let table = self.snapshot.table_mut(gone.resource_type());
        table.remove(&name, sequence) | changed
    }

    /// Brings up to date which nodes may receive the policies whose workloads moved.
    fn rescope(&mut self, sequence: u64) -> bool {
        let table: &mut Table = &mut self.snapshot.authorizations;
        let mut changed = false;
        for name in self.reach.moved() {
            changed |= match self.reach.scope_of(&name) {
                Some(scope) => table.rescope(&name, scope, sequence),
                None => false,
            };
        }
        changed
    }

    /// Publishes what is known of the objects that were touched.
    fn tell(&mut self, batch: &Batch, told: BTreeSet<Key>) {
        let objects = &mut self.snapshot.objects;
        objects.generation = batch.generation;
        objects.look = batch.look.unwrap_or(objects.look);
        objects.degraded.clone_from(&batch.degraded);
        objects.problems = batch.problems.clone();
        let news: BTreeMap<&Key, Option<&InForce>> = batch
            .events
            .iter()
            .map(|event| (&event.key, event.object.as_ref()))
            .collect();
        for key in told {
            let before = objects.objects.get(&key);
            let (file, generation, stale_since) = match (news.get(&key), before) {
                (Some(Some(new)), _) => (&new.file, new.generation, new.stale_since),
                (None, Some(before)) => (&before.file, before.generation, before.stale_since),
                (Some(None), _) | (None, None) => {
                    objects.set(&key, None);
                    continue;
                }
            };
            let (conditions, resources) = self.outputs.tell(&key);
            let status = ObjectStatus {
                key: key.clone(),
                file: file.clone(),
                generation,
                stale_since,
                conditions,
                resources,
            };
            if before.is_none_or(|old| **old != status) {
                objects.set(&key, Some(Arc::new(status)));
            }
        }
    }
}

fn emitted(parts: &[Part]) -> impl Iterator<Item = &Emitted> {
    parts.iter().flat_map(|part| &part.emitted)
}
