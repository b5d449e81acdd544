//! Trust goes to those who take it, and who is denied goes at once.

use tulle_model::trust::Denied;
use tulle_proto::names::FEATURES_KEY;

use super::*;

fn with_features(mut request: DeltaDiscoveryRequest, features: &str) -> DeltaDiscoveryRequest {
    let value = Value {
        kind: Some(ValueKind::StringValue(features.to_owned())),
    };
    let node = request.node.as_mut().expect("a first request");
    let metadata = node.metadata.get_or_insert_default();
    metadata.fields.insert(FEATURES_KEY.to_owned(), value);
    request
}

#[tokio::test]
async fn d21_trust_goes_only_to_clients_that_announce_it() {
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    server.set(ResourceType::Trust, "cluster.local", b"roots");
    let plain = first("n1", ResourceType::Trust);
    let mut client = server.connect(&token, plain.clone()).await.unwrap();
    client.expect(&[], &[]).await;
    let mut client = server
        .connect(&token, with_features(plain, "trust"))
        .await
        .unwrap();
    client.expect(&[("cluster.local", b"roots")], &[]).await;
    let clients = server.clients.list(std::time::Instant::now());
    assert_eq!(clients.iter().filter(|client| client.features.trust).count(), 1);
}

#[tokio::test]
async fn a_node_that_is_denied_loses_its_stream_and_gets_no_other() {
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    let mut client = server
        .connect(&token, first("n1", ResourceType::Address))
        .await
        .unwrap();
    client.expect(&[], &[]).await;
    let entry = Denied {
        subject: crate::ca::deny::subject("node:n1").unwrap(),
        reason: "lost".into(),
        until: None,
        by: "uid 0".into(),
    };
    server.denied.deny(entry).unwrap();
    let ended = client.receive().await.unwrap_err();
    assert_eq!(ended.code(), Code::PermissionDenied);
    let again = server.connect(&token, first("n1", ResourceType::Address)).await;
    assert_eq!(
        again.err().map(|status| status.code()),
        Some(Code::Unauthenticated)
    );
}

#[tokio::test]
async fn a_denied_identity_is_issued_to_nobody() {
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    server.place("n1", WEB);
    let entry = Denied {
        subject: crate::ca::deny::subject(WEB).unwrap(),
        reason: "stolen".into(),
        until: None,
        by: "uid 0".into(),
    };
    server.denied.deny(entry).unwrap();
    let refused = server.certificate(&token, WEB).await.unwrap_err();
    assert!(
        refused.message().starts_with("IDENTITY_DENIED"),
        "{}",
        refused.message()
    );
}
