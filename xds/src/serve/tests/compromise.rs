//! A node that was taken over: with everything that node has, nothing of another node is to be had.

use super::*;
use crate::snapshot::InNamespace;

/// Requests per server: beneath the burst that one node may send, so that every refusal is one of authority.
const WAYS_PER_SERVER: usize = 400;

/// A request for a certificate that claims these names.
fn csr_of(names: &[&str]) -> String {
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = names
        .iter()
        .map(|name| rcgen::SanType::URI((*name).try_into().unwrap()))
        .collect();
    params
        .serialize_request(&rcgen::KeyPair::generate().unwrap())
        .unwrap()
        .pem()
        .unwrap()
}

/// Writes a name in many ways. None of them is the identity placed on the attacker's node.
fn way(number: usize) -> String {
    let (namespace, account) = (
        ["shop", "Shop", "shop ", "sh%6fp", "shop/", "SHOP"],
        ["db", "DB", "db/", "d%62", "web"],
    );
    let (namespace, account) = (namespace[number % 6], account[(number / 6) % 5]);
    match (number / 30) % 12 {
        0 => format!("spiffe://cluster.local/ns/{namespace}/sa/{account}"),
        1 => format!("spiffe://cluster.local/ns/{namespace}/sa/{account}?x={number}"),
        2 => format!("spiffe://cluster.local/ns/other/../{namespace}/sa/{account}"),
        3 => format!("spiffe://cluster.local./ns/{namespace}/sa/{account}"),
        4 => format!("spiffe://CLUSTER.LOCAL/ns/{namespace}/sa/{account}"),
        5 => format!("spiffe://other/ns/{namespace}/sa/{account}"),
        6 => format!("SPIFFE://cluster.local/ns/{namespace}/sa/{account}"),
        7 => format!("spiffe://cluster.local/ns/{namespace}/sa/{account}\0"),
        8 => format!("cluster.local/ns/{namespace}/sa/{account}"),
        9 => format!("spiffe://cluster.local/sa/{account}/ns/{namespace}"),
        10 => "spiffe://cluster.local/node/n2".to_owned(),
        _ => format!("spiffe://cluster.local/ns/{namespace}/sa/{account}-{number}"),
    }
}

#[tokio::test]
async fn a_stolen_node_gets_no_identity_of_another_in_a_thousand_ways() {
    let claimed = csr_of(&["spiffe://cluster.local/ns/shop/sa/db", WEB]);
    let mut tried = 0;
    while tried < 1_000 {
        let server = Server::start_with(AdsOptions::default(), Duration::from_millis(1)).await;
        let token = server.tokens.create("n1").unwrap();
        server.place("n1", "spiffe://cluster.local/ns/mine/sa/mine");
        server.place("n2", "spiffe://cluster.local/ns/shop/sa/db");
        server.place("n3", WEB);
        let client = IstioCertificateServiceClient::new(server.channel(&token));
        let asking = (tried..tried + WAYS_PER_SERVER).map(|number| {
            let mut client = client.clone();
            let mut request = certificate_request(&way(number));
            request.csr = claimed.clone();
            if number % 4 == 3 {
                // As the node itself, or with more to read than is asked.
                let fields = &mut request.metadata.as_mut().expect("made above").fields;
                if number % 8 == 3 {
                    fields.clear();
                }
                for name in ["NODE_NAME", "ServiceAccount", "impersonatedIdentity"] {
                    fields.insert(name.to_owned(), text("n2"));
                }
            }
            async move { client.create_certificate(request).await }
        });
        for (number, answer) in futures_util::future::join_all(asking)
            .await
            .into_iter()
            .enumerate()
        {
            let refused = answer.expect_err(&way(tried + number));
            assert_ne!(refused.code(), Code::ResourceExhausted, "a refusal of authority");
        }
        assert_eq!(server.metrics.issued.get(), 0);
        tried += WAYS_PER_SERVER;
    }
}

#[tokio::test]
async fn a_workload_that_left_is_not_issued_for_any_more() {
    let server = Server::start_with(AdsOptions::default(), Duration::from_millis(1)).await;
    let token = server.tokens.create("n1").unwrap();
    server.place("n1", WEB);
    server.certificate(&token, WEB).await.unwrap();
    server.publish(|snapshot| {
        snapshot.placement.place("n1".into(), BTreeSet::new());
    });
    server.place("n2", WEB);
    let refused = server.certificate(&token, WEB).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(server.metrics.issued.get(), 1);
}

/// A key with a certificate, as a file that a client shows.
fn shown(server: &Server, key: &rcgen::KeyPair, chain: &[String]) -> (tempfile::TempDir, ChannelConfig) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("leaf.pem");
    std::fs::write(&path, format!("{}{}", key.serialize_pem(), chain.concat())).unwrap();
    let config = ChannelConfig {
        address: server.address.parse().unwrap(),
        root: RootSource::Pem(server.root.clone()),
        server_name: None,
        token: TokenSource::Certificate(path),
        headers: Vec::new(),
        cluster_id: None,
        mark: None,
    };
    (folder, config)
}

/// A request of a workload for itself, with this key.
fn for_itself(key: &rcgen::KeyPair) -> IstioCertificateRequest {
    let csr = rcgen::CertificateParams::default()
        .serialize_request(key)
        .unwrap();
    IstioCertificateRequest {
        csr: csr.pem().unwrap(),
        validity_duration: 3600,
        metadata: None,
    }
}

async fn renewed(config: &ChannelConfig, key: &rcgen::KeyPair) -> Result<Vec<String>, Status> {
    let mut client = IstioCertificateServiceClient::new(authenticated(config).unwrap());
    let reply = client.create_certificate(for_itself(key)).await?;
    Ok(reply.into_inner().cert_chain)
}

#[tokio::test]
async fn n13_a_workloads_certificate_in_the_hands_of_its_node_ends_with_the_placement() {
    let server = Server::start_with(AdsOptions::default(), Duration::from_millis(1)).await;
    let token = server.tokens.create("n1").unwrap();
    server.place("n1", WEB);
    // The node's root has the key, and shows the workload's certificate as if it were the workload.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut asking = certificate_request(WEB);
    asking.csr = for_itself(&key).csr;
    let issued = server.certificate_by(&token, asking).await.unwrap();
    let (_first, by_first) = shown(&server, &key, &issued.cert_chain);
    let next = renewed(&by_first, &key).await.expect("it is placed there");
    let (_second, by_second) = shown(&server, &key, &next);
    renewed(&by_second, &key).await.expect("and still is");
    // The workload goes on elsewhere.
    server.publish(|snapshot| {
        snapshot.placement.place("n1".into(), BTreeSet::new());
    });
    server.place("n2", WEB);
    for config in [&by_first, &by_second] {
        let refused = renewed(config, &key).await.unwrap_err();
        assert!(refused.message().starts_with("POD_NOT_ON_NODE"), "{refused}");
    }
    // What came of it is as much the node's as what it began with.
    let now = server.authority.now().unix_timestamp();
    let snapshot = server.snapshots.borrow().clone();
    assert_eq!(server.issued.misplaced(snapshot.placement(), now, 100).len(), 3);
    assert_eq!(server.metrics.issued.get(), 3);
}

#[tokio::test]
async fn a_certificate_that_is_in_no_log_is_followed_by_no_other() {
    let server = Server::start_with(AdsOptions::default(), Duration::from_millis(1)).await;
    server.place("n1", WEB);
    let key = rcgen::KeyPair::generate().unwrap();
    let order = crate::ca::order(for_itself(&key).csr, WEB.parse().unwrap(), 3600);
    let elsewhere = server.authority.sign(order, false).await.unwrap();
    let (_folder, config) = shown(&server, &key, &elsewhere.chain());
    let refused = renewed(&config, &key).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("show a token"), "{refused}");
    assert_eq!(server.metrics.issued.get(), 0);
}

pub(super) fn claiming(id: &str, namespace: &str, account: &str, ty: ResourceType) -> DeltaDiscoveryRequest {
    let mut request = first("n1", ty);
    let node = request.node.as_mut().expect("a first request");
    node.id = id.to_owned();
    let fields = &mut node.metadata.as_mut().expect("made above").fields;
    fields.insert("NAMESPACE".to_owned(), text(namespace));
    fields.insert("SERVICE_ACCOUNT".to_owned(), text(account));
    request
}

#[tokio::test]
async fn r501_a_stolen_node_receives_nothing_that_is_scoped_to_another() {
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    server.place("n2", "spiffe://cluster.local/ns/shop/sa/way");
    let nodes = Arc::new(BTreeSet::from(["n2".into()]));
    let waypoints = Arc::new(BTreeSet::from(["shop/way".into()]));
    let of_node = Scope::Workloads { nodes: nodes.clone() };
    let of_namespace = Scope::Namespace(Arc::new(InNamespace {
        namespace: "shop".into(),
        nodes: BTreeSet::clone(&nodes),
    }));
    let secrets = [
        (ResourceType::Authorization, of_node),
        (ResourceType::Authorization, of_namespace),
        (
            ResourceType::Route,
            Scope::Waypoints {
                waypoints: waypoints.clone(),
            },
        ),
        (
            ResourceType::Policy,
            Scope::Waypoints {
                waypoints: waypoints.clone(),
            },
        ),
        (ResourceType::Waypoint, Scope::Waypoints { waypoints }),
    ];
    for (number, (ty, scope)) in secrets.iter().enumerate() {
        server.set_for(*ty, &format!("secret-{number}"), b"secret", scope.clone());
    }
    for (number, (ty, _)) in secrets.iter().enumerate() {
        let name = format!("secret-{number}");
        // Everything, by name, as held already, and by a name once more.
        let mut asking = first("n1", *ty);
        asking.resource_names_subscribe = vec!["*".to_owned(), name.clone()];
        asking
            .initial_resource_versions
            .insert(name.clone(), "1".to_owned());
        let mut client = server.connect(&token, asking).await.unwrap();
        client.expect(&[], &[&name]).await;
        let mut again = first("n1", *ty);
        again.resource_names_subscribe = vec![name.clone()];
        client.requests.send(again).await.unwrap();
        client.expect(&[], &[&name]).await;
    }
    // As the waypoint it is not: that one runs on another node.
    for ty in [ResourceType::Route, ResourceType::Policy, ResourceType::Waypoint] {
        let asking = claiming(
            "waypoint~1.1.1.1~way.shop~shop.svc.cluster.local",
            "shop",
            "way",
            ty,
        );
        let mut client = server.connect(&token, asking).await.unwrap();
        assert_eq!(client.receive().await.unwrap_err().code(), Code::PermissionDenied);
    }
}
