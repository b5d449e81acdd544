//! A tunnel client and server of the test's own, with certificates that the mesh's authority really issued.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::TcpStream;
use tulle_identity::ca::{CaClient, CaError, Issued};
use tulle_identity::channel::{self, ChannelConfig, RootSource, TokenSource};
use tulle_identity::{GrpcCa, GrpcCaOptions, KeyExchange, WorkloadCertificate};
use tulle_linux::NetNs;
use tulle_model::Identity;
use tulle_transport::hbone::{ClientConnection, ConnectRequest, HboneStream, OpenError, client};

use crate::TestMesh;
use crate::manifest::NAMESPACE;
use crate::traffic::connect;

/// The identity of a service account of the test's namespace.
#[must_use]
pub fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", NAMESPACE, account)
}

/// Asks the mesh's authority for a certificate, as the proxy of a node would.
///
/// # Errors
/// What the authority answers.
pub fn certificate(
    mesh: &TestMesh,
    node: &str,
    wanted: &Identity,
) -> Result<Arc<WorkloadCertificate>, CaError> {
    let control = mesh.world.node(tulle_world::CONTROL).unwrap().ipv4();
    let config = ChannelConfig {
        address: format!("https://{control}:15012").parse().unwrap(),
        root: RootSource::File(mesh.mesh.folders().state.join("ca/root-cert.pem")),
        server_name: None,
        token: TokenSource::File(mesh.mesh.folders().run.join(format!("{node}.token"))),
        headers: Vec::new(),
        cluster_id: None,
        mark: None,
    };
    let identity = wanted.clone();
    let issued = inside(mesh.world.node(node).unwrap().namespace(), async move || {
        let ca = GrpcCa::new(channel::authenticated(&config).unwrap(), GrpcCaOptions::default());
        ca.fetch(&identity).await
    })?;
    Ok(usable(wanted, &issued))
}

fn usable(wanted: &Identity, issued: &Issued) -> Arc<WorkloadCertificate> {
    let certificate = WorkloadCertificate::new(wanted, issued, KeyExchange::default(), SystemTime::now());
    Arc::new(certificate.unwrap())
}

/// Runs a task on a thread and runtime of its own inside of a namespace: every socket it opens is there.
pub fn inside<T, F>(namespace: &NetNs, work: impl FnOnce() -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(20), work())
                .await
                .unwrap()
        })
    };
    namespace.run(run).unwrap()
}

/// Opens a tunnel and a stream in it, with whatever the request says.
///
/// # Errors
/// When the peer is not who it should be, or refuses.
pub async fn tunnel(
    from: &NetNs,
    own: &WorkloadCertificate,
    expected: &Identity,
    to: SocketAddr,
    request: &ConnectRequest,
) -> Result<(ClientConnection, HboneStream), OpenError> {
    let socket = connect(from, to).await.unwrap();
    let tls = own.client_config(std::slice::from_ref(expected));
    let connection = client::connect(socket, tls, &tulle_transport::hbone::Settings::default()).await?;
    let (stream, _) = connection.open(request).await?;
    Ok((connection, stream))
}

/// Opens a tunnel to a pod's HBONE port and gives the status of the answer with its reason's code; 200 when it opened.
pub async fn open(
    from: &NetNs,
    own: &WorkloadCertificate,
    expected: &Identity,
    to: SocketAddr,
    authority: &str,
) -> Result<(u16, Option<String>), OpenError> {
    let socket = connect(from, to).await.unwrap();
    open_over(socket, own, expected, authority).await
}

/// As [`open`], over a connection that is there.
///
/// # Errors
/// What is no answer.
pub async fn open_over(
    socket: TcpStream,
    own: &WorkloadCertificate,
    expected: &Identity,
    authority: &str,
) -> Result<(u16, Option<String>), OpenError> {
    let tls = own.client_config(std::slice::from_ref(expected));
    let connection = client::connect(socket, tls, &tulle_transport::hbone::Settings::default()).await?;
    let request = ConnectRequest {
        authority: authority.to_owned(),
        ..ConnectRequest::default()
    };
    match connection.open(&request).await {
        Ok(_) => Ok((200, None)),
        Err(OpenError::Refused(refusal)) => Ok((
            refusal.status,
            refusal
                .header
                .as_ref()
                .map(|_| refusal.reason().code().to_owned()),
        )),
        Err(other) => Err(other),
    }
}
