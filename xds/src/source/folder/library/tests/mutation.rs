//! Every field of every kind, spoilt one at a time: at most that object is refused, its last good form stays, and what
//! stands beside it comes into force.

use serde_json::{Value, json};

use super::*;
use crate::snapshot::Severity;

/// Objects of every kind that means something, with as many fields as they have room for.
const OBJECTS: &[&str] = &[
    "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}",
    "{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/region: r}}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: o, namespace: shop, uid: u, creationTimestamp: '2026-01-01T00:00:00Z', labels: {app: a}, ownerReferences: [{kind: ReplicaSet, name: web-1}]}, spec: {nodeName: n1, serviceAccountName: a, hostNetwork: false, containers: [{name: c, ports: [{name: http, containerPort: 80, protocol: TCP}]}]}, status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: 'True'}]}}",
    "{apiVersion: v1, kind: Service, metadata: {name: o, namespace: shop}, spec: {type: ClusterIP, selector: {app: a}, clusterIP: 10.9.0.1, clusterIPs: [10.9.0.1], ipFamilies: [IPv4], trafficDistribution: PreferClose, publishNotReadyAddresses: false, internalTrafficPolicy: Cluster, ports: [{name: http, port: 80, targetPort: 8080, protocol: TCP, appProtocol: http}]}}",
    "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: o, namespace: shop, labels: {kubernetes.io/service-name: o}}, addressType: IPv4, ports: [{name: http, port: 80, protocol: TCP}], endpoints: [{addresses: [10.0.0.2], conditions: {ready: true}, nodeName: n1, zone: z, targetRef: {kind: Pod, name: x, namespace: shop, uid: u}}]}",
    "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: o, namespace: shop}, spec: {hosts: [a.example], addresses: [10.8.0.1], location: MESH_EXTERNAL, resolution: STATIC, exportTo: [.], subjectAltNames: [spiffe://a/ns/b/sa/c], ports: [{number: 80, name: http, protocol: HTTP, targetPort: 81}], endpoints: [{address: 10.0.0.3, ports: {http: 82}, labels: {app: b}, network: net, locality: r/z, weight: 3, serviceAccount: s}]}}",
    "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: o, namespace: shop, annotations: {tulle.dev/node: n1, 'tulle.dev/process': 'netns:a'}}, spec: {address: 10.0.0.4, ports: {http: 80}, labels: {app: a}, network: '', locality: r/z, weight: 2, serviceAccount: s}}",
    "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: o, namespace: shop}, spec: {selector: {matchLabels: {app: a}}, action: DENY, rules: [{from: [{source: {principals: ['*'], namespaces: [a], ipBlocks: [10.0.0.0/8]}}], to: [{operation: {ports: ['80'], methods: [GET]}}], when: [{key: source.ip, values: [10.0.0.1], notValues: [10.0.0.2]}]}]}}",
    "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: o, namespace: shop}, spec: {selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}, portLevelMtls: {'80': {mode: PERMISSIVE}}}}",
    "{apiVersion: security.istio.io/v1, kind: RequestAuthentication, metadata: {name: o, namespace: shop}, spec: {targetRefs: [{group: '', kind: Service, name: o}], jwtRules: [{issuer: 'https://a.example', jwksUri: 'https://a.example/keys', audiences: [a], fromHeaders: [{name: x, prefix: 'B '}], fromParams: [t], forwardOriginalToken: true}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: c}, spec: {controllerName: tulle.dev/waypoint}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: o, namespace: shop, labels: {istio.io/waypoint-for: all}}, spec: {gatewayClassName: tulle-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {a: b}}}}}]}, status: {addresses: [{type: IPAddress, value: 10.0.0.9}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: o, namespace: shop}, spec: {parentRefs: [{group: '', kind: Service, name: o, port: 80}], hostnames: [], rules: [{name: r, matches: [{path: {type: PathPrefix, value: /a}, headers: [{type: Exact, name: x, value: yy}], queryParams: [{name: q, value: v}], method: GET}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}], add: [], remove: [c]}}], timeouts: {request: 1s, backendRequest: 500ms}, backendRefs: [{name: o, port: 80, weight: 3}]}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, metadata: {name: o, namespace: shop}, spec: {parentRefs: [{group: '', kind: Service, name: o}], rules: [{matches: [{method: {type: Exact, service: a.B, method: C}}], backendRefs: [{name: o, port: 80}]}]}}",
    "{apiVersion: gateway.networking.k8s.io/v1beta1, kind: ReferenceGrant, metadata: {name: o, namespace: shop}, spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}], to: [{group: '', kind: Service, name: o}]}}",
    "{apiVersion: tulle.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: o, namespace: shop}, spec: {targetRefs: [{group: '', kind: Service, name: o}], retryBudget: {percent: 10}, fault: {delay: {duration: 1s, percent: 5}}}}",
    "{apiVersion: gateway.networking.k8s.io/v1, kind: BackendTLSPolicy, metadata: {name: o, namespace: shop}, spec: {targetRefs: [{group: '', kind: Service, name: o}], validation: {hostname: a.example, wellKnownCACertificates: System}}}",
];

/// The place of every value in an object, also of those that say which object it is.
fn places(value: &Value, at: &str, all: &mut Vec<String>) {
    if !at.is_empty() {
        all.push(at.to_owned());
    }
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                let name = name.replace('~', "~0").replace('/', "~1");
                places(inner, &format!("{at}/{name}"), all);
            }
        }
        Value::Array(items) => {
            for (index, inner) in items.iter().enumerate() {
                places(inner, &format!("{at}/{index}"), all);
            }
        }
        _ => {}
    }
}

/// An object between two others, in one file.
fn neighbours(version: &str, object: &Value) -> String {
    let (before, after) = (service("before", version), service("after", version));
    format!("{before}{object}\n---\n{after}")
}

/// What stands beside the object.
const OTHERS: [&str; 3] = ["other", "before", "after"];

/// The object in force, with its neighbours and another file.
fn good(object: &Value) -> (Paper, Key) {
    let good = Paper::new()
        .put("object.yaml", &neighbours("one", object))
        .put("other.yaml", &service("other", "one"))
        .settled();
    let mut errors = good.library.problems.iter();
    let error = errors.find(|problem| problem.severity == Severity::Error);
    assert_eq!(error, None, "{object}");
    let mut keys = good.library.entries.keys();
    let key = keys.find(|key| !OTHERS.contains(&&*key.name));
    let key = key.expect("the object").clone();
    (good, key)
}

/// Puts a spoilt form in the place of the good one; says whether it was refused.
fn is_refused(good: &Paper, key: &Key, broken: &Value, how: &str) -> bool {
    let mut paper = Paper {
        library: good.library.clone(),
        scan: good.scan.clone(),
    };
    paper = paper
        .put("object.yaml", &neighbours("two", broken))
        .put("other.yaml", &service("other", "two"));
    paper.settle();
    for other in OTHERS {
        let label = paper.label(other);
        assert_eq!(label.as_deref(), Some("two"), "{other}, beside {how} of {key}");
    }
    let kept = paper
        .object(key)
        .unwrap_or_else(|| panic!("{key} is gone by {how}"));
    let errors = paper.library.problems.iter();
    let mut errors = errors.filter(|problem| problem.severity == Severity::Error);
    if kept.stale_since.is_none() {
        assert!(errors.next().is_none(), "in force, and refused? {how} of {key}");
        return false;
    }
    let before = good.object(key).map(|old| &old.object);
    assert_eq!(Some(&kept.object), before, "{how}");
    let first = errors.next().expect("a refusal says why");
    assert_eq!(&*first.file, "object.yaml", "{first}");
    assert!(!first.to_string().contains(|c: char| c.is_control()), "{first:?}");
    true
}

#[test]
fn a_spoilt_field_costs_its_own_object_at_most_and_never_its_last_good_form() {
    let spoilt = [
        json!("\u{1}\u{2}"),
        json!("x".repeat(300)),
        json!(-1),
        json!(1e300),
        json!(true),
        json!([[]]),
        json!({"a": {"b": 1}}),
        Value::Null,
    ];
    let (mut tried, mut refused) = (0, 0);
    for text in OBJECTS {
        let object: Value = serde_saphyr::from_str(text).expect("a manifest");
        let (good, key) = good(&object);
        let mut all = Vec::new();
        places(&object, "", &mut all);
        for place in all {
            for bad in &spoilt {
                if place == "/metadata/namespace" && bad.is_null() {
                    // That is the object of this name in the namespace `default`.
                    continue;
                }
                let mut broken = object.clone();
                *broken.pointer_mut(&place).expect("it was there") = bad.clone();
                tried += 1;
                refused += usize::from(is_refused(&good, &key, &broken, &format!("{place} = {bad}")));
            }
        }
    }
    assert!(
        tried > 2_000 && refused > 500,
        "{refused} of {tried} were refused"
    );
}
