//! Who must have an object, and what they said.

use std::time::Instant;

use super::*;
use crate::engine::table::Resource;
use crate::serve::push::RESPONSE_BYTES_MAX;
use crate::serve::session::{Nack, Request, Session};
use crate::serve::viewer::Features;
use crate::snapshot::{ObjectKey, Order, Scope};
use crate::status::{Clients, Connected};

fn cut(sequence: u64, body: &'static [u8]) -> Arc<Snapshot> {
    let mut snapshot = Snapshot {
        sequence,
        synced: true,
        ..Snapshot::default()
    };
    let waypoints = Arc::new(["shop/way".into()].into());
    let resource = Resource {
        name: "shop/way".into(),
        aliases: Vec::new(),
        body: bytes::Bytes::from_static(body),
        order: Order::Policy,
        scope: Scope::Waypoints { waypoints },
    };
    assert!(snapshot.table_mut(ResourceType::Waypoint).set(resource, sequence));
    Arc::new(snapshot)
}

fn gateway() -> ObjectStatus {
    ObjectStatus {
        key: ObjectKey::new(Kind::Gateway, "shop", "way"),
        file: "way.yaml".into(),
        generation: 1,
        stale_since: None,
        conditions: vec![Condition::holds(PROGRAMMED, "Programmed", "it is reached at way")],
        resources: vec!["shop/way".into()],
    }
}

/// A waypoint's stream, as the list of clients knows it.
struct Waypoint {
    session: Session<Arc<Snapshot>>,
    listed: Connected,
}

impl Waypoint {
    fn new(clients: &Clients, head: &Arc<Snapshot>) -> Self {
        let viewer = Viewer::of_waypoint("shop/way");
        let mut session = Session::new(1, viewer, head.clone());
        let first = Request {
            type_url: ResourceType::Waypoint.type_url().into(),
            ..Request::default()
        };
        session.on_request(&first, head).unwrap();
        let status = ClientStatus::new("shop/way".into(), ClientKind::Waypoint, Features::default());
        let waypoint = Self {
            session,
            listed: clients.connect(status).unwrap(),
        };
        waypoint.listed.update(&waypoint.session, head);
        waypoint
    }

    fn answer(&mut self, head: &Arc<Snapshot>, error: Option<&str>) {
        let response = self
            .session
            .poll_send(head, Instant::now())
            .expect("something to say");
        let answer = Request {
            type_url: response.type_url,
            nonce: response.nonce,
            error: error.map(|message| Nack {
                message: message.to_owned(),
            }),
            ..Request::default()
        };
        self.session.on_request(&answer, head).unwrap();
        self.listed.update(&self.session, head);
    }
}

fn judged(head: &Arc<Snapshot>, clients: &Clients) -> (Acks, Status) {
    let acks = acks(head, &clients.list(Instant::now()), &gateway());
    let status = conditions(&gateway(), &acks)[0].status;
    (acks, status)
}

#[test]
fn a_cut_is_accepted_with_the_last_of_its_responses() {
    let (clients, small) = (Clients::default(), cut(1, b"one"));
    let mut head = Snapshot::clone(&small);
    let large = Resource {
        name: "shop/way/large".into(),
        aliases: Vec::new(),
        body: vec![0; RESPONSE_BYTES_MAX].into(),
        order: Order::Policy,
        scope: small
            .resource(ResourceType::Waypoint, "shop/way")
            .unwrap()
            .scope
            .clone(),
    };
    assert!(head.table_mut(ResourceType::Waypoint).set(large, 1));
    let head = Arc::new(head);
    let mut waypoint = Waypoint::new(&clients, &head);
    for accepted in [0, 1] {
        waypoint.answer(&head, None);
        let (acks, _) = judged(&head, &clients);
        assert_eq!((acks.acked, acks.pending), (accepted, 1 - accepted));
    }
    let listed = &clients.list(Instant::now())[0];
    assert_eq!(listed.types[ResourceType::Waypoint.type_url()].acked, Some(1));
}

#[test]
fn a_gateway_is_programmed_once_a_waypoint_has_accepted_it() {
    let (clients, head) = (Clients::default(), cut(1, b"one"));
    assert_eq!(judged(&head, &clients), (Acks::default(), Status::False));
    let (mut one, mut other) = (Waypoint::new(&clients, &head), Waypoint::new(&clients, &head));
    let (acks, status) = judged(&head, &clients);
    assert_eq!(
        (acks.pending, acks.to_string().as_str(), status),
        (2, "acked 0/2", Status::False)
    );
    one.answer(&head, None);
    assert_eq!(judged(&head, &clients).1, Status::True);
    other.answer(&head, Some("shop/way: too new"));
    let (acks, status) = judged(&head, &clients);
    assert_eq!(acks.to_string(), "acked 1/2, rejected 1: shop/way \"too new\"");
    assert_eq!(status, Status::True, "one acts on it");
}

#[test]
fn a_gateway_that_every_waypoint_rejects_says_why() {
    let (clients, head) = (Clients::default(), cut(1, b"one"));
    let mut one = Waypoint::new(&clients, &head);
    one.answer(&head, Some("shop/way: too new"));
    let (acks, status) = judged(&head, &clients);
    assert_eq!((acks.rejected, status), (1, Status::False));
    let conditions = conditions(&gateway(), &acks);
    assert!(conditions[0].message.contains("too new"), "{:?}", conditions[0]);
}

#[test]
fn a_listener_is_programmed_when_its_gateway_is() {
    let (clients, head) = (Clients::default(), cut(1, b"one"));
    let mut gateway = gateway();
    let of_listener = gateway.conditions[0].clone().of("listener mesh").at(7);
    gateway.conditions.push(of_listener);
    let said = |clients: &Clients| {
        let acks = acks(&head, &clients.list(Instant::now()), &gateway);
        conditions(&gateway, &acks).remove(1)
    };
    let pending = said(&clients);
    assert_eq!((pending.status, &*pending.reason), (Status::False, "Pending"));
    assert_eq!(pending.of.as_deref(), Some("listener mesh"));
    assert_eq!(pending.observed_generation.map(i64::from), Some(7));
    Waypoint::new(&clients, &head).answer(&head, None);
    let gone = said(&clients);
    assert_eq!(gone.status, Status::False, "its stream has ended");
    let mut waypoint = Waypoint::new(&clients, &head);
    waypoint.answer(&head, None);
    assert_eq!(said(&clients).status, Status::True);
}

#[test]
fn a_node_is_not_asked_about_what_it_never_gets() {
    let (clients, head) = (Clients::default(), cut(1, b"one"));
    let status = ClientStatus::new("n1".into(), ClientKind::Ztunnel, Features::default());
    let _node = clients.connect(status).unwrap();
    assert_eq!(judged(&head, &clients).0.all(), 0);
}

/// What the clients say of everything up to a cut.
fn all(clients: &Clients, cut: u64) -> String {
    all_acks(&clients.list(Instant::now()), cut).to_string()
}

#[test]
fn a_client_has_accepted_a_cut_once_nothing_of_it_is_left() {
    let (clients, first) = (Clients::default(), cut(1, b"one"));
    let mut one = Waypoint::new(&clients, &first);
    assert_eq!(all(&clients, 1), "acked 0/1", "it has answered nothing");
    one.answer(&first, None);
    assert_eq!(all(&clients, 1), "acked 1/1");
    assert_eq!(all(&clients, 2), "acked 0/1", "it has not heard of that one");
    let second = cut(2, b"two");
    one.listed.update(&one.session, &second);
    assert_eq!(all(&clients, 2), "acked 0/1", "it lacks what changed");
    one.answer(&second, None);
    assert_eq!(all(&clients, 2), "acked 1/1");
    // Who is at a later cut has had this one, be there more to come.
    let third = cut(3, b"three");
    one.listed.update(&one.session, &third);
    assert_eq!(
        (all(&clients, 1), all(&clients, 3)),
        ("acked 1/1".into(), "acked 0/1".into())
    );
}

#[test]
fn a_client_that_rejects_or_has_asked_for_nothing_has_not_accepted() {
    let (clients, head) = (Clients::default(), cut(1, b"one"));
    let mut one = Waypoint::new(&clients, &head);
    one.answer(&head, Some("bad CIDR"));
    assert_eq!(all(&clients, 1), "acked 0/1, rejected 1: shop/way \"bad CIDR\"");
    let status = ClientStatus::new("n1".into(), ClientKind::Ztunnel, Features::default());
    let _silent = clients.connect(status).unwrap();
    assert_eq!(all_acks(&clients.list(Instant::now()), 0).pending, 1);
}

/// A cut with two services.
fn services(sequence: u64) -> Arc<Snapshot> {
    let mut snapshot = Snapshot {
        sequence,
        synced: true,
        ..Snapshot::default()
    };
    for name in ["shop/a", "shop/b"] {
        let resource = Resource {
            name: name.into(),
            aliases: Vec::new(),
            body: bytes::Bytes::from_static(b"one"),
            order: Order::Service,
            scope: Scope::Everyone,
        };
        snapshot.table_mut(ResourceType::Address).set(resource, 1);
    }
    Arc::new(snapshot)
}

#[test]
fn who_asks_by_name_must_have_what_it_asked_for_and_nothing_else() {
    let (clients, head) = (Clients::default(), services(5));
    let listed = clients.connect_proxy("n1");
    let mut session = Session::new(1, Viewer::node("n1"), head.clone());
    let said = |clients: &Clients, name: &str| {
        let object = ObjectStatus {
            key: ObjectKey::new(Kind::Service, "shop", name),
            resources: vec![format!("shop/{name}").into()],
            ..gateway()
        };
        acks(&head, &clients.list(Instant::now()), &object).to_string()
    };
    let ask = |subscribe: &[&str], unsubscribe: &[&str]| Request {
        type_url: ResourceType::Address.type_url().into(),
        subscribe: subscribe.iter().map(|name| (*name).into()).collect(),
        unsubscribe: unsubscribe.iter().map(|name| (*name).into()).collect(),
        ..Request::default()
    };
    let accept = |session: &mut Session<Arc<Snapshot>>| {
        while let Some(response) = session.poll_send(&head, Instant::now()) {
            let answer = Request {
                type_url: response.type_url,
                nonce: response.nonce,
                ..Request::default()
            };
            session.on_request(&answer, &head).unwrap();
        }
    };
    session.on_request(&ask(&["*"], &["*"]), &head).unwrap();
    accept(&mut session);
    listed.update(&session, &head);
    assert_eq!(said(&clients, "a"), "acked 0/0", "it asked for nothing");
    session.on_request(&ask(&["shop/a"], &[]), &head).unwrap();
    listed.update(&session, &head);
    assert_eq!(
        said(&clients, "a"),
        "acked 0/1",
        "what it accepted before was not this"
    );
    let _on_its_way = session
        .poll_send(&head, Instant::now())
        .expect("what it asked for");
    listed.update(&session, &head);
    assert_eq!(said(&clients, "a"), "acked 0/1");
    session.on_request(&ask(&["shop/a"], &[]), &head).unwrap();
    accept(&mut session);
    listed.update(&session, &head);
    assert_eq!(
        (said(&clients, "a"), said(&clients, "b")),
        ("acked 1/1".into(), "acked 0/0".into())
    );
    session.on_request(&ask(&[], &["shop/a"]), &head).unwrap();
    listed.update(&session, &head);
    assert_eq!(said(&clients, "a"), "acked 0/0", "it gave it up");
}
