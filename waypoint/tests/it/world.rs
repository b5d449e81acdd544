//! The waypoint `shop/way`, callers that may tunnel to it, and endpoints it may reach: all over pipes.
//!
//! ```ignore
//! let world = World::web().await;                 // service web.shop, 10.96.0.1:80, served by 10.0.0.7:8080
//! let mut client = world.http1("client").await;   // a caller of shop/client, on a connection to 10.96.0.1:80
//! ```

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, DuplexStream};
use tokio::sync::mpsc;
use tulle_identity::testing::{Clock, FakeCa, TestCa};
use tulle_identity::{SecretManager, TrustStore};
use tulle_model::policy::{Concern, On, Policy, Target};
use tulle_model::route::{Kind, Origin};
use tulle_model::service::AppProtocol;
use tulle_model::testing::{service, service_key, workload};
use tulle_model::waypoint::{Front, FrontOf, Scope, Settings, Waypoint as Told};
use tulle_model::{Identity, Mesh, MeshUpdate};
use tulle_runtime::config::MapEnv;
use tulle_runtime::drain::{self, DrainTrigger};
use tulle_runtime::metrics::Registry;
use tulle_runtime::tasks;
use tulle_runtime::telemetry::LogHandle;
use tulle_transport::hbone::{
    ClientConnection, ConnectRequest, ConnectResponse, HboneStream, OpenError, Refusal,
    Settings as TunnelSettings, client, server,
};
use tulle_waypoint::Config;
use tulle_waypoint::context::{Parts, Waypoint};
use tulle_waypoint::listener::hbone;
use tulle_waypoint::metrics::Metrics;
use tulle_waypoint::upstream::dial::{Connecting, Network, Resolving, Socket};
use tulle_waypoint::upstream::pool::Tasks;
use tulle_xds_client::MeshState;

/// Bytes that wait in a pipe.
const PIPE: usize = 256 * 1024;

/// What an application answers.
pub(crate) type Answer = Response<http_body_util::combinators::BoxBody<Bytes, Infallible>>;
type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;
/// An application: it sees the request and answers.
pub(crate) type Application = Arc<dyn Fn(Request<Incoming>) -> Answering + Send + Sync>;

/// Where sockets lead that are no sockets.
#[derive(Debug, Default)]
pub(crate) struct Pipes {
    listeners: Mutex<HashMap<SocketAddr, mpsc::UnboundedSender<DuplexStream>>>,
    /// What names of hosts outside of the mesh stand for.
    pub(crate) names: Mutex<HashMap<String, Vec<IpAddr>>>,
}

impl Network for Pipes {
    fn connect(&self, to: SocketAddr) -> Connecting<'_> {
        let (near, far) = tokio::io::duplex(PIPE);
        let listening = self
            .listeners
            .lock()
            .get(&to)
            .is_some_and(|listener| listener.send(far).is_ok());
        Box::pin(async move {
            if listening {
                Ok(Socket::Memory(near))
            } else {
                Err(io::ErrorKind::ConnectionRefused.into())
            }
        })
    }

    fn resolve<'a>(&'a self, host: &'a str) -> Resolving<'a> {
        let found = self.names.lock().get(host).cloned();
        Box::pin(async move { found.ok_or_else(|| io::ErrorKind::NotFound.into()) })
    }
}

impl Pipes {
    /// Connections to an address, from now on.
    pub(crate) fn listen(&self, at: &str) -> mpsc::UnboundedReceiver<DuplexStream> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.listeners.lock().insert(at.parse().unwrap(), sender);
        receiver
    }

    /// Nobody listens there any more.
    pub(crate) fn silence(&self, at: &str) {
        self.listeners.lock().remove(&at.parse().unwrap());
    }
}

/// A waypoint and what is around it.
pub(crate) struct World {
    pub(crate) waypoint: Arc<Waypoint>,
    pub(crate) ca: Arc<TestCa>,
    pub(crate) pipes: Arc<Pipes>,
    pub(crate) mesh: MeshState,
    pub(crate) registry: Registry,
    pub(crate) drain: DrainTrigger,
    /// What endpoints were asked for by CONNECT, in order.
    pub(crate) connects: Arc<Mutex<Vec<ConnectRequest>>>,
}

/// An identity of the namespace `shop`, or `ns/sa`.
pub(crate) fn identity(text: &str) -> Identity {
    let (namespace, account) = text.split_once('/').unwrap_or(("shop", text));
    Identity::new("cluster.local", namespace, account)
}

/// A text as a body.
pub(crate) fn text(text: impl Into<Bytes>) -> Answer {
    Response::new(Full::new(text.into()).boxed())
}

/// An application out of an async function.
pub(crate) fn application<F, A>(answer: F) -> Application
where
    F: Fn(Request<Incoming>) -> A + Send + Sync + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    Arc::new(move |request| Box::pin(answer(request)))
}

/// The settings of the waypoint.
pub(crate) fn settings() -> Settings {
    Settings {
        class: "tulle-waypoint".into(),
        scope: Scope::All,
        ..Settings::new("shop", "way")
    }
}

/// A front of the waypoint for a service, or for what `edit` makes of it.
pub(crate) fn front(service: &str, edit: impl FnOnce(&mut Front)) -> MeshUpdate {
    let mut front = Front {
        waypoint: "shop/way".into(),
        object: FrontOf::Service(service_key(service)),
        required_policies: Vec::new(),
        required_routes: Vec::new(),
        client_namespaces: Vec::new(),
        draining: false,
    };
    edit(&mut front);
    MeshUpdate::Waypoint(Arc::new(Told::Front(front)))
}

/// A policy of this name on `shop/web`.
pub(crate) fn policy(name: &str, concern: Concern) -> Policy {
    policy_on(name, On::Service(service_key("shop/web")), concern)
}

/// A policy of this name on this.
pub(crate) fn policy_on(name: &str, on: On, concern: Concern) -> Policy {
    Policy {
        object: "TestPolicy".into(),
        origin: Origin {
            kind: Kind::Policy,
            namespace: "shop".into(),
            name: name.into(),
            rule_index: 0,
            rule_name: "".into(),
            created: None,
            generation: 1,
        },
        targets: vec![Target {
            on,
            port: None,
            section: None,
        }],
        dry_run: false,
        concern,
    }
}

/// A policy of this name on `shop/web`, as the control plane tells it.
pub(crate) fn told_policy(name: &str, concern: Concern) -> MeshUpdate {
    MeshUpdate::WaypointPolicy(Arc::new(policy(name, concern)))
}

/// The service `shop/web` whose port 80 is declared as `protocol`.
pub(crate) fn web(protocol: AppProtocol) -> MeshUpdate {
    let mut web = service("shop/web").vip("10.96.0.1").port(80, 8080).build();
    web.ports.get_mut(&80).unwrap().app_protocol = protocol;
    MeshUpdate::Service(Arc::new(web))
}

impl World {
    /// A waypoint that knows these things, and its settings.
    pub(crate) async fn start(updates: Vec<MeshUpdate>) -> Self {
        Self::logging(updates, None).await
    }

    /// The same, with access lines that go there.
    pub(crate) async fn logging(updates: Vec<MeshUpdate>, log: Option<LogHandle>) -> Self {
        Self::start_in(&[], updates, log).await
    }

    /// The same, where the process has more in its environment.
    pub(crate) async fn start_in(
        more: &[(&str, &str)],
        updates: Vec<MeshUpdate>,
        log: Option<LogHandle>,
    ) -> Self {
        Self::start_under(Arc::new(TestCa::new()), more, updates, log).await
    }

    /// The same, under the authority of another world.
    pub(crate) async fn start_under(
        ca: Arc<TestCa>,
        more: &[(&str, &str)],
        updates: Vec<MeshUpdate>,
        log: Option<LogHandle>,
    ) -> Self {
        // The authority of the mesh vouches for servers outside of it, too.
        let root = ca.root_pem();
        let env = MapEnv::from([
            ("TULLE_JWKS_ROOTS", root.as_str()),
            ("POD_NAMESPACE", "shop"),
            ("SERVICE_ACCOUNT", "way"),
            ("TERMINATION_DRAIN_DURATION", "30s"),
        ]);
        let with = |env: MapEnv, (name, value): &(&str, &str)| env.with(name, value);
        let env = more.iter().fold(env, with);
        let mesh = MeshState::new(Mesh::new());
        let (drain, watcher) = drain::new();
        let (pipes, registry, trust) = (Arc::new(Pipes::default()), Registry::new(), TrustStore::default());
        let authority = Arc::new(FakeCa::new(Arc::clone(&ca), Clock::system()));
        let options = tulle_identity::Options {
            trust: trust.clone(),
            ..tulle_identity::Options::default()
        };
        let waypoint = Waypoint::start(Parts {
            config: Config::from_env(&env).unwrap(),
            mesh: mesh.clone(),
            secrets: SecretManager::new(authority, options, tulle_identity::Metrics::default()),
            trust,
            network: Arc::clone(&pipes) as Arc<dyn Network>,
            metrics: Metrics::register(&registry),
            log,
            drain: watcher,
        });
        let world = Self {
            waypoint,
            ca,
            pipes,
            mesh,
            registry,
            drain,
            connects: Arc::default(),
        };
        let told = MeshUpdate::Waypoint(Arc::new(Told::Settings(Box::new(settings()))));
        world.apply([told].into_iter().chain(updates).collect()).await;
        world
    }

    /// A waypoint in front of the HTTP service `shop/web`, served by 10.0.0.7:8080, which says who asked and for what.
    pub(crate) async fn web() -> Self {
        Self::web_with(AppProtocol::Http11, application(echo)).await
    }

    /// The same, with this protocol and this application.
    pub(crate) async fn web_with(protocol: AppProtocol, application: Application) -> Self {
        let world = Self::start(vec![
            web(protocol),
            workload("shop/web-1")
                .sa("web")
                .ip("10.0.0.7")
                .hbone()
                .serves("shop/web")
                .into(),
            front("shop/web", |_| {}),
        ])
        .await;
        world.serve("10.0.0.7", "web", application);
        world
    }

    /// The same, with an endpoint that hands over its streams as they come.
    pub(crate) async fn raw(protocol: AppProtocol) -> (Self, mpsc::UnboundedReceiver<HboneStream>) {
        let world = Self::start(vec![
            web(protocol),
            workload("shop/web-1")
                .sa("web")
                .ip("10.0.0.7")
                .hbone()
                .serves("shop/web")
                .into(),
            front("shop/web", |_| {}),
        ])
        .await;
        let streams = world.endpoint("10.0.0.7", "web");
        (world, streams)
    }

    /// Changes what the control plane says, and waits until requests are decided by it.
    pub(crate) async fn apply(&self, updates: Vec<MeshUpdate>) {
        let mut moved = self.waypoint.view.subscribe();
        if !self.mesh.apply(updates).is_empty() {
            moved.changed().await.unwrap();
        }
    }

    /// Lets an application answer behind the tunnels of an endpoint, whatever the port.
    pub(crate) fn serve(&self, ip: &str, account: &str, application: Application) {
        let mut connections = self.endpoint(ip, account);
        drop(tasks::spawn("application", async move {
            while let Some(stream) = connections.recv().await {
                drop(tasks::spawn(
                    "application-connection",
                    answer(stream, Arc::clone(&application)),
                ));
            }
        }));
    }

    /// Lets an application answer outside of the mesh: over sockets, without tunnels.
    pub(crate) fn serve_outside(&self, at: &str, application: Application) {
        let mut sockets = self.pipes.listen(at);
        drop(tasks::spawn("outside", async move {
            while let Some(socket) = sockets.recv().await {
                let answering = answer(socket, Arc::clone(&application));
                drop(tasks::spawn("outside-connection", answering));
            }
        }));
    }

    /// The streams that arrive in the tunnels of an endpoint.
    pub(crate) fn endpoint(&self, ip: &str, account: &str) -> mpsc::UnboundedReceiver<HboneStream> {
        let certificate = self.ca.certificate(&identity(account));
        let mut sockets = self.pipes.listen(&format!("{ip}:15008"));
        let (streams, receiver) = mpsc::unbounded_channel();
        let connects = Arc::clone(&self.connects);
        drop(tasks::spawn("endpoint", async move {
            while let Some(socket) = sockets.recv().await {
                let tls = certificate.server_config();
                let (streams, connects) = (streams.clone(), Arc::clone(&connects));
                drop(tasks::spawn("endpoint-tunnel", async move {
                    let from = "10.0.0.9:4000".parse().unwrap();
                    let settings = TunnelSettings::server();
                    let Ok(mut accepted) = server::accept_over(socket, from, tls, &settings).await else {
                        return;
                    };
                    while let Some(incoming) = accepted.connection.accept().await {
                        connects.lock().push(incoming.request().unwrap().clone());
                        let _ = incoming
                            .accept(&ConnectResponse::default())
                            .map(|one| streams.send(one));
                    }
                }));
            }
        }));
        receiver
    }

    /// A tunnel connection of a caller at 10.0.0.1.
    pub(crate) async fn tunnel(&self, who: &Identity) -> Result<ClientConnection, OpenError> {
        self.tunnel_by(who, &TunnelSettings::client()).await
    }

    /// The same, of a caller with these settings.
    pub(crate) async fn tunnel_by(
        &self,
        who: &Identity,
        settings: &TunnelSettings,
    ) -> Result<ClientConnection, OpenError> {
        let (near, far) = tokio::io::duplex(PIPE);
        let (peer, local) = (
            "10.0.0.1:5000".parse().unwrap(),
            "10.0.0.9:15008".parse().unwrap(),
        );
        let serving = hbone::serve_over(Arc::clone(&self.waypoint), far, peer, local);
        drop(tasks::spawn("waypoint-tunnel", serving));
        let tls = self.ca.certificate(who).client_config(&[identity("way")]);
        client::connect_over(near, local, tls, settings).await
    }

    /// What a CONNECT of a caller is answered with.
    pub(crate) async fn ask(&self, who: &str, authority: &str) -> Result<HboneStream, Refusal> {
        self.ask_by(who, &ConnectRequest::new(authority)).await
    }

    /// The same, of a CONNECT that says more than what is asked for.
    pub(crate) async fn ask_by(&self, who: &str, request: &ConnectRequest) -> Result<HboneStream, Refusal> {
        let tunnel = self.tunnel(&identity(who)).await.unwrap();
        match tunnel.open(request).await {
            Ok((stream, _)) => Ok(stream),
            Err(OpenError::Refused(refusal)) => Err(refusal),
            Err(other) => panic!("neither opened nor refused: {other}"),
        }
    }

    /// A connection of HTTP/1.1 of a caller to 10.96.0.1:80.
    pub(crate) async fn http1(&self, who: &str) -> http1::SendRequest<Full<Bytes>> {
        let stream = self.ask(who, "10.96.0.1:80").await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        drop(tasks::spawn("client", async move {
            drop(connection.with_upgrades().await)
        }));
        sender
    }

    /// A connection of HTTP/2 of a caller to 10.96.0.1:80.
    pub(crate) async fn http2(&self, who: &str) -> http2::SendRequest<Full<Bytes>> {
        let stream = self.ask(who, "10.96.0.1:80").await.unwrap();
        let (sender, connection) = http2::handshake(Tasks, TokioIo::new(stream)).await.unwrap();
        drop(tasks::spawn("client", async move { drop(connection.await) }));
        sender
    }

    /// The value of a series, 0 without one.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let text = self.registry.encode();
        let line = text.lines().find(|line| line.starts_with(series));
        line.and_then(|line| line.split_whitespace().last()?.parse().ok())
            .unwrap_or_default()
    }
}

/// Serves one connection at an endpoint, in whichever HTTP it comes.
async fn answer<S>(stream: S, application: Application)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request| {
        let answering = application(request);
        async move { Ok::<_, Infallible>(answering.await) }
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(Tasks);
    builder.http2().enable_connect_protocol();
    let _ = builder
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await;
}

/// Reads a head of HTTP/1.1 and nothing after it.
pub(crate) async fn read_head(stream: &mut HboneStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// Reads so many bytes.
pub(crate) async fn read_text(stream: &mut (impl AsyncRead + Unpin), length: usize) -> String {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

/// An application that says what it was asked for: method, target, then a line for each field.
pub(crate) async fn echo(request: Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    let body = body
        .collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default();
    let mut lines = format!("{} {} {:?}\n", parts.method, parts.uri, parts.version);
    for (name, value) in &parts.headers {
        lines.push_str(&format!("{name}: {}\n", value.to_str().unwrap_or("?")));
    }
    lines.push_str(&format!("\n{}", String::from_utf8_lossy(&body)));
    text(lines)
}

/// The body of an answer.
pub(crate) async fn body(response: Response<Incoming>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A request without a body.
pub(crate) fn get(target: &str) -> Request<Full<Bytes>> {
    Request::get(target)
        .header("host", "web.shop")
        .body(Full::default())
        .unwrap()
}
