use std::time::{Duration, SystemTime};

use rustls::{CipherSuite, HandshakeKind, NamedGroup, ProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::ca::Issued;
use crate::certificate::{Own, anchors};
use crate::testing::{TestCa, certificate};

mod handover;
mod libraries;
mod odd;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const REVIEWS: &str = "spiffe://cluster.local/ns/shop/sa/reviews";

type Connected = Result<ClientStream<DuplexStream>, HandshakeError>;
type Accepted = Result<(AcceptedStream<DuplexStream>, Identity), HandshakeError>;

fn id(text: &str) -> Identity {
    text.parse().unwrap()
}

/// One handshake between two configurations.
async fn meet(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> (Connected, Accepted) {
    let (near, far) = duplex(64 * 1024);
    tokio::join!(connect(client, near), accept(server, far))
}

/// What an ordinary server makes of a client that shows `issued`.
async fn judged_by_server(issued: &Issued) -> Result<Identity, HandshakeError> {
    let roots = anchors(&issued.roots).unwrap();
    let client = mesh_client(
        KeyExchange::Standard,
        only(roots),
        own(issued),
        [id(REVIEWS)].into(),
    );
    let server = certificate(&id(REVIEWS)).server_config();
    meet(client, server).await.1.map(|(_, identity)| identity)
}

/// What an ordinary client that expects `WEB` makes of a server that shows `issued`.
async fn judged_by_client(issued: &Issued) -> Result<(), HandshakeError> {
    let roots = anchors(&issued.roots).unwrap();
    let server = mesh_server(
        KeyExchange::Standard,
        only(roots),
        own(issued),
        "cluster.local".into(),
    );
    let client = certificate(&id(REVIEWS)).client_config(&[id(WEB)]);
    meet(client, server).await.0.map(drop)
}

/// Judges by these roots alone.
fn only(roots: Arc<[rustls::pki_types::TrustAnchor<'static>]>) -> Judge {
    Judge::new(roots, crate::TrustStore::default())
}

fn own(issued: &Issued) -> Arc<Own> {
    let key = signing_key(issued.key.der()).unwrap();
    Arc::new(Own(Arc::new(rustls::sign::CertifiedKey::new(
        issued.chain.clone(),
        key,
    ))))
}

fn shared() -> &'static TestCa {
    crate::testing::shared_ca()
}

#[tokio::test]
async fn two_workloads_meet_over_tls13_and_post_quantum_keys() {
    let (web, reviews) = (certificate(&id(WEB)), certificate(&id(REVIEWS)));
    let (client, server) = meet(web.client_config(&[id(REVIEWS)]), reviews.server_config()).await;
    let (mut client, (mut server, peer)) = (client.unwrap(), server.unwrap());
    assert_eq!(peer, id(WEB));
    assert_eq!(
        peer_identity(client.get_ref().1.peer_certificates().unwrap()),
        Ok(id(REVIEWS))
    );
    for session in [&***client.get_ref().1, &***server.get_ref().1] {
        assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(
            session.negotiated_key_exchange_group().unwrap().name(),
            NamedGroup::X25519MLKEM768
        );
        let suite = session.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(session.alpn_protocol(), Some(ALPN));
        assert_eq!(session.handshake_kind(), Some(HandshakeKind::Full));
    }
    assert_eq!(server.get_ref().1.server_name(), None, "no name is sent");
    client.write_all(b"hello").await.unwrap();
    client.flush().await.unwrap();
    let mut heard = [0; 5];
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
}

#[tokio::test]
async fn r305_no_second_connection_is_resumed() {
    let (web, reviews) = (certificate(&id(WEB)), certificate(&id(REVIEWS)));
    for _ in 0..3 {
        let (client, server) = meet(web.client_config(&[id(REVIEWS)]), reviews.server_config()).await;
        let (client, (server, _)) = (client.unwrap(), server.unwrap());
        assert_eq!(client.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(server.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[tokio::test]
async fn r305_a_client_that_would_resume_gets_no_ticket() {
    let (web, reviews) = (certificate(&id(WEB)), certificate(&id(REVIEWS)));
    let mut eager = ClientConfig::clone(&web.client_config(&[id(REVIEWS)]));
    eager.resumption = rustls::client::Resumption::in_memory_sessions(16);
    let eager = Arc::new(eager);
    for _ in 0..2 {
        let (client, server) = meet(Arc::clone(&eager), reviews.server_config()).await;
        let (mut client, (mut server, _)) = (client.unwrap(), server.unwrap());
        server.write_all(b"x").await.unwrap();
        server.flush().await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'x');
        assert_eq!(client.get_ref().1.tls13_tickets_received(), 0);
        assert_eq!(client.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[tokio::test]
async fn any_expected_identity_is_accepted_and_no_other() {
    let (web, reviews) = (certificate(&id(WEB)), certificate(&id(REVIEWS)));
    let several = web.client_config(&[id("spiffe://cluster.local/ns/a/sa/b"), id(REVIEWS)]);
    meet(several, reviews.server_config()).await.0.unwrap();
    for other in [
        vec![id("spiffe://cluster.local/ns/shop/sa/review")],
        vec![id("spiffe://other.domain/ns/shop/sa/reviews")],
        vec![],
    ] {
        let error = meet(web.client_config(&other), reviews.server_config())
            .await
            .0
            .unwrap_err();
        assert_eq!(error.reason(), Reason::PeerIdentityMismatch, "{error}");
        let expected = other.into_iter().collect();
        let mismatch = PeerError::UnexpectedIdentity {
            presented: id(REVIEWS),
            expected,
        };
        assert!(matches!(error, HandshakeError::Peer(peer) if peer == mismatch));
    }
}

#[tokio::test]
async fn the_refused_server_learns_of_an_alert() {
    let (web, reviews) = (certificate(&id(WEB)), certificate(&id(REVIEWS)));
    let (_, server) = meet(web.client_config(&[id(WEB)]), reviews.server_config()).await;
    let error = server.unwrap_err();
    assert!(matches!(error, HandshakeError::Refused(_)), "{error}");
    assert_eq!(error.reason(), Reason::TlsFailed);
}

#[tokio::test]
async fn a_client_of_a_foreign_trust_domain_is_refused() {
    let stranger = certificate(&id("spiffe://other.domain/ns/shop/sa/web"));
    let reviews = certificate(&id(REVIEWS));
    let (client, server) = meet(stranger.client_config(&[id(REVIEWS)]), reviews.server_config()).await;
    let error = server.unwrap_err();
    assert!(
        matches!(error, HandshakeError::Peer(PeerError::ForeignTrustDomain { .. })),
        "{error}"
    );
    assert_eq!(error.reason(), Reason::PeerIdentityMismatch);
    // The client was done before it was judged; its first read tells.
    let error = HandshakeError::from(client.unwrap().read_u8().await.unwrap_err());
    assert!(matches!(error, HandshakeError::Refused(_)), "{error}");
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let roots = anchors(&[shared().root_der()]).unwrap();
    let crypto = crypto(KeyExchange::Standard);
    let expected = verify::Acceptable::OneOf([id(REVIEWS)].into());
    let verifier = verify::PeerVerifier::new(only(roots), Arc::clone(&crypto), expected);
    let client = ClientConfig::builder_with_provider(crypto)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    let (_, server) = meet(Arc::new(client), certificate(&id(REVIEWS)).server_config()).await;
    let error = server.unwrap_err();
    assert!(
        matches!(error, HandshakeError::Peer(PeerError::NoCertificate)),
        "{error}"
    );
    assert_eq!(error.reason(), Reason::TlsFailed);
}

#[tokio::test]
async fn older_protocols_and_plaintext_are_refused() {
    let server = certificate(&id(REVIEWS)).server_config();
    for first in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n",
        b"\x16\x03\x01\x00\x02\x01\x00",
    ] {
        let (mut near, far) = duplex(4096);
        let send = async {
            near.write_all(first).await.unwrap();
            near.shutdown().await.unwrap();
        };
        let (accepted, ()) = tokio::join!(accept(Arc::clone(&server), far), send);
        assert_eq!(accepted.unwrap_err().reason(), Reason::TlsFailed);
    }
}

#[tokio::test]
async fn only_post_quantum_groups_serve_post_quantum_peers() {
    let now = SystemTime::now();
    let only = |text: &str| {
        let issued = shared().issue(&id(text), now, Duration::from_secs(60));
        crate::WorkloadCertificate::new(&id(text), &issued, KeyExchange::PostQuantumOnly, now).unwrap()
    };
    let (web, reviews) = (only(WEB), only(REVIEWS));
    meet(web.client_config(&[id(REVIEWS)]), reviews.server_config())
        .await
        .1
        .unwrap();
}

#[test]
fn an_empty_chain_proves_nobody() {
    assert_eq!(peer_identity(&[]), Err(PeerError::NoCertificate));
    assert_eq!(
        peer_identity(&[CertificateDer::from(vec![0; 10])]),
        Err(PeerError::Malformed)
    );
}
