//! Certificates that are revoked or denied while connections stand on them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tulle_identity::WorkloadCertificate;
use tulle_model::trust::{Denied, Subject, Trust};
use tulle_model::{MeshUpdate, Reason};
use tulle_transport::hbone::{ClientConnection, ConnectRequest, HboneStream, OpenError, Settings, client};

use crate::outbound::{assert_reset, behind_waypoint, call, with_waypoint};
use crate::world::{World, assert_echoes, identity};

/// How long a connection may outlive the certificate it stands on.
const REVOKED_WITHIN: Duration = Duration::from_secs(2);

const HOUR: Duration = Duration::from_secs(3600);

async fn connect(world: &World, certificate: &WorkloadCertificate) -> Result<ClientConnection, OpenError> {
    let socket = TcpStream::connect(world.hbone).await.unwrap();
    let tls = certificate.client_config(&[identity("shop", "web")]);
    client::connect(socket, tls, &Settings::client()).await
}

async fn open(connection: &ClientConnection, world: &World) -> Result<HboneStream, OpenError> {
    let opened = connection
        .open(&ConnectRequest::new(world.echo.to_string()))
        .await;
    opened.map(|(stream, _)| stream)
}

/// Nobody comes in with this certificate, and its holder learns why.
async fn assert_refused(world: &World, certificate: &WorkloadCertificate) {
    let error = match connect(world, certificate).await {
        Err(error) => error,
        Ok(connection) => open(&connection, world).await.unwrap_err(),
    };
    assert_eq!(error.reason(), Reason::CertRevoked, "{error}");
}

async fn assert_cut(stream: &mut HboneStream) {
    let ended = timeout(REVOKED_WITHIN, stream.read_u8())
        .await
        .expect("within the bound");
    assert!(ended.is_err(), "not an orderly end");
}

fn deny(world: &World, subject: Subject) {
    let mut trust = Trust::new("cluster.local", world.ca.root_pem());
    trust.denied.push(Denied {
        subject,
        reason: "stolen".into(),
        until: None,
        by: "operator".into(),
    });
    world
        .app
        .node()
        .mesh
        .apply(vec![MeshUpdate::Trust(Arc::new(trust))]);
}

#[tokio::test]
async fn a_serial_on_the_list_closes_what_is_open_and_refuses_what_is_new() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("crl.pem");
    let list = |world: &World, revoked: &[&[u8]]| {
        let text = world.ca.revocation_list(revoked, SystemTime::now(), HOUR);
        std::fs::write(&path, text).unwrap();
    };
    let world = World::start_with("", &[("CRL_PATH", path.to_str().unwrap())]).await;
    list(&world, &[]);
    let reviews = world.ca.certificate(&identity("shop", "reviews"));
    let ratings = world.ca.certificate(&identity("shop", "ratings"));
    // The list appears a moment after the start; until then nobody is believed.
    let connection = loop {
        match connect(&world, &reviews).await {
            Ok(connection) if open(&connection, &world).await.is_ok() => break connection,
            _ => tokio::task::yield_now().await,
        }
    };
    let other = connect(&world, &ratings).await.unwrap();
    let (mut stream, mut kept) = (
        open(&connection, &world).await.unwrap(),
        open(&other, &world).await.unwrap(),
    );
    assert_echoes(&mut stream, b"still believed").await;
    let serial = serial(&reviews);
    list(&world, &[&serial]);
    assert_cut(&mut stream).await;
    assert_refused(&world, &reviews).await;
    assert_echoes(&mut kept, b"another certificate").await;
    let denied = "tulle_denied_total{code=\"T0516\",reason=\"cert_revoked\",direction=\"inbound\"}";
    world.until_counted(denied).await;
    world
        .until_counted("istio_crl_policy_rejections_total{reporter=\"destination\"}")
        .await;
    let failed = world.metrics();
    assert!(failed.contains("response_flags=\"CERT_REVOKED\""), "{failed}");
}

fn serial(certificate: &WorkloadCertificate) -> Vec<u8> {
    let digits = certificate.serial();
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect()
}

#[tokio::test]
async fn a_denied_identity_is_cut_off_inbound() {
    let world = World::start("").await;
    let reviews = world.ca.certificate(&identity("shop", "reviews"));
    let connection = connect(&world, &reviews).await.unwrap();
    let mut stream = open(&connection, &world).await.unwrap();
    deny(&world, Subject::Identity(identity("shop", "reviews")));
    assert_cut(&mut stream).await;
    assert_refused(&world, &reviews).await;
    deny(&world, Subject::Node("elsewhere".into()));
    let connection = connect(&world, &reviews).await.unwrap();
    open(&connection, &world).await.expect("believed again");
}

#[tokio::test]
async fn a_denied_server_is_cut_off_outbound() {
    let world = World::start("").await;
    let _front = with_waypoint(&world, "front").await;
    let destination = behind_waypoint().await;
    let mut application = call(&world, destination).await;
    crate::outbound::assert_echoes(&mut application, b"believed").await;
    deny(&world, Subject::Identity(identity("shop", "front")));
    assert_reset(&mut application).await;
    let mut application = call(&world, destination).await;
    assert_reset(&mut application).await;
    world
        .until_counted("tulle_denied_total{code=\"T0516\",reason=\"cert_revoked\",direction=\"outbound\"}")
        .await;
}

#[tokio::test]
async fn a_workload_that_is_denied_itself_reaches_nobody() {
    let world = World::start("").await;
    let _front = with_waypoint(&world, "front").await;
    let destination = behind_waypoint().await;
    let mut application = call(&world, destination).await;
    crate::outbound::assert_echoes(&mut application, b"believed").await;
    deny(&world, Subject::Identity(identity("shop", "web")));
    assert_reset(&mut application).await;
    let mut application = call(&world, destination).await;
    assert_reset(&mut application).await;
}

#[tokio::test]
async fn a_denied_node_cuts_what_its_workloads_have_open_among_themselves() {
    let world = World::start_with("node: here", &[("NODE_NAME", "here")]).await;
    let mut application = call(&world, world.echo).await;
    crate::outbound::assert_echoes(&mut application, b"within one process").await;
    world.until_counted("tulle_same_node_connections_total 1").await;
    deny(&world, Subject::Node("elsewhere".into()));
    crate::outbound::assert_echoes(&mut application, b"another node").await;
    deny(&world, Subject::Node("here".into()));
    assert_reset(&mut application).await;
    let mut application = call(&world, world.echo).await;
    assert_reset(&mut application).await;
}

/// The local workload, and a policy that it names.
const NAMES_A_POLICY: &str = "workloads:\n\
    - {uid: web, name: web-1, namespace: shop, serviceAccount: web, workloadIps: [127.0.0.1], protocol: HBONE, \
       authorizationPolicies: [shop/allow-web]}\n";
const ALLOW_WEB: &str = "policies:\n\
    - {name: allow-web, namespace: shop, scope: WorkloadSelector, action: Allow, \
       rules: [[[{principals: [{Exact: cluster.local/ns/shop/sa/web}]}]]]}\n";

/// No tunnel is under a stream of one process, so that nothing but the list of what is open leads to it.
#[tokio::test]
async fn a_stream_whose_end_is_denied_after_its_proof_and_before_it_is_listed_is_cut() {
    let world = World::start_with("", &[("TULLE_POLICY_WAIT", "20s")]).await;
    let mut listed = call(&world, world.echo).await;
    crate::outbound::assert_echoes(&mut listed, b"believed").await;
    // The next one has proven who it is, and is held until the policy comes.
    world.apply(NAMES_A_POLICY);
    let mut held = call(&world, world.echo).await;
    world
        .until_counted("istio_tcp_sockets_open{reporter=\"destination\"} 2")
        .await;

    deny(&world, Subject::Identity(identity("shop", "web")));
    // What is listed was walked.
    assert_reset(&mut listed).await;
    world.apply(ALLOW_WEB);
    assert_reset(&mut held).await;
    world.until_counted("tulle_same_node_connections_total 2").await;
}
