//! A real control plane on loopback, and clients that only read and acknowledge, as many as wanted.

use std::sync::Arc;
use std::time::Duration;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::codec::CompressionEncoding;
use tulle_identity::channel::authenticated;
use tulle_identity::{AuthenticatedChannel, ChannelConfig, RootSource, TokenSource};
use tulle_k8s::translate::MeshConfig;
use tulle_proto::core::Node;
use tulle_proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tulle_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tulle_runtime::drain::{self, DrainTrigger};
use tulle_runtime::tasks::{self, Scope};
use tulle_xds::ca::issued::Issued;
use tulle_xds::ca::join::JoinService;
use tulle_xds::ca::root::Root;
use tulle_xds::ca::service::{CaService, HOLD_MAX_DEFAULT};
use tulle_xds::ca::{Authority, TTL_MAX_DEFAULT, renew};
use tulle_xds::engine::{Batch, Engine};
use tulle_xds::metrics::Metrics;
use tulle_xds::serve::ads::{Ads, AdsOptions};
use tulle_xds::serve::authenticate::Authenticator;
use tulle_xds::serve::frame::Encoding;
use tulle_xds::serve::listen;
use tulle_xds::snapshot::{ResourceType, Snapshot};
use tulle_xds::status::Clients;
use tulle_xds::token::TokenStore;
use tulle_xds::token::join::JoinTokens;

/// Changes that wait for the engine.
const BATCHES_MAX: usize = 1024;

/// A control plane whose source is the benchmark.
#[derive(Debug)]
pub struct ControlPlane {
    address: String,
    root: String,
    tokens: TokenStore,
    /// Changes of objects go in here.
    pub batches: mpsc::Sender<Batch>,
    /// The cuts that they mean.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Who is connected.
    pub clients: Clients,
    /// What is counted.
    pub metrics: Metrics,
    /// Signs.
    pub authority: Arc<Authority>,
    _scope: Scope,
    _drain: DrainTrigger,
}

impl ControlPlane {
    /// Serves on a free port of loopback.
    ///
    /// # Panics
    /// If it cannot.
    pub async fn start() -> Self {
        let (scope, metrics, clients) = (Scope::new(), Metrics::default(), Clients::default());
        let (batches, waiting) = mpsc::channel(BATCHES_MAX);
        let trust = watch::channel(None).1;
        let engine = Engine::spawn(
            MeshConfig::default(),
            waiting,
            trust,
            metrics.engine.clone(),
            &scope,
        );
        let root = Root::generate("cluster.local", time::OffsetDateTime::now_utc()).expect("a root");
        let authority = Arc::new(Authority::new(root, "cluster.local".into(), TTL_MAX_DEFAULT));
        let acceptor = renew::acceptor(&authority, &["localhost".into()]).expect("a certificate");
        let tokens = TokenStore::memory();
        let authenticator = Authenticator::new(tokens.clone());
        let (trigger, drain) = drain::new();
        let options = AdsOptions::default();
        let ca = CaService::new(
            authority.clone(),
            authenticator.clone(),
            engine.snapshots.clone(),
            metrics.clone(),
            HOLD_MAX_DEFAULT,
            Arc::new(Issued::memory()),
            options.waiting.clone(),
        );
        let ads = Ads::new(
            engine.snapshots.clone(),
            authenticator.clone(),
            clients.clone(),
            metrics.clone(),
            drain.clone(),
            options,
        );
        let join = JoinService::new(
            authority.clone(),
            authenticator,
            Arc::new(JoinTokens::default()),
            metrics.clone(),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("it is bound").port();
        let served = listen::serve(listener, acceptor, ads, ca, join, Default::default(), drain);
        scope.spawn("server", served);
        Self {
            address: format!("https://localhost:{port}"),
            root: authority.root().certificate_pem().to_string(),
            tokens,
            batches,
            snapshots: engine.snapshots,
            clients,
            metrics,
            authority,
            _scope: scope,
            _drain: trigger,
        }
    }

    /// Takes changes, and waits for the cut they mean.
    ///
    /// # Panics
    /// If the engine is gone.
    pub async fn apply(&mut self, batch: Batch) {
        self.snapshots.mark_unchanged();
        self.batches.send(batch).await.expect("the engine runs");
        self.snapshots.changed().await.expect("the engine runs");
    }

    fn channel(&self, node: &str) -> AuthenticatedChannel {
        let token = self.tokens.create(node).expect("a token");
        let config = ChannelConfig {
            address: self.address.parse().expect("an address"),
            root: RootSource::Pem(self.root.clone()),
            server_name: None,
            token: TokenSource::Literal(token),
            headers: Vec::new(),
            cluster_id: None,
            mark: None,
        };
        authenticated(&config).expect("a channel")
    }

    /// Connects the proxy of a node that asks for all addresses.
    ///
    /// # Panics
    /// If it is refused.
    pub async fn connect(&self, node: &str, first: DeltaDiscoveryRequest, gzip: bool) -> Client {
        let (requests, receiver) = mpsc::channel(16);
        requests.send(first).await.expect("there is room");
        let mut client =
            AggregatedDiscoveryServiceClient::new(self.channel(node)).max_decoding_message_size(64 << 20);
        if gzip {
            client = client.accept_compressed(CompressionEncoding::Gzip);
        }
        let stream = client
            .delta_aggregated_resources(ReceiverStream::new(receiver))
            .await;
        Client {
            requests,
            responses: stream.expect("it is admitted").into_inner(),
        }
    }

    /// Bytes of all responses so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        let of = |encoding: Encoding| self.metrics.response_bytes.get_or_create(&encoding.into()).get();
        [Encoding::Raw, Encoding::Gzip, Encoding::Zstd]
            .into_iter()
            .map(of)
            .sum()
    }
}

/// The first message of a node proxy.
#[must_use]
pub fn first(node: &str, ty: ResourceType) -> DeltaDiscoveryRequest {
    let name = Value {
        kind: Some(Kind::StringValue(node.to_owned())),
    };
    DeltaDiscoveryRequest {
        node: Some(Node {
            id: "ztunnel~127.0.0.1~z.istio-system~istio-system.svc.cluster.local".to_owned(),
            metadata: Some(Struct {
                fields: [("NODE_NAME".to_owned(), name)].into(),
            }),
            ..Node::default()
        }),
        type_url: ty.type_url().to_owned(),
        ..DeltaDiscoveryRequest::default()
    }
}

/// The client's end of a stream.
#[derive(Debug)]
pub struct Client {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Client {
    /// The next response, acknowledged.
    ///
    /// # Panics
    /// If the stream ends, or says nothing for a minute.
    pub async fn next(&mut self) -> DeltaDiscoveryResponse {
        let response = tokio::time::timeout(Duration::from_secs(60), self.responses.message()).await;
        let response = response
            .expect("in time")
            .expect("an intact stream")
            .expect("an open stream");
        let answer = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(answer).await.expect("an open stream");
        response
    }

    /// Reads until this many resources came.
    pub async fn read(&mut self, resources: usize) {
        let mut read = 0;
        while read < resources {
            read += self.next().await.resources.len();
        }
    }

    /// Tells every name that arrives, for as long as the stream lives.
    pub fn follow(mut self, told: mpsc::UnboundedSender<(String, std::time::Instant)>) {
        tasks::spawn("client", async move {
            while let Ok(Some(response)) = self.responses.message().await {
                let now = std::time::Instant::now();
                let answer = DeltaDiscoveryRequest {
                    type_url: response.type_url.clone(),
                    response_nonce: response.nonce.clone(),
                    ..DeltaDiscoveryRequest::default()
                };
                if self.requests.send(answer).await.is_err() {
                    return;
                }
                for resource in response.resources {
                    // An alias tells which address the pod has now.
                    let name = resource.aliases.into_iter().next().unwrap_or(resource.name);
                    if told.send((name, now)).is_err() {
                        return;
                    }
                }
            }
        });
    }
}
