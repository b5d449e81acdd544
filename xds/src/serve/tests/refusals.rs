//! X4 and X29: only the credential says who a client is, and without a good one nobody is anybody.

use serde_json::{Value as Json, json};

use super::*;
use crate::token::jwt::tests::{TestIssuer, claims, pod};

fn scoped(node: &str) -> Scope {
    Scope::Workloads {
        nodes: Arc::new([node.into()].into()),
    }
}

#[tokio::test]
async fn x4_the_node_is_read_from_the_first_request_only() {
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    server.set_for(ResourceType::Authorization, "mine", b"1", scoped("n1"));
    server.set_for(ResourceType::Authorization, "theirs", b"1", scoped("n2"));
    let mut client = server
        .connect(&token, first("n1", ResourceType::Authorization))
        .await
        .unwrap();
    client.expect(&[("mine", b"1")], &[]).await;
    // A second node, and a name that only that one may hold; then a type asked for without any node.
    let mut again = first("n2", ResourceType::Authorization);
    again.resource_names_subscribe = vec!["theirs".to_owned()];
    client.requests.send(again).await.unwrap();
    client.expect(&[], &["theirs"]).await;
    let mut bare = first("n2", ResourceType::Address);
    bare.node = None;
    client.requests.send(bare).await.unwrap();
    client.expect(&[], &[]).await;
    let clients = server.clients.list(std::time::Instant::now());
    assert_eq!((clients.len(), &*clients[0].node), (1, "n1"));
}

fn claiming(name: &str, value: Json) -> Json {
    let mut claims = claims(jiff::Timestamp::now().as_second());
    claims[name] = value;
    claims
}

/// A server that believes the tokens of this issuer, and those of a pod only if it is there within a moment.
async fn believing(issuer: &TestIssuer) -> Server {
    let accounts = [("istio-system".into(), "ztunnel".into())].into();
    let (verifier, moment) = (issuer.verifier(), Duration::from_millis(1));
    Server::start_believing(AdsOptions::default(), moment, |authenticator, pods| {
        authenticator.with_jwt(verifier, accounts, pods)
    })
    .await
}

#[tokio::test]
async fn x29_credentials_that_prove_nothing_open_nothing() {
    let issuer = TestIssuer::new();
    let server = believing(&issuer).await;
    server.exchange(&pod(), None);
    let now = jiff::Timestamp::now().as_second();
    let good = issuer.token(&claims(now));
    assert!(
        server
            .connect(&good, first("n1", ResourceType::Address))
            .await
            .is_ok()
    );
    let (stranger, other_tokens) = (TestIssuer::new(), TokenStore::memory());
    for (what, token) in [
        ("no token", String::new()),
        ("no token of ours", "abc".to_owned()),
        ("a node token of another mesh", other_tokens.create("n1").unwrap()),
        ("an audience", issuer.token(&claiming("aud", json!(["vault"])))),
        (
            "an issuer",
            issuer.token(&claiming("iss", json!("https://elsewhere"))),
        ),
        ("an end", issuer.token(&claiming("exp", json!(now - 120)))),
        ("a beginning", issuer.token(&claiming("nbf", json!(now + 120)))),
        ("a key", stranger.token(&claims(now))),
        ("a node", issuer.token(&claiming("kubernetes.io", json!({})))),
    ] {
        let refused = server.connect(&token, first("n1", ResourceType::Address)).await;
        let code = refused.err().map(|status| status.code());
        assert_eq!(code, Some(Code::Unauthenticated), "{what}");
    }
    let elsewhere = server.connect(&good, first("n2", ResourceType::Address)).await;
    let mut elsewhere = elsewhere.unwrap();
    assert_eq!(
        elsewhere.receive().await.unwrap_err().code(),
        Code::PermissionDenied
    );
}

#[tokio::test]
async fn a_token_ends_with_the_pod_that_it_is_bound_to() {
    let issuer = TestIssuer::new();
    let server = believing(&issuer).await;
    server.place("n1", WEB);
    let node = issuer.token(&claims(jiff::Timestamp::now().as_second()));
    let own = {
        let mut claims = claiming("sub", json!("system:serviceaccount:shop:web"));
        claims["kubernetes.io"] = json!({"pod": {"name": "web-0", "uid": "u-1"}});
        issuer.token(&claims)
    };
    let refused = async |token: &str, request: IstioCertificateRequest| {
        let answer = server.certificate_by(token, request).await;
        answer
            .err()
            .map(|status| (status.code(), status.message()[..16].to_owned()))
    };
    let for_itself = || IstioCertificateRequest {
        metadata: None,
        ..certificate_request(WEB)
    };
    let mismatch = Some((Code::PermissionDenied, "POD_UID_MISMATCH".to_owned()));
    let stream = async || {
        let stream = server.connect(&node, first("n1", ResourceType::Address)).await;
        stream
            .err()
            .map(|status| (status.code(), status.message()[..16].to_owned()))
    };
    // Neither pod is there.
    assert_eq!(refused(&node, certificate_request(WEB)).await, mismatch);
    assert_eq!(refused(&own, for_itself()).await, mismatch);
    assert_eq!(stream().await, mismatch);
    // Both are.
    let web = Bearer {
        namespace: "shop".into(),
        account: "web".into(),
        pod: "web-0".into(),
        uid: "u-1".into(),
    };
    server.exchange(&pod(), None);
    server.exchange(&web, None);
    assert_eq!(refused(&node, certificate_request(WEB)).await, None);
    assert_eq!(refused(&own, for_itself()).await, None);
    // The node of its pod has its key: once it has left, what it got is denied.
    let now = server.authority.now().unix_timestamp();
    assert_eq!(server.issued.misplaced(&Default::default(), now, 100).len(), 2);
    assert_eq!(stream().await, None);
    // Its own token is for itself, and makes no node of it.
    let as_node = server.certificate(&own, WEB).await.unwrap_err();
    assert_eq!(as_node.code(), Code::PermissionDenied);
    assert!(as_node.message().starts_with("NODE_NOT_TRUSTED"), "{as_node}");
    // Others have their names, and even their accounts.
    for before in [pod(), web] {
        let after = Bearer {
            uid: "u-after".into(),
            ..before.clone()
        };
        server.exchange(&after, Some(&before));
    }
    assert_eq!(refused(&node, certificate_request(WEB)).await, mismatch);
    assert_eq!(refused(&own, for_itself()).await, mismatch);
    assert_eq!(stream().await, mismatch);
}

#[tokio::test]
async fn x29_a_storm_of_bad_connections_ends_nothing() {
    use tokio::io::AsyncWriteExt as _;
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    let port = server.address.rsplit(':').next().unwrap().to_owned();
    let mut open = Vec::new();
    for number in 0..300_usize {
        let tcp = tokio::net::TcpStream::connect(format!("127.0.0.1:{port}")).await;
        let Ok(mut tcp) = tcp else { continue };
        let junk: &[u8] = match number % 3 {
            0 => b"GET / HTTP/1.1\r\n\r\n",
            1 => &[22, 3, 1, 255, 255, 1],
            _ => b"",
        };
        // It may have hung up already.
        let _ = tcp.write_all(junk).await;
        if number % 2 == 0 {
            // A reset instead of a farewell.
            let _ = tcp.set_zero_linger();
        } else if number % 5 == 0 {
            open.push(tcp);
        }
    }
    let mut client = server
        .connect(&token, first("n1", ResourceType::Address))
        .await
        .unwrap();
    client.expect(&[], &[]).await;
}
