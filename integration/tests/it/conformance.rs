//! The behaviours that the Gateway API asks of a mesh: users' manifests, real clients and servers, node proxies and a
//! waypoint between them.
//!
//! Each file of `conformance/` is one behaviour: what is asked and expected, then the manifests it is about.

mod client;
mod echo;
mod table;

use std::path::Path;

use tulle_integration::{TestMesh, manifest};
use tulle_world::Pod;

use client::{Answer, ask};
use table::{Behaviour, Case};

/// Requests that a distribution is judged by, and how far a share may be from its weight: more than four times the
/// deviation that chance has.
const DRAWS: u32 = 400;
const SHARE_OFF_MAX: f64 = 0.10;

struct Conformance {
    mesh: TestMesh,
    client: Pod,
    visitor: Pod,
    _echoes: Vec<echo::Echo>,
    pods: Vec<Pod>,
}

impl Conformance {
    async fn start() -> Self {
        let mut mesh = TestMesh::new(&["n1", "n2"]).await;
        mesh.apply("namespace", &enrolled("app", true));
        mesh.apply("visitors", &enrolled("visitors", false));
        let client = mesh.pod("n1", "client").await;
        let visitor = mesh.pod_in("visitors", "n1", "visitor", "visitor").await;
        let mut pods = Vec::new();
        for (node, version) in [("n1", "v1"), ("n2", "v2")] {
            let pod = mesh
                .world
                .add_pod(node, &format!("echo-{version}"))
                .await
                .unwrap();
            mesh.apply(&format!("echo-{version}"), &echo_workload(&pod, version));
            pods.push(pod);
        }
        mesh.apply("services", include_str!("../../conformance/mesh/services.yaml"));
        mesh.start().await;
        mesh.start_waypoint("n2", manifest::NAMESPACE, "waypoint").await;
        let mut all: Vec<&Pod> = vec![&client, &visitor];
        all.extend(&pods);
        mesh.captured(&all).await;
        let mut echoes = Vec::new();
        for pod in &pods {
            echoes.push(echo::Echo::start(pod).await);
        }
        Self {
            mesh,
            client,
            visitor,
            _echoes: echoes,
            pods,
        }
    }

    fn from(&self, case: &Case) -> &Pod {
        if case.from.as_deref() == Some("visitor") {
            &self.visitor
        } else {
            &self.client
        }
    }

    async fn answer(&self, case: &Case) -> Result<Answer, String> {
        let pod = |name: &String| self.pods.iter().find(|pod| pod.name() == name);
        let address = match (&case.to, &case.to_pod) {
            (Some(service), _) => table::address_of(service),
            (None, Some(name)) => pod(name).expect("a pod of the test").ipv4().into(),
            (None, None) => panic!("a case says whom it asks"),
        };
        ask(self.from(case), (address, case.port).into(), case).await
    }

    /// What is wrong with the answers to a case; nothing if they are as expected in time.
    async fn judge(&self, case: &Case) -> Option<String> {
        let mut wrong = None;
        tulle_integration::mesh::eventually(async || {
            wrong = match self.answer(case).await {
                Ok(answer) => case.wrong(&answer),
                Err(error) => Some(error),
            };
            wrong.is_none()
        })
        .await;
        if wrong.is_some() || case.shares.is_empty() {
            return wrong;
        }
        self.judge_shares(case).await
    }

    async fn judge_shares(&self, case: &Case) -> Option<String> {
        let mut counts = std::collections::BTreeMap::<String, u32>::new();
        for _ in 0..DRAWS {
            match self.answer(case).await {
                Ok(answer) => *counts.entry(answer.seen.backend).or_default() += 1,
                Err(error) => return Some(error),
            }
        }
        let weights: u32 = case.shares.values().sum();
        let off = |(backend, weight): (&String, &u32)| {
            let share = f64::from(counts.get(backend).copied().unwrap_or(0)) / f64::from(DRAWS);
            (share - f64::from(*weight) / f64::from(weights)).abs() > SHARE_OFF_MAX
        };
        let strangers = counts.keys().any(|backend| !case.shares.contains_key(backend));
        (strangers || case.shares.iter().any(off)).then(|| format!("the shares are {counts:?}"))
    }

    async fn check(&self, behaviour: &Behaviour) -> Vec<String> {
        self.mesh.apply("behaviour", &behaviour.manifests);
        let mut wrong = Vec::new();
        for case in &behaviour.cases {
            if let Some(what) = self.judge(case).await {
                wrong.push(format!("{}: {case:?}: {what}", behaviour.name));
            }
        }
        wrong
    }
}

/// A namespace in the mesh, bound to the waypoint or not.
fn enrolled(name: &str, bound: bool) -> String {
    let bound = if bound {
        ", istio.io/use-waypoint: waypoint"
    } else {
        ""
    };
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels: {{istio.io/dataplane-mode: ambient{bound}}}\n"
    )
}

fn echo_workload(pod: &Pod, version: &str) -> String {
    let (name, node, ipv4, ipv6) = (pod.name(), pod.node(), pod.ipv4(), pod.ipv6());
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: {name}\n  namespace: app\n  \
         annotations:\n    tulle.dev/node: {node}\n    tulle.dev/process: netns:{name}\n    \
         tulle.dev/addresses: \"{ipv4},{ipv6}\"\nspec:\n  address: {ipv4}\n  serviceAccount: {name}\n  \
         labels: {{app: echo, version: {version}}}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_behaviour_that_the_gateway_api_asks_of_a_mesh_holds() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/conformance"));
    let behaviours = table::read(folder);
    assert_eq!(behaviours.len(), 23, "one file for each behaviour");
    let conformance = Conformance::start().await;
    let mut wrong = Vec::new();
    for behaviour in &behaviours {
        wrong.extend(conformance.check(behaviour).await);
    }
    assert!(
        wrong.is_empty(),
        "{} cases:\n{}\n{}",
        wrong.len(),
        wrong.join("\n"),
        conformance.mesh.logs()
    );
}
