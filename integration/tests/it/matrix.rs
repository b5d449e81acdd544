//! Ways and policies, each with each: whoever is judged, by whatever way, is judged alike.
//!
//! What a policy means is said twice: as a manifest, and as a function of who asks for which port.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use tulle_integration::mesh::eventually;
use tulle_integration::traffic::{Echo, gets_through};
use tulle_integration::{TestMesh, manifest};
use tulle_world::Pod;

/// Ports of every server.
const PORTS: [u16; 2] = [8080, 9090];

/// Who asks. `Outsider` is no part of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    Web,
    Job,
    Outsider,
}

/// A policy on `app: db`, and whom it lets through.
struct Rule {
    name: &'static str,
    manifest: String,
    allows: fn(Caller, u16) -> bool,
}

/// What only some may, by kinds of conditions that depend on the way: identity, address, port.
fn rules(web: &Pod) -> Vec<Rule> {
    let policy = |action: &str, rules: &str| manifest::policy("judged", "db", action, rules);
    let source = |condition: &str| format!("  - from:\n    - source:\n        {condition}\n");
    let of = |account: &str| format!("cluster.local/ns/{}/sa/{account}", manifest::NAMESPACE);
    let (v4, v6) = (web.ipv4(), web.ipv6());
    let rule = |name, manifest, allows| Rule {
        name,
        manifest,
        allows,
    };
    vec![
        rule("no policy", String::new(), |_, _| true),
        rule(
            "deny an identity",
            policy("DENY", &manifest::from_account("web")),
            |caller, _| caller != Caller::Web,
        ),
        rule(
            "allow an identity",
            policy("ALLOW", &manifest::from_account("job")),
            |caller, _| caller == Caller::Job,
        ),
        rule(
            "deny all but an identity",
            policy("DENY", &source(&format!("notPrincipals: [{}]", of("web")))),
            |caller, _| caller == Caller::Web,
        ),
        rule(
            "deny a namespace",
            policy("DENY", &source(&format!("namespaces: [{}]", manifest::NAMESPACE))),
            |caller, _| caller == Caller::Outsider,
        ),
        rule(
            "deny addresses",
            policy("DENY", &source(&format!("ipBlocks: [\"{v4}/32\", \"{v6}/128\"]"))),
            |caller, _| caller != Caller::Web,
        ),
        rule(
            "allow a port",
            policy("ALLOW", "  - to:\n    - operation:\n        ports: [\"9090\"]\n"),
            |_, port| port == 9090,
        ),
        rule(
            "deny an identity on a port",
            policy(
                "DENY",
                &(manifest::from_account("job") + "    to:\n    - operation:\n        ports: [\"8080\"]\n"),
            ),
            |caller, port| caller != Caller::Job || port != 8080,
        ),
        rule("strict", manifest::strict(), |caller, _| {
            caller != Caller::Outsider
        }),
    ]
}

/// Callers on one node, servers on that node and on another, all of them `app: db`.
struct Stage {
    mesh: TestMesh,
    callers: Vec<(Caller, Pod)>,
    targets: Vec<(Echo, u16)>,
}

impl Stage {
    async fn new(same_node: &str) -> Self {
        let mut mesh = TestMesh::new(&["n1", "n2"]).await;
        mesh.environment("TULLE_SAME_NODE", same_node);
        let callers = vec![
            (Caller::Web, mesh.pod("n1", "web").await),
            (Caller::Job, mesh.pod("n1", "job").await),
            (Caller::Outsider, mesh.stranger("n1", "outsider").await),
        ];
        let near = mesh.pod_in(manifest::NAMESPACE, "n1", "near", "db").await;
        let far = mesh.pod_in(manifest::NAMESPACE, "n2", "far", "db").await;
        mesh.start().await;
        mesh.captured(&[&callers[0].1, &callers[1].1, &near, &far]).await;
        let mut targets = Vec::new();
        for pod in [&near, &far] {
            for address in [IpAddr::from(pod.ipv4()), pod.ipv6().into()] {
                for port in PORTS {
                    targets.push((Echo::start(pod.namespace(), address, port).await, port));
                }
            }
        }
        Self {
            mesh,
            callers,
            targets,
        }
    }

    /// Every cell that is not as the rule says.
    async fn wrong(&self, rule: &Rule) -> String {
        let mut wrong = String::new();
        for (caller, pod) in &self.callers {
            for (echo, port) in &self.targets {
                let to: SocketAddr = echo.address();
                let expected = (rule.allows)(*caller, *port);
                if gets_through(pod.namespace(), to).await != expected {
                    let _ = writeln!(wrong, "{}: {caller:?} to {to}: expected {expected}", rule.name);
                }
            }
        }
        wrong
    }
}

/// Each policy alone, by each way; twice, so that one that came into force late does not pass by chance.
async fn judged_alike(same_node: &str) {
    let stage = Stage::new(same_node).await;
    for rule in rules(&stage.callers[0].1) {
        stage.mesh.apply("judged", &rule.manifest);
        let mut wrong = String::new();
        let in_force = eventually(async || {
            wrong = stage.wrong(&rule).await;
            wrong.is_empty()
        });
        assert!(in_force.await, "{same_node}\n{wrong}{}", stage.mesh.logs());
        let wrong = stage.wrong(&rule).await;
        assert_eq!(wrong, "", "{same_node}\n{}", stage.mesh.logs());
    }
    let handed_over = stage
        .mesh
        .metric("n1", &["tulle_same_node_connections_total"])
        .await;
    assert_eq!(handed_over > 0.0, same_node == "inprocess", "{handed_over}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r405_every_policy_judges_alike_on_one_node_and_across_with_hand_over_within_the_proxy() {
    judged_alike("inprocess").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r405_every_policy_judges_alike_on_one_node_and_across_with_hand_over_forced_off() {
    judged_alike("hbone").await;
}
