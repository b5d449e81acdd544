//! O8: whether a port takes callers without an identity, through the whole engine and the proxies' judgement, against
//! ten plain lines.

use std::net::SocketAddr;

use tulle_model::{Connection, Identity, Mesh, MeshUpdate, Verdict};
use tulle_proto::{Resource as Decoded, decode_address, decode_authorization};

use super::*;

#[derive(Debug, Clone)]
struct Peer {
    namespace: &'static str,
    name: &'static str,
    selects: Option<&'static str>,
    mode: &'static str,
    ports: BTreeMap<u16, &'static str>,
    day: u8,
}

/// The ten lines: the first mode that is set decides, of the eldest policy at each level.
fn is_strict(all: &[Peer], mesh_is_strict: bool, namespace: &str, app: &str, port: u16) -> bool {
    let eldest = |home: &str, selects: Option<&str>| {
        let fits = all
            .iter()
            .filter(|one| one.namespace == home && one.selects == selects);
        fits.min_by_key(|one| (one.day, one.name))
    };
    let own = eldest(namespace, Some(app));
    let of_port = own.and_then(|own| own.ports.get(&port).copied());
    let wider = [own, eldest(namespace, None), eldest("istio-system", None)];
    let modes = of_port
        .into_iter()
        .chain(wider.into_iter().flatten().map(|one| one.mode));
    let set = modes.into_iter().find(|mode| *mode != "UNSET");
    set.map_or(mesh_is_strict, |mode| mode == "STRICT")
}

fn manifest(peer: &Peer) -> String {
    let ports: Vec<String> = (peer.ports.iter())
        .map(|(port, mode)| format!("'{port}': {{mode: {mode}}}"))
        .collect();
    let selector = peer.selects.map_or_else(String::new, |app| {
        format!("selector: {{matchLabels: {{app: {app}}}}}, ")
    });
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {}, namespace: {}, creationTimestamp: '2026-01-0{}T00:00:00Z'}}\nspec: {{{selector}mtls: {{mode: {}}}, portLevelMtls: {{{}}}}}\n---\n",
        peer.name,
        peer.namespace,
        peer.day,
        peer.mode,
        ports.join(", ")
    )
}

fn pod(namespace: &str, app: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {app}, namespace: {namespace}, labels: {{app: {app}}}}}\nspec: {{nodeName: n1}}\nstatus: {{phase: Running, podIP: {ip}}}\n---\n"
    )
}

fn any_peer() -> impl Strategy<Value = Peer> {
    let mode = || prop::sample::select(vec!["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]);
    (
        prop::sample::select(vec!["shop", "istio-system"]),
        prop::sample::select(vec!["a", "b", "c"]),
        prop::sample::select(vec![None, Some("web"), Some("db")]),
        mode(),
        prop::collection::btree_map(80_u16..83, mode(), 0..3),
        1_u8..4,
    )
        .prop_map(|(namespace, name, selects, mode, ports, day)| Peer {
            namespace,
            name,
            selects,
            mode,
            ports,
            day,
        })
}

/// What a proxy that receives everything knows.
fn mesh(snapshot: &Snapshot) -> Mesh {
    let addresses = snapshot.resources(ResourceType::Address);
    let policies = snapshot.resources(ResourceType::Authorization);
    let addresses = addresses.map(|slot| decode_address(&slot.name, &slot.body));
    let all = addresses.chain(policies.map(|slot| decode_authorization(&slot.name, &slot.body)));
    let updates = all.map(|resource| match resource.expect("it decodes") {
        Decoded::Workload(workload) => MeshUpdate::Workload(workload),
        Decoded::Authorization(policy) => MeshUpdate::Policy(policy),
        other => panic!("neither workload nor policy: {other:?}"),
    });
    let mesh = Mesh::new();
    mesh.apply(updates.collect());
    mesh
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_port_of_every_workload_has_the_mode_that_ten_lines_say(
        peers in prop::collection::vec(any_peer(), 0..8),
        mesh_is_strict: bool,
    ) {
        // One object per name: the last one stands.
        let peers: BTreeMap<_, _> = peers.into_iter().map(|peer| ((peer.namespace, peer.name), peer)).collect();
        let peers: Vec<Peer> = peers.into_values().collect();
        let pods = [("shop", "web", "10.0.0.1"), ("shop", "db", "10.0.0.2"), ("istio-system", "web", "10.0.0.3"), ("other", "web", "10.0.0.4")];
        let mut text: String = peers.iter().map(manifest).collect();
        for (namespace, app, ip) in pods {
            text += &pod(namespace, app, ip);
        }
        if mesh_is_strict {
            text += "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: tulle, namespace: istio-system}\ndata: {mesh: 'mtlsMode: strict'}\n";
        }
        let snapshot = Engine::new(MeshConfig::default()).apply(batch(objects(&text).into_iter().map(set).collect()));
        let mesh = mesh(&snapshot).snapshot();
        for (namespace, app, ip) in pods {
            let uid = tulle_model::WorkloadUid(format!("Kubernetes//Pod/{namespace}/{app}").into());
            let workload = mesh.workload(&uid).expect("a workload");
            let policies = mesh.policies_for(workload);
            prop_assert!(policies.missing.is_empty(), "{:?}", policies.missing);
            for port in 80..84 {
                for peer in [None, Some(Identity::new("cluster.local", "a", "b"))] {
                    let known = peer.is_some();
                    let connection = Connection {
                        peer,
                        original_source: None,
                        source_ip: "10.1.0.1".parse().expect("an address"),
                        destination: SocketAddr::new(ip.parse().expect("an address"), port),
                    };
                    let passes = matches!(policies.check(&connection), Verdict::Allow { .. });
                    let strict = is_strict(&peers, mesh_is_strict, namespace, app, port);
                    prop_assert_eq!(passes, known || !strict, "{}/{}:{} known {}", namespace, app, port, known);
                }
            }
        }
    }
}
