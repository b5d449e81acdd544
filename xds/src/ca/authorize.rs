//! Who may have which identity: a pure decision from the caller, what it asks for, and what runs where.

use std::time::Duration;

use tulle_model::{Identity, Reason, Str};

use crate::serve::authenticate::Principal;
use crate::snapshot::Placement;

/// Why a certificate was not issued. The token goes to authenticated callers only.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No credential, or none that is known.
    #[error("the caller is not known")]
    Unauthenticated,
    /// No workload with the identity runs on the caller's node.
    #[error(
        "no workload with identity {identity} is placed on node {node} ({})",
        Reason::NotPlacedOnNode
    )]
    NotOnNode {
        /// The identity asked for.
        identity: Identity,
        /// The caller's node.
        node: Str,
    },
    /// The caller's token is bound to a pod that is not there.
    #[error("{0}")]
    NoSuchPod(Str),
    /// The identity belongs to another trust domain.
    #[error("identity {identity} is not of trust domain {trust_domain}")]
    TrustDomain {
        /// The identity asked for.
        identity: Identity,
        /// Ours.
        trust_domain: Str,
    },
    /// The caller is known, and is no node that may ask for others.
    #[error("{0}")]
    NodeNotTrusted(&'static str),
    /// The caller may not have what it asks for, or asks for nothing that can be read.
    #[error("{0}")]
    IdentityDenied(&'static str),
    /// Whom the certificate is for is not said, or cannot be read.
    #[error("{0}")]
    NoIdentity(&'static str),
    /// The request itself is bad.
    #[error("{0}")]
    CsrInvalid(#[from] crate::ca::issue::InvalidCsr),
    /// Too many requests.
    #[error("too many requests of this node; try again in {} ms", .retry_after.as_millis())]
    RateLimited {
        /// When a request has a chance again.
        retry_after: Duration,
    },
    /// The issuer's certificate has ended or not begun.
    #[error("the issuer's certificate is not valid now")]
    IssuerExpired,
    /// The sources were not read completely yet.
    #[error("the control plane is still reading its sources")]
    IndexNotSynced,
    /// Signing failed.
    #[error("the certificate could not be signed")]
    SigningFailed,
}

impl Refusal {
    /// The stable token.
    #[must_use]
    pub fn token(&self) -> &'static str {
        match self {
            Self::Unauthenticated | Self::NodeNotTrusted(_) => "NODE_NOT_TRUSTED",
            Self::NotOnNode { .. } => "POD_NOT_ON_NODE",
            Self::NoSuchPod(_) => "POD_UID_MISMATCH",
            Self::TrustDomain { .. } => "TRUST_DOMAIN_MISMATCH",
            Self::IdentityDenied(_) | Self::NoIdentity(_) => "IDENTITY_DENIED",
            Self::CsrInvalid(_) => "CSR_INVALID",
            Self::RateLimited { .. } => "RATE_LIMITED",
            Self::IssuerExpired => "ISSUER_EXPIRED",
            Self::IndexNotSynced => "INDEX_NOT_SYNCED",
            Self::SigningFailed => "SIGNING_FAILED",
        }
    }
}

/// With what a workload proves that it is itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// A token of its own, with the node of the pod that it is bound to, if it is bound to one: it ends with its pod.
    Token(Option<Str>),
    /// A certificate, with the node it was issued to, if it was issued to one.
    Certificate(Option<Str>),
}

/// What is signed for, and what that hangs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Whom the certificate names.
    pub identity: Identity,
    /// The node it is issued to; of what a workload that is no pod gets for itself, the identity.
    pub place: Str,
}

/// What may be done with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Sign.
    Issue(Grant),
    /// The placement may not have arrived yet; the refusal holds if it does not soon.
    Wait(Refusal),
    /// Never.
    Refuse(Refusal),
}

/// Decides about a request of `caller`, which asks for the identity `impersonated`.
///
/// A workload gets its own identity and never another one. By a certificate it does for as long as it is placed on the node
/// that the certificate was issued to: that node has its key. A node holds no workload identity of its own, so a request
/// without one is refused. Nothing of the CSR is asked.
#[must_use]
pub fn authorize(
    (caller, proof): (&Principal, &Proof),
    impersonated: Option<&str>,
    trust_domain: &Str,
    placement: &Placement,
    synced: bool,
) -> Decision {
    let node = match (caller, impersonated) {
        (Principal::Node(node), _) => node,
        (Principal::Workload(identity), None) if identity.trust_domain == *trust_domain => {
            return own(identity.clone(), proof, placement, synced);
        }
        (Principal::Workload(_), _) => {
            return Decision::Refuse(Refusal::NodeNotTrusted(
                "only node proxies may ask for other identities",
            ));
        }
    };
    let Some(text) = impersonated else {
        let refusal = Refusal::NoIdentity("a node token has no workload identity; name one to impersonate");
        return Decision::Refuse(refusal);
    };
    let Ok(identity) = text.parse::<Identity>() else {
        return Decision::Refuse(Refusal::NoIdentity(
            "the impersonated identity is no workload identity",
        ));
    };
    if identity.trust_domain != *trust_domain {
        return Decision::Refuse(Refusal::TrustDomain {
            identity,
            trust_domain: trust_domain.clone(),
        });
    }
    placed(identity, node.clone(), placement, synced)
}

/// A workload asks for itself.
fn own(identity: Identity, proof: &Proof, placement: &Placement, synced: bool) -> Decision {
    match proof {
        Proof::Token(node) => {
            let place = node.clone().unwrap_or_else(|| identity.to_string().into());
            Decision::Issue(Grant { identity, place })
        }
        Proof::Certificate(Some(node)) => placed(identity, node.clone(), placement, synced),
        Proof::Certificate(None) => Decision::Refuse(Refusal::IdentityDenied(
            "a certificate that was issued to no node known here is followed by no other; show a token of the workload",
        )),
    }
}

/// For a workload of a node.
fn placed(identity: Identity, node: Str, placement: &Placement, synced: bool) -> Decision {
    if placement.holds(&node, &identity) {
        return Decision::Issue(Grant {
            identity,
            place: node,
        });
    }
    if !synced {
        return Decision::Wait(Refusal::IndexNotSynced);
    }
    Decision::Wait(Refusal::NotOnNode { identity, node })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

    fn granted(place: &str) -> Decision {
        Decision::Issue(Grant {
            identity: WEB.parse().unwrap(),
            place: place.into(),
        })
    }

    fn decide(node: &str, impersonated: Option<&str>) -> Decision {
        let mut placement = Placement::default();
        placement.place("n1".into(), BTreeSet::from([WEB.parse().unwrap()]));
        placement.place(
            "n2".into(),
            BTreeSet::from([Identity::new("cluster.local", "shop", "other")]),
        );
        authorize(
            (&Principal::Node(node.into()), &Proof::Token(None)),
            impersonated,
            &"cluster.local".into(),
            &placement,
            true,
        )
    }

    #[test]
    fn a_node_gets_the_identities_placed_on_it() {
        assert_eq!(decide("n1", Some(WEB)), granted("n1"));
    }

    #[test]
    fn an_identity_of_another_node_is_not_issued() {
        let Decision::Wait(refusal) = decide("n2", Some(WEB)) else {
            panic!("must not be issued");
        };
        assert_eq!(refusal.token(), "POD_NOT_ON_NODE");
        assert!(refusal.to_string().contains("T0305"));
    }

    #[test]
    fn another_trust_domain_is_refused_at_once() {
        let Decision::Refuse(refusal) = decide("n1", Some("spiffe://other/ns/shop/sa/web")) else {
            panic!("must be refused");
        };
        assert_eq!(refusal.token(), "TRUST_DOMAIN_MISMATCH");
    }

    fn own_of_pod(identity: Identity, node: &str) -> Decision {
        let proof = Proof::Token(Some(node.into()));
        own(identity, &proof, &Placement::default(), true)
    }

    #[test]
    fn a_workload_gets_its_own_identity_and_never_another() {
        let caller = Principal::Workload(WEB.parse().unwrap());
        let decide = |impersonated| {
            authorize(
                (&caller, &Proof::Token(None)),
                impersonated,
                &"cluster.local".into(),
                &Placement::default(),
                true,
            )
        };
        assert_eq!(decide(None), granted(WEB));
        let own = WEB.parse().unwrap();
        let of_pod = own_of_pod(own, "n1");
        assert_eq!(of_pod, granted("n1"), "the node of its pod has its key");
        for other in [WEB, "spiffe://cluster.local/ns/shop/sa/other"] {
            let Decision::Refuse(refusal) = decide(Some(other)) else {
                panic!("{other} must be refused");
            };
            assert_eq!(refusal.token(), "NODE_NOT_TRUSTED", "{other}");
        }
    }

    #[test]
    fn a_certificate_is_followed_by_another_while_its_workload_is_on_the_node_that_got_it() {
        let caller = Principal::Workload(WEB.parse().unwrap());
        let mut placement = Placement::default();
        placement.place("n1".into(), BTreeSet::from([WEB.parse().unwrap()]));
        let decide = |node: Option<&str>, synced| {
            let proof = Proof::Certificate(node.map(Str::from));
            authorize(
                (&caller, &proof),
                None,
                &"cluster.local".into(),
                &placement,
                synced,
            )
        };
        assert_eq!(decide(Some("n1"), true), granted("n1"));
        let refused = |decision| match decision {
            Decision::Wait(refusal) | Decision::Refuse(refusal) => refusal.token(),
            Decision::Issue(_) => "issued",
        };
        assert_eq!(refused(decide(Some("n2"), true)), "POD_NOT_ON_NODE");
        assert_eq!(refused(decide(Some("n2"), false)), "INDEX_NOT_SYNCED");
        assert_eq!(refused(decide(None, true)), "IDENTITY_DENIED");
    }

    #[test]
    fn a_node_has_no_identity_of_its_own() {
        for impersonated in [
            None,
            Some(""),
            Some("web"),
            Some("spiffe://cluster.local/ns/shop/sa/web\0"),
        ] {
            let decision = decide("n1", impersonated);
            assert!(!matches!(decision, Decision::Issue(_)), "{impersonated:?}");
        }
    }
}
