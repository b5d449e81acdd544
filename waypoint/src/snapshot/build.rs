//! Builds the next snapshot, off the path of requests: what a change did not concern keeps its state.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::time::Instant;
use tulle_model::policy::On;
use tulle_model::route::BackendTo;
use tulle_model::waypoint::{Front, FrontOf};
use tulle_model::{Changes, NamespacedHostname, Snapshot as MeshSnapshot};
use tulle_xds_client::MeshState;
use tulle_xds_client::state::ChangeStream;

use super::making::{Kept, Making};
use super::me::{self, Me};
use super::{Fronts, Snapshot, View};
use crate::config::Config;
use crate::metrics::{Metrics, Seconds};
use crate::upstream::backend::on_route;

/// Keeps the newest snapshot what configuration says.
#[derive(Debug)]
pub struct Builder {
    mesh: MeshState,
    changes: ChangeStream,
    view: View,
    me: Me,
    kept: Kept,
    took: Seconds,
}

/// What has to be built anew.
#[derive(Debug, Default)]
struct Affected {
    everything: bool,
    objects: BTreeSet<FrontOf>,
    services: BTreeSet<NamespacedHostname>,
}

impl Builder {
    /// Builds the first snapshot from what is known now.
    #[must_use]
    pub fn new(config: &Config, mesh: MeshState, metrics: &Metrics) -> Self {
        // Before the first look, so that no change is missed.
        let changes = mesh.changes();
        let me = Me::of(config);
        let current = mesh.snapshot();
        let all = Affected {
            everything: true,
            ..Affected::default()
        };
        let mut kept = Kept::new(metrics);
        let first = build(&me, &mut kept, current, None, &all);
        Self {
            mesh,
            changes,
            view: View::new(first),
            me,
            kept,
            took: metrics.config_apply.clone(),
        }
    }

    /// Where snapshots are put.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Builds after every change, for as long as the process lives. Changes that wait are taken together.
    pub async fn follow(mut self) {
        while let Some(first) = self.changes.next().await {
            let (started, before) = (Instant::now(), self.view.load());
            let after = self.mesh.snapshot();
            let mut affected = Affected::default();
            affected.add(&first, &before.mesh, &after);
            while let Some(Some(more)) = self.changes.next().now_or_never() {
                affected.add(&more, &before.mesh, &after);
            }
            let next = build(&self.me, &mut self.kept, after, Some(&before), &affected);
            self.view.store(next);
            self.took.observe(started.elapsed());
        }
    }
}

impl Affected {
    /// Walks from what changed to the fronts and backends it concerns, as they were and as they are.
    fn add(&mut self, changes: &Changes, before: &MeshSnapshot, after: &MeshSnapshot) {
        let broad = |on: &On| matches!(on, On::Waypoint(_) | On::Class(_) | On::Mesh);
        self.everything |= changes.everything || changes.settings || changes.policies_on.iter().any(broad);
        self.services.extend(changes.services.iter().cloned());
        for uid in &changes.workloads {
            self.objects.insert(FrontOf::Workload(uid.clone()));
            for mesh in [before, after] {
                let of = mesh.workload(uid).into_iter();
                self.services
                    .extend(of.flat_map(|workload| workload.services.keys().cloned()));
            }
        }
        self.objects.extend(changes.fronts.iter().cloned());
        self.objects
            .extend(changes.services.iter().cloned().map(FrontOf::Service));
        self.objects
            .extend(changes.routes_of.iter().cloned().map(FrontOf::Service));
        for on in &changes.policies_on {
            match on {
                On::Service(service) => drop(self.objects.insert(FrontOf::Service(service.clone()))),
                On::Workload(uid) => drop(self.objects.insert(FrontOf::Workload(uid.clone()))),
                On::Route { .. } => self.add_route(on, [before, after]),
                On::Waypoint(_) | On::Class(_) | On::Mesh => {}
            }
        }
        if !changes.waypoint_policies.is_empty() {
            let named = |front: &&Arc<Front>| {
                let mut required = front.required_policies.iter();
                required.any(|name| changes.waypoint_policies.binary_search(name).is_ok())
            };
            let waiting = after.fronts().filter(named);
            self.objects.extend(waiting.map(|front| front.object.clone()));
        }
    }

    /// A policy of a route concerns the services that the route is for, and those it sends requests to.
    fn add_route(&mut self, on: &On, meshes: [&MeshSnapshot; 2]) {
        let services = meshes.into_iter().flat_map(|mesh| {
            mesh.fronts().filter_map(move |front| match &front.object {
                FrontOf::Service(service) => Some((mesh, service)),
                FrontOf::Workload(_) => None,
            })
        });
        for (mesh, service) in services {
            for route in mesh
                .routes_of(service)
                .filter(|route| on_route(&route.origin) == *on)
            {
                self.objects.insert(FrontOf::Service(service.clone()));
                self.services
                    .extend(route.backends.iter().filter_map(|backend| match &backend.to {
                        BackendTo::Service { service, .. } => Some(service.clone()),
                        BackendTo::Invalid(_) => None,
                    }));
            }
        }
    }

    fn concerns(&self, object: &FrontOf) -> bool {
        self.everything || self.objects.contains(object)
    }
}

fn build(
    me: &Me,
    kept: &mut Kept,
    mesh: Arc<MeshSnapshot>,
    before: Option<&Snapshot>,
    affected: &Affected,
) -> Snapshot {
    let settings = me.settings(&mesh);
    let own = me.own(&mesh);
    kept.refresh((&mesh, &own, &settings), |key| {
        affected.everything || key.is_among(&affected.services, &affected.objects)
    });
    kept.limiters.refresh(me::ready_replicas(&settings, &mesh));
    let mut fronts = Fronts::default();
    for front in mesh.fronts() {
        let object = &front.object;
        let last = before.and_then(|before| before.front(object));
        let state = last
            .filter(|_| !affected.concerns(object))
            .map(Arc::clone)
            .or_else(|| {
                let mut making = Making {
                    mesh: &mesh,
                    settings: &settings,
                    own: &own,
                    last: last.map(|last| &**last),
                    kept,
                };
                making.front(front).map(Arc::new)
            });
        fronts.extend(state.map(|state| (object.clone(), state)));
    }
    Snapshot {
        mesh,
        settings,
        own,
        fronts,
    }
}
