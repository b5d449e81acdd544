//! Single facts about cuts.

use tulle_proto::convert::{Resource, decode_address, decode_authorization};

use super::*;

fn engine(text: &str) -> (Engine, Snapshot) {
    let mut engine = Engine::new(MeshConfig::default());
    let snapshot = engine.apply(batch(objects(text).into_iter().map(set).collect()));
    (engine, snapshot)
}

fn workload(snapshot: &Snapshot, name: &str) -> tulle_model::Workload {
    let slot = snapshot
        .resource(ResourceType::Address, name)
        .expect("there is such a workload");
    match decode_address(&slot.name, &slot.body).expect("it decodes") {
        Resource::Workload(workload) => (*workload).clone(),
        other => panic!("{other:?}"),
    }
}

fn conditions(snapshot: &Snapshot, kind: Kind, name: &str) -> Vec<String> {
    let status = snapshot
        .objects()
        .object(&Key::new(kind, "shop", name))
        .expect("there is such an object");
    status
        .conditions
        .iter()
        .map(|condition| format!("{} {}", condition.kind, condition.reason))
        .collect()
}

fn entry(name: &str, ip: &str, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: shop, annotations: {{tulle.dev/node: n1}}{more}}}\nspec: {{address: {ip}, labels: {{app: {name}}}, serviceAccount: {name}}}\n---\n"
    )
}

const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny, namespace: shop}\nspec: {action: DENY, selector: {matchLabels: {app: web}}, rules: [{}]}\n---\n";
const WEB: &str = "Kubernetes/networking.istio.io/WorkloadEntry/shop/web";

#[test]
fn a_batch_that_says_nothing_new_is_no_cut() {
    let (mut engine, before) = engine(&entry("web", "10.0.0.1", ""));
    let again = engine.apply(batch(
        objects(&entry("web", "10.0.0.1", ""))
            .into_iter()
            .map(set)
            .collect(),
    ));
    assert_eq!(again.sequence(), before.sequence());
}

#[test]
fn a_selected_workload_names_its_policy_and_both_come_in_one_cut() {
    let (_, snapshot) = engine(&(entry("web", "10.0.0.1", "") + POLICY));
    let names: Vec<_> = workload(&snapshot, WEB)
        .authorization_policies
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(names, ["shop/deny"]);
    let slot = snapshot
        .resource(ResourceType::Authorization, "shop/deny")
        .expect("the policy");
    decode_authorization(&slot.name, &slot.body).expect("it decodes");
    assert!(slot.scope.reaches("n1") && !slot.scope.reaches("n2"));
}

#[test]
fn a_policy_follows_its_workload_to_another_node_with_the_same_version() {
    let (mut engine, before) = engine(&(entry("web", "10.0.0.1", "") + POLICY));
    let moved = entry("web", "10.0.0.1", "").replace("node: n1", "node: n2");
    let after = engine.apply(batch(objects(&moved).into_iter().map(set).collect()));
    let slot = |snapshot: &Snapshot| {
        snapshot
            .resource(ResourceType::Authorization, "shop/deny")
            .unwrap()
            .clone()
    };
    assert_eq!(slot(&before).version, slot(&after).version);
    assert!(slot(&after).scope.reaches("n2") && !slot(&after).scope.reaches("n1"));
    let changed = after
        .changed_since(ResourceType::Authorization, before.sequence())
        .unwrap();
    assert_eq!(
        changed
            .map(|change| change.name().to_string())
            .collect::<Vec<_>>(),
        ["shop/deny"]
    );
}

#[test]
fn a_dry_run_is_sent_and_not_waited_for() {
    let dry = POLICY.replace(
        "namespace: shop",
        "namespace: shop, annotations: {istio.io/dry-run: 'true'}",
    );
    let (_, snapshot) = engine(&(entry("web", "10.0.0.1", "") + &dry));
    let web = workload(&snapshot, WEB);
    assert!(web.authorization_policies.is_empty());
    let tried_out: Vec<_> = web.dry_runs().map(|policy| policy.to_string()).collect();
    assert_eq!(tried_out, ["shop/deny"]);
    let slot = snapshot
        .resource(ResourceType::Authorization, "shop/deny")
        .expect("the policy");
    assert!(slot.scope.reaches("n1") && !slot.scope.reaches("n2"));
}

#[test]
fn the_elder_of_two_owners_of_an_address_wins_and_takes_over_the_services() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: api, namespace: shop}\nspec: {selector: {app: api}, clusterIPs: [10.9.0.1], ports: [{port: 80}]}\n---\n";
    let (mut engine, snapshot) = engine(
        &(entry("web", "10.0.0.1", ", creationTimestamp: '2026-01-01T00:00:00Z'")
            + &entry("api", "10.0.0.1", "")
            + service),
    );
    let services: Vec<_> = workload(&snapshot, WEB)
        .services
        .keys()
        .map(ToString::to_string)
        .collect();
    assert_eq!(services, ["shop/api.shop.svc.cluster.local"]);
    assert_eq!(snapshot.resources(ResourceType::Workload).count(), 1);
    assert!(
        conditions(&snapshot, Kind::WorkloadEntry, "api")
            .contains(&"tulle.dev/AddressConflict AddressConflict".to_owned())
    );
    let after = engine.apply(batch(vec![gone(Key::new(Kind::WorkloadEntry, "shop", "web"))]));
    assert_eq!(after.resolve(ResourceType::Address, "/10.0.0.1").len(), 1);
    assert_eq!(
        &*workload(&after, "Kubernetes/networking.istio.io/WorkloadEntry/shop/api").name,
        "api"
    );
}

#[test]
fn endpoints_of_service_entries_and_slices_that_lose_their_address_say_to_whom() {
    let outside = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: out, namespace: shop}\nspec: {hosts: [out.example], resolution: STATIC, addresses: [10.8.0.1], ports: [{number: 80, name: http}], endpoints: [{address: 10.0.0.1}, {address: 10.0.0.2}]}\n---\n";
    let slice = "apiVersion: v1\nkind: Service\nmetadata: {name: bare, namespace: shop}\nspec: {clusterIPs: [10.9.0.1], ports: [{port: 80}]}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: bare-1, namespace: shop, labels: {kubernetes.io/service-name: bare}}\naddressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.2]}, {addresses: [10.0.0.3]}]\n---\n";
    let (_, snapshot) = engine(&(entry("web", "10.0.0.1", "") + outside + slice));
    let said = |kind, name| {
        let object = snapshot.objects().object(&Key::new(kind, "shop", name));
        let conditions = object
            .map(|object| object.conditions.as_slice())
            .unwrap_or_default();
        let mut conflicts = conditions
            .iter()
            .filter(|one| one.kind == "tulle.dev/AddressConflict");
        conflicts
            .next()
            .map(|one| one.message.clone())
            .unwrap_or_default()
    };
    assert_eq!(
        said(Kind::ServiceEntry, "out"),
        "WorkloadEntry shop/web has address 10.0.0.1 too and wins; correct one of the two"
    );
    assert_eq!(
        said(Kind::EndpointSlice, "bare-1"),
        "WorkloadEntry shop/web has address 10.0.0.1 too and wins, and 1 more of its addresses are taken; correct one of the two"
    );
    assert_eq!(said(Kind::WorkloadEntry, "web"), "");
    assert_eq!(snapshot.resources(ResourceType::Workload).count(), 3);
}

#[test]
fn a_service_beats_a_service_entry_of_the_same_name() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: api, namespace: shop}\nspec: {clusterIPs: [10.9.0.1], ports: [{port: 80}]}\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: api, namespace: shop, creationTimestamp: '2020-01-01T00:00:00Z'}\nspec: {hosts: [api.shop.svc.cluster.local], resolution: STATIC, addresses: [10.9.0.2], ports: [{number: 80, name: http}]}\n";
    let (_, snapshot) = engine(text);
    assert_eq!(snapshot.resolve(ResourceType::Address, "/10.9.0.1").len(), 1);
    assert!(snapshot.resolve(ResourceType::Address, "/10.9.0.2").is_empty());
    assert!(conditions(&snapshot, Kind::ServiceEntry, "api").contains(&"Conflicted Conflicted".to_owned()));
}

#[test]
fn an_identity_is_placed_before_its_pod_has_an_address() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\nspec: {nodeName: n1, serviceAccountName: web}\nstatus: {phase: Pending}\n";
    let (mut engine, snapshot) = engine(pod);
    let web = tulle_model::Identity::new("cluster.local", "shop", "web");
    assert!(snapshot.placement().holds("n1", &web) && !snapshot.placement().holds("n2", &web));
    assert_eq!(snapshot.resources(ResourceType::Address).count(), 0);
    let over = pod.replace("Pending", "Failed");
    let after = engine.apply(batch(objects(&over).into_iter().map(set).collect()));
    assert!(!after.placement().holds("n1", &web));
}

#[test]
fn an_elected_process_travels_as_extension() {
    let text = entry("web", "10.0.0.1", "").replace(
        "{tulle.dev/node: n1}",
        "{tulle.dev/node: n1, tulle.dev/process: 'netns:web'}",
    );
    let (_, snapshot) = engine(&text);
    let workload = workload(&snapshot, WEB);
    assert_eq!(
        workload.extensions.get("tulle.dev/process").map(AsRef::as_ref),
        Some("netns:web")
    );
    assert_eq!(&*workload.node, "n1");
}

#[test]
fn an_old_cursor_beyond_the_log_must_walk_the_table() {
    let mut table = Table::default();
    let resource = |number: usize| table::Resource {
        name: format!("r{}", number % 10).into(),
        aliases: Vec::new(),
        body: number.to_string().into(),
        order: Order::Workload,
        scope: Scope::Everyone,
    };
    for number in 0..table::LOG_ENTRIES_MAX + 10 {
        table.set(resource(number), number as u64 + 1);
    }
    assert!(table.changed_since(5).is_none());
    assert_eq!(
        table
            .changed_since(table::LOG_ENTRIES_MAX as u64)
            .map(Iterator::count),
        Some(10)
    );
}

const API: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: api, namespace: shop}\nspec: {selector: {app: api}, clusterIPs: [10.9.0.1], ports: [{port: 80, targetPort: 8080}]}\n---\n";
const TARGETED: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: l7, namespace: shop}\nspec: {targetRefs: [{kind: Service, name: api}], rules: [{to: [{operation: {methods: [GET]}}]}]}\n---\n";

/// The policies that keep others than waypoints away, as the wire carries them.
fn requirements(snapshot: &Snapshot) -> Vec<tulle_model::authz::policy::Authorization> {
    let slots = snapshot.resources(ResourceType::Authorization);
    let required = slots.filter(|slot| slot.name.contains("/tulle_require_waypoint_"));
    let decode = |slot: &Arc<Slot>| match decode_authorization(&slot.name, &slot.body).expect("it decodes") {
        Resource::Authorization(policy) => (*policy).clone(),
        other => panic!("{other:?}"),
    };
    required.map(decode).collect()
}

#[test]
fn a_policy_that_only_a_waypoint_can_enforce_closes_the_ports_until_there_is_one() {
    let both =
        entry("api", "10.0.0.1", "") + &entry("api-2", "10.0.0.2", "").replace("app: api-2", "app: api");
    let (mut engine, snapshot) = engine(&(both + API + TARGETED));
    let required = requirements(&snapshot);
    assert_eq!(required.len(), 1, "workloads with equal needs share one policy");
    let clauses = &required[0].rules[0].clauses;
    assert_eq!(clauses.len(), 1);
    assert_eq!(clauses[0].matches[0].destination_ports, [8080]);
    assert!(required[0].match_peer);
    for name in ["api", "api-2"] {
        let workload = workload(
            &snapshot,
            &format!("Kubernetes/networking.istio.io/WorkloadEntry/shop/{name}"),
        );
        assert_eq!(workload.authorization_policies, [required[0].key()]);
    }
    let one = engine.apply(batch(vec![gone(Key::new(Kind::WorkloadEntry, "shop", "api"))]));
    assert_eq!(requirements(&one).len(), 1, "the other workload still needs it");
    let none = engine.apply(batch(vec![gone(Key::new(
        Kind::AuthorizationPolicy,
        "shop",
        "l7",
    ))]));
    assert!(requirements(&none).is_empty());
}

#[test]
fn a_named_waypoint_that_is_missing_is_the_only_one_let_through_and_callers_are_sent_to_it() {
    let named = API.replace(
        "namespace: shop}",
        "namespace: shop, labels: {istio.io/use-waypoint: way}}",
    );
    let (_, snapshot) = engine(&(entry("api", "10.0.0.1", "") + &named + TARGETED));
    let clauses = &requirements(&snapshot)[0].rules[0].clauses;
    let principal = tulle_model::authz::policy::StringMatch::Exact("cluster.local/ns/shop/sa/way".into());
    assert_eq!(clauses[0].matches[0].not_principals, [principal]);
    let slot = snapshot
        .resource(ResourceType::Address, "shop/api.shop.svc.cluster.local")
        .expect("the service");
    let Resource::Service(service) = decode_address(&slot.name, &slot.body).expect("it decodes") else {
        panic!("a service")
    };
    assert!(service.waypoint.is_some());
}

#[test]
fn a_token_can_be_bound_to_a_pod_that_has_not_ended_and_to_no_earlier_one_of_its_name() {
    let pod = |uid: &str, phase: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web-0, namespace: shop{uid}}}\nspec: {{nodeName: n1}}\nstatus: {{phase: {phase}}}\n"
        )
    };
    let bearer = |uid: &str| crate::snapshot::Bearer {
        namespace: "shop".into(),
        account: "default".into(),
        pod: "web-0".into(),
        uid: uid.into(),
    };
    let (mut engine, first) = engine(&pod(", uid: u1", "Pending"));
    assert!(first.bearers().has(&bearer("u1")) && !first.bearers().has(&bearer("u2")));
    assert_eq!(
        first.bearers().node_of(&bearer("u1")).map(|node| &**node),
        Some("n1")
    );
    let mut next = |text: &str| engine.apply(batch(objects(text).into_iter().map(set).collect()));
    let second = next(&pod(", uid: u2", "Running"));
    assert!(!second.bearers().has(&bearer("u1")) && second.bearers().has(&bearer("u2")));
    let ended = next(&pod(", uid: u2", "Succeeded"));
    assert!(!ended.bearers().has(&bearer("u2")));
    let unnumbered = next(&pod("", "Running"));
    assert!(
        !unnumbered.bearers().has(&bearer("")),
        "nobody told it from others"
    );
}

/// What a new form of a namespace has computed again, beside a service, a workload and a waypoint that selects namespaces.
fn touched(namespace: &str, before: &str, after: &str) -> Vec<String> {
    let way = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: way, namespace: ways}\nspec: {gatewayClassName: tulle-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: one}}}}}]}\n---\n";
    let service = |namespace: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: api, namespace: {namespace}}}\nspec: {{clusterIPs: [10.9.0.1], ports: [{{port: 80}}]}}\n---\n"
        )
    };
    let form =
        |said: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, {said}}}\n");
    let text =
        entry("web", "10.0.0.1", "") + way + &service("shop") + &service("istio-system") + &form(before);
    let (mut engine, _) = engine(&text);
    let events = [set(objects(&form(after)).remove(0))];
    let mut touched = engine.take(&events, true);
    assert_eq!(
        engine.world.namespace(namespace).map(|of| &of.metadata),
        Some(objects(&form(after))[0].meta())
    );
    touched.remove(&OutKey::StaticStrict);
    touched.iter().map(|out| format!("{out:?}")).collect()
}

#[test]
fn of_a_namespace_only_what_something_reads_is_computed_again() {
    let plain = "labels: {app: x}";
    for nothing in [
        "labels: {app: y}",
        "labels: {app: x, kubernetes.io/metadata.name: shop}",
        "labels: {app: x, team: two}",
        "labels: {app: x}, annotations: {note: a}",
        "labels: {app: x, topology.istio.io/network: other}",
    ] {
        assert_eq!(touched("shop", plain, nothing), [""; 0], "{nothing}");
    }
    for something in [
        "labels: {istio.io/dataplane-mode: ambient}",
        "labels: {istio.io/use-waypoint: way}",
        "labels: {istio.io/ingress-use-waypoint: 'true'}",
        "labels: {team: one}",
        "annotations: {networking.istio.io/traffic-distribution: PreferClose}",
    ] {
        let all = touched("shop", plain, something);
        assert!(
            all.iter().any(|out| out.contains("api.shop")),
            "{something}: {all:?}"
        );
        assert!(all.iter().any(|out| out.contains("web")), "{something}: {all:?}");
    }
    assert_eq!(touched("istio-system", plain, "labels: {app: y}"), [""; 0]);
    let own = touched("istio-system", plain, "labels: {istio.io/use-waypoint: way}");
    assert!(own.iter().all(|out| out.contains("api.istio-system")), "{own:?}");
    let all = touched(
        "istio-system",
        plain,
        "labels: {topology.istio.io/network: other}",
    );
    assert!(all.iter().any(|out| out.contains("web")), "{all:?}");
}
