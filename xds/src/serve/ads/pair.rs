//! Our server session meets our client session, with real resources: whatever happens, the client's mesh ends up
//! as what is served to its node.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;
use tulle_model::testing::{deny, workload};
use tulle_model::{Mesh, Str};
use tulle_proto::convert::{self, Resource as Decoded};
use tulle_proto::core::Node;
use tulle_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tulle_proto::resume::Layout;
use tulle_xds_client::resource::ResourceType as ClientType;
use tulle_xds_client::session::Session as ClientSession;

use super::wire;
use crate::engine::table::Resource;
use crate::serve::session::Session;
use crate::serve::viewer::Viewer;
use crate::snapshot::{Order, ResourceType, Scope, Snapshot};

const NAMES: [&str; 4] = ["shop/a", "shop/b", "shop/c", "shop/d"];

#[derive(Debug, Clone)]
enum Step {
    /// Sets a workload, with this port of its address as content; `None` removes it.
    Workload(usize, Option<u8>),
    /// Sets a policy for these ports; `Some(0)` cannot be decoded. Only seen if the flag says so.
    Policy(usize, Option<u8>, bool),
    Requests,
    Send,
    Receive,
    Reconnect(Option<Layout>),
}

fn step() -> impl Strategy<Value = Step> {
    let content = || prop::option::weighted(0.8, 0..5_u8);
    prop_oneof![
        3 => (0..NAMES.len(), content()).prop_map(|(name, content)| Step::Workload(name, content)),
        3 => (0..NAMES.len(), content(), prop::bool::weighted(0.8))
            .prop_map(|(name, content, visible)| Step::Policy(name, content, visible)),
        4 => Just(Step::Requests),
        4 => Just(Step::Send),
        4 => Just(Step::Receive),
        1 => prop::option::of(prop::sample::select(Layout::ALL.to_vec())).prop_map(Step::Reconnect),
    ]
}

struct Pair {
    head: Arc<Snapshot>,
    server: Session<Arc<Snapshot>>,
    client: ClientSession,
    mesh: Mesh,
    requests: VecDeque<DeltaDiscoveryRequest>,
    responses: VecDeque<DeltaDiscoveryResponse>,
    /// Streams that ended because digests hid a change.
    misled: usize,
}

impl Pair {
    fn new() -> Self {
        let head = Arc::new(Snapshot::default());
        let mut pair = Self {
            server: Session::new(1, Viewer::node("n1"), head.clone()),
            head,
            client: ClientSession::new(Node::default(), &ClientType::NODE),
            mesh: Mesh::new(),
            requests: VecDeque::new(),
            responses: VecDeque::new(),
            misled: 0,
        };
        pair.open();
        pair
    }

    fn open(&mut self) {
        self.open_by(None);
    }

    /// A new stream: everything in flight is gone.
    fn open_by(&mut self, layout: Option<Layout>) {
        self.client.on_close();
        self.server = Session::new(1, Viewer::node("n1"), self.head.clone());
        let requests = match layout {
            Some(layout) => self.client.on_resume(&[], layout),
            None => self.client.on_open(),
        };
        self.requests = requests.into();
        self.responses.clear();
    }

    fn edit(&mut self, ty: ResourceType, name: &str, body: Option<Vec<u8>>, scope: Scope) {
        let mut next = (*self.head).clone();
        next.sequence += 1;
        let sequence = next.sequence;
        let table = match ty {
            ResourceType::Authorization => &mut next.authorizations,
            _ => &mut next.addresses,
        };
        match body {
            None => drop(table.remove(name, sequence)),
            Some(body) => drop(table.set(
                Resource {
                    name: name.into(),
                    aliases: Vec::new(),
                    body: body.into(),
                    order: Order::Workload,
                    scope,
                },
                sequence,
            )),
        }
        self.head = Arc::new(next);
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Workload(name, content) => {
                let body = content.map(|content| {
                    let workload = workload(NAMES[name])
                        .ip(&format!("10.0.{name}.{content}"))
                        .build();
                    convert::encode_address(&Decoded::Workload(workload.into())).expect("an address")
                });
                self.edit(ResourceType::Address, NAMES[name], body, Scope::Everyone);
            }
            Step::Policy(name, content, visible) => {
                let body = content.map(|content| match content {
                    0 => vec![0xff; 7],
                    port => convert::encode_authorization(&deny(NAMES[name]).to_port(port.into()).build()),
                });
                let node = if visible { "n1" } else { "n2" };
                let nodes = Arc::new(BTreeSet::from([Str::from(node)]));
                self.edit(
                    ResourceType::Authorization,
                    NAMES[name],
                    body,
                    Scope::Workloads { nodes },
                );
            }
            Step::Requests => drop(self.deliver()),
            Step::Send => drop(self.send()),
            Step::Receive => drop(self.receive()),
            Step::Reconnect(layout) => self.open_by(layout),
        }
    }

    fn deliver(&mut self) -> bool {
        let Some(request) = self.requests.pop_front() else {
            return false;
        };
        self.server
            .on_request(&wire::request(request), &self.head)
            .expect("the stream goes on");
        true
    }

    fn send(&mut self) -> bool {
        let response = self.server.poll_send(&self.head, Instant::now());
        let some = response.is_some();
        self.responses
            .extend(response.map(|response| wire::response(&response)));
        some
    }

    fn receive(&mut self) -> bool {
        let Some(response) = self.responses.pop_front() else {
            return false;
        };
        let mut response = response;
        self.client.name_buckets(&mut response);
        let outcome = self.client.on_response(response);
        self.mesh.apply(outcome.updates);
        self.requests.push_back(outcome.answer);
        if outcome.misled {
            self.misled += 1;
            self.open_by(Some(Layout::Fine));
        }
        true
    }

    fn settle(&mut self) {
        while self.deliver() | self.send() | self.receive() {}
    }

    fn check(&self) {
        let held: BTreeMap<String, BTreeMap<String, String>> = self
            .client
            .on_open()
            .into_iter()
            .map(|request| (request.type_url, request.initial_resource_versions))
            .collect();
        let rejected: BTreeSet<String> = self
            .client
            .summary()
            .flat_map(|summary| summary.rejected.into_iter().map(|(name, _)| name.to_owned()))
            .collect();
        assert!(self.client.synced() || !rejected.is_empty());
        for ty in [ResourceType::Address, ResourceType::Authorization] {
            let served = self.head.resources(ty).filter(|slot| slot.scope.reaches("n1"));
            let served: BTreeMap<_, _> = served
                .map(|slot| (slot.name.to_string(), slot.version.to_string()))
                .collect();
            let held = &held[ty.type_url()];
            // A rejected name is held at its last good version, or at none.
            assert_eq!(held.keys().collect::<Vec<_>>(), served.keys().collect::<Vec<_>>());
            for (name, version) in held {
                assert!(served[name] == *version || rejected.contains(name), "{name}");
            }
        }
        let snapshot = self.mesh.snapshot();
        assert_eq!(
            snapshot.workloads().count(),
            self.head.resources(ResourceType::Address).count()
        );
        // A policy that could not be decoded and has no good form is there as one that denies.
        let visible = self
            .head
            .resources(ResourceType::Authorization)
            .filter(|slot| slot.scope.reaches("n1"));
        assert_eq!(snapshot.policies().count(), visible.count());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn our_client_converges_with_our_server(steps in prop::collection::vec(step(), 0..80)) {
        let mut pair = Pair::new();
        for step in &steps {
            pair.step(step);
        }
        pair.settle();
        pair.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 50, failure_persistence: None, ..ProptestConfig::default() })]

    /// So many that it comes back with digests: wherever it is cut off, they bring it what it lacks at once.
    #[test]
    fn our_client_converges_by_digests(steps in prop::collection::vec(step(), 0..80)) {
        let mut pair = Pair::new();
        many(&mut pair, 150);
        pair.settle();
        for step in &steps {
            pair.step(step);
        }
        pair.settle();
        pair.check();
        // Short digests hide a change once in 65,536 times; if they were thought to where they do not, it were each time.
        prop_assert!(pair.misled <= 1);
    }
}

/// A workload as content of the table.
fn body(name: &str, port: u16) -> Vec<u8> {
    let workload = workload(name)
        .ip(&format!("10.1.{}.{}", port / 200, port % 200))
        .build();
    convert::encode_address(&Decoded::Workload(workload.into())).expect("an address")
}

/// Adds workloads, and gives their names.
fn many(pair: &mut Pair, count: u16) -> Vec<String> {
    let names: Vec<String> = (0..count).map(|number| format!("shop/web-{number}")).collect();
    for (port, name) in (0..).zip(&names) {
        let body = Some(body(name, port));
        pair.edit(ResourceType::Address, name, body, Scope::Everyone);
    }
    names
}

#[test]
fn a_node_that_comes_back_tells_digests_and_is_told_only_what_differs() {
    for layout in Layout::ALL {
        comes_back(layout);
    }
}

fn comes_back(layout: Layout) {
    let mut pair = Pair::new();
    let names = many(&mut pair, 1000);
    pair.settle();
    pair.check();

    let come_back = |pair: &mut Pair| {
        pair.server = Session::new(2, Viewer::node("n1"), pair.head.clone());
        pair.requests = pair.client.on_resume(&[], layout).into();
        let asked: usize = pair.requests.iter().map(prost::Message::encoded_len).sum();
        while pair.deliver() {}
        while pair.send() {}
        let told: usize = pair.responses.iter().map(prost::Message::encoded_len).sum();
        let resources: usize = pair
            .responses
            .iter()
            .map(|response| response.resources.len())
            .sum();
        pair.settle();
        pair.check();
        assert_eq!(pair.misled, 0);
        (asked + told, resources)
    };
    let (bytes, resources) = come_back(&mut pair);
    assert!(
        resources == 0 && bytes <= 10_000,
        "{resources} resources, {bytes} bytes"
    );

    pair.edit(
        ResourceType::Address,
        &names[7],
        Some(body(&names[7], 1007)),
        Scope::Everyone,
    );
    pair.edit(ResourceType::Address, &names[9], None, Scope::Everyone);
    pair.edit(
        ResourceType::Address,
        "shop/new",
        Some(body("shop/new", 2000)),
        Scope::Everyone,
    );
    let (_, resources) = come_back(&mut pair);
    assert!(
        (2..30).contains(&resources),
        "{resources} resources of three buckets"
    );
}
