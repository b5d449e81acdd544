//! The engine against itself: what it computes step by step is what it computes from nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use tulle_k8s::document::documents;
use tulle_k8s::object::{Reading, read};
use tulle_k8s::{Key, Object};
use tulle_proto::resume::Layout;

use super::*;
use crate::snapshot::{Change, ResourceType, Scope, Slot, Version};

mod accepted;
mod cuts;
mod explain;
mod modes;
mod protecting;
mod told;
mod unbinding;
mod waypoints;
mod weights;

/// The objects of a text.
fn objects(text: &str) -> Vec<Arc<Object>> {
    let read = |node: &_| match read(node) {
        Reading::Good { object, .. } => object,
        Reading::Bad {
            stand_in: Some(object),
            ..
        } => object,
        other => panic!("no object: {other:?}"),
    };
    documents(text)
        .iter()
        .map(|document| read(document.as_ref().expect("readable")))
        .collect()
}

fn in_force(object: Arc<Object>) -> InForce {
    InForce {
        object,
        file: "test.yaml".into(),
        generation: 1,
        stale_since: None,
    }
}

fn batch(events: Vec<Event>) -> Batch {
    Batch {
        generation: 1,
        events,
        synced: true,
        ..Batch::default()
    }
}

fn set(object: Arc<Object>) -> Event {
    Event {
        key: object.key(),
        object: Some(in_force(object)),
    }
}

fn gone(key: Key) -> Event {
    Event { key, object: None }
}

/// A text of one object, out of few names, so that objects meet.
#[allow(clippy::too_many_lines, reason = "one line per kind of object")]
fn any_manifest() -> impl Strategy<Value = String> {
    let namespace = || prop::sample::select(vec!["a", "b", "istio-system"]);
    let name = || prop::sample::select(vec!["x", "y", "z"]);
    let app = || prop::sample::select(vec!["1", "2"]);
    let ip = || prop::sample::select(vec!["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"]);
    let node = || prop::sample::select(vec!["n1", "n2"]);
    let created = || {
        prop::sample::select(vec![
            "",
            ", creationTimestamp: '2026-01-01T00:00:00Z'",
            ", creationTimestamp: '2026-01-02T00:00:00Z'",
        ])
    };
    let mode = || prop::sample::select(vec!["UNSET", "PERMISSIVE", "STRICT"]);
    let gateway = || {
        prop::sample::select(vec![
            "",
            ", labels: {istio.io/use-waypoint: way}",
            ", annotations: {networking.istio.io/exportTo: 'b'}",
        ])
    };
    let export = || prop::sample::select(vec!["", ", exportTo: ['.']", ", exportTo: [b]"]);
    let of_waypoints = waypoint_manifest();
    prop_oneof![
        4 => of_waypoints,
        10 => prop_oneof![
        (namespace(), name(), prop::sample::select(vec!["AuthorizationPolicy", "RequestAuthentication"]), prop::sample::select(vec![("Service", "x"), ("ServiceEntry", "x"), ("Gateway", "way")]))
            .prop_map(|(namespace, name, kind, (target, of))| format!("apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{targetRefs: [{{kind: {target}, name: {of}}}]}}\n")),
        (namespace(), prop::sample::select(vec!["{}", "{istio.io/dataplane-mode: ambient}", "{topology.istio.io/network: other}", "{team: one}", "{team: two, note: b}", "{istio.io/ingress-use-waypoint: 'true'}"]), prop::sample::select(vec!["{}", "{note: a}", "{networking.istio.io/traffic-distribution: PreferClose}", "{istio.io/use-waypoint-canary-weight: '30'}"]))
            .prop_map(|(namespace, labels, annotations)| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {labels}, annotations: {annotations}}}\n")),
        (node(), prop::sample::select(vec!["{}", "{tulle.dev/enrolment: derived}"]), prop::sample::select(vec!["r1", "r2"]))
            .prop_map(|(node, annotations, region)| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {node}, annotations: {annotations}, labels: {{topology.kubernetes.io/region: {region}}}}}\n")),
        (namespace(), name(), app(), ip(), node(), created(), prop::sample::select(vec!["Running", "Pending", "Failed"]), prop::sample::select(vec!["", "u1", "u2"])).prop_map(|(namespace, name, app, ip, node, created, phase, uid)| format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, uid: '{uid}', labels: {{app: '{app}'}}{created}}}\nspec: {{nodeName: {node}, serviceAccountName: s{app}, containers: [{{ports: [{{name: http, containerPort: 8080}}]}}]}}\nstatus: {{phase: {phase}, podIP: '{ip}'}}\n")),
        (namespace(), name(), app(), ip(), node(), created()).prop_map(|(namespace, name, app, ip, node, created)| format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: {namespace}, annotations: {{tulle.dev/node: {node}}}{created}}}\nspec: {{address: '{ip}', labels: {{app: '{app}'}}, ports: {{http: 9090}}}}\n")),
        (namespace(), name(), app(), prop::sample::select(vec!["http", "8080"]), created(), any::<bool>(), gateway()).prop_map(|(namespace, name, app, target, created, selects, gateway)| {
            let selector = if selects { format!("{{app: '{app}'}}") } else { "{}".into() };
            format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}{gateway}{created}}}\nspec: {{selector: {selector}, clusterIPs: [10.9.0.{app}], ports: [{{name: http, port: 80, targetPort: {target}}}]}}\n")
        }),
        (namespace(), name(), name(), ip(), name()).prop_map(|(namespace, name, service, ip, pod)| format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nports: [{{name: http, port: 8081}}]\nendpoints: [{{addresses: ['{ip}']}}, {{addresses: [10.0.0.9], targetRef: {{kind: Pod, name: {pod}}}}}]\n")),
        (namespace(), name(), app(), ip(), created(), any::<bool>(), prop::sample::select(vec!["x.a.svc.cluster.local", "other.example"]), export()).prop_map(|(namespace, name, app, ip, created, inline, host, export)| {
            let endpoints = if inline { format!("endpoints: [{{address: '{ip}', labels: {{app: '{app}'}}}}]") } else { format!("workloadSelector: {{labels: {{app: '{app}'}}}}") };
            format!("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: {namespace}{created}}}\nspec: {{hosts: [{host}, second.example], resolution: STATIC, ports: [{{number: 80, name: http}}], {endpoints}{export}}}\n")
        }),
        (namespace(), name(), app(), prop::sample::select(vec!["ALLOW", "DENY", "AUDIT", "BAD"]), any::<bool>(), any::<bool>()).prop_map(|(namespace, name, app, action, selects, dry)| {
            let selector = if selects { format!("selector: {{matchLabels: {{app: '{app}'}}}}, ") } else { String::new() };
            format!("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}, annotations: {{istio.io/dry-run: '{dry}'}}}}\nspec: {{{selector}action: {action}, rules: [{{from: [{{source: {{namespaces: [a]}}}}]}}]}}\n")
        }),
        (namespace(), name(), app(), mode(), mode(), any::<bool>(), created()).prop_map(|(namespace, name, app, base, port, selects, created)| {
            let selector = if selects { format!("selector: {{matchLabels: {{app: '{app}'}}}}, portLevelMtls: {{'80': {{mode: {port}}}}}, ") } else { String::new() };
            format!("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}{created}}}\nspec: {{{selector}mtls: {{mode: {base}}}}}\n")
        }),
        ],
    ]
}

/// A text of one object that concerns waypoints, routes or the mesh as a whole.
#[allow(clippy::too_many_lines, reason = "one line per kind of object")]
fn waypoint_manifest() -> impl Strategy<Value = String> {
    let namespace = || prop::sample::select(vec!["a", "b", "istio-system"]);
    let name = || prop::sample::select(vec!["x", "y", "z"]);
    let way = || prop::sample::select(vec!["way", "other"]);
    let created = || {
        prop::sample::select(vec![
            "",
            ", creationTimestamp: '2026-01-01T00:00:00Z'",
            ", creationTimestamp: '2026-01-02T00:00:00Z'",
        ])
    };
    let purpose = || {
        prop::sample::select(vec![
            "",
            "istio.io/waypoint-for: all",
            "istio.io/waypoint-for: workload",
        ])
    };
    let status = || prop::sample::select(vec!["", "status: {addresses: [{value: 10.9.9.9}]}\n"]);
    let from = || {
        prop::sample::select(vec![
            "Same",
            "All",
            "{from: Selector, selector: {matchLabels: {istio.io/dataplane-mode: ambient}}}",
            "{from: Selector, selector: {matchExpressions: [{key: team, operator: In, values: [two]}]}}",
        ])
    };
    let kind = || prop::sample::select(vec!["HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute"]);
    let parent = || {
        prop::sample::select(vec![
            "group: '', kind: Service, name: x",
            "group: '', kind: Service, name: y",
            "group: '', kind: Service, name: z",
            "group: gateway.networking.k8s.io, kind: Gateway, name: way",
            "name: other",
        ])
    };
    let target = || {
        prop::sample::select(vec![
            ("", "Service", "x"),
            ("", "Service", "z"),
            ("networking.istio.io", "ServiceEntry", "x"),
            ("gateway.networking.k8s.io", "Gateway", "way"),
            ("gateway.networking.k8s.io", "GatewayClass", "tulle-waypoint"),
            ("gateway.networking.k8s.io", "HTTPRoute", "x"),
            ("gateway.networking.k8s.io", "GRPCRoute", "y"),
            ("gateway.networking.k8s.io", "TCPRoute", "x"),
        ])
    };
    let use_way = || {
        prop::sample::select(vec![
            "{istio.io/use-waypoint: way}",
            "{istio.io/use-waypoint: none}",
            "{istio.io/use-waypoint: other, istio.io/use-waypoint-namespace: a}",
            "{istio.io/use-waypoint: other, istio.io/use-waypoint-namespace: a, team: two}",
            "{istio.io/use-waypoint: way, istio.io/use-waypoint-canary: other, istio.io/dataplane-mode: ambient}",
        ])
    };
    prop_oneof![
        3 => (namespace(), way(), purpose(), status(), from(), any::<bool>()).prop_map(|(namespace, name, purpose, status, from, account)| {
            let namespaces = if from.starts_with('{') { from.to_owned() } else { format!("{{from: {from}}}") };
            let account = if account { ", annotations: {gateway.istio.io/service-account: ways}" } else { "" };
            format!("apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{{purpose}}}{account}}}\nspec: {{gatewayClassName: tulle-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {{namespaces: {namespaces}}}}}]}}\n{status}")
        }),
        1 => purpose().prop_map(|purpose| format!("apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: tulle-waypoint, labels: {{{purpose}}}}}\nspec: {{controllerName: tulle.dev/waypoint}}\n")),
        2 => (namespace(), use_way()).prop_map(|(namespace, labels)| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {labels}}}\n")),
        2 => (namespace(), name(), use_way(), prop::sample::select(vec!["http", "tcp", "grpc"])).prop_map(|(namespace, name, labels, port)| format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}, labels: {labels}, annotations: {{istio.io/use-waypoint-canary-weight: '20'}}}}\nspec: {{selector: {{app: '1'}}, clusterIPs: [10.9.0.7], ports: [{{name: {port}, port: 80, targetPort: 8080}}, {{name: http-b, port: 81}}]}}\n")),
        1 => (namespace(), name(), use_way()).prop_map(|(namespace, name, labels)| format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: '1', gateway.networking.k8s.io/gateway-name: way, {}}}}}\nspec: {{nodeName: n1, serviceAccountName: way}}\nstatus: {{phase: Running, podIP: '10.0.0.1'}}\n", labels.trim_matches(['{', '}']))),
        4 => (kind(), namespace(), name(), namespace(), parent(), namespace(), name(), created(), prop::sample::select(vec!["", ", port: 80", ", port: 99"])).prop_map(|(kind, namespace, name, parent_ns, parent, backend_ns, backend, created, port)| {
            let version = if kind == "TCPRoute" || kind == "TLSRoute" { "v1alpha2" } else { "v1" };
            let auth = if kind == "HTTPRoute" || (kind == "GRPCRoute" && name == "x") { format!("filters: [{{type: ExternalAuth, externalAuth: {{protocol: GRPC, backendRef: {{name: {backend}, namespace: {backend_ns}, port: 80}}}}}}], ") } else { String::new() };
            format!("apiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}{created}}}\nspec: {{parentRefs: [{{{parent}, namespace: {parent_ns}{port}}}], rules: [{{{auth}backendRefs: [{{name: {backend}, namespace: {backend_ns}, port: 80}}]}}]}}\n")
        }),
        1 => (namespace(), name(), namespace()).prop_map(|(namespace, name, from)| format!(
            "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: {from}}}], to: [{{group: '', kind: Service}}]}}\n")),
        3 => (namespace(), name(), target(), created(), prop::sample::select(vec!["retryBudget: {percent: 10}", "externalAuth: {provider: {name: opa}}", "fault: {delay: {duration: 1s, percent: 5}}, retryBudget: {percent: 20}"]), any::<bool>()).prop_map(|(namespace, name, (group, kind, of), created, what, everywhere)| {
            let targets = if everywhere { String::new() } else { format!("targetRefs: [{{group: '{group}', kind: {kind}, name: {of}}}], ") };
            format!("apiVersion: tulle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: {namespace}{created}}}\nspec: {{{targets}{what}}}\n")
        }),
        2 => (namespace(), name(), target(), prop::sample::select(vec!["AuthorizationPolicy", "RequestAuthentication"])).prop_map(|(namespace, name, (group, target, of), kind)| format!(
            "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{targetRefs: [{{group: '{group}', kind: {target}, name: {of}}}]}}\n")),
        1 => (namespace(), name(), any::<bool>()).prop_map(|(namespace, name, system)| {
            let roots = if system { "wellKnownCACertificates: System".to_owned() } else { "caCertificateRefs: [{kind: ConfigMap, name: roots}]".to_owned() };
            format!("apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{targetRefs: [{{group: '', kind: Service, name: x}}], validation: {{hostname: a.example, {roots}}}}}\n")
        }),
        1 => namespace().prop_map(|namespace| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: roots, namespace: {namespace}}}\ndata: {{ca.crt: '-----BEGIN CERTIFICATE-----'}}\n")),
        1 => prop::sample::select(vec!["mtlsMode: strict", "providers: [{name: opa, extAuthz: {backendRef: {name: x, namespace: a, port: 80}}}]", "bad: 1"]).prop_map(|mesh| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: tulle, namespace: istio-system}}\ndata: {{mesh: '{mesh}'}}\n")),
    ]
}

/// What a source tells at once.
#[derive(Debug, Clone)]
enum Told {
    /// Some objects are set or removed.
    Changes(Vec<(bool, String)>),
    /// It was read anew: everything there is, once more.
    Relist,
    /// The same as the last time.
    Again,
}

/// Steps of one history, and changes of one step: up to 200 events, beside what is told again.
const STEPS_MAX: usize = 40;
const CHANGES_MAX: usize = 5;

fn any_step() -> impl Strategy<Value = Told> {
    let change = (prop::bool::weighted(0.25), any_manifest());
    prop_oneof![
        10 => prop::collection::vec(change, 1..=CHANGES_MAX).prop_map(Told::Changes),
        1 => Just(Told::Relist),
        1 => Just(Told::Again),
    ]
}

impl Told {
    /// The events it means after `last`, in this world, which becomes what it is afterwards.
    fn events(&self, last: &[Event], world: &mut BTreeMap<Key, Arc<Object>>) -> Vec<Event> {
        let changes = match self {
            Self::Changes(changes) => changes,
            Self::Relist => return world.values().cloned().map(set).collect(),
            Self::Again => return last.to_vec(),
        };
        let changed = changes.iter().map(|(remove, text)| {
            let object = objects(text).remove(0);
            if *remove {
                world.remove(&object.key());
                gone(object.key())
            } else {
                world.insert(object.key(), object.clone());
                set(object)
            }
        });
        changed.collect()
    }
}

/// The cut once node proxies have heard of everything: what waypoints keep until then depends on the past.
fn drained(engine: &mut Engine) -> Snapshot {
    let draining = engine.snapshot.draining().clone();
    for (waypoint, since) in draining.iter() {
        engine.release(waypoint, *since);
    }
    engine.snapshot.clone()
}

/// Everything a snapshot says, without the history of how it came about.
fn content(snapshot: &Snapshot) -> impl PartialEq + std::fmt::Debug + use<> {
    let tables: Vec<Vec<Slot>> = ResourceType::ALL
        .into_iter()
        .map(|ty| {
            snapshot
                .by_name(ty)
                .into_iter()
                .map(|slot| Slot {
                    sequence: 0,
                    ..Slot::clone(slot)
                })
                .collect()
        })
        .collect();
    let placement: Vec<_> = snapshot
        .placement()
        .nodes()
        .map(|node| {
            (
                node.clone(),
                snapshot.placement().identities(node).cloned().collect::<Vec<_>>(),
            )
        })
        .collect();
    let objects: Vec<ObjectStatus> = snapshot
        .objects()
        .objects
        .values()
        .map(|status| ObjectStatus::clone(status))
        .collect();
    let aliases: Vec<Vec<(Str, usize)>> = ResourceType::ALL
        .into_iter()
        .map(|ty| {
            let aliases = snapshot.resources(ty).flat_map(|slot| slot.aliases.clone());
            aliases
                .map(|alias| (alias.clone(), snapshot.resolve(ty, &alias).len()))
                .collect()
        })
        .collect();
    let fronted: Vec<_> = snapshot
        .fronted()
        .iter()
        .map(|(name, fronts)| (name.clone(), fronts.clone()))
        .collect();
    let told: Vec<_> = ResourceType::ALL
        .into_iter()
        .map(|ty| {
            let table = snapshot.table(ty);
            let chunks = table.chunks();
            let names = chunks.iter().flat_map(|chunk| chunk.resources().iter());
            let names: Vec<Str> = names.map(|slot| slot.name.clone()).collect();
            let digests = Layout::ALL.map(|layout| table.digests(layout));
            (names, digests, table.bytes())
        })
        .collect();
    let along = (told, snapshot.around().clone(), snapshot.bearers().clone());
    (tables, placement, objects, aliases, fronted, along)
}

/// A client that replays changes.
#[derive(Default)]
struct Replay {
    at: u64,
    held: BTreeMap<Str, (Version, Scope)>,
}

impl Replay {
    fn catch_up(&mut self, snapshot: &Snapshot, ty: ResourceType) {
        let Some(changes) = snapshot.changed_since(ty, self.at) else {
            // Bare workloads are made when somebody asks: what was before is not known.
            assert_eq!(ty, ResourceType::Workload, "the log reaches back");
            let all = snapshot.resources(ty);
            let all = all.map(|slot| (slot.name.clone(), (slot.version, slot.scope.clone())));
            (self.held, self.at) = (all.collect(), snapshot.sequence());
            return;
        };
        for change in changes {
            match change {
                Change::Set(slot) => drop(
                    self.held
                        .insert(slot.name.clone(), (slot.version, slot.scope.clone())),
                ),
                Change::Removed(name) => drop(self.held.remove(&name)),
            }
        }
        self.at = snapshot.sequence();
    }
}

/// Cases of the oracle: a few hundred, or as many as `TULLE_ORACLE_CASES` asks for.
fn cases() -> u32 {
    #[allow(
        clippy::disallowed_methods,
        reason = "how thorough a test is has no other way in"
    )]
    let wanted = std::env::var("TULLE_ORACLE_CASES");
    wanted.ok().and_then(|cases| cases.parse().ok()).unwrap_or(200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn steps_lead_where_a_fresh_start_leads(steps in prop::collection::vec(any_step(), 1..=STEPS_MAX)) {
        // One of them lets drains go on for several turns, the other ends them at once and is compared after every step.
        let (mut engine, mut prompt) = (Engine::new(MeshConfig::default()), Engine::new(MeshConfig::default()));
        let mut world: BTreeMap<Key, Arc<Object>> = BTreeMap::new();
        let mut replays: BTreeMap<ResourceType, Replay> = BTreeMap::new();
        let mut last = Vec::new();
        for (number, step) in steps.iter().enumerate() {
            last = step.events(&last, &mut world);
            let events = batch(last.clone());
            engine.apply(events.clone());
            prompt.apply(events);
            let mut fresh = Engine::new(MeshConfig::default());
            let all = batch(world.values().cloned().map(set).collect());
            let expected = content(&fresh.turn(&all, false));
            prop_assert_eq!(&content(&drained(&mut prompt)), &expected);
            if number % 4 == 1 {
                continue;
            }
            let snapshot = drained(&mut engine);
            prop_assert_eq!(&content(&snapshot), &expected);
            for ty in ResourceType::ALL {
                let replay = replays.entry(ty).or_default();
                // Some clients are further behind than others.
                if ty == ResourceType::Address || number % 3 == 0 {
                    replay.catch_up(&snapshot, ty);
                    let table: BTreeMap<_, _> = snapshot.resources(ty).map(|slot| (slot.name.clone(), (slot.version, slot.scope.clone()))).collect();
                    prop_assert_eq!(&replay.held, &table);
                }
            }
        }
    }

    #[test]
    fn the_order_of_changes_within_a_turn_or_over_turns_means_nothing(manifests in prop::collection::vec(any_manifest(), 1..30), seed: u64) {
        let mut world: BTreeMap<Key, Arc<Object>> = BTreeMap::new();
        for text in &manifests {
            let object = objects(text).remove(0);
            world.insert(object.key(), object);
        }
        let events: Vec<Event> = world.values().cloned().map(set).collect();
        let mut shuffled = events.clone();
        let length = shuffled.len();
        // A permutation that depends on the seed only.
        for index in 0..length {
            let other = usize::try_from(seed.rotate_left(u32::try_from(index % 64).unwrap_or(0)) % length as u64).unwrap_or(0);
            shuffled.swap(index, other);
        }
        let mut one_by_one = Engine::new(MeshConfig::default());
        let mut last = None;
        for event in shuffled {
            one_by_one.apply(batch(vec![event]));
            last = Some(drained(&mut one_by_one));
        }
        let at_once = Engine::new(MeshConfig::default()).turn(&batch(events), false);
        prop_assert_eq!(content(&last.expect("at least one")), content(&at_once));
    }
}
