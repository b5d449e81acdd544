//! The client against a real gRPC server on the loopback interface.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use tulle_model::{Mesh, NetworkAddress};
use tulle_proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use tulle_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use tulle_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE, TRUST_TYPE, workload};
use tulle_runtime::drain::{self, DrainTrigger};
use tulle_runtime::metrics::Registry;
use tulle_runtime::ready::Ready;
use tulle_runtime::tasks;
use tulle_xds_client::{Client, MeshState, Metrics, NodeInfo, Options};

/// Longest wait for anything; reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(20);

/// Hands each stream to the test as a pair of ends.
struct Script {
    features: Option<&'static str>,
    streams: mpsc::Sender<Stream>,
}

/// The server's end of one stream.
struct Stream {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Script {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, outgoing) = mpsc::channel(8);
        let stream = Stream {
            requests: request.into_inner(),
            responses,
        };
        self.streams
            .send(stream)
            .await
            .map_err(|_| Status::unavailable("the test is over"))?;
        let mut response = Response::new(ReceiverStream::new(outgoing));
        if let Some(features) = self.features {
            let features = features.parse().expect("a header value");
            response.metadata_mut().insert("x-tulle-features", features);
        }
        Ok(response)
    }
}

impl Stream {
    async fn request(&mut self) -> DeltaDiscoveryRequest {
        let request = tokio::time::timeout(PATIENCE, self.requests.message()).await;
        request
            .expect("in time")
            .expect("an intact stream")
            .expect("a request")
    }

    /// The two first requests, by type.
    async fn opening(&mut self) -> BTreeMap<String, DeltaDiscoveryRequest> {
        let (first, second) = (self.request().await, self.request().await);
        [first, second]
            .into_iter()
            .map(|request| (request.type_url.clone(), request))
            .collect()
    }

    /// Sends and returns the answer.
    async fn exchange(
        &mut self,
        type_url: &str,
        nonce: &str,
        resources: Vec<Resource>,
    ) -> DeltaDiscoveryRequest {
        let response = DeltaDiscoveryResponse {
            type_url: type_url.into(),
            nonce: nonce.into(),
            resources,
            ..Default::default()
        };
        self.responses.send(Ok(response)).await.expect("an open stream");
        let answer = self.request().await;
        assert_eq!(answer.response_nonce, nonce);
        answer
    }
}

/// A running client and the streams it opens.
struct Setup {
    state: MeshState,
    ready: Ready,
    registry: Registry,
    streams: mpsc::Receiver<Stream>,
    drain: DrainTrigger,
    client: tokio::task::JoinHandle<()>,
}

impl Setup {
    async fn start() -> Self {
        Self::start_with(None, false).await
    }

    async fn start_with(features: Option<&'static str>, on_demand: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (sender, streams) = mpsc::channel(8);
        serve(
            listener,
            Script {
                features,
                streams: sender,
            },
        );
        Self::of(address, streams, on_demand)
    }

    /// A client of this address, where somebody may hand streams over.
    fn of(address: SocketAddr, streams: mpsc::Receiver<Stream>, on_demand: bool) -> Self {
        let (state, registry, ready) = (MeshState::new(Mesh::new()), Registry::new(), Ready::new());
        let node = NodeInfo {
            node_name: "n1".into(),
            ..NodeInfo::default()
        };
        let metrics = Metrics::register(&registry, &state);
        let options = Options {
            on_demand,
            ..Options::new(node)
        };
        let client = Client::new(options, state.clone(), metrics, &ready);
        let (drain, watcher) = drain::new();
        let client = tasks::spawn("xds", client.run(channel(address), watcher));
        Self {
            state,
            ready,
            registry,
            streams,
            drain,
            client,
        }
    }

    async fn stream(&mut self) -> Stream {
        tokio::time::timeout(PATIENCE, self.streams.recv())
            .await
            .expect("in time")
            .expect("a stream")
    }
}

fn serve(listener: TcpListener, script: Script) {
    let service = AggregatedDiscoveryServiceServer::new(script);
    let server = Server::builder()
        .add_service(service)
        .serve_with_incoming(TcpListenerStream::new(listener));
    drop(tasks::spawn("server", server));
}

fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .expect("a uri")
        .connect_lazy()
}

fn resource(uid: &str, version: &str, tunnel_protocol: i32) -> Resource {
    let message = workload::Workload {
        uid: uid.into(),
        name: version.into(),
        addresses: vec![vec![10, 0, 0, 1]],
        tunnel_protocol,
        ..Default::default()
    };
    let body = workload::Address {
        r#type: Some(workload::address::Type::Workload(message)),
    };
    let any = prost_types::Any {
        type_url: ADDRESS_TYPE.into(),
        value: body.encode_to_vec(),
    };
    Resource {
        name: uid.into(),
        version: version.into(),
        resource: Some(any),
        ..Default::default()
    }
}

fn name_of(state: &MeshState, uid: &str) -> Option<String> {
    state
        .snapshot()
        .workload(&uid.into())
        .map(|workload| workload.name.as_ref().to_owned())
}

#[tokio::test]
async fn an_ack_means_visible_and_the_first_of_each_type_means_ready() {
    let mut setup = Setup::start().await;
    assert_eq!(setup.ready.pending(), ["xds Address", "xds Authorization"]);
    let mut stream = setup.stream().await;
    let opening = stream.opening().await;
    let named: Vec<_> = opening.values().filter_map(|first| first.node.as_ref()).collect();
    let [node] = named[..] else {
        panic!("the first message names the node, and no other does: {named:?}");
    };
    assert!(node.id.starts_with("ztunnel~1.1.1.1~"), "{}", node.id);

    let ack = stream
        .exchange(ADDRESS_TYPE, "1", vec![resource("web", "v1", 1)])
        .await;
    assert_eq!((ack.node, ack.error_detail), (None, None));
    assert_eq!(
        name_of(&setup.state, "web").as_deref(),
        Some("v1"),
        "visible before the ACK"
    );
    assert_eq!(setup.ready.pending(), ["xds Authorization"]);
    assert!(!setup.state.synced());

    stream.exchange(AUTHORIZATION_TYPE, "2", vec![]).await;
    assert!(setup.ready.is_ready() && setup.state.synced());
    let status = setup.state.status();
    assert!(status.connected && status.types.iter().all(|kind| kind.acked));
    let text = setup.registry.encode();
    assert!(
        text.contains(&format!("istio_xds_message_total{{url=\"{ADDRESS_TYPE}\"}} 1")),
        "{text}"
    );
    assert!(text.contains("istio_xds_message_bytes_total{"), "{text}");
    assert!(
        text.contains("tulle_config_generation 1") && text.contains("tulle_config_age_seconds 0"),
        "{text}"
    );
}

#[tokio::test]
async fn a_lost_stream_is_opened_anew_with_everything_held() {
    let mut setup = Setup::start().await;
    let mut stream = setup.stream().await;
    stream.opening().await;
    stream
        .exchange(
            ADDRESS_TYPE,
            "1",
            vec![resource("web", "v1", 1), resource("db", "v7", 0)],
        )
        .await;
    let nack = stream
        .exchange(ADDRESS_TYPE, "2", vec![resource("web", "v2", 77)])
        .await;
    assert!(
        nack.error_detail
            .expect("a NACK")
            .message
            .starts_with("web: tunnel_protocol")
    );
    let broken = Status::internal("gone");
    stream.responses.send(Err(broken)).await.expect("an open stream");
    drop(stream);

    let mut stream = setup.stream().await;
    let opening = stream.opening().await;
    let held = &opening[ADDRESS_TYPE].initial_resource_versions;
    let expected = BTreeMap::from([
        ("db".to_owned(), "v7".to_owned()),
        ("web".to_owned(), "v1".to_owned()),
    ]);
    assert_eq!(*held, expected, "the rejected version is not among them");
    assert_eq!(
        name_of(&setup.state, "web").as_deref(),
        Some("v1"),
        "state outlives the stream"
    );
    let text = setup.registry.encode();
    assert!(
        text.contains("istio_xds_connection_terminations_total{reason=\"Error\"} 1"),
        "{text}"
    );
    assert!(text.contains("tulle_config_rejected 1"), "{text}");
}

#[tokio::test]
async fn a_server_that_refuses_connections_is_asked_again_until_it_serves() {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let address = socket.local_addr().expect("an address");
    let (sender, streams) = mpsc::channel(8);
    // Bound and not listening: every connection is refused.
    let mut setup = Setup::of(address, streams, false);
    let refused = async {
        while !setup
            .registry
            .encode()
            .contains("istio_xds_connection_terminations_total")
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("in time");
    let listener = socket.listen(16).expect("a listener");
    serve(
        listener,
        Script {
            features: None,
            streams: sender,
        },
    );
    setup.stream().await.opening().await;
}

#[tokio::test]
async fn addresses_of_a_workload_that_was_never_good_are_refused_until_it_is() {
    let mut setup = Setup::start().await;
    let mut stream = setup.stream().await;
    stream.opening().await;
    let address = NetworkAddress::new("", [10, 0, 0, 1].into());
    stream
        .exchange(ADDRESS_TYPE, "1", vec![resource("web", "v1", 77)])
        .await;
    assert_eq!(setup.state.refused(&address).as_deref(), Some("web"));
    let status = setup.state.status();
    assert_eq!(status.rejected(), 1);
    stream
        .exchange(ADDRESS_TYPE, "2", vec![resource("web", "v2", 1)])
        .await;
    assert_eq!(setup.state.refused(&address), None);
    assert_eq!(setup.state.status().rejected(), 0);
}

#[tokio::test]
async fn the_client_ends_when_the_drain_is_over() {
    let mut setup = Setup::start().await;
    let mut stream = setup.stream().await;
    stream.opening().await;
    setup.drain.drain_and_wait(PATIENCE).await;
    tokio::time::timeout(PATIENCE, setup.client)
        .await
        .expect("in time")
        .expect("no panic");
    assert!(!setup.state.status().connected);
    let text = setup.registry.encode();
    assert!(
        text.contains("istio_xds_connection_terminations_total{reason=\"Complete\"} 1"),
        "{text}"
    );
}

fn trust(identity: &str) -> Resource {
    let body = tulle_proto::mesh::Trust {
        trust_domain: "cluster.local".into(),
        roots: "-----BEGIN CERTIFICATE-----".into(),
        denied: vec![tulle_proto::mesh::Denied {
            subject: Some(tulle_proto::mesh::denied::Subject::Identity(identity.into())),
            ..Default::default()
        }],
        ..Default::default()
    };
    Resource {
        name: "cluster.local".into(),
        version: "1".into(),
        resource: Some(prost_types::Any {
            type_url: TRUST_TYPE.into(),
            value: body.encode_to_vec(),
        }),
        ..Default::default()
    }
}

#[tokio::test]
async fn trust_is_asked_for_where_the_server_knows_it_and_waited_for() {
    let mut setup = Setup::start_with(Some("dry-run, trust"), false).await;
    let mut stream = setup.stream().await;
    let opening = stream.opening().await;
    assert!(
        !opening.contains_key(TRUST_TYPE),
        "not before the server said that it knows it"
    );
    assert_eq!(stream.request().await.type_url, TRUST_TYPE);
    stream.exchange(AUTHORIZATION_TYPE, "1", Vec::new()).await;
    stream.exchange(ADDRESS_TYPE, "2", Vec::new()).await;
    assert!(
        !setup.state.synced(),
        "whom to deny is known before the first connection"
    );
    let denied = "spiffe://cluster.local/ns/shop/sa/web";
    stream.exchange(TRUST_TYPE, "3", vec![trust(denied)]).await;
    assert!(setup.state.synced());
    let snapshot = setup.state.snapshot();
    assert_eq!(snapshot.trust("cluster.local").unwrap().denied.len(), 1);
}

#[tokio::test]
async fn a_server_that_does_not_know_trust_is_not_asked_for_it() {
    let mut setup = Setup::start().await;
    let mut stream = setup.stream().await;
    stream.opening().await;
    stream.exchange(AUTHORIZATION_TYPE, "1", Vec::new()).await;
    stream.exchange(ADDRESS_TYPE, "2", Vec::new()).await;
    assert!(setup.state.synced());
}

#[tokio::test]
async fn an_address_is_asked_for_once_and_found_by_its_alias() {
    let mut setup = Setup::start_with(None, true).await;
    let mut stream = setup.stream().await;
    let opening = stream.opening().await;
    let first = &opening[ADDRESS_TYPE];
    assert_eq!(first.resource_names_subscribe, ["*"]);
    assert_eq!(first.resource_names_unsubscribe, ["*"]);
    assert!(
        opening[AUTHORIZATION_TYPE].resource_names_subscribe.is_empty(),
        "policies all come by themselves"
    );
    stream.exchange(ADDRESS_TYPE, "1", Vec::new()).await;
    let address = NetworkAddress::new("", "10.0.0.1".parse().unwrap());
    let look = |state: MeshState, address: NetworkAddress| {
        tasks::spawn("look", async move {
            let key = || tulle_xds_client::on_demand::address_key(&address);
            state
                .look_up(key, |snapshot| snapshot.workload_by_address(&address))
                .await
        })
    };
    let looks = [
        look(setup.state.clone(), address.clone()),
        look(setup.state.clone(), address.clone()),
    ];
    assert_eq!(stream.request().await.resource_names_subscribe, ["/10.0.0.1"]);
    let mut found = resource("web", "web", 1);
    found.aliases = vec!["/10.0.0.1".into()];
    stream.exchange(ADDRESS_TYPE, "2", vec![found]).await;
    for look in looks {
        assert_eq!(look.await.unwrap().unwrap().name.as_ref(), "web");
    }
    drop(stream);
    let mut stream = setup.stream().await;
    let opening = stream.opening().await;
    assert_eq!(
        opening[ADDRESS_TYPE].initial_resource_versions.len(),
        1,
        "what is held"
    );
}

#[tokio::test]
async fn an_absent_address_is_known_to_be_absent_and_asked_for_on_the_next_stream() {
    let mut setup = Setup::start_with(None, true).await;
    let mut stream = setup.stream().await;
    stream.opening().await;
    let state = setup.state.clone();
    let look = tasks::spawn("look", async move {
        state.look_up(|| "/10.0.0.9".into(), |_| None::<()>).await
    });
    assert_eq!(stream.request().await.resource_names_subscribe, ["/10.0.0.9"]);
    let response = DeltaDiscoveryResponse {
        type_url: ADDRESS_TYPE.into(),
        nonce: "1".into(),
        removed_resources: vec!["/10.0.0.9".into()],
        ..Default::default()
    };
    stream.responses.send(Ok(response)).await.unwrap();
    stream.request().await;
    assert_eq!(look.await.unwrap(), None);
    let again = setup.state.look_up(|| "/10.0.0.9".into(), |_| None::<()>).await;
    assert_eq!(again, None, "at once");
    drop(stream);
    let mut stream = setup.stream().await;
    let versions = &stream.opening().await[ADDRESS_TYPE].initial_resource_versions;
    assert_eq!(versions["/10.0.0.9"], "");
}
