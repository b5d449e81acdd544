use std::collections::BTreeMap;

use prost::Message;
use tulle_model::authz::policy::Scope;
use tulle_model::{Mesh, NamespacedHostname, NamespacedName, NetworkAddress};
use tulle_proto::discovery::Resource as Envelope;
use tulle_proto::{security, workload};

use super::*;

mod convergence;

/// A workload on the wire; `tunnel_protocol` 77 makes it malformed.
pub(crate) fn workload(uid: &str, version: &str, tunnel_protocol: i32) -> Envelope {
    let message = workload::Workload {
        uid: uid.into(),
        name: version.into(),
        addresses: vec![vec![10, 0, 0, u8::try_from(uid.len()).unwrap()]],
        tunnel_protocol,
        ..Default::default()
    };
    let body = workload::Address {
        r#type: Some(workload::address::Type::Workload(message)),
    };
    envelope(ResourceType::Address, uid, version, body.encode_to_vec())
}

/// A policy on the wire; `action` 77 makes it malformed.
pub(crate) fn policy(name: &str, version: &str, action: i32) -> Envelope {
    let (namespace, own) = name.split_once('/').unwrap();
    let message = security::Authorization {
        name: own.into(),
        namespace: namespace.into(),
        scope: 1,
        action,
        dry_run: version.len().is_multiple_of(2),
        ..Default::default()
    };
    envelope(
        ResourceType::Authorization,
        name,
        version,
        message.encode_to_vec(),
    )
}

fn envelope(kind: ResourceType, name: &str, version: &str, value: Vec<u8>) -> Envelope {
    let body = prost_types::Any {
        type_url: kind.type_url().into(),
        value,
    };
    Envelope {
        name: name.into(),
        version: version.into(),
        resource: Some(body),
        ..Default::default()
    }
}

pub(crate) fn response(
    kind: ResourceType,
    resources: Vec<Envelope>,
    removed: &[&str],
) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: kind.type_url().into(),
        nonce: "n1".into(),
        resources,
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

/// A session and the mesh its updates go to.
struct Client {
    session: Session,
    mesh: Mesh,
}

impl Client {
    fn new() -> Self {
        Self {
            session: Session::new(Node::default(), &ResourceType::NODE),
            mesh: Mesh::new(),
        }
    }

    /// Delivers a response; returns the NACK's text, or `None` for an ACK.
    fn take(&mut self, response: DeltaDiscoveryResponse) -> Option<String> {
        let outcome = self.session.on_response(response);
        self.mesh.apply(outcome.updates);
        outcome.answer.error_detail.map(|status| status.message)
    }

    fn addresses(&mut self, resources: Vec<Envelope>) -> Option<String> {
        self.take(response(ResourceType::Address, resources, &[]))
    }

    fn policies(&mut self, resources: Vec<Envelope>) -> Option<String> {
        self.take(response(ResourceType::Authorization, resources, &[]))
    }

    fn name_of(&self, uid: &str) -> Option<String> {
        self.mesh
            .snapshot()
            .workload(&uid.into())
            .map(|workload| workload.name.as_ref().to_owned())
    }

    fn versions(&self, kind: ResourceType) -> BTreeMap<String, String> {
        let mut requests = self.session.on_open().into_iter();
        requests
            .find(|request| request.type_url == kind.type_url())
            .unwrap()
            .initial_resource_versions
    }
}

#[test]
fn a_waypoint_asks_for_policies_before_routes_and_for_addresses_last() {
    let session = Session::new(Node::default(), &ResourceType::WAYPOINT);
    let asked: Vec<String> = session
        .on_open()
        .into_iter()
        .map(|first| first.type_url)
        .collect();
    let order = ["Authorization", "v1.Policy", "v1.Route", "v1.Waypoint", "Address"];
    assert_eq!(asked.len(), order.len());
    assert!(
        asked.iter().zip(order).all(|(url, end)| url.ends_with(end)),
        "{asked:?}"
    );
}

#[test]
fn a_front_arrives_and_goes_by_its_resource_name() {
    let mut client = Client {
        session: Session::new(Node::default(), &ResourceType::WAYPOINT),
        mesh: Mesh::new(),
    };
    let front = tulle_model::waypoint::Waypoint::Front(tulle_model::waypoint::Front {
        waypoint: "shop/way".into(),
        object: tulle_model::waypoint::FrontOf::Service(NamespacedHostname::new("shop", "web.shop")),
        required_policies: Vec::new(),
        required_routes: Vec::new(),
        client_namespaces: Vec::new(),
        draining: false,
    });
    let name = front.name();
    let body = tulle_proto::encode_waypoint(&front);
    let sent = envelope(ResourceType::Waypoint, &name, "1", body);
    assert_eq!(
        client.take(response(ResourceType::Waypoint, vec![sent], &[])),
        None
    );
    assert_eq!(client.mesh.snapshot().fronts().count(), 1);
    client.take(response(ResourceType::Waypoint, vec![], &[&name]));
    assert_eq!(client.mesh.snapshot().fronts().count(), 0);
}

#[test]
fn a_route_that_cannot_be_read_is_told_by_name_and_keeps_its_last_good_form() {
    let mut client = Client {
        session: Session::new(Node::default(), &ResourceType::WAYPOINT),
        mesh: Mesh::new(),
    };
    let bad = envelope(ResourceType::Route, "HTTPRoute/shop/r/0", "1", vec![0xff]);
    let told = client
        .take(response(ResourceType::Route, vec![bad], &[]))
        .unwrap();
    assert!(told.contains("HTTPRoute/shop/r/0"), "{told}");
    assert!(!client.session.synced());
}

fn versions(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()))
        .collect()
}

#[test]
fn a_stream_opens_with_a_wildcard_per_type() {
    let requests = Client::new().session.on_open();
    assert_eq!(requests.len(), 2);
    assert!(
        requests[0].node.is_some() && requests[1].node.is_none(),
        "once a stream"
    );
    for (request, kind) in requests.iter().zip(ResourceType::NODE) {
        assert_eq!(request.type_url, kind.type_url());
        assert!(request.initial_resource_versions.is_empty());
        assert!(request.resource_names_subscribe.is_empty() && request.response_nonce.is_empty());
    }
}

#[test]
fn a_good_response_is_acked_with_its_nonce_and_nothing_else() {
    let mut client = Client::new();
    let outcome =
        client
            .session
            .on_response(response(ResourceType::Address, vec![workload("a", "1", 1)], &[]));
    let expected = DeltaDiscoveryRequest {
        type_url: ResourceType::Address.type_url().into(),
        response_nonce: "n1".into(),
        ..Default::default()
    };
    assert_eq!(outcome.answer, expected);
    assert!(outcome.accepted());
    assert_eq!(outcome.first_ack, Some(ResourceType::Address));
}

#[test]
fn good_resources_of_a_bad_response_are_applied_then_its_removals() {
    let mut client = Client::new();
    client.addresses(vec![workload("a", "1", 1), workload("gone", "1", 1)]);
    let resources = vec![
        workload("bad", "2", 77),
        workload("a", "2", 1),
        workload("worse", "2", 2),
    ];
    let nack = client
        .take(response(ResourceType::Address, resources, &["gone"]))
        .unwrap();
    assert_eq!(
        nack,
        "bad: tunnel_protocol: unknown value 77; worse: tunnel_protocol: the legacy sidecar tunnel is not supported"
    );
    assert_eq!(client.name_of("a").as_deref(), Some("2"));
    assert_eq!(client.name_of("gone"), None);
    assert_eq!(client.name_of("bad"), None);
}

#[test]
fn nack_keeps_the_last_good_value_and_its_version() {
    let mut client = Client::new();
    client.addresses(vec![workload("a", "1", 1)]);
    assert!(client.addresses(vec![workload("a", "2", 77)]).is_some());
    assert_eq!(client.name_of("a").as_deref(), Some("1"));
    assert_eq!(client.versions(ResourceType::Address), versions(&[("a", "1")]));
    let summary = client
        .session
        .summary()
        .find(|summary| summary.kind == ResourceType::Address)
        .unwrap();
    let (name, rejection) = summary.rejected[0];
    assert_eq!(
        (name, rejection.version.as_ref(), rejection.last_good),
        ("a", "2", true)
    );
    assert!(client.addresses(vec![workload("a", "3", 1)]).is_none());
    assert_eq!(client.name_of("a").as_deref(), Some("3"));
    assert_eq!(
        client
            .session
            .summary()
            .map(|summary| summary.rejected.len())
            .sum::<usize>(),
        0
    );
}

#[test]
fn a_policy_that_was_never_good_is_stood_in_for_by_a_denial() {
    let mut client = Client::new();
    assert!(client.policies(vec![policy("shop/p", "1", 77)]).is_some());
    let key = NamespacedName::new("shop", "p");
    let stub = client.mesh.snapshot().policy(&key).cloned().unwrap();
    assert_eq!((stub.untranslatable, stub.scope), (true, Scope::Namespace));
    assert_eq!(
        client.versions(ResourceType::Authorization),
        versions(&[("shop/p", "")])
    );

    client.policies(vec![policy("shop/p", "2", 1)]);
    assert!(!client.mesh.snapshot().policy(&key).unwrap().untranslatable);
    assert!(client.policies(vec![policy("shop/p", "3", 77)]).is_some());
    assert!(
        !client.mesh.snapshot().policy(&key).unwrap().untranslatable,
        "the last good one stays"
    );

    client.take(response(ResourceType::Authorization, vec![], &["shop/p"]));
    assert!(client.mesh.snapshot().policy(&key).is_none());
}

#[test]
fn a_removed_stub_is_gone() {
    let mut client = Client::new();
    client.policies(vec![policy("shop/p", "1", 77)]);
    assert!(
        client
            .take(response(ResourceType::Authorization, vec![], &["shop/p"]))
            .is_none()
    );
    assert!(
        client
            .mesh
            .snapshot()
            .policy(&NamespacedName::new("shop", "p"))
            .is_none()
    );
    assert!(client.versions(ResourceType::Authorization).is_empty());
}

#[test]
fn a_workload_that_was_never_good_has_its_addresses_refused() {
    let mut client = Client::new();
    client.addresses(vec![workload("a", "1", 77)]);
    let refused: Vec<_> = client.session.refused().collect();
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].0, "a");
    assert!(
        refused[0]
            .1
            .contains(&NetworkAddress::new("", [10, 0, 0, 1].into()))
    );
    client.addresses(vec![workload("a", "2", 1)]);
    assert_eq!(client.session.refused().count(), 0);
}

#[test]
fn a_type_that_was_not_asked_for_is_nacked() {
    let mut client = Client::new();
    let stray = DeltaDiscoveryResponse {
        type_url: "x".into(),
        nonce: "n9".into(),
        ..Default::default()
    };
    let outcome = client.session.on_response(stray);
    assert_eq!(
        (outcome.answer.response_nonce.as_str(), outcome.accepted()),
        ("n9", false)
    );
    assert_eq!(outcome.first_ack, None);
    assert!(!client.session.synced());
}

#[test]
fn an_empty_response_is_an_ack_that_counts() {
    let mut client = Client::new();
    assert!(client.addresses(vec![]).is_none());
    assert!(!client.session.synced(), "the other type is still awaited");
    let outcome = client
        .session
        .on_response(response(ResourceType::Authorization, vec![], &[]));
    assert_eq!(outcome.first_ack, Some(ResourceType::Authorization));
    assert!(client.session.synced());
    let outcome = client
        .session
        .on_response(response(ResourceType::Authorization, vec![], &[]));
    assert_eq!(outcome.first_ack, None, "only the first one is the first");
}

#[test]
fn a_name_that_changes_its_kind_leaves_the_old_one_behind() {
    let mut client = Client::new();
    client.addresses(vec![workload("shop/web", "1", 1)]);
    let service = workload::Service {
        namespace: "shop".into(),
        hostname: "web".into(),
        ..Default::default()
    };
    let body = workload::Address {
        r#type: Some(workload::address::Type::Service(service)),
    };
    client.addresses(vec![envelope(
        ResourceType::Address,
        "shop/web",
        "2",
        body.encode_to_vec(),
    )]);
    assert_eq!(client.name_of("shop/web"), None);
    assert_eq!(client.mesh.snapshot().services().count(), 1);
    client.take(response(ResourceType::Address, vec![], &["shop/web"]));
    assert_eq!(client.mesh.snapshot().services().count(), 0);
}

#[test]
fn an_envelope_without_body_or_of_another_type_is_malformed() {
    let mut client = Client::new();
    let empty = Envelope {
        resource: None,
        ..workload("a", "1", 1)
    };
    assert_eq!(client.addresses(vec![empty]).unwrap(), "a: resource: must be set");
    let foreign = Envelope {
        resource: policy("shop/p", "1", 1).resource,
        ..workload("b", "1", 1)
    };
    assert!(
        client
            .addresses(vec![foreign])
            .unwrap()
            .starts_with("b: resource.type_url: the body is of type")
    );
}

#[test]
fn a_nack_of_many_resources_stays_within_its_bound() {
    let mut client = Client::new();
    let resources = (0..2_000)
        .map(|index| workload(&format!("w{index}"), "1", 77))
        .collect();
    let nack = client.addresses(resources).unwrap();
    assert!(nack.len() < NACK_TEXT_MAX + 64, "{}", nack.len());
    assert!(nack.ends_with(" more"), "{nack}");
}

/// A client that holds so many workloads that it tells digests, each at version 1.
fn with_many() -> Client {
    let mut client = Client::new();
    let many = (0..DIGESTS_MIN).map(|number| workload(&format!("w{number}"), "1", 0));
    assert_eq!(client.addresses(many.collect()), None);
    client
}

/// What must be held of these workloads and no other.
fn whole(changed: &[(&str, &str)]) -> String {
    let names: Vec<String> = (0..DIGESTS_MIN).map(|number| format!("w{number}")).collect();
    let pairs = names.iter().map(|name| {
        let changed = changed.iter().find(|(of, _)| of == name);
        (name.as_str(), changed.map_or("1", |(_, version)| *version))
    });
    let digests = resume::Digests::of(Layout::Fine, pairs);
    digests.whole_name().expect("there is one")
}

/// Under which name digests are told of addresses, if they are.
fn told(client: &Client) -> Option<String> {
    let requests = client.session.on_resume(&[], Layout::Fine);
    let of = |request: &DeltaDiscoveryRequest| request.type_url == ResourceType::Address.type_url();
    let request = requests.into_iter().find(of)?;
    let names = request.initial_resource_versions.into_keys();
    names.into_iter().find(|name| name.starts_with('#'))
}

fn resumed(client: &mut Client, resources: Vec<Envelope>, removed: &[&str]) -> Outcome {
    let mut response = response(ResourceType::Address, resources, removed);
    client.session.name_buckets(&mut response);
    assert!(
        response
            .removed_resources
            .iter()
            .all(|name| !name.starts_with('#'))
    );
    client.session.on_response(response)
}

#[test]
fn a_bucket_takes_what_it_does_not_tell() {
    for layout in Layout::ALL {
        let mut client = with_many();
        let bucket = layout.bucket_of("w7").to_string();
        resumed(&mut client, Vec::new(), &[&bucket]);
        let held = client.versions(ResourceType::Address);
        assert!(!held.contains_key("w7"));
        let gone = (0..DIGESTS_MIN).map(|number| format!("w{number}"));
        let gone = gone.filter(|name| !held.contains_key(name));
        gone.for_each(|name| assert_eq!(layout.bucket_of(&name).to_string(), bucket));
    }
}

#[test]
fn who_holds_what_it_must_goes_on_with_fine_digests() {
    let mut client = with_many();
    let outcome = resumed(
        &mut client,
        vec![workload("w7", "2", 0)],
        &[&whole(&[("w7", "2")])],
    );
    assert!(!outcome.misled && outcome.accepted());
    assert_eq!(told(&client).as_deref(), Some(Layout::Fine.name()));
}

#[test]
fn who_was_not_told_of_a_change_comes_back_with_coarse_digests_once() {
    let mut client = with_many();
    let all = whole(&[("w7", "2"), ("w9", "2")]);
    let outcome = resumed(&mut client, vec![workload("w7", "2", 0)], &[&all]);
    assert!(outcome.misled && outcome.accepted());
    client.session.on_close();
    assert_eq!(told(&client).as_deref(), Some(Layout::Coarse.name()));
    let bucket = Layout::Coarse.bucket_of("w9");
    let beside = client.versions(ResourceType::Address).into_iter();
    let mut bucket_of: Vec<Envelope> = beside
        .filter(|(name, _)| bucket.holds(name) && name != "w9")
        .map(|(name, version)| workload(&name, &version, 0))
        .collect();
    bucket_of.push(workload("w9", "2", 0));
    let outcome = resumed(&mut client, bucket_of, &[&bucket.to_string()]);
    assert!(!outcome.misled);
    assert_eq!(client.versions(ResourceType::Address)["w9"], "2");
    assert_eq!(told(&client).as_deref(), Some(Layout::Fine.name()));
}

#[test]
fn what_was_told_and_rejected_is_no_change_that_was_hidden() {
    let mut client = with_many();
    let told = vec![workload("w7", "2", 77), workload("w9", "2", 0)];
    let outcome = resumed(&mut client, told, &[&whole(&[("w7", "2"), ("w9", "2")])]);
    assert!(!outcome.misled && !outcome.accepted());
    assert_eq!(client.versions(ResourceType::Address)["w7"], "1");
}

#[test]
fn a_digest_in_other_words_is_not_understood_and_asked_for_again() {
    let mut client = with_many();
    let outcome = resumed(&mut client, Vec::new(), &["#whole/of later versions"]);
    assert!(outcome.misled);
    assert_eq!(told(&client).as_deref(), Some(Layout::Coarse.name()));
}
