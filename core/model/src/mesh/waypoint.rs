//! What a waypoint is told of itself: settings, fronts, routes and policies, with the indexes they are found by.

use std::sync::Arc;

use super::changes::Collector;
use super::{OrderedMap, OrderedSet};
use crate::name::{NamespacedHostname, Str};
use crate::policy::{On, Policy};
use crate::route::{ParentTo, Route};
use crate::waypoint::{Front, FrontOf, Settings, Waypoint};

/// Everything of the three types that only waypoints ask for.
#[derive(Debug, Clone, Default)]
pub(super) struct Waypoints {
    settings: OrderedMap<Str, Arc<Settings>>,
    fronts: OrderedMap<Str, Arc<Front>>,
    fronts_of: OrderedMap<FrontOf, OrderedSet<Str>>,
    routes: OrderedMap<Str, Arc<Route>>,
    routes_of: OrderedMap<NamespacedHostname, OrderedSet<Str>>,
    policies: OrderedMap<Str, Arc<Policy>>,
    policies_on: OrderedMap<On, OrderedSet<Str>>,
}

impl Waypoints {
    pub(super) fn settings(&self) -> impl Iterator<Item = &Arc<Settings>> {
        self.settings.values()
    }

    pub(super) fn fronts(&self) -> impl Iterator<Item = &Arc<Front>> {
        self.fronts.values()
    }

    pub(super) fn fronts_of<'a>(
        &'a self,
        object: &FrontOf,
    ) -> impl Iterator<Item = &'a Arc<Front>> + use<'a> {
        named(&self.fronts, self.fronts_of.get(object))
    }

    pub(super) fn routes_of<'a>(
        &'a self,
        parent: &NamespacedHostname,
    ) -> impl Iterator<Item = &'a Arc<Route>> + use<'a> {
        named(&self.routes, self.routes_of.get(parent))
    }

    pub(super) fn route(&self, name: &str) -> Option<&Arc<Route>> {
        self.routes.get(name)
    }

    pub(super) fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.values()
    }

    pub(super) fn policy(&self, name: &str) -> Option<&Arc<Policy>> {
        self.policies.get(name)
    }

    pub(super) fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    pub(super) fn policies_on<'a>(&'a self, on: &On) -> impl Iterator<Item = &'a Arc<Policy>> + use<'a> {
        named(&self.policies, self.policies_on.get(on))
    }

    pub(super) fn set_waypoint(&mut self, waypoint: Arc<Waypoint>, changes: &mut Collector) {
        let name = waypoint.name();
        match &*waypoint {
            Waypoint::Settings(settings) => {
                if self
                    .settings
                    .get(&name)
                    .is_none_or(|before| **before != **settings)
                {
                    self.settings
                        .insert_mut(name, Arc::new(settings.as_ref().clone()));
                    changes.settings();
                }
            }
            Waypoint::Front(front) => {
                if self.fronts.get(&name).is_none_or(|before| **before != *front) {
                    index(&mut self.fronts_of, &front.object, &name);
                    changes.front(front.object.clone());
                    self.fronts.insert_mut(name, Arc::new(front.clone()));
                }
            }
        }
    }

    pub(super) fn remove_waypoint(&mut self, name: &Str, changes: &mut Collector) {
        if self.settings.remove_mut(name) {
            changes.settings();
        }
        if let Some(front) = self.fronts.get(name).cloned() {
            self.fronts.remove_mut(name);
            unindex(&mut self.fronts_of, &front.object, name);
            changes.front(front.object.clone());
        }
    }

    pub(super) fn set_route(&mut self, route: Arc<Route>, changes: &mut Collector) {
        let name = route.name();
        if self.routes.get(&name) == Some(&route) {
            return;
        }
        self.remove_route(&name, changes);
        for parent in parents(&route) {
            index(&mut self.routes_of, parent, &name);
            changes.routes_of(parent.clone());
        }
        changes.route();
        self.routes.insert_mut(name, route);
    }

    pub(super) fn remove_route(&mut self, name: &Str, changes: &mut Collector) {
        let Some(before) = self.routes.get(name).cloned() else {
            return;
        };
        self.routes.remove_mut(name);
        for parent in parents(&before) {
            unindex(&mut self.routes_of, parent, name);
            changes.routes_of(parent.clone());
        }
        changes.route();
    }

    pub(super) fn set_policy(&mut self, policy: Arc<Policy>, changes: &mut Collector) {
        let name = policy.name();
        if self.policies.get(&name) == Some(&policy) {
            return;
        }
        self.remove_policy(&name, changes);
        for target in &policy.targets {
            index(&mut self.policies_on, &target.on, &name);
            changes.policies_on(target.on.clone());
        }
        changes.waypoint_policy(name.clone());
        self.policies.insert_mut(name, policy);
    }

    pub(super) fn remove_policy(&mut self, name: &Str, changes: &mut Collector) {
        let Some(before) = self.policies.get(name).cloned() else {
            return;
        };
        self.policies.remove_mut(name);
        for target in &before.targets {
            unindex(&mut self.policies_on, &target.on, name);
            changes.policies_on(target.on.clone());
        }
        changes.waypoint_policy(name.clone());
    }

    /// How many entries all indexes hold, to prove that none is left behind.
    #[cfg(test)]
    pub(super) fn indexed(&self) -> usize {
        self.settings.size()
            + self.fronts.size()
            + self.fronts_of.size()
            + self.routes.size()
            + self.routes_of.size()
            + self.policies.size()
            + self.policies_on.size()
    }
}

/// The services a route has for parents.
fn parents(route: &Route) -> impl Iterator<Item = &NamespacedHostname> {
    route.parents.iter().filter_map(|parent| match &parent.to {
        ParentTo::Service(service) => Some(service),
        ParentTo::Listener { .. } => None,
    })
}

fn named<'a, T>(
    by_name: &'a OrderedMap<Str, Arc<T>>,
    names: Option<&'a OrderedSet<Str>>,
) -> impl Iterator<Item = &'a Arc<T>> + use<'a, T> {
    names
        .into_iter()
        .flat_map(OrderedSet::iter)
        .filter_map(|name| by_name.get(name))
}

fn index<K: Ord + Clone>(map: &mut OrderedMap<K, OrderedSet<Str>>, key: &K, name: &Str) {
    let mut names = map.get(key).cloned().unwrap_or_default();
    names.insert_mut(name.clone());
    map.insert_mut(key.clone(), names);
}

fn unindex<K: Ord + Clone>(map: &mut OrderedMap<K, OrderedSet<Str>>, key: &K, name: &Str) {
    let Some(names) = map.get(key) else { return };
    let rest = names.remove(name);
    if rest.is_empty() {
        map.remove_mut(key);
    } else {
        map.insert_mut(key.clone(), rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::{Mesh, MeshUpdate};
    use crate::policy::{Concern, Target};
    use crate::route::{Kind, Origin, Parent};

    fn origin(kind: Kind, name: &str) -> Origin {
        Origin {
            kind,
            namespace: "shop".into(),
            name: name.into(),
            rule_index: 0,
            rule_name: "".into(),
            created: None,
            generation: 1,
        }
    }

    fn service(name: &str) -> NamespacedHostname {
        NamespacedHostname::new("shop", name)
    }

    fn route(name: &str, parent: &str) -> MeshUpdate {
        MeshUpdate::Route(Arc::new(Route {
            origin: origin(Kind::Http, name),
            parents: vec![Parent {
                to: ParentTo::Service(service(parent)),
                port: None,
                consumer_namespace: None,
                hostnames: Vec::new(),
            }],
            matches: Vec::new(),
            filters: Vec::new(),
            backends: Vec::new(),
            timeouts: crate::route::Timeouts::default(),
            retry: None,
            session: None,
            error: None,
        }))
    }

    fn policy(name: &str, on: On) -> MeshUpdate {
        MeshUpdate::WaypointPolicy(Arc::new(Policy {
            object: "AuthorizationPolicy".into(),
            origin: origin(Kind::Policy, name),
            targets: vec![Target {
                on,
                port: None,
                section: None,
            }],
            dry_run: false,
            concern: Concern::DenyAll("test".into()),
        }))
    }

    fn front(name: &str) -> MeshUpdate {
        MeshUpdate::Waypoint(Arc::new(Waypoint::Front(Front {
            waypoint: "shop/way".into(),
            object: FrontOf::Service(service(name)),
            required_policies: Vec::new(),
            required_routes: Vec::new(),
            client_namespaces: Vec::new(),
            draining: false,
        })))
    }

    #[test]
    fn a_route_that_moves_to_another_parent_concerns_both() {
        let mesh = Mesh::new();
        mesh.apply(vec![route("r", "web")]);
        let changes = mesh.apply(vec![route("r", "db")]);
        assert_eq!(changes.routes_of, [service("db"), service("web")]);
        let snapshot = mesh.snapshot();
        assert_eq!(snapshot.routes_of(&service("web")).count(), 0);
        assert_eq!(snapshot.routes_of(&service("db")).count(), 1);
    }

    #[test]
    fn a_policy_that_loses_its_target_concerns_what_it_protected() {
        let mesh = Mesh::new();
        mesh.apply(vec![policy("p", On::Service(service("web")))]);
        let changes = mesh.apply(vec![policy("p", On::Mesh)]);
        assert_eq!(changes.policies_on, [On::Service(service("web")), On::Mesh]);
        assert_eq!(
            changes.waypoint_policies,
            ["AuthorizationPolicy/shop/p/deny_all".into()]
        );
        assert_eq!(mesh.snapshot().waypoint_policies_on(&On::Mesh).count(), 1);
    }

    #[test]
    fn what_says_nothing_new_changes_nothing() {
        let mesh = Mesh::new();
        let all = || vec![front("web"), route("r", "web"), policy("p", On::Mesh)];
        assert!(!mesh.apply(all()).is_empty());
        assert!(mesh.apply(all()).is_empty());
    }

    #[test]
    fn what_is_removed_leaves_nothing_behind() {
        let mesh = Mesh::new();
        mesh.apply(vec![front("web"), route("r", "web"), policy("p", On::Mesh)]);
        let changes = mesh.apply(vec![
            MeshUpdate::RemoveWaypoint("shop/way/shop/web".into()),
            MeshUpdate::RemoveRoute("HTTPRoute/shop/r/0".into()),
            MeshUpdate::RemoveWaypointPolicy("AuthorizationPolicy/shop/p/deny_all".into()),
        ]);
        assert_eq!(changes.fronts, [FrontOf::Service(service("web"))]);
        assert_eq!(mesh.snapshot().waypoints.indexed(), 0);
    }
}
