//! The pods that tokens can be bound to. Nothing is asked of them but whether they are there and on which node, so a short
//! digest is kept of each beside the name of its node, which all of that node share: 32 bytes, whatever its names are.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::digest;
use rpds::RedBlackTreeMapSync;
use tulle_model::Str;

/// Groups that pods are kept in. A change copies one of them: 25 digests of 100,000 pods.
const GROUPS: u128 = 4_096;

/// One life of one pod under its service account: what a token is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    /// Namespace of pod and account.
    pub namespace: Str,
    /// The service account.
    pub account: Str,
    /// The pod.
    pub pod: Str,
    /// Tells it from others that had, or will have, its name.
    pub uid: Str,
}

impl Bearer {
    /// The first half of a SHA-256 over the parts and their lengths.
    fn digest(&self) -> u128 {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in [&self.namespace, &self.account, &self.pod, &self.uid] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        let whole = context.finish();
        let (half, _) = whole.as_ref().split_at(size_of::<u128>());
        u128::from_be_bytes(half.try_into().expect("half of a SHA-256 is sixteen bytes"))
    }
}

/// A pod and its node.
type Placed = (u128, Str);

/// The pods that are there. Cloning costs a reference count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bearers {
    /// Each in order of the digests.
    groups: RedBlackTreeMapSync<u16, Arc<[Placed]>>,
}

impl Bearers {
    /// Whether this pod is there.
    #[must_use]
    pub fn has(&self, bearer: &Bearer) -> bool {
        self.node_of(bearer).is_some()
    }

    /// The node of this pod, if it is there; empty until it has one.
    #[must_use]
    pub fn node_of(&self, bearer: &Bearer) -> Option<&Str> {
        let digest = bearer.digest();
        let group = self.groups.get(&group_of(digest))?;
        let at = find(group, digest).ok()?;
        group.get(at).map(|(_, node)| node)
    }

    /// Takes over what changed.
    pub fn change(&mut self, moves: Moves) {
        for (group, moves) in moves.groups {
            let mut held: Vec<Placed> = self
                .groups
                .get(&group)
                .map_or_else(Vec::new, |held| held.to_vec());
            for (digest, came) in moves {
                match (find(&held, digest), came) {
                    (Err(at), Some(node)) => held.insert(at, (digest, node)),
                    (Ok(at), Some(node)) => held[at].1 = node,
                    (Ok(at), None) => {
                        held.remove(at);
                    }
                    (Err(_), None) => {}
                }
            }
            if held.is_empty() {
                self.groups.remove_mut(&group);
            } else {
                self.groups.insert_mut(group, held.into());
            }
        }
    }
}

/// Pods that came and went, in that order, to be taken over at once.
#[derive(Debug, Default)]
pub struct Moves {
    /// With the node, of those that came.
    groups: BTreeMap<u16, Vec<(u128, Option<Str>)>>,
}

impl Moves {
    /// A pod is there now, on this node; empty is none yet.
    pub fn came(&mut self, bearer: &Bearer, node: Str) {
        self.add(bearer, Some(node));
    }

    /// A pod is not there any more.
    pub fn went(&mut self, bearer: &Bearer) {
        self.add(bearer, None);
    }

    fn add(&mut self, bearer: &Bearer, came: Option<Str>) {
        let digest = bearer.digest();
        let moves = self.groups.entry(group_of(digest)).or_default();
        moves.push((digest, came));
    }
}

fn find(group: &[Placed], digest: u128) -> Result<usize, usize> {
    group.binary_search_by_key(&digest, |(digest, _)| *digest)
}

fn group_of(digest: u128) -> u16 {
    u16::try_from(digest % GROUPS).expect("there are fewer groups than numbers of them")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(namespace: &str, account: &str, pod: &str, uid: &str) -> Bearer {
        Bearer {
            namespace: namespace.into(),
            account: account.into(),
            pod: pod.into(),
            uid: uid.into(),
        }
    }

    #[test]
    fn a_pod_is_known_by_every_part_of_it() {
        let mut bearers = Bearers::default();
        let mut moves = Moves::default();
        moves.came(&bearer("shop", "web", "web-0", "u1"), "n1".into());
        bearers.change(moves);
        assert!(bearers.has(&bearer("shop", "web", "web-0", "u1")));
        for other in [
            bearer("shop", "web", "web-0", "u2"),
            bearer("shop", "web", "web-1", "u1"),
            bearer("shop", "db", "web-0", "u1"),
            bearer("other", "web", "web-0", "u1"),
            bearer("shop", "web", "web-0u", "1"),
            bearer("", "", "", ""),
        ] {
            assert!(!bearers.has(&other), "{other:?}");
        }
    }

    #[test]
    fn a_pod_gets_its_node_when_it_is_given_one() {
        let (mut bearers, pod) = (Bearers::default(), bearer("shop", "web", "web-0", "u1"));
        for node in ["", "n1"] {
            let mut moves = Moves::default();
            moves.went(&pod);
            moves.came(&pod, node.into());
            bearers.change(moves);
            assert_eq!(bearers.node_of(&pod).map(|node| &**node), Some(node));
        }
        assert_eq!(bearers.node_of(&bearer("shop", "web", "web-0", "u2")), None);
    }

    #[test]
    fn who_comes_and_goes_leaves_nothing_behind() {
        let pods = || (0..10_000).map(|at| bearer("shop", "web", &format!("web-{at}"), &format!("u-{at}")));
        let (mut bearers, mut moves) = (Bearers::default(), Moves::default());
        pods().for_each(|pod| moves.came(&pod, "n1".into()));
        bearers.change(moves);
        assert!(pods().all(|pod| bearers.has(&pod)));
        let before = bearers.clone();
        let mut moves = Moves::default();
        // One comes again under its name, as a pod of a stateful set does.
        moves.went(&bearer("shop", "web", "web-7", "u-7"));
        moves.came(&bearer("shop", "web", "web-7", "u-new"), "n2".into());
        bearers.change(moves);
        assert!(bearers.has(&bearer("shop", "web", "web-7", "u-new")));
        assert!(!bearers.has(&bearer("shop", "web", "web-7", "u-7")));
        assert!(
            before.has(&bearer("shop", "web", "web-7", "u-7")),
            "cuts do not change"
        );
        let mut moves = Moves::default();
        pods().for_each(|pod| moves.went(&pod));
        moves.went(&bearer("shop", "web", "web-7", "u-new"));
        bearers.change(moves);
        assert_eq!(bearers, Bearers::default());
    }
}
