//! What goes with what: the workloads of a node, those of a service, and the waypoint in front of either. A client that
//! asks for addresses by name is told these along.

use std::collections::BTreeSet;
use std::sync::Arc;

use rpds::RedBlackTreeSetSync;
use tulle_model::Str;

use crate::leaves::Leaves;

/// Names by name.
type Index = Leaves<Str, Names>;

/// Names up to which a list is copied for each change of it.
const LISTED_MAX: usize = 64;

/// Some names, in order. Clones share them.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Names {
    /// Up to [`LISTED_MAX`].
    Listed(Arc<[Str]>),
    /// More than that.
    Many(RedBlackTreeSetSync<Str>),
}

impl Names {
    fn iter(&self) -> impl Iterator<Item = &Str> {
        let (list, tree) = match self {
            Self::Listed(list) => (&list[..], None),
            Self::Many(tree) => (&[][..], Some(tree)),
        };
        list.iter().chain(tree.into_iter().flatten())
    }

    fn with(&self, name: &Str) -> Self {
        match self {
            Self::Listed(list) => match list.binary_search(name) {
                Ok(_) => self.clone(),
                Err(_) if list.len() >= LISTED_MAX => {
                    Self::Many(list.iter().chain([name]).cloned().collect())
                }
                Err(at) => {
                    let (before, after) = list.split_at(at);
                    Self::Listed(before.iter().chain([name]).chain(after).cloned().collect())
                }
            },
            Self::Many(tree) => Self::Many(tree.insert(name.clone())),
        }
    }

    /// Without a name; `None` if that leaves nothing.
    fn without(&self, name: &Str) -> Option<Self> {
        match self {
            Self::Listed(list) => {
                let left: Arc<[Str]> = list.iter().filter(|one| *one != name).cloned().collect();
                (!left.is_empty()).then_some(Self::Listed(left))
            }
            Self::Many(tree) => {
                let left = tree.remove(name);
                Some(match left.size() <= LISTED_MAX {
                    true => Self::Listed(left.iter().cloned().collect()),
                    false => Self::Many(left),
                })
            }
        }
    }
}

/// The relations of all addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Around {
    by_node: Index,
    by_service: Index,
    /// Names or aliases of waypoints, by what they stand in front of.
    waypoints: Index,
}

/// What is related to one address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Relations {
    /// The node it runs on.
    pub(crate) node: Option<Str>,
    /// The services it belongs to.
    pub(crate) services: Vec<Str>,
    /// The waypoints in front of it, as names or aliases.
    pub(crate) waypoints: Vec<Str>,
}

impl Around {
    /// Notes or forgets what an address is related to.
    pub(crate) fn set(&mut self, name: &Str, relations: &Relations, add: bool) {
        if let Some(node) = &relations.node {
            step(&mut self.by_node, node, name, add);
        }
        for service in &relations.services {
            step(&mut self.by_service, service, name, add);
        }
        for waypoint in &relations.waypoints {
            step(&mut self.waypoints, name, waypoint, add);
        }
    }

    /// The workloads of a node.
    pub fn of_node(&self, node: &str) -> impl Iterator<Item = &Str> {
        of(&self.by_node, node)
    }

    /// The workloads of a service.
    pub fn of_service(&self, service: &str) -> impl Iterator<Item = &Str> {
        of(&self.by_service, service)
    }

    /// What is to be known along with these resources: their endpoints, and the waypoints of both with theirs.
    /// `resolve` gives the resources that a name or alias means.
    #[must_use]
    pub fn along(
        &self,
        names: impl Iterator<Item = Str>,
        resolve: impl Fn(&str) -> Vec<Str>,
    ) -> BTreeSet<Str> {
        let mut all = BTreeSet::new();
        for name in names {
            all.extend(of(&self.by_service, &name).cloned());
            all.insert(name);
        }
        let waypoints: BTreeSet<&Str> = all.iter().flat_map(|name| of(&self.waypoints, name)).collect();
        let waypoints: BTreeSet<Str> = waypoints.into_iter().flat_map(|name| resolve(name)).collect();
        for waypoint in waypoints {
            all.extend(of(&self.by_service, &waypoint).cloned());
            all.insert(waypoint);
        }
        all
    }
}

fn of<'a>(index: &'a Index, key: &str) -> impl Iterator<Item = &'a Str> + use<'a> {
    index.get(key).into_iter().flat_map(Names::iter)
}

fn step(index: &mut Index, key: &Str, name: &Str, add: bool) {
    let names = index.get(key);
    let names = match add {
        true => Some(names.map_or_else(|| Names::Listed([name.clone()].into()), |names| names.with(name))),
        false => names.and_then(|names| names.without(name)),
    };
    match names {
        Some(names) => index.insert_mut(key.clone(), names),
        None => drop(index.remove_mut(key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<Str> {
        names.iter().map(|name| (*name).into()).collect()
    }

    #[test]
    fn names_are_the_same_however_they_came_about() {
        let all: Vec<Str> = (0..200).map(|number| format!("{number:03}").into()).collect();
        let mut index = Index::default();
        for (number, name) in all.iter().rev().enumerate() {
            step(&mut index, &"n".into(), name, true);
            step(&mut index, &"n".into(), name, true);
            assert_eq!(of(&index, "n").count(), number + 1);
        }
        assert!(of(&index, "n").eq(&all));
        for left in (1..200).rev() {
            step(&mut index, &"n".into(), &all[left], false);
            step(&mut index, &"n".into(), &all[left], false);
            let mut anew = Index::default();
            all[..left]
                .iter()
                .for_each(|name| step(&mut anew, &"n".into(), name, true));
            assert_eq!(index, anew, "{left} left");
        }
        step(&mut index, &"n".into(), &all[0], false);
        assert_eq!(index, Index::default());
    }

    #[test]
    fn a_service_brings_its_endpoints_and_its_waypoint_with_its_endpoints() {
        let mut around = Around::default();
        let relations = |services: &[&str], waypoints: &[&str]| Relations {
            node: Some("n1".into()),
            services: names(services),
            waypoints: names(waypoints),
        };
        around.set(&"web".into(), &relations(&["shop/web"], &[]), true);
        around.set(&"way-1".into(), &relations(&["shop/way"], &[]), true);
        around.set(&"other".into(), &relations(&["shop/other"], &[]), true);
        let service = Relations {
            waypoints: names(&["/10.0.0.9"]),
            ..Relations::default()
        };
        around.set(&"shop/web".into(), &service, true);
        let resolve = |alias: &str| names(&[if alias == "/10.0.0.9" { "shop/way" } else { alias }]);
        let along = |around: &Around| around.along(names(&["shop/web"]).into_iter(), resolve);
        assert!(
            along(&around)
                .into_iter()
                .eq(names(&["shop/way", "shop/web", "way-1", "web"]))
        );
        assert!(around.of_node("n1").eq(&names(&["other", "way-1", "web"])));
        around.set(&"shop/web".into(), &service, false);
        around.set(&"web".into(), &relations(&["shop/web"], &[]), false);
        assert!(along(&around).into_iter().eq(names(&["shop/web"])));
    }
}
