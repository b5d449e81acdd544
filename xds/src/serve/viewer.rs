//! Whom a stream belongs to, as far as what it may receive goes.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tulle_model::{Identity, Str};
use tulle_proto::names::{DRY_RUN_FEATURE, TRUST_FEATURE};

use crate::snapshot::{ResourceType, Scope, Slot};

/// Number of the field `dry_run` in an Authorization.
const DRY_RUN_FIELD: u32 = 6;

/// A client as an audience. What it is comes from its credential, what it understands from its first message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Viewer {
    place: Place,
    features: Features,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// The proxy or agent of a node.
    Node(Str),
    /// The proxy of one workload.
    Workload(Identity),
    /// An instance of a waypoint, `<namespace>/<gateway>`.
    Waypoint(Str),
}

/// What a client understands beyond Istio's messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Features {
    /// It takes roots and deny-lists as resources.
    pub trust: bool,
    /// It knows policies that are judged and not enforced. To others such a policy would be an enforced one.
    pub dry_run: bool,
}

impl Features {
    /// Reads the comma-joined list of a client's metadata. Unknown words are of newer clients.
    #[must_use]
    pub fn parse(list: &str) -> Self {
        let mut features = Self::default();
        for word in list.split(',').map(str::trim) {
            features.trust |= word == TRUST_FEATURE;
            features.dry_run |= word == DRY_RUN_FEATURE;
        }
        features
    }
}

impl Viewer {
    /// The proxy or agent of a node.
    pub fn node(name: impl Into<Str>) -> Self {
        Self {
            place: Place::Node(name.into()),
            features: Features::default(),
        }
    }

    /// An instance of a waypoint, `<namespace>/<gateway>`.
    pub fn of_waypoint(name: impl Into<Str>) -> Self {
        Self {
            place: Place::Waypoint(name.into()),
            features: Features::default(),
        }
    }

    /// The proxy of one workload, wherever that runs. It gets the addresses of the mesh and the policies that the
    /// workload is judged by.
    #[must_use]
    pub fn of_workload(identity: Identity) -> Self {
        Self {
            place: Place::Workload(identity),
            features: Features::default(),
        }
    }

    /// The same client with these features.
    #[must_use]
    pub fn with(self, features: Features) -> Self {
        Self { features, ..self }
    }

    /// The waypoint it is an instance of, if it is one.
    #[must_use]
    pub fn waypoint(&self) -> Option<&str> {
        match &self.place {
            Place::Waypoint(name) => Some(name),
            Place::Node(_) | Place::Workload(_) => None,
        }
    }

    /// Its node, if it is the proxy or agent of one.
    #[must_use]
    pub fn node_name(&self) -> Option<&str> {
        match &self.place {
            Place::Node(node) => Some(node),
            Place::Workload(_) | Place::Waypoint(_) => None,
        }
    }

    /// Its node, if it is a proxy that announces nothing of ours, such as Istio's ztunnel.
    #[must_use]
    pub fn foreign_node(&self) -> Option<&str> {
        match &self.place {
            Place::Node(node) if self.features == Features::default() => Some(node),
            _ => None,
        }
    }

    /// What it understands.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features
    }

    /// Whether it may receive this resource at all, as far as the resource itself tells.
    #[must_use]
    pub fn receives(&self, ty: ResourceType, slot: &Slot) -> bool {
        match ty {
            ResourceType::Trust => self.features.trust,
            ResourceType::Authorization => match &self.place {
                Place::Node(_) | Place::Workload(_) => {
                    self.is_within(&slot.scope) && (self.features.dry_run || !is_dry_run(&slot.body))
                }
                // Which policies judge a waypoint's own replicas is not the policy's to say, but the cut's.
                Place::Waypoint(_) => false,
            },
            _ => self.is_within(&slot.scope),
        }
    }

    fn is_within(&self, scope: &Scope) -> bool {
        match &self.place {
            Place::Node(node) => scope.reaches(node),
            Place::Workload(identity) => scope.reaches_workload(identity),
            Place::Waypoint(waypoint) => scope.reaches_waypoint(waypoint),
        }
    }
}

/// Whether an encoded Authorization is one that is only judged. Reads the outermost fields and skips what is in them.
fn is_dry_run(mut body: &[u8]) -> bool {
    while let Ok((field, wire_type)) = decode_key(&mut body) {
        if field == DRY_RUN_FIELD && wire_type == WireType::Varint {
            return decode_varint(&mut body).is_ok_and(|value| value != 0);
        }
        if skip_field(wire_type, field, &mut body, DecodeContext::default()).is_err() {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use bytes::Bytes;
    use tulle_model::testing::deny;

    use super::*;
    use crate::snapshot::{InNamespace, Order};

    fn slot(body: Bytes, scope: Scope) -> Slot {
        Slot {
            name: "shop/p".into(),
            aliases: [].into(),
            version: "1".into(),
            body,
            sequence: 1,
            order: Order::Policy,
            scope,
        }
    }

    fn policy(dry_run: bool) -> Slot {
        let mut policy = deny("shop/p").build();
        policy.dry_run = dry_run;
        slot(tulle_proto::encode_authorization(&policy).into(), Scope::Everyone)
    }

    #[test]
    fn a_dry_run_goes_to_those_who_know_what_it_is() {
        let plain = Viewer::node("n1");
        let knowing = plain.clone().with(Features::parse("dry-run"));
        let ty = ResourceType::Authorization;
        assert!(plain.receives(ty, &policy(false)) && knowing.receives(ty, &policy(false)));
        assert!(!plain.receives(ty, &policy(true)));
        assert!(knowing.receives(ty, &policy(true)));
    }

    #[test]
    fn a_workloads_own_proxy_gets_its_policies_and_not_those_of_others() {
        let web = Identity::new("cluster.local", "shop", "web");
        let viewer = Viewer::of_workload(web.clone());
        let body = policy(false).body;
        let gets = |scope: Scope| viewer.receives(ResourceType::Authorization, &slot(body.clone(), scope));
        let nodes = |names: &[&str]| Arc::new(names.iter().map(|name| Str::from(*name)).collect());
        assert!(gets(Scope::Everyone));
        for (namespace, own) in [("shop", true), ("other", false)] {
            let of_namespace = Scope::Namespace(Arc::new(InNamespace {
                namespace: namespace.into(),
                nodes: ["n1".into()].into(),
            }));
            assert_eq!(gets(of_namespace), own, "{namespace}");
        }
        for (holders, own) in [(["n1", &*web.to_string()], true), (["n1", "n2"], false)] {
            let nodes = nodes(&holders);
            assert_eq!(gets(Scope::Workloads { nodes }), own, "{holders:?}");
        }
        let waypoints = Arc::new(BTreeSet::from(["shop/way".into()]));
        assert!(!viewer.receives(
            ResourceType::Route,
            &slot(Bytes::new(), Scope::Waypoints { waypoints })
        ));
    }

    #[test]
    fn trust_goes_to_those_who_ask_for_the_feature() {
        let trust = slot(Bytes::new(), Scope::Everyone);
        assert!(!Viewer::node("n1").receives(ResourceType::Trust, &trust));
        let knowing = Viewer::node("n1").with(Features::parse("new-thing, trust"));
        assert!(knowing.receives(ResourceType::Trust, &trust));
    }

    #[test]
    fn a_waypoint_gets_its_own_configuration_and_no_node_gets_any() {
        let waypoints = Arc::new(BTreeSet::from(["shop/way".into()]));
        let route = slot(Bytes::new(), Scope::Waypoints { waypoints });
        assert!(Viewer::of_waypoint("shop/way").receives(ResourceType::Route, &route));
        assert!(!Viewer::of_waypoint("shop/other").receives(ResourceType::Route, &route));
        assert!(!Viewer::node("n1").receives(ResourceType::Route, &route));
        assert!(!Viewer::of_waypoint("shop/way").receives(ResourceType::Authorization, &policy(false)));
    }
}
