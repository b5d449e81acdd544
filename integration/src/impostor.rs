//! A control plane of another make: it tells one proxy whatever a test wants told, and hears what it answers.
//!
//! It speaks plain HTTP/2 inside of the control plane's namespace, knows delta ADS and nothing beyond it: it offers no
//! types of ours and reads no digests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};
use tulle_proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use tulle_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use tulle_world::{CONTROL, World};

use crate::traffic::spawn;

/// Where it listens.
const PORT: u16 = 15099;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a response was answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    nonce: String,
    /// Why it was refused, if it was.
    pub refused: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    tables: BTreeMap<String, BTreeMap<String, Resource>>,
    out: Option<mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>>,
    nonces: u64,
    /// The first requests of each type, of every stream.
    first: Vec<DeltaDiscoveryRequest>,
}

/// The server. It ends with the value.
#[derive(Debug)]
pub struct Impostor {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    answers: mpsc::UnboundedReceiver<Answer>,
    task: tokio::task::JoinHandle<()>,
}

struct Service {
    state: Arc<Mutex<State>>,
    answers: mpsc::UnboundedSender<Answer>,
}

impl State {
    fn response(
        &mut self,
        type_url: &str,
        resources: Vec<Resource>,
        removed: &[&str],
    ) -> DeltaDiscoveryResponse {
        self.nonces += 1;
        DeltaDiscoveryResponse {
            type_url: type_url.to_owned(),
            nonce: self.nonces.to_string(),
            resources,
            removed_resources: removed.iter().map(|&name| name.to_owned()).collect(),
            ..DeltaDiscoveryResponse::default()
        }
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (out, responses) = mpsc::channel(64);
        self.state.lock().out = Some(out.clone());
        let (state, answers) = (Arc::clone(&self.state), self.answers.clone());
        let mut requests = request.into_inner();
        spawn(async move {
            let mut known = Vec::new();
            while let Ok(Some(request)) = requests.message().await {
                if !request.response_nonce.is_empty() {
                    let refused = request.error_detail.map(|status| status.message);
                    // Whoever does not listen any more has seen enough.
                    let _ = answers.send(Answer {
                        nonce: request.response_nonce,
                        refused,
                    });
                } else if !known.contains(&request.type_url) {
                    known.push(request.type_url.clone());
                    let whole = {
                        let mut state = state.lock();
                        let table = state.tables.get(&request.type_url).cloned().unwrap_or_default();
                        let whole = state.response(&request.type_url, table.into_values().collect(), &[]);
                        state.first.push(request);
                        whole
                    };
                    if out.send(Ok(whole)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}

impl Impostor {
    /// Listens in the control plane's namespace.
    pub async fn start(world: &World) -> Self {
        let node = world.node(CONTROL).unwrap();
        let address = SocketAddr::new(node.ipv4().into(), PORT);
        let listener = node
            .namespace()
            .run_async(move || std::net::TcpListener::bind(address))
            .await;
        let listener = listener.unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let (sender, answers) = mpsc::unbounded_channel();
        let service = Service {
            state: Arc::clone(&state),
            answers: sender,
        };
        let server = tonic::transport::Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(service))
            .serve_with_incoming(incoming);
        let task = spawn(async move {
            server.await.expect("it serves");
        });
        Self {
            address,
            state,
            answers,
            task,
        }
    }

    /// As a proxy's `XDS_ADDRESS` names it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What a proxy that connects is told of a type.
    pub fn hold(&self, type_url: &str, resources: impl IntoIterator<Item = Resource>) {
        let mut state = self.state.lock();
        let table = state.tables.entry(type_url.to_owned()).or_default();
        table.extend(
            resources
                .into_iter()
                .map(|resource| (resource.name.clone(), resource)),
        );
    }

    /// Tells a connected proxy, remembers it for the next stream, and waits for the answer.
    pub async fn tell(&mut self, type_url: &str, resources: Vec<Resource>, removed: &[&str]) -> Answer {
        self.hold(type_url, resources.clone());
        let (out, response) = {
            let mut state = self.state.lock();
            if let Some(table) = state.tables.get_mut(type_url) {
                table.retain(|name, _| !removed.contains(&name.as_str()));
            }
            let response = state.response(type_url, resources, removed);
            (state.out.clone().expect("a proxy is connected"), response)
        };
        let nonce = response.nonce.clone();
        out.send(Ok(response)).await.expect("the proxy is connected");
        let answered = async {
            loop {
                let answer = self.answers.recv().await.expect("the server runs");
                if answer.nonce == nonce {
                    return answer;
                }
            }
        };
        tokio::time::timeout(PATIENCE, answered)
            .await
            .expect("a proxy answers")
    }

    /// Ends the stream of the connected proxy, in order.
    pub fn hang_up(&self) {
        let mut state = self.state.lock();
        if let Some(out) = state.out.take() {
            // A full queue ends it no later than its last response.
            let _ = out.try_send(Err(Status::unavailable("going away")));
        }
    }

    /// The first requests of each type so far, of every stream.
    #[must_use]
    pub fn first_requests(&self) -> Vec<DeltaDiscoveryRequest> {
        self.state.lock().first.clone()
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.task.abort();
    }
}
