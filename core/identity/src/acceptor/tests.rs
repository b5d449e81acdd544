use rustls::ClientConfig;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsConnector, client};

use super::*;
use crate::ca::Issued;
use crate::testing::{TestCa, leaf, uri};

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn acceptor(ca: &TestCa, with_clients: bool) -> Acceptor {
    let (chain, key) = ca.server(&["localhost"]);
    let roots = ca.root_pem();
    server_acceptor(&chain, &key, with_clients.then_some(roots.as_str())).unwrap()
}

/// Connects as a gRPC client would, showing `own` if given.
async fn connect(
    ca: &TestCa,
    to: SocketAddr,
    own: Option<&Issued>,
) -> io::Result<client::TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.root_der()).unwrap();
    let builder = ClientConfig::builder_with_provider(tls::crypto(KeyExchange::Standard))
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some(issued) => {
            let key: PrivateKeyDer<'static> = issued.key.der().clone_key();
            builder.with_client_auth_cert(issued.chain.clone(), key).unwrap()
        }
    };
    let name = ServerName::try_from("localhost").unwrap();
    let tcp = TcpStream::connect(to).await?;
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await
}

/// The first client that `acceptor` lets in, while `own` is shown by the one that connects.
async fn let_in(ca: &TestCa, own: Option<&Issued>) -> Result<PeerInfo, AcceptError> {
    let (listener, address) = listen().await;
    let acceptor = acceptor(ca, true);
    let accept = async { acceptor.accept(listener.accept().await.unwrap().0).await };
    let (accepted, connected) = tokio::join!(accept, connect(ca, address, own));
    drop(connected);
    accepted.map(|stream| stream.connect_info())
}

#[tokio::test]
async fn a_client_may_come_without_certificate() {
    let peer = let_in(&TestCa::new(), None).await.unwrap();
    assert_eq!(peer.certificate, None);
    assert!(peer.remote.is_some() && peer.local.is_some());
}

#[tokio::test]
async fn a_verified_client_certificate_is_exposed() {
    let ca = TestCa::new();
    let workload = "spiffe://cluster.local/ns/shop/sa/web";
    let peer = let_in(&ca, Some(&ca.issue_as(leaf([uri(workload)]))))
        .await
        .unwrap();
    assert_eq!(peer.certificate.unwrap().identity.unwrap().to_string(), workload);
    let node = "spiffe://cluster.local/node/n1";
    let mut params = leaf([uri(node)]);
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
    params.not_after = end.into();
    let certificate = let_in(&ca, Some(&ca.issue_as(params)))
        .await
        .unwrap()
        .certificate
        .unwrap();
    assert_eq!((&*certificate.uri, certificate.identity), (node, None));
    assert!(!certificate.serial.is_empty());
    assert_eq!(certificate.not_after, end);
}

#[tokio::test]
async fn a_client_certificate_that_does_not_verify_is_refused() {
    let ca = TestCa::new();
    let name = || leaf([uri("spiffe://cluster.local/node/n1")]);
    let mut expired = name();
    expired.not_after = (SystemTime::now() - Duration::from_secs(1)).into();
    let two = leaf([
        uri("spiffe://cluster.local/node/n1"),
        uri("spiffe://cluster.local/node/n2"),
    ]);
    for issued in [
        TestCa::new().issue_as(name()),
        ca.issue_as(expired),
        ca.issue_as(two),
    ] {
        let_in(&ca, Some(&issued)).await.unwrap_err();
    }
}

#[tokio::test]
async fn one_bad_handshake_does_not_end_or_hold_up_the_others() {
    let ca = TestCa::new();
    let (listener, address) = listen().await;
    let mut incoming = std::pin::pin!(acceptor(&ca, false).incoming(listener));
    // Given: one client that says nothing, one that says nonsense, one that leaves.
    let silent = TcpStream::connect(address).await.unwrap();
    let mut nonsense = TcpStream::connect(address).await.unwrap();
    nonsense.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    drop(TcpStream::connect(address).await.unwrap());
    // When: a proper one comes.
    let (accepted, connected) = tokio::join!(incoming.next(), connect(&ca, address, None));
    // Then: it is served.
    let (mut server, mut client) = (accepted.unwrap().unwrap(), connected.unwrap());
    client.write_all(b"hello").await.unwrap();
    client.flush().await.unwrap();
    let mut heard = [0; 5];
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
    drop(silent);
}

#[tokio::test]
async fn a_silent_client_is_dropped_after_the_deadline() {
    let ca = TestCa::new();
    let (listener, address) = listen().await;
    let acceptor = acceptor(&ca, false);
    let _silent = TcpStream::connect(address).await.unwrap();
    let (tcp, _) = listener.accept().await.unwrap();
    tokio::time::pause();
    let start = tokio::time::Instant::now();
    let error = acceptor.accept(tcp).await.unwrap_err();
    assert!(matches!(error, AcceptError::Timeout));
    assert!(start.elapsed() >= HANDSHAKE_TIMEOUT);
}

#[tokio::test]
async fn nothing_is_resumed_and_h2_is_agreed() {
    let ca = TestCa::new();
    let (listener, address) = listen().await;
    let acceptor = acceptor(&ca, false);
    for _ in 0..2 {
        let accept = async { acceptor.accept(listener.accept().await.unwrap().0).await };
        let (accepted, connected) = tokio::join!(accept, connect(&ca, address, None));
        let (mut server, mut client) = (accepted.unwrap(), connected.unwrap());
        server.write_all(b"x").await.unwrap();
        server.flush().await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'x');
        assert_eq!(client.get_ref().1.tls13_tickets_received(), 0);
    }
}

#[test]
fn unusable_material_is_refused() {
    let ca = TestCa::new();
    let (chain, key) = ca.server(&["a"]);
    let (_, other) = ca.server(&["a"]);
    let refused = |chain: &str, key: &str, roots| server_acceptor(chain, key, roots).map(drop).unwrap_err();
    assert!(matches!(refused("", &key, None), AcceptorError::Chain));
    assert!(matches!(refused(&chain, "", None), AcceptorError::Key(_)));
    assert!(matches!(
        refused(&chain, &other, None),
        AcceptorError::Mismatch(_)
    ));
    assert!(matches!(
        refused(&chain, &key, Some("")),
        AcceptorError::ClientRoots
    ));
}
