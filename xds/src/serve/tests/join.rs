//! Nodes that join: a token once, then a certificate that is a credential and renews itself.

use tulle_identity::channel::node::{CERTIFICATE_FILE, JoinToken, join, renew};

use super::*;

impl Server {
    /// A token for a node, pinned to this server's root.
    pub(super) fn join_token(&self, node: &str) -> JoinToken {
        let now = self.authority.now().unix_timestamp();
        let pin = crate::ca::keeper::pin_of(&self.root).unwrap();
        let token = self.join_tokens.create(node, 3600, &pin, now).unwrap();
        token.parse().unwrap()
    }

    pub(super) async fn join(&self, token: &JoinToken) -> Result<tempfile::TempDir, String> {
        let joined = join(self.address.parse().unwrap(), None, token).await;
        let joined = joined.map_err(|error| error.to_string())?;
        let folder = tempfile::tempdir().unwrap();
        joined.save(folder.path()).unwrap();
        Ok(folder)
    }

    pub(super) fn channel_config(&self, folder: &tempfile::TempDir) -> ChannelConfig {
        ChannelConfig {
            address: self.address.parse().unwrap(),
            root: RootSource::File(folder.path().join("root-cert.pem")),
            server_name: None,
            token: TokenSource::Certificate(folder.path().join(CERTIFICATE_FILE)),
            headers: Vec::new(),
            cluster_id: None,
            mark: None,
        }
    }
}

pub(super) async fn certificate(
    config: &ChannelConfig,
    identity: &str,
) -> Result<IstioCertificateResponse, Status> {
    let mut client = IstioCertificateServiceClient::new(authenticated(config).unwrap());
    let reply = client.create_certificate(certificate_request(identity)).await;
    reply.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_node_joins_and_gets_what_is_placed_on_it_and_renews_itself() {
    let server = Server::start_with(AdsOptions::default(), Duration::from_millis(1)).await;
    server.place("n1", WEB);
    let folder = server.join(&server.join_token("n1")).await.unwrap();
    let config = server.channel_config(&folder);
    certificate(&config, WEB).await.unwrap();
    let other = certificate(&config, "spiffe://cluster.local/ns/shop/sa/db").await;
    assert!(other.unwrap_err().message().starts_with("POD_NOT_ON_NODE"));
    renew(&config).await.unwrap().save(folder.path()).unwrap();
    certificate(&config, WEB).await.unwrap();
}

#[tokio::test]
async fn a_token_joins_once_and_its_second_use_makes_the_node_suspect() {
    let server = Server::start().await;
    let token = server.join_token("n1");
    server.join(&token).await.unwrap();
    let refused = server.join(&token).await.unwrap_err();
    assert!(refused.contains("used before"), "{refused}");
    assert_eq!(server.join_tokens.suspects(), ["n1".into()]);
}

#[tokio::test]
async fn r505_nothing_is_sent_to_a_server_of_another_root() {
    let (server, evil) = (Server::start().await, Server::start().await);
    let token = server.join_token("n1");
    let refused = join(evil.address.parse().unwrap(), None, &token)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("TLS"), "{refused}");
    server.join(&token).await.expect("the token is as good as before");
}

#[tokio::test]
async fn only_a_certificate_is_followed_by_another() {
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    let config = ChannelConfig {
        address: server.address.parse().unwrap(),
        root: RootSource::Pem(server.root.clone()),
        server_name: None,
        token: TokenSource::Literal(token),
        headers: Vec::new(),
        cluster_id: None,
        mark: None,
    };
    let refused = renew(&config).await.unwrap_err().to_string();
    assert!(refused.contains("own certificate"), "{refused}");
}

#[tokio::test]
async fn n13_the_certificate_of_one_node_opens_no_stream_of_another() {
    let server = Server::start().await;
    let folder = server.join(&server.join_token("n1")).await.unwrap();
    let channel = authenticated(&server.channel_config(&folder)).unwrap();
    for (node, code) in [("n2", Some(Code::PermissionDenied)), ("n1", None)] {
        let (requests, receiver) = mpsc::channel(16);
        requests.send(first(node, ResourceType::Address)).await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(channel.clone());
        let stream = client
            .delta_aggregated_resources(ReceiverStream::new(receiver))
            .await;
        let answer = stream.unwrap().into_inner().message().await;
        assert_eq!(answer.err().map(|status| status.code()), code, "{node}");
    }
}

#[tokio::test]
async fn x29_a_certificate_of_another_root_opens_nothing() {
    let (server, elsewhere) = (Server::start().await, Server::start().await);
    let folder = elsewhere.join(&elsewhere.join_token("n1")).await.unwrap();
    let config = ChannelConfig {
        root: RootSource::Pem(server.root.clone()),
        ..server.channel_config(&folder)
    };
    let (requests, receiver) = mpsc::channel(1);
    requests.send(first("n1", ResourceType::Address)).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(authenticated(&config).unwrap());
    let opened = client
        .delta_aggregated_resources(ReceiverStream::new(receiver))
        .await;
    assert!(opened.is_err());
    assert!(server.clients.is_empty());
}
