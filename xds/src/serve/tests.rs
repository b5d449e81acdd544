//! Real clients against the real server, over TLS on loopback; only the engine is played by hand.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost_types::value::Kind as ValueKind;
use prost_types::{Struct, Value};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::CompressionEncoding;
use tonic::{Code, Status, Streaming};
use tulle_identity::channel::authenticated;
use tulle_identity::{AuthenticatedChannel, ChannelConfig, RootSource, TokenSource};
use tulle_model::{Identity, Str};
use tulle_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use tulle_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use tulle_proto::core::Node;
use tulle_proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tulle_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tulle_runtime::drain::{self, DrainTrigger};
use tulle_runtime::tasks;

use crate::ca::deny::DenyList;
use crate::ca::issued::Issued;
use crate::ca::join::JoinService;
use crate::ca::limit::Holds;
use crate::ca::renew;
use crate::ca::root::Root;
use crate::ca::service::{CaService, HOLD_MAX_DEFAULT};
use crate::ca::{Authority, TTL_MAX_DEFAULT};
use crate::engine::table::Resource;
use crate::metrics::Metrics;
use crate::serve::ads::{Ads, AdsOptions};
use crate::serve::authenticate::{Authenticator, Pods};
use crate::serve::frame::Encoding;
use crate::serve::listen;
use crate::snapshot::bearers::Moves;
use crate::snapshot::{Bearer, Order, ResourceType, Scope, Snapshot};
use crate::status::Clients;
use crate::token::TokenStore;
use crate::token::join::JoinTokens;

mod bounds;
mod certificates;
mod closing;
mod compromise;
mod join;
mod lag;
mod leak;
mod refusals;
mod trust;
mod unread;

/// Longer than anything here takes, shorter than a stuck test.
const PATIENCE: Duration = Duration::from_secs(30);
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

struct Server {
    address: String,
    root: String,
    tokens: TokenStore,
    join_tokens: Arc<JoinTokens>,
    denied: DenyList,
    authority: Arc<Authority>,
    issued: Arc<Issued>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    clients: Clients,
    metrics: Metrics,
    drain: DrainTrigger,
}

impl Server {
    async fn start() -> Self {
        Self::start_with(AdsOptions::default(), HOLD_MAX_DEFAULT).await
    }

    async fn start_with(options: AdsOptions, hold_max: Duration) -> Self {
        Self::start_believing(options, hold_max, |authenticator, _| authenticator).await
    }

    async fn start_believing(
        options: AdsOptions,
        hold_max: Duration,
        believe: impl FnOnce(Authenticator, Pods) -> Authenticator,
    ) -> Self {
        let (snapshots, receiver) = watch::channel(Arc::new(Snapshot::default()));
        let root = Root::generate("cluster.local", time::OffsetDateTime::now_utc()).unwrap();
        let authority = Arc::new(Authority::new(root, "cluster.local".into(), TTL_MAX_DEFAULT));
        let acceptor = renew::acceptor(&authority, &["localhost".into()]).unwrap();
        let (tokens, clients, metrics) = (TokenStore::memory(), Clients::default(), Metrics::default());
        let (drain, watcher) = drain::new();
        let denied = DenyList::memory();
        let authenticator = Authenticator::new(tokens.clone()).of("cluster.local".into(), denied.clone());
        let authenticator = believe(authenticator, Pods::new(receiver.clone(), hold_max));
        let ads = Ads::new(
            receiver.clone(),
            authenticator.clone(),
            clients.clone(),
            metrics.clone(),
            watcher.clone(),
            options,
        );
        let (holds, issued) = (Holds::default(), Arc::new(Issued::memory()));
        let ca = CaService::new(
            authority.clone(),
            authenticator.clone(),
            receiver,
            metrics.clone(),
            hold_max,
            issued.clone(),
            holds,
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let tokens_of_joins = Arc::new(JoinTokens::default());
        let join = JoinService::new(
            authority.clone(),
            authenticator,
            tokens_of_joins.clone(),
            metrics.clone(),
        );
        tasks::spawn(
            "test server",
            listen::serve(listener, acceptor, ads, ca, join, axum::Router::new(), watcher),
        );
        let server = Self {
            address,
            root: authority.root().certificate_pem().to_string(),
            tokens,
            join_tokens: tokens_of_joins,
            denied,
            authority: authority.clone(),
            issued,
            snapshots,
            clients,
            metrics,
            drain,
        };
        server.publish(|_| {});
        server
    }

    /// Publishes the next cut.
    fn publish(&self, edit: impl FnOnce(&mut Snapshot)) {
        let mut next = (**self.snapshots.borrow()).clone();
        next.sequence += 1;
        next.synced = true;
        edit(&mut next);
        self.snapshots.send_replace(Arc::new(next));
    }

    fn set(&self, ty: ResourceType, name: &str, body: &'static [u8]) {
        self.set_for(ty, name, body, Scope::Everyone);
    }

    /// Sets a resource that not everybody may receive.
    fn set_for(&self, ty: ResourceType, name: &str, body: &'static [u8], scope: Scope) {
        self.publish(|snapshot| {
            let sequence = snapshot.sequence;
            let table = snapshot.table_mut(ty);
            let resource = Resource {
                name: name.into(),
                aliases: Vec::new(),
                body: Bytes::from_static(body),
                order: Order::Workload,
                scope,
            };
            assert!(table.set(resource, sequence));
        });
    }

    fn place(&self, node: &str, identity: &str) {
        self.publish(|snapshot| {
            let identity: Identity = identity.parse().unwrap();
            snapshot.placement.place(node.into(), BTreeSet::from([identity]));
        });
    }

    /// Lets a pod come to the node `n1`, and another one go.
    fn exchange(&self, came: &Bearer, went: Option<&Bearer>) {
        self.publish(|snapshot| {
            let mut moves = Moves::default();
            went.into_iter().for_each(|went| moves.went(went));
            moves.came(came, "n1".into());
            snapshot.bearers.change(moves);
        });
    }

    fn channel(&self, token: &str) -> AuthenticatedChannel {
        let config = ChannelConfig {
            address: self.address.parse().unwrap(),
            root: RootSource::Pem(self.root.clone()),
            server_name: None,
            token: TokenSource::Literal(token.to_owned()),
            headers: Vec::new(),
            cluster_id: None,
            mark: None,
        };
        authenticated(&config).unwrap()
    }

    async fn connect(&self, token: &str, first: DeltaDiscoveryRequest) -> Result<Client, Status> {
        self.connect_taking(token, first, None).await
    }

    async fn connect_taking(
        &self,
        token: &str,
        first: DeltaDiscoveryRequest,
        compression: Option<CompressionEncoding>,
    ) -> Result<Client, Status> {
        let (requests, receiver) = mpsc::channel(16);
        requests.send(first).await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel(token));
        if let Some(compression) = compression {
            client = client.accept_compressed(compression);
        }
        let stream = client
            .delta_aggregated_resources(ReceiverStream::new(receiver))
            .await?;
        let encoding = stream.metadata().get("grpc-encoding");
        Ok(Client {
            requests,
            encoding: encoding.map(|text| text.to_str().unwrap().to_owned()),
            responses: stream.into_inner(),
        })
    }

    async fn certificate(&self, token: &str, identity: &str) -> Result<IstioCertificateResponse, Status> {
        self.certificate_by(token, certificate_request(identity)).await
    }

    async fn certificate_by(
        &self,
        token: &str,
        request: IstioCertificateRequest,
    ) -> Result<IstioCertificateResponse, Status> {
        let mut client = IstioCertificateServiceClient::new(self.channel(token));
        Ok(client.create_certificate(request).await?.into_inner())
    }
}

struct Client {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    /// What the server says it compresses with.
    encoding: Option<String>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Client {
    async fn receive(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let message = timeout(PATIENCE, self.responses.message())
            .await
            .expect("an answer in time");
        message.map(|message| message.expect("the stream is open"))
    }

    async fn answer(&self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
        let error_detail = error.map(|message| tulle_proto::rpc_status::Status {
            code: 3,
            message: message.to_owned(),
            details: Vec::new(),
        });
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail,
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// Expects resources `(name, body)` and removals, and accepts them.
    async fn expect(&mut self, resources: &[(&str, &[u8])], removed: &[&str]) {
        let response = self.receive().await.unwrap();
        let sent = response.resources.iter();
        let sent = sent.map(|resource| {
            let any = resource.resource.as_ref().expect("content");
            assert_eq!(any.type_url, response.type_url);
            assert_eq!(resource.version.len(), 16);
            (&*resource.name, &*any.value)
        });
        assert_eq!(sent.collect::<Vec<_>>(), resources);
        assert_eq!(response.removed_resources, removed);
        self.answer(&response, None).await;
    }
}

fn text(text: &str) -> Value {
    Value {
        kind: Some(ValueKind::StringValue(text.to_owned())),
    }
}

fn first(node: &str, ty: ResourceType) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(Node {
            id: "ztunnel~1.1.1.1~z.istio-system~istio-system.svc.cluster.local".to_owned(),
            metadata: Some(Struct {
                fields: [("NODE_NAME".to_owned(), text(node))].into(),
            }),
            build_version: "test".to_owned(),
            ..Node::default()
        }),
        type_url: ty.type_url().to_owned(),
        ..DeltaDiscoveryRequest::default()
    }
}

/// Asks for an identity on behalf of its workload.
fn certificate_request(identity: &str) -> IstioCertificateRequest {
    IstioCertificateRequest {
        csr: csr(),
        validity_duration: 3600,
        metadata: Some(Struct {
            fields: [("ImpersonatedIdentity".to_owned(), text(identity))].into(),
        }),
    }
}

fn csr() -> String {
    let params = rcgen::CertificateParams::default();
    params
        .serialize_request(&rcgen::KeyPair::generate().unwrap())
        .unwrap()
        .pem()
        .unwrap()
}

async fn until(what: impl Fn() -> bool) {
    timeout(PATIENCE, async {
        while !what() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it comes true in time");
}

#[tokio::test]
async fn a_client_follows_additions_changes_and_removals() {
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    server.set(ResourceType::Address, "a", b"one");
    let mut client = server
        .connect(&token, first("n1", ResourceType::Address))
        .await
        .unwrap();
    client.expect(&[("a", b"one")], &[]).await;
    server.set(ResourceType::Address, "a", b"two");
    client.expect(&[("a", b"two")], &[]).await;
    server.set(ResourceType::Address, "b", b"one");
    client.expect(&[("b", b"one")], &[]).await;
    server.publish(|snapshot| {
        let sequence = snapshot.sequence;
        snapshot.addresses.remove("a", sequence);
    });
    client.expect(&[], &["a"]).await;
    until(|| {
        server.clients.list(std::time::Instant::now())[0]
            .types
            .values()
            .all(|ty| ty.unacked == 0)
    })
    .await;
    let status = server.clients.list(std::time::Instant::now()).remove(0);
    let ty = &status.types[ResourceType::Address.type_url()];
    assert_eq!(
        (&*status.node, &*status.version, ty.wildcard, ty.acks, ty.nacks),
        ("n1", "test", true, 4, 0)
    );
    assert_eq!(ty.acked, ty.sent);
}

#[tokio::test]
async fn responses_are_compressed_for_those_who_read_that_and_for_nobody_else() {
    static LARGE: [u8; 100_000] = [7; 100_000];
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    server.set(ResourceType::Address, "a", &LARGE);
    for (takes, encoding) in [
        (Some(CompressionEncoding::Gzip), Some("gzip")),
        (Some(CompressionEncoding::Zstd), Some("zstd")),
        (None, None),
    ] {
        let first = first("n1", ResourceType::Address);
        let mut client = server.connect_taking(&token, first, takes).await.unwrap();
        assert_eq!(client.encoding.as_deref(), encoding);
        client.expect(&[("a", &LARGE)], &[]).await;
    }
    let sent = |encoding| server.metrics.response_bytes.get_or_create(&encoding).get();
    assert!((1..2_000).contains(&sent(Encoding::Gzip.into())));
    assert!((1..2_000).contains(&sent(Encoding::Zstd.into())));
    assert!(sent(Encoding::Raw.into()) > 100_000);
}

#[tokio::test]
async fn a_rejection_shows_in_the_status_and_ends_with_the_next_version() {
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    server.set(ResourceType::Authorization, "ns/p", b"bad");
    let mut client = server
        .connect(&token, first("n1", ResourceType::Authorization))
        .await
        .unwrap();
    let response = client.receive().await.unwrap();
    client.answer(&response, Some("ns/p: unknown action")).await;
    let rejections = || {
        server.clients.list(std::time::Instant::now())[0]
            .rejections
            .clone()
    };
    until(|| !rejections().is_empty()).await;
    let rejection = rejections().remove(0);
    assert_eq!((&*rejection.name, &*rejection.text), ("ns/p", "unknown action"));
    server.set(ResourceType::Authorization, "ns/p", b"good");
    client.expect(&[("ns/p", b"good")], &[]).await;
    until(|| rejections().is_empty()).await;
}

#[tokio::test]
async fn a_client_that_is_gone_leaves_the_list() {
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    let mut client = server
        .connect(&token, first("n1", ResourceType::Address))
        .await
        .unwrap();
    client.expect(&[], &[]).await;
    assert_eq!(server.clients.len(), 1);
    drop(client);
    until(|| server.clients.is_empty()).await;
}

#[tokio::test]
async fn wrong_credentials_are_unauthenticated() {
    let server = Server::start().await;
    server.tokens.create("n1").unwrap();
    server.place("n1", WEB);
    for token in [
        "nonsense".to_owned(),
        format!("tulle1.n1.{}", "0".repeat(64)),
        format!("tulle1.n2.{}", "0".repeat(64)),
    ] {
        let refused = server.connect(&token, first("n1", ResourceType::Address)).await;
        assert_eq!(
            refused.err().map(|status| status.code()),
            Some(Code::Unauthenticated),
            "{token}"
        );
        let refused = server.certificate(&token, WEB).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{token}");
        assert!(refused.details().is_empty());
    }
}

#[tokio::test]
async fn a_token_does_not_open_another_nodes_stream() {
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    let mut client = server
        .connect(&token, first("n2", ResourceType::Address))
        .await
        .unwrap();
    assert_eq!(client.receive().await.unwrap_err().code(), Code::PermissionDenied);
    let mut nameless = first("n1", ResourceType::Address);
    nameless.node = None;
    let mut client = server.connect(&token, nameless).await.unwrap();
    assert_eq!(client.receive().await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn an_unsynced_server_refuses_streams() {
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    server.publish(|snapshot| snapshot.synced = false);
    let refused = server.connect(&token, first("n1", ResourceType::Address)).await;
    assert_eq!(refused.err().map(|status| status.code()), Some(Code::Unavailable));
}

#[tokio::test]
async fn envoys_own_types_end_the_stream() {
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    let mut request = first("n1", ResourceType::Address);
    request.type_url = "type.googleapis.com/envoy.config.listener.v3.Listener".to_owned();
    let mut client = server.connect(&token, request).await.unwrap();
    assert_eq!(client.receive().await.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn requests_of_many_megabytes_are_accepted() {
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    server.set(ResourceType::Address, "a", b"one");
    let mut request = first("n1", ResourceType::Address);
    let held = (0..100_000).map(|n| (format!("held-{n:060}"), format!("{n:016}")));
    request.initial_resource_versions = held.collect();
    let mut client = server.connect(&token, request).await.unwrap();
    let mut removed = 0;
    while removed < 100_000 {
        let response = client.receive().await.unwrap();
        removed += response.removed_resources.len();
        client.answer(&response, None).await;
    }
}

#[tokio::test]
async fn streams_per_client_are_bounded() {
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    let mut clients = Vec::new();
    for _ in 0..crate::status::STREAMS_PER_CLIENT_MAX {
        let mut client = server
            .connect(&token, first("n1", ResourceType::Address))
            .await
            .unwrap();
        client.expect(&[], &[]).await;
        clients.push(client);
    }
    let mut client = server
        .connect(&token, first("n1", ResourceType::Address))
        .await
        .unwrap();
    assert_eq!(
        client.receive().await.unwrap_err().code(),
        Code::ResourceExhausted
    );
}

#[tokio::test]
async fn a_stream_of_age_is_ended_and_can_be_opened_again() {
    let options = AdsOptions {
        age_max: Some(Duration::from_millis(50)),
        ..AdsOptions::default()
    };
    let server = Server::start_with(options, HOLD_MAX_DEFAULT).await;
    let token = server.tokens.create("n1").unwrap();
    for _ in 0..2 {
        let mut client = server
            .connect(&token, first("n1", ResourceType::Address))
            .await
            .unwrap();
        client.expect(&[], &[]).await;
        let end = timeout(PATIENCE, client.responses.message())
            .await
            .expect("an end in time");
        assert!(matches!(end, Ok(None)), "{end:?}");
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_and_delays_nobody() {
    static LARGE: [u8; 3 << 20] = [7; 3 << 20];
    let options = AdsOptions {
        write_stall_max: Duration::from_secs(1),
        ..AdsOptions::default()
    };
    let server = Server::start_with(options, HOLD_MAX_DEFAULT).await;
    let token = server.tokens.create("n1").unwrap();
    for name in ["a", "b", "c"] {
        server.set(ResourceType::Address, name, &LARGE);
    }
    let idle = server
        .connect(&token, first("n1", ResourceType::Address))
        .await
        .unwrap();
    let mut reader = server
        .connect(&token, first("n1", ResourceType::Authorization))
        .await
        .unwrap();
    reader.expect(&[], &[]).await;
    until(|| server.metrics.write_timeouts.get() == 1).await;
    server.set(ResourceType::Authorization, "ns/p", b"one");
    reader.expect(&[("ns/p", b"one")], &[]).await;
    assert_eq!(server.clients.len(), 1);
    drop(idle);
}

#[tokio::test]
async fn a_drain_ends_the_streams() {
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    let mut client = server
        .connect(&token, first("n1", ResourceType::Address))
        .await
        .unwrap();
    client.expect(&[], &[]).await;
    server.drain.start(drain::DrainMode::Graceful);
    let end = timeout(PATIENCE, client.responses.message())
        .await
        .expect("an end in time");
    assert!(matches!(end, Ok(None)), "{end:?}");
}
