//! `BackendTLSPolicy`, and the parts of targets that policies name.

use tulle_model::policy::traffic::SubjectAltName;

use super::*;

const ROOTS: &str = "-----BEGIN CERTIFICATE-----\nroots\n";
const MORE: &str = "-----BEGIN CERTIFICATE-----\nmore\n";
const NOBODY: &str = "# no usable certificate";

fn tls(targets: &str, validation: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {{name: tls, namespace: shop}}
spec:
  targetRefs: [{targets}]
  validation: {validation}
"
    )
}

fn said(validation: &str) -> (BackendTls, Vec<String>) {
    let around = Around::of(SHOP);
    let translated = translate(&tls("{group: '', kind: Service, name: web}", validation), &around);
    let told = flaws(&translated)
        .into_iter()
        .map(|(_, message)| (*message).to_owned())
        .collect();
    let Concern::BackendTls(tls) = &translated.policies[0].concern else {
        panic!("{translated:?}")
    };
    (tls.clone(), told)
}

#[test]
fn roots_and_names_are_those_that_are_written() {
    let (tls, told) = said(
        "
    hostname: web.example
    caCertificateRefs:
    - {group: '', kind: ConfigMap, name: roots}
    - {group: '', kind: ConfigMap, name: more-roots}
    subjectAltNames:
    - {type: Hostname, hostname: alt.example}
    - {type: URI, uri: 'spiffe://partner/web'}",
    );
    let expected = BackendTls {
        hostname: "web.example".into(),
        subject_alt_names: vec![
            SubjectAltName::Hostname("alt.example".into()),
            SubjectAltName::Uri("spiffe://partner/web".into()),
        ],
        roots: texts(&[ROOTS, MORE]),
    };
    assert_eq!((tls, told.len()), (expected, 0));
    let (tls, told) = said("{hostname: web.example, wellKnownCACertificates: System}");
    let system = BackendTls {
        hostname: "web.example".into(),
        ..BackendTls::default()
    };
    assert_eq!((tls, told.len()), (system, 0), "no roots are those of the system");
}

#[test]
fn roots_that_are_not_there_let_nobody_be_believed() {
    for missing in ["gone", "no-roots"] {
        let of = |others: &str| {
            said(&format!(
                "{{hostname: a, caCertificateRefs: [{{group: '', kind: ConfigMap, name: {missing}}}{others}]}}"
            ))
        };
        let (tls, told) = of("");
        assert_eq!(tls.roots, texts(&[NOBODY]), "{missing}");
        let expected =
            format!("ConfigMap shop/{missing} has no certificate under ca.crt; no backend is believed by it");
        assert_eq!(told, [expected]);
        let (tls, told) = of(", {group: '', kind: ConfigMap, name: roots}");
        assert_eq!(
            (tls.roots, told.len()),
            (texts(&[ROOTS]), 1),
            "the others still count"
        );
    }
}

/// The targets of a policy, each with the roots that hold there, and what is told.
fn where_believed(targets: &str) -> (Vec<(Target, Str)>, Vec<String>) {
    let validation = "{hostname: a, caCertificateRefs: [{group: '', kind: ConfigMap, name: roots}]}";
    let translated = translate(&tls(targets, validation), &Around::of(SHOP));
    assert!(translated.policies.iter().all(|policy| !policy.dry_run));
    let found = translated.policies.iter().flat_map(|policy| {
        let Concern::BackendTls(tls) = &policy.concern else {
            panic!("{policy:?}")
        };
        let root = tls.roots[0].clone();
        policy
            .targets
            .iter()
            .map(move |target| (target.clone(), root.clone()))
    });
    let names: BTreeSet<Str> = translated.policies.iter().map(|policy| policy.name()).collect();
    assert_eq!(names.len(), translated.policies.len(), "{names:?}");
    assert_eq!(translated.waypoints.len(), 1, "the waypoint is told");
    let told = flaws(&translated)
        .into_iter()
        .map(|(_, message)| (*message).to_owned());
    (found.collect(), told.collect())
}

#[test]
fn a_section_is_a_port_by_its_name_or_number() {
    let [a, b] = ["a.partner.example", "b.partner.example"];
    for (target, expected) in [
        (
            "{group: '', kind: Service, name: web}",
            vec![on_service(WEB, None)],
        ),
        (
            "{group: '', kind: Service, name: web, sectionName: https}",
            vec![on_service(WEB, Some(443))],
        ),
        (
            "{group: '', kind: Service, name: web, sectionName: '5432'}",
            vec![on_service(WEB, Some(5432))],
        ),
        (
            "{group: '', kind: Service, name: web, port: 80}",
            vec![on_service(WEB, Some(80))],
        ),
        (
            "{group: networking.istio.io, kind: ServiceEntry, name: partner}",
            vec![on_service(a, None), on_service(b, None)],
        ),
        (
            "{group: networking.istio.io, kind: ServiceEntry, name: partner, sectionName: tls}",
            vec![on_service(a, Some(8443)), on_service(b, Some(8443))],
        ),
        (
            "{group: networking.istio.io, kind: ServiceEntry, name: partner, sectionName: '8080'}",
            vec![on_service(a, Some(8080)), on_service(b, Some(8080))],
        ),
    ] {
        let (found, told) = where_believed(target);
        let expected: Vec<_> = expected.into_iter().map(|of| (of, Str::from(ROOTS))).collect();
        assert_eq!((found, told.len()), (expected, 0), "{target}");
    }
}

#[test]
fn behind_a_section_that_is_not_there_nobody_is_believed_and_nothing_goes_in_clear() {
    let [a, b] = ["a.partner.example", "b.partner.example"];
    let nobody = |all: Vec<Target>| -> Vec<(Target, Str)> {
        all.into_iter().map(|of| (of, Str::from(NOBODY))).collect()
    };
    for section in ["sectionName: htps", "sectionName: '444'", "port: 444"] {
        let (found, told) = where_believed(&format!("{{group: '', kind: Service, name: web, {section}}}"));
        assert_eq!(found, nobody(vec![on_service(WEB, None)]), "{section}");
        let said = section.split(": ").last().unwrap().trim_matches('\'');
        let expected = format!(
            "Service web has no port {said}; it has http (80), https (443), 5432. Until this is corrected, no endpoint of \
             the Service is believed on any port that no other policy is for"
        );
        assert_eq!(told, [expected]);
        let entry = format!("{{group: networking.istio.io, kind: ServiceEntry, name: partner, {section}}}");
        let (found, _) = where_believed(&entry);
        assert_eq!(
            found,
            nobody(vec![on_service(a, None), on_service(b, None)]),
            "{section}"
        );
    }
    let good = "{group: '', kind: Service, name: web, sectionName: https}";
    let (found, told) = where_believed(&format!("{good}, {}", good.replace("https", "htps")));
    let expected = [
        (on_service(WEB, None), Str::from(NOBODY)),
        (on_service(WEB, Some(443)), ROOTS.into()),
    ];
    assert_eq!(
        (found.as_slice(), told.len()),
        (&expected[..], 1),
        "the port that is known stays usable"
    );
}

#[test]
fn somebody_who_decides_about_a_part_that_is_not_there_decides_about_the_whole() {
    let asked = |target: &str, what: &str| {
        let text = format!(
            "apiVersion: tulle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{targetRefs: [{target}], {what}}}\n"
        );
        let translated = translate(&text, &Around::of(SHOP));
        let told = flaws(&translated)
            .first()
            .map(|(reason, message)| format!("{reason}: {message}"));
        let targets = translated
            .policies
            .iter()
            .flat_map(|policy| policy.targets.clone());
        (targets.collect::<Vec<_>>(), told.unwrap_or_default())
    };
    let auth = "externalAuth: {backendRef: {name: opa, port: 9000}}";
    let on_route = |section: Option<&str>| Target {
        on: On::Route {
            kind: Kind::Http,
            namespace: "shop".into(),
            name: "checkout".into(),
        },
        port: None,
        section: section.map(Str::from),
    };
    let service = "{group: '', kind: Service, name: web, sectionName: NAME}";
    let route = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: checkout, sectionName: NAME}";
    let (found, told) = asked(&service.replace("NAME", "htps"), auth);
    assert_eq!(found, [on_service(WEB, None)]);
    assert!(
        told.ends_with(". Until this is corrected, it holds for the whole Service"),
        "{told}"
    );
    let (found, told) = asked(&route.replace("NAME", "pya"), auth);
    assert_eq!(found, [on_route(None)]);
    let expected = "TargetNotFound: the route has no rule called pya. Until this is corrected, it holds for the whole HTTPRoute";
    assert_eq!(told, expected);
    assert_eq!(
        asked(&route.replace("NAME", "pay"), auth),
        (vec![on_route(Some("pay"))], String::new())
    );
    let (found, told) = asked(&route.replace("NAME", "pya"), "retryBudget: {percent: 1}");
    assert_eq!(
        (found.len(), told.as_str()),
        (0, "TargetNotFound: the route has no rule called pya")
    );
}
