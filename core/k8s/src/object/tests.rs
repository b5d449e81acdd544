use super::*;
use crate::document::documents;

fn reading(text: &str) -> Reading {
    read(documents(text)[0].as_ref().expect("readable"))
}

#[test]
fn a_missing_namespace_is_default() {
    let Reading::Good { key, object, .. } = reading("apiVersion: v1\nkind: Service\nmetadata: {name: a}\n")
    else {
        panic!("good");
    };
    assert_eq!(key.to_string(), "Service default/a");
    assert_eq!(&*object.meta().namespace, "default");
}

#[test]
fn an_unknown_field_warns_and_is_an_error_in_security_kinds() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  selectr: {app: a}\n";
    let Reading::Good { warnings, .. } = reading(service) else {
        panic!("good")
    };
    assert_eq!(
        warnings[0].to_string(),
        "line 5, column 3: there is no field `spec.selectr`; did you mean `selector`?"
    );
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec:\n  rules:\n  - from:\n    - source:\n        principles: [x]\n";
    let Reading::Bad { faults, stand_in, .. } = reading(policy) else {
        panic!("bad")
    };
    assert_eq!(
        faults[0].to_string(),
        "line 8, column 9: there is no field `spec.rules[0].from[0].source.principles`; did you mean `principals`?"
    );
    assert!(stand_in.is_some());
}

#[test]
fn a_value_that_does_not_fit_names_its_place_and_the_fix() {
    let entry = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: a}\nspec:\n  address: 10.0.0.1\n  labels:\n    version: 1\n";
    let Reading::Bad { faults, stand_in, .. } = reading(entry) else {
        panic!("bad")
    };
    assert_eq!(
        faults[0].to_string(),
        "line 7, column 14: `spec.labels.version`: invalid type: integer `1`, expected a string; put the value in quotes"
    );
    assert!(stand_in.is_none());
}

#[test]
fn kinds_that_are_not_read_are_skipped() {
    let skipped = |version: &str, kind: &str| {
        let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n");
        match reading(&text) {
            Reading::Skipped(unread) => unread,
            other => panic!("{other:?}"),
        }
    };
    for (version, kind, weight) in [
        ("apps/v1", "Deployment", Weight::Foreign),
        ("serving.knative.dev/v1", "Service", Weight::Foreign),
        ("v1", "ServiceAccount", Weight::Foreign),
        ("v1", "Servce", Weight::Misspelt),
        ("networking.istio.io/v1", "VirtualService", Weight::Replaced),
        ("gateway.networking.k8s.io/v1", "HttpRoute", Weight::Misspelt),
        ("securty.istio.io/v1", "AuthorizationPolicy", Weight::Misspelt),
        ("security.istio.io/v1", "AuthorisationPolicy", Weight::Restricts),
    ] {
        assert_eq!(skipped(version, kind).weight, weight, "{version} {kind}");
    }
    let misspelt = skipped("gateway.networking.k8s.io/v1", "HttpRoute");
    assert!(misspelt.fault.fix.contains("HTTPRoute"), "{}", misspelt.fault);
}

#[test]
fn what_is_not_read_may_be_an_object_whose_kind_or_group_was_spoilt_and_no_neighbour_of_it() {
    let may_be = |version: &str, kind: &str, key: &Key| {
        let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a, namespace: shop}}\n");
        match reading(&text) {
            Reading::Skipped(unread) => unread.may_be(key),
            other => panic!("{other:?}"),
        }
    };
    let service = Key::new(Kind::Service, "shop", "a");
    let policy = Key::new(Kind::AuthorizationPolicy, "shop", "a");
    assert!(may_be("v1", "Servce", &service));
    assert!(may_be("security.istio.io/v1", "AuthorisationPolicy", &policy));
    assert!(may_be("securty.istio.io/v1", "AuthorizationPolicy", &policy));
    assert!(!may_be("v1", "Servce", &Key::new(Kind::Service, "shop", "b")));
    assert!(!may_be("v1", "Servce", &policy));
    // What stands beside an object of its name in most files.
    assert!(!may_be("v1", "ServiceAccount", &service));
    assert!(!may_be("apps/v1", "Deployment", &service));
    let entry = Key::new(Kind::ServiceEntry, "shop", "a");
    assert!(!may_be("networking.istio.io/v1", "VirtualService", &entry));
}

#[test]
fn a_name_that_is_no_name_is_not_trusted_as_a_key() {
    for name in ["../../etc/passwd", "a/b", "UPPER", "", "-a", "a\u{7}"] {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: \"{name}\"}}\n");
        let documents = documents(&text);
        if let Ok(node) = &documents[0] {
            assert!(
                matches!(
                    read(node),
                    Reading::Unknown {
                        may_restrict: false,
                        ..
                    }
                ),
                "{name}"
            );
        }
    }
}

#[test]
fn a_stand_in_keeps_a_readable_selector() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\nspec:\n  selector: {matchLabels: {app: web}}\n  rules: 7\n";
    let Reading::Bad { stand_in, .. } = reading(text) else {
        panic!("bad")
    };
    let stand_in = stand_in.expect("a security kind");
    let Object::AuthorizationPolicy(policy) = &*stand_in else {
        panic!("policy")
    };
    assert!(policy.spec.selector.is_some());
    assert!(!policy.unreadable.as_ref().expect("unreadable").selector);
}

#[test]
fn a_selector_that_cannot_be_honoured_is_unreadable() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\nspec:\n  selector: {matchExpressions: []}\n";
    let Reading::Bad { stand_in, .. } = reading(text) else {
        panic!("bad")
    };
    let stand_in = stand_in.expect("a security kind");
    let Object::AuthorizationPolicy(policy) = &*stand_in else {
        panic!("policy")
    };
    assert!(policy.unreadable.as_ref().expect("unreadable").selector);
}

#[test]
fn a_rare_kind_does_not_make_the_common_ones_large() {
    let (object, pod) = (size_of::<Object>(), size_of::<Pod>());
    assert!(object <= pod + 8, "{object} bytes for a pod of {pod}");
    // There may be a hundred thousand of them; lists that pods have in common and what few have stand apart.
    assert!(pod <= 280, "{pod} bytes");
}

/// What stands in for a policy of this kind, attached to this; `None` if it is good.
fn lost(kind: &str, targets: &str) -> Option<bool> {
    let (group, asks) = match kind {
        "TrafficPolicy" => ("tulle.dev/v1alpha1", ", externalAuth: {provider: {name: opa}}"),
        _ => ("security.istio.io/v1", ""),
    };
    let text = format!(
        "apiVersion: {group}\nkind: {kind}\nmetadata: {{name: a, namespace: shop}}\nspec: {{{targets}{asks}}}\n"
    );
    let stand_in = match reading(&text) {
        Reading::Good { .. } => return None,
        Reading::Bad { stand_in, .. } => stand_in.expect("a security kind"),
        other => panic!("{other:?}"),
    };
    let unreadable = match &*stand_in {
        Object::AuthorizationPolicy(policy) => &policy.unreadable,
        Object::RequestAuthentication(policy) => &policy.unreadable,
        Object::TrafficPolicy(policy) => &policy.unreadable,
        other => panic!("{other:?}"),
    };
    Some(unreadable.as_ref().expect("unreadable").selector)
}

#[test]
fn r313_a_target_that_means_nothing_is_a_reach_that_cannot_be_read() {
    for kind in ["AuthorizationPolicy", "RequestAuthentication", "TrafficPolicy"] {
        for good in [
            "{kind: Service, name: web}",
            "{group: '', kind: Service, name: web}",
            "{group: core, kind: Service, name: web}",
            "{group: networking.istio.io, kind: ServiceEntry, name: web}",
            "{group: gateway.networking.k8s.io, kind: Gateway, name: way}",
            "{kind: Gateway, name: way}",
            "{group: gateway.networking.k8s.io, kind: GatewayClass, name: way}",
            "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}",
            "{group: gateway.networking.k8s.io, kind: GRPCRoute, name: r}",
            "{group: gateway.networking.k8s.io, kind: TLSRoute, name: r}",
            "{group: gateway.networking.k8s.io, kind: TCPRoute, name: r}",
        ] {
            assert_eq!(
                lost(kind, &format!("targetRefs: [{good}]")),
                None,
                "{kind} {good}"
            );
        }
        for bad in [
            "{kind: Servce, name: web}",
            "{kind: service, name: web}",
            "{kind: Deployment, group: apps, name: web}",
            "{kind: Service, group: serving.knative.dev, name: web}",
            "{kind: Service, group: networking.istio.io, name: web}",
            "{kind: ServiceEntry, group: core, name: web}",
            "{kind: Gateway, group: networking.istio.io, name: way}",
            "{kind: Service}",
            "{name: web}",
            "7",
        ] {
            let refs = format!("targetRefs: [{{kind: Service, name: web}}, {bad}]");
            assert_eq!(lost(kind, &refs), Some(true), "{kind} {refs}");
        }
    }
    for kind in ["AuthorizationPolicy", "RequestAuthentication"] {
        assert_eq!(
            lost(kind, "targetRef: {kind: Service, name: web}"),
            None,
            "{kind}"
        );
        assert_eq!(
            lost(kind, "targetRef: {kind: Servce, name: web}"),
            Some(true),
            "{kind}"
        );
        let fault = "targetRef: {kind: Service, name: web}, selectr: {}";
        assert_eq!(
            lost(kind, fault),
            Some(false),
            "{kind}: what it is attached to is known"
        );
    }
}

#[test]
fn a_target_that_means_nothing_is_told_with_its_place() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec:\n  targetRefs:\n  - {kind: Servce, group: apps, name: web}\n";
    let Reading::Bad { faults, .. } = reading(text) else {
        panic!("bad")
    };
    assert_eq!(
        faults[0].to_string(),
        "line 6, column 5: `spec.targetRefs`: Servce of group apps is nothing that a policy can be attached to; correct the value"
    );
}

#[test]
fn a_body_that_nobody_sends_along_is_refused_where_it_is_asked_for() {
    let asks = |bytes: u32| {
        reading(&format!(
            "apiVersion: tulle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: a}}\nspec:\n  externalAuth:\n    provider: {{name: opa}}\n    maxBodyBytes: {bytes}\n"
        ))
    };
    assert!(matches!(asks(8_192), Reading::Good { .. }));
    let Reading::Bad { faults, stand_in, .. } = asks(8_193) else {
        panic!("bad")
    };
    let expected = "line 7, column 19: `spec.externalAuth.maxBodyBytes`: at most 8192 bytes of a body are sent along; correct the value";
    assert_eq!(
        (faults[0].to_string().as_str(), stand_in.is_some()),
        (expected, true)
    );
}

#[test]
fn a_route_that_cannot_be_read_closes_what_somebody_was_to_decide_about() {
    let route = |kind: &str, rules: &str| {
        reading(&format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: shop}}\nspec:\n  \
             parentRefs: [{{group: '', kind: Service, name: web}}]\n  hostnames: [web.shop]\n  rules: {rules}\n"
        ))
    };
    let stand_in = |reading: Reading| match reading {
        Reading::Bad { stand_in, .. } => stand_in,
        other => panic!("{other:?}"),
    };
    let asks = "filters: [{type: ExternalAuth, externalAuth: 7}]";
    let rules = format!(
        "[{{matches: [{{path: {{type: PathPrefix, value: /admin}}}}], {asks}}}, {{backendRefs: [{{name: a, port: 80}}]}}, \
         {{matches: 7, {asks}}}, {{backendRefs: [{{name: a, port: 80, {asks}}}]}}]"
    );
    let closed = stand_in(route("HTTPRoute", &rules)).expect("a stand-in");
    assert!(closed.is_stand_in());
    let Object::HttpRoute(closed) = &*closed else {
        panic!("a route")
    };
    assert_eq!(&*closed.spec.parent_refs[0].name, "web");
    assert_eq!(&*closed.spec.hostnames[0], "web.shop");
    let paths = closed.spec.rules.iter().map(|rule| {
        let path = rule.matches.first()?.path.as_ref()?;
        path.value.as_deref()
    });
    // What cannot be read matches everything.
    assert_eq!(paths.collect::<Vec<_>>(), [Some("/admin"), None, None]);
    assert!(stand_in(route("GRPCRoute", &format!("[{{{asks}}}]"))).is_some());
    let plain = "[{timeouts: 7, backendRefs: [{name: a, port: 80}]}]";
    assert!(
        stand_in(route("HTTPRoute", plain)).is_none(),
        "it restricts nothing"
    );
    let good = "[{filters: [{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: opa, port: 9000}}}]}]";
    let Reading::Good { object, .. } = route("HTTPRoute", good) else {
        panic!("good")
    };
    assert!(!object.is_stand_in());
}
