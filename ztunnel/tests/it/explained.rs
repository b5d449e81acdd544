//! `/explain` says of many meshes, each drawn anew, what then happens to real connections.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tulle_model::{Identity, MeshUpdate, NamespacedName, NetworkAddress};
use tulle_transport::hbone::{ConnectRequest, OpenError};

use crate::outbound::call;
use crate::pages::explained;
use crate::world::{SOON, World, echo_application, identity, updates};

/// Meshes that are drawn.
const MESHES: u64 = 200;

/// Policies that a mesh may have, by namespace and name.
const POLICIES: [(&str, &str); 4] = [("shop", "a"), ("shop", "b"), ("shop", "c"), ("bank", "d")];

/// What happens to a connection: nothing, or the code of its refusal.
type Outcome = Option<String>;

/// Where things are, in all meshes.
struct Place {
    world: World,
    /// An application without a proxy.
    plain: SocketAddr,
    /// An address whose description was rejected.
    rejected: SocketAddr,
    service: SocketAddr,
}

impl Place {
    async fn new() -> Self {
        let world = World::start("").await;
        let rejected = SocketAddr::from(([10, 9, 9, 9], 80));
        let address = NetworkAddress::new("", rejected.ip());
        world.app.node().mesh.reject("shop/odd", address);
        Self {
            world,
            plain: echo_application("127.0.0.9:0").await,
            rejected,
            service: SocketAddr::from(([10, 1, 0, 1], 80)),
        }
    }

    /// Replaces the mesh.
    fn draw(&self, random: &mut StdRng) {
        let policies =
            POLICIES.map(|(namespace, name)| MeshUpdate::RemovePolicy(NamespacedName::new(namespace, name)));
        let drawn = updates(&mesh(random, self.world.echo.port()));
        let mesh = &self.world.app.node().mesh;
        mesh.apply(policies.into_iter().chain(drawn).collect());
    }

    /// A call of the local workload: what is said of it, and what happens.
    async fn outbound(&self, random: &mut StdRng) -> (Outcome, Outcome) {
        let services = [self.service, SocketAddr::new(self.service.ip(), 81)];
        let others = [
            self.world.echo,
            self.world.echo,
            self.plain,
            self.rejected,
            self.world.hbone,
        ];
        let all: Vec<_> = services.into_iter().chain(others).collect();
        let to = all[random.random_range(0..all.len())];
        let question = format!(
            r#"{{"source":{{"namespace":"shop","name":"web-1","service_account":"web"}},"destination":"{to}"}}"#
        );
        let said = self.said(&question).await;
        let before = said.as_deref().map(|code| (code, self.denied(code)));
        if answers(call(&self.world, to).await).await {
            return (said, None);
        }
        // What a refused application sees has no code. That it was the expected one is counted.
        let counted = async {
            while before.is_none_or(|(code, before)| self.denied(code) == before) {
                tokio::task::yield_now().await;
            }
        };
        match timeout(SOON, counted).await {
            Ok(()) => (said.clone(), said),
            Err(_) => (said, Some("another one".to_owned())),
        }
    }

    /// A tunnel of a peer: what is said of it, and what happens.
    async fn inbound(&self, random: &mut StdRng) -> (Outcome, Outcome) {
        let peers = [
            ("shop", "reviews"),
            ("shop", "ratings"),
            ("bank", "vault"),
            ("shop", "web"),
        ];
        let (namespace, account) = peers[random.random_range(0..peers.len())];
        let peer = identity(namespace, account);
        let to = match random.random_range(0..10) {
            0 => self.world.hbone,
            _ => self.world.echo,
        };
        let original = random.random_bool(0.3).then(|| identity("bank", "vault"));
        let told = |identity: &Identity| format!(r#","original_source":"{identity}""#);
        let question = format!(
            r#"{{"direction":"inbound","identity":"{peer}","source_ip":"127.0.0.1","destination":"{to}"{}}}"#,
            original.as_ref().map(told).unwrap_or_default()
        );
        let said = self.said(&question).await;
        let connection = self.world.connect_as(&peer).await.unwrap();
        let request = ConnectRequest {
            original_source: original,
            ..ConnectRequest::new(to.to_string())
        };
        match connection.open(&request).await {
            Ok(_) => (said, None),
            Err(OpenError::Refused(refusal)) => (said, Some(refusal.header.unwrap().code().to_owned())),
            Err(other) => panic!("neither opened nor refused: {other}"),
        }
    }

    async fn said(&self, question: &str) -> Outcome {
        let explained = explained(&self.world, question).await;
        match explained.verdict.as_deref() {
            // No proxy is at the other end, and nobody refuses.
            Some("allow") | None => None,
            _ => Some(explained.reason.unwrap().split(' ').next().unwrap().to_owned()),
        }
    }

    /// How often a code was counted, in either direction.
    fn denied(&self, code: &str) -> u64 {
        let series = format!("tulle_denied_total{{code=\"{code}\"");
        let text = self.world.app.exposition().encode();
        let lines = text.lines().filter(|line| line.starts_with(&series));
        let count = |line: &str| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap();
        lines.map(count).sum()
    }
}

async fn answers(mut application: TcpStream) -> bool {
    let answered = async {
        application.write_all(b"?").await?;
        application.read_u8().await
    };
    timeout(SOON, answered).await.unwrap().is_ok()
}

/// A mesh around the workload `shop/web-1`, a service in front of it or of nobody, and a workload without a proxy.
fn mesh(random: &mut StdRng, port: u16) -> String {
    let mut policies = String::from("policies:\n");
    let mut named = Vec::new();
    for (namespace, name) in POLICIES {
        let exists = random.random_bool(0.4);
        if exists {
            let _ = writeln!(policies, "- {}", policy(random, namespace, name, port));
        }
        if exists || random.random_bool(0.03) {
            named.push(format!("{namespace}/{name}"));
        }
    }
    let waypoint = one(random, &["", "", "waypoint: {destination: /127.0.0.1}, "]);
    let serves = random.random_bool(0.7);
    let services = if serves {
        format!("services: {{shop/cart.shop.svc.cluster.local: {{80: {port}}}}}, ")
    } else {
        String::new()
    };
    let front = one(random, &["", "", "", "waypoint: {destination: /10.3.0.1}, "]);
    if policies.lines().count() == 1 {
        policies.clear();
    }
    format!(
        "workloads:\n\
         - {{uid: web, name: web-1, namespace: shop, serviceAccount: web, workloadIps: [127.0.0.1], protocol: HBONE, \
            {waypoint}{services}authorizationPolicies: [{}]}}\n\
         - {{uid: old, name: old-1, namespace: shop, workloadIps: [127.0.0.9]}}\n\
         services:\n\
         - {{name: cart, namespace: shop, hostname: cart.shop.svc.cluster.local, vips: [/10.1.0.1], {front}\
            ports: {{80: {port}}}}}\n\
         {policies}",
        named.join(", ")
    )
}

fn policy(random: &mut StdRng, namespace: &str, name: &str, port: u16) -> String {
    let scope = one(random, &["Global", "Namespace", "WorkloadSelector"]);
    let action = one(random, &["Allow", "Deny", "Deny"]);
    let rules: Vec<_> = (0..random.random_range(0..3))
        .map(|_| format!("[[{{{}}}]]", fields(random, port)))
        .collect();
    format!(
        "{{name: {name}, namespace: {namespace}, scope: {scope}, action: {action}, rules: [{}]}}",
        rules.join(", ")
    )
}

/// What one match looks at: up to two kinds of fields.
fn fields(random: &mut StdRng, port: u16) -> String {
    let text = one(
        random,
        &[
            "{Exact: cluster.local/ns/shop/sa/reviews}",
            "{Prefix: cluster.local/ns/shop}",
            "{Suffix: vault}",
        ],
    );
    let who = format!("{}: [{text}]", one(random, &["principals", "notPrincipals"]));
    let from = format!(
        "{}: [{{Exact: bank}}]",
        one(random, &["namespaces", "notNamespaces"])
    );
    let to = format!(
        "{}: [{port}]",
        one(random, &["destinationPorts", "notDestinationPorts"])
    );
    let range = one(random, &["127.0.0.0/8", "10.0.0.0/8"]);
    let at = format!("{}: ['{range}']", one(random, &["sourceIps", "notSourceIps"]));
    let first = [who, from][random.random_range(0..2)].clone();
    match random.random_range(0..3) {
        0 => first,
        1 => format!("{first}, {to}"),
        _ => format!("{first}, {at}"),
    }
}

fn one<'a>(random: &mut StdRng, of: &[&'a str]) -> &'a str {
    of[random.random_range(0..of.len())]
}

#[tokio::test]
async fn what_is_explained_of_200_meshes_is_what_happens() {
    let place = Place::new().await;
    let mut seen = BTreeSet::new();
    for number in 0..MESHES {
        let random = &mut StdRng::seed_from_u64(number);
        place.draw(random);
        let (said, happened) = place.outbound(random).await;
        assert_eq!(said, happened, "outbound in mesh {number}");
        seen.insert(said);
        let (said, happened) = place.inbound(random).await;
        assert_eq!(said, happened, "inbound in mesh {number}");
        seen.insert(said);
    }
    let codes = [
        "T0201", "T0412", "T0413", "T0414", "T0421", "T0422", "T0506", "T0509",
    ];
    let all: BTreeSet<Outcome> = codes
        .map(|code| Some(code.to_owned()))
        .into_iter()
        .chain([None])
        .collect();
    assert_eq!(seen, all, "each way to decide was drawn");
}
