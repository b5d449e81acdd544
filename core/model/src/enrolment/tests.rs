//! Who is enrolled, one rule each.

use super::*;

const SHOP: NamespaceFacts<'_> = NamespaceFacts {
    name: "shop",
    dataplane_mode: None,
};
const AMBIENT: NamespaceFacts<'_> = NamespaceFacts {
    name: "shop",
    dataplane_mode: Some("ambient"),
};

fn decide(pod: PodFacts<'_>, namespace: NamespaceFacts<'_>) -> Decision {
    enrolled(&pod, &namespace, &MeshFacts::new("istio-system"))
}

fn labelled(mode: &str) -> PodFacts<'_> {
    PodFacts {
        dataplane_mode: Some(mode),
        ..PodFacts::default()
    }
}

#[test]
fn what_is_never_enrolled_beats_every_label() {
    let pod = labelled("ambient");
    for (pod, namespace, because) in [
        (
            PodFacts {
                host_network: true,
                ..pod
            },
            AMBIENT,
            OutBecause::HostNetwork,
        ),
        (
            PodFacts {
                has_sidecar: true,
                ..pod
            },
            AMBIENT,
            OutBecause::Sidecar,
        ),
        (
            pod,
            NamespaceFacts {
                name: "kube-system",
                ..AMBIENT
            },
            OutBecause::ExcludedNamespace,
        ),
        (
            pod,
            NamespaceFacts {
                name: "istio-system",
                ..AMBIENT
            },
            OutBecause::ExcludedNamespace,
        ),
    ] {
        assert_eq!(decide(pod, namespace), Decision::Out { because });
    }
}

#[test]
fn the_pods_label_beats_the_namespaces() {
    assert_eq!(
        decide(labelled("ambient"), SHOP),
        Decision::In {
            because: InBecause::PodLabel
        }
    );
    assert_eq!(
        decide(labelled("none"), AMBIENT),
        Decision::Out {
            because: OutBecause::PodLabel
        }
    );
}

#[test]
fn an_unknown_pod_value_does_not_opt_out() {
    assert_eq!(
        decide(labelled("sidecar"), AMBIENT),
        Decision::In {
            because: InBecause::NamespaceLabel
        }
    );
    assert_eq!(
        decide(labelled("sidecar"), SHOP),
        Decision::Out {
            because: OutBecause::NotLabelled
        }
    );
}

#[test]
fn without_any_label_a_pod_stays_out() {
    assert_eq!(
        decide(PodFacts::default(), SHOP),
        Decision::Out {
            because: OutBecause::NotLabelled
        }
    );
}

#[test]
fn enrolment_means_hbone_only_where_the_node_captures_by_it() {
    let pod = PodFacts::default();
    let decision = decide(pod, AMBIENT);
    assert_eq!(tunnel(&pod, decision, true).protocol, TunnelProtocol::Hbone);
    assert_eq!(tunnel(&pod, decision, false).protocol, TunnelProtocol::None);
    assert_eq!(
        tunnel(&pod, decide(pod, SHOP), true).protocol,
        TunnelProtocol::None
    );
}

#[test]
fn redirection_and_native_tunnels_are_hbone_without_enrolment() {
    let out = Decision::Out {
        because: OutBecause::NotLabelled,
    };
    let redirected = PodFacts {
        redirection: Some("enabled"),
        ..PodFacts::default()
    };
    assert_eq!(
        tunnel(&redirected, out, false),
        Tunnel {
            protocol: TunnelProtocol::Hbone,
            native: false
        }
    );
    let native = PodFacts {
        tunnel: Some("http"),
        ..PodFacts::default()
    };
    assert_eq!(
        tunnel(&native, out, false),
        Tunnel {
            protocol: TunnelProtocol::Hbone,
            native: true
        }
    );
}

#[test]
fn facts_are_read_by_their_keys() {
    let label = |key: &str| (key == DATAPLANE_MODE_LABEL).then_some("ambient");
    let annotation = |key: &str| (key == SIDECAR_STATUS_ANNOTATION).then_some("{}");
    let facts = PodFacts::read(false, label, annotation);
    assert_eq!(facts.dataplane_mode, Some("ambient"));
    assert!(facts.has_sidecar);
}
