use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};
use tulle_model::identity::Identity;
use tulle_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use tulle_proto::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use tulle_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};

use super::*;
use crate::acceptor::{Acceptor, PeerInfo, server_acceptor};
use crate::ca::{CaClient, CaError, GrpcCa, GrpcCaOptions};
use crate::testing::{TestCa, leaf, uri};

/// What one request carried.
#[derive(Debug, Clone, Default)]
struct Seen {
    authorization: Option<String>,
    cluster: Option<String>,
    extra: Option<String>,
    asked: Option<String>,
}

/// A certificate service that signs the key of the request for whoever is impersonated.
#[derive(Debug, Clone)]
struct Service {
    ca: Arc<TestCa>,
    seen: Arc<parking_lot::Mutex<Vec<Seen>>>,
    answer: Answer,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer {
    Right,
    OtherIdentity,
    NoRoot,
    Refuse,
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let header = |name| {
            request
                .metadata()
                .get(name)
                .and_then(|it| it.to_str().ok())
                .map(str::to_owned)
        };
        if let Some(peer) = request.extensions().get::<PeerInfo>() {
            assert!(peer.remote.is_some() && peer.certificate.is_none());
        }
        let mut seen = Seen {
            authorization: header("authorization"),
            cluster: header("clusterid"),
            extra: header("x-extra"),
            asked: None,
        };
        let request = request.into_inner();
        let field = request
            .metadata
            .and_then(|it| it.fields.get("ImpersonatedIdentity").cloned());
        seen.asked = field.and_then(|field| match field.kind {
            Some(prost_types::value::Kind::StringValue(text)) => Some(text),
            _ => None,
        });
        let asked = seen.asked.clone().unwrap_or_default();
        self.seen.lock().push(seen);
        let name = if self.answer == Answer::OtherIdentity {
            "spiffe://td/ns/x/sa/y"
        } else {
            &asked
        };
        let leaf = self.ca.sign(&request.csr, leaf([uri(name)]));
        match self.answer {
            Answer::Refuse => Err(Status::unauthenticated("")),
            Answer::NoRoot => Ok(Response::new(IstioCertificateResponse {
                cert_chain: vec![leaf],
            })),
            _ => Ok(Response::new(IstioCertificateResponse {
                cert_chain: vec![leaf, self.ca.root_pem()],
            })),
        }
    }
}

struct World {
    ca: Arc<TestCa>,
    acceptor: Acceptor,
    address: SocketAddr,
    seen: Arc<parking_lot::Mutex<Vec<Seen>>>,
    server: JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn world(answer: Answer) -> World {
    let ca = Arc::new(TestCa::new());
    let (chain, key) = ca.server(&["localhost", "127.0.0.1", "istiod.istio-system.svc"]);
    let acceptor = server_acceptor(&chain, &key, None).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::default();
    let service = Service {
        ca: Arc::clone(&ca),
        seen: Arc::clone(&seen),
        answer,
    };
    let incoming = acceptor.clone().incoming(listener);
    let server = tulle_runtime::tasks::spawn("test_server", async move {
        let server = Server::builder().add_service(IstioCertificateServiceServer::new(service));
        server.serve_with_incoming(incoming).await.unwrap();
    });
    World {
        ca,
        acceptor,
        address,
        seen,
        server,
    }
}

impl World {
    fn config(&self) -> ChannelConfig {
        ChannelConfig {
            address: format!("https://{}", self.address).parse().unwrap(),
            root: RootSource::Pem(self.ca.root_pem()),
            server_name: None,
            token: TokenSource::Literal("secret-token".to_owned()),
            headers: vec![("X-Extra".to_owned(), "more".to_owned())],
            cluster_id: Some("Kubernetes".to_owned()),
            mark: None,
        }
    }

    fn last_seen(&self) -> Seen {
        self.seen.lock().last().cloned().unwrap()
    }
}

fn web() -> Identity {
    Identity::new("cluster.local", "shop", "web")
}

fn client(config: &ChannelConfig) -> GrpcCa {
    GrpcCa::new(authenticated(config).unwrap(), GrpcCaOptions::default())
}

async fn fails(config: &ChannelConfig) -> String {
    client(config).fetch(&web()).await.unwrap_err().to_string()
}

#[tokio::test]
async fn a_certificate_is_had_over_grpc_and_makes_a_workload_certificate() {
    let world = world(Answer::Right).await;
    let issued = client(&world.config()).fetch(&web()).await.unwrap();
    let now = std::time::SystemTime::now();
    let certificate = crate::WorkloadCertificate::new(&web(), &issued, KeyExchange::Standard, now).unwrap();
    assert_eq!(certificate.identity(), &web());
    let seen = world.last_seen();
    assert_eq!(seen.asked.unwrap(), web().to_string());
    assert_eq!(seen.authorization.unwrap(), "Bearer secret-token");
    assert_eq!(seen.cluster.unwrap(), "Kubernetes");
    assert_eq!(seen.extra.unwrap(), "more");
}

#[tokio::test]
async fn bad_answers_are_told_apart() {
    let no_root = client(&world(Answer::NoRoot).await.config())
        .fetch(&web())
        .await
        .unwrap_err();
    assert!(
        matches!(no_root, CaError::Chain(crate::ca::ChainError::NoRoot)),
        "{no_root}"
    );
    let refused = client(&world(Answer::Refuse).await.config())
        .fetch(&web())
        .await
        .unwrap_err();
    assert!(
        matches!(
            refused,
            CaError::Status {
                code: Code::Unauthenticated,
                ..
            }
        ),
        "{refused}"
    );
    let other = world(Answer::OtherIdentity).await;
    let secrets = crate::SecretManager::new(
        Arc::new(client(&other.config())),
        crate::Options {
            wait: Duration::from_millis(300),
            ..Default::default()
        },
        crate::Metrics::default(),
    );
    let error = secrets
        .fetch(&web(), crate::Priority::Waiting)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the issued leaf is for spiffe://td/ns/x/sa/y"),
        "{error}"
    );
}

#[tokio::test]
async fn a_server_of_another_root_or_name_is_not_believed() {
    let world = world(Answer::Right).await;
    let config = world.config();
    let other_root = ChannelConfig {
        root: RootSource::Pem(TestCa::new().root_pem()),
        ..config.clone()
    };
    assert!(fails(&other_root).await.contains("TLS with 127.0.0.1"));
    let other_name = ChannelConfig {
        server_name: Some("evil.example".to_owned()),
        ..config.clone()
    };
    assert!(fails(&other_name).await.contains("TLS with 127.0.0.1"));
    assert!(world.seen.lock().is_empty(), "no token left this side");
    let alternative = ChannelConfig {
        server_name: Some("istiod.istio-system.svc".to_owned()),
        ..config
    };
    client(&alternative).fetch(&web()).await.unwrap();
}

#[tokio::test]
async fn the_token_file_is_read_for_each_request() {
    let world = world(Answer::Right).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let config = ChannelConfig {
        token: TokenSource::File(path.clone()),
        ..world.config()
    };
    let client = client(&config);
    let missing = client.fetch(&web()).await.unwrap_err().to_string();
    assert!(missing.contains("token cannot be read"), "{missing}");
    for token in ["first", "second"] {
        std::fs::write(&path, format!("{token}\n")).unwrap();
        client.fetch(&web()).await.unwrap();
        assert_eq!(
            world.last_seen().authorization.unwrap(),
            format!("Bearer {token}")
        );
    }
}

#[tokio::test]
async fn the_root_file_is_read_for_each_connection() {
    let world = world(Answer::Right).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("root-cert.pem");
    let config = ChannelConfig {
        root: RootSource::File(path.clone()),
        ..world.config()
    };
    let client = client(&config);
    let missing = client.fetch(&web()).await.unwrap_err().to_string();
    assert!(missing.contains("root-cert.pem cannot be read"), "{missing}");
    std::fs::write(&path, TestCa::new().root_pem()).unwrap();
    client.fetch(&web()).await.unwrap_err();
    std::fs::write(&path, world.ca.root_pem()).unwrap();
    client.fetch(&web()).await.unwrap();
}

#[tokio::test]
async fn a_replaced_server_certificate_serves_the_next_connection() {
    let world = world(Answer::Right).await;
    let next = TestCa::new();
    let (chain, key) = next.server(&["127.0.0.1"]);
    let old = client(&world.config());
    old.fetch(&web()).await.unwrap();
    world.acceptor.replace(&chain, &key, None).unwrap();
    old.fetch(&web()).await.expect("the open connection stays");
    let config = ChannelConfig {
        root: RootSource::Pem(next.root_pem()),
        ..world.config()
    };
    client(&config).fetch(&web()).await.unwrap();
    assert!(
        world
            .acceptor
            .replace(&chain, &next.server(&["x"]).1, None)
            .is_err(),
        "another key"
    );
    client(&config)
        .fetch(&web())
        .await
        .expect("what was in use stays in use");
}

#[tokio::test]
async fn plaintext_works_for_tests() {
    let ca = Arc::new(TestCa::new());
    let seen = Arc::default();
    let service = Service {
        ca,
        seen: Arc::clone(&seen),
        answer: Answer::Right,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tulle_runtime::tasks::spawn("test_server", async move {
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = Server::builder().add_service(IstioCertificateServiceServer::new(service));
        server.serve_with_incoming(incoming).await.unwrap();
    });
    let config = ChannelConfig {
        address: format!("http://{address}").parse().unwrap(),
        root: RootSource::System,
        server_name: None,
        token: TokenSource::None,
        headers: Vec::new(),
        cluster_id: None,
        mark: None,
    };
    client(&config).fetch(&web()).await.unwrap();
    assert_eq!(seen.lock()[0].authorization, None);
    server.abort();
}

#[tokio::test]
async fn a_server_that_is_away_is_found_when_it_comes_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let ca = Arc::new(TestCa::new());
    let config = ChannelConfig {
        address: format!("https://{address}").parse().unwrap(),
        root: RootSource::Pem(ca.root_pem()),
        server_name: None,
        token: TokenSource::None,
        headers: Vec::new(),
        cluster_id: None,
        mark: None,
    };
    let client = client(&config);
    let error = client.fetch(&web()).await.unwrap_err().to_string();
    assert!(error.contains("cannot be reached"), "{error}");
    let (chain, key) = ca.server(&["127.0.0.1"]);
    let acceptor = server_acceptor(&chain, &key, None).unwrap();
    let listener = TcpListener::bind(address).await.unwrap();
    let service = Service {
        ca,
        seen: Arc::default(),
        answer: Answer::Right,
    };
    let server = tulle_runtime::tasks::spawn("test_server", async move {
        let server = Server::builder().add_service(IstioCertificateServiceServer::new(service));
        server
            .serve_with_incoming(acceptor.incoming(listener))
            .await
            .unwrap();
    });
    client.fetch(&web()).await.unwrap();
    server.abort();
}

/// Who retries wants to know: see `tulle_xds_client`.
#[tokio::test]
async fn that_nobody_answered_is_among_the_causes_of_the_status() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let config = ChannelConfig {
        address: format!("http://{address}").parse().unwrap(),
        root: RootSource::Pem(TestCa::new().root_pem()),
        server_name: None,
        token: TokenSource::None,
        headers: Vec::new(),
        cluster_id: None,
        mark: None,
    };
    let mut client = IstioCertificateServiceClient::new(channel(&config).unwrap());
    let request = IstioCertificateRequest::default();
    let status = client.create_certificate(request).await.unwrap_err();
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&status);
    let mut found = None;
    while let Some(cause) = next {
        found = found.or_else(|| Some(cause.downcast_ref::<io::Error>()?.kind()));
        next = cause.source();
    }
    assert_eq!(found, Some(io::ErrorKind::ConnectionRefused), "{status:?}");
}

#[tokio::test]
async fn what_can_never_work_is_refused_at_once() {
    let config = world(Answer::Right).await.config();
    let with = |edit: &dyn Fn(&mut ChannelConfig)| {
        let mut config = config.clone();
        edit(&mut config);
        authenticated(&config).map(drop).unwrap_err()
    };
    assert!(matches!(
        with(&|it| it.root = RootSource::Pem("x".into())),
        ChannelError::NoRoots { .. }
    ));
    assert!(matches!(
        with(&|it| it.address = "ftp://somewhere".parse().unwrap()),
        ChannelError::Address(_)
    ));
    assert!(matches!(
        with(&|it| it.address = "/only/path".parse().unwrap()),
        ChannelError::Address(_)
    ));
    assert!(matches!(
        with(&|it| it.server_name = Some("a b".into())),
        ChannelError::ServerName { .. }
    ));
    assert!(matches!(
        with(&|it| it.cluster_id = Some("a\nb".into())),
        ChannelError::Header(_)
    ));
    assert!(matches!(
        with(&|it| it.headers = vec![("a b".into(), "c".into())]),
        ChannelError::Header(_)
    ));
}

#[test]
fn settings_are_recognised() {
    assert_eq!(RootSource::from_setting("SYSTEM"), RootSource::System);
    assert_eq!(
        RootSource::from_setting("./root.pem"),
        RootSource::File("./root.pem".into())
    );
    let pem = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n";
    assert_eq!(RootSource::from_setting(pem), RootSource::Pem(pem.to_owned()));
    assert_eq!(TokenSource::from_setting(""), TokenSource::None);
    assert_eq!(
        TokenSource::from_setting("./var/token"),
        TokenSource::File("./var/token".into())
    );
    assert_eq!(
        TokenSource::from_setting("tulle1.n1.abc"),
        TokenSource::Literal("tulle1.n1.abc".into())
    );
}

#[test]
fn no_output_shows_a_token() {
    assert_eq!(
        format!("{:?}", TokenSource::Literal("secret".into())),
        "Literal(hidden)"
    );
}

#[test]
fn the_systems_roots_are_those_of_its_package_or_an_error_that_names_it() {
    match RootSource::System.certificates() {
        Ok(roots) => assert!(!roots.is_empty()),
        Err(error) => assert!(error.to_string().contains("ca-certificates"), "{error}"),
    }
}
