use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, SanType};
use rustls::{CertificateError, CipherSuite, HandshakeKind, NamedGroup, ProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::ca::Issued;
use crate::certificate::{Own, anchors};
use crate::testing::{TestCa, certificate, leaf, uri};

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
    let client = mesh_client(KeyExchange::Standard, roots, own(issued), [id(REVIEWS)].into());
    let server = certificate(&id(REVIEWS)).server_config();
    meet(client, server).await.1.map(|(_, identity)| identity)
}

/// What an ordinary client that expects `WEB` makes of a server that shows `issued`.
async fn judged_by_client(issued: &Issued) -> Result<(), HandshakeError> {
    let roots = anchors(&issued.roots).unwrap();
    let server = mesh_server(KeyExchange::Standard, roots, own(issued), "cluster.local".into());
    let client = certificate(&id(REVIEWS)).client_config(&[id(WEB)]);
    meet(client, server).await.0.map(drop)
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
        assert_eq!(suite, CipherSuite::TLS13_AES_256_GCM_SHA384);
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
async fn no_second_connection_is_resumed() {
    let (web, reviews) = (certificate(&id(WEB)), certificate(&id(REVIEWS)));
    for _ in 0..3 {
        let (client, server) = meet(web.client_config(&[id(REVIEWS)]), reviews.server_config()).await;
        let (client, (server, _)) = (client.unwrap(), server.unwrap());
        assert_eq!(client.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(server.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[tokio::test]
async fn a_client_that_would_resume_gets_no_ticket() {
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
    let verifier = verify::PeerVerifier::new(roots, Arc::clone(&crypto), expected);
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

/// A certificate as an odd authority of our own root might issue it, and whether peers accept it.
struct Case {
    name: &'static str,
    params: CertificateParams,
    verdict: Verdict,
}

#[derive(Debug, PartialEq)]
enum Verdict {
    Accept,
    Peer(&'static str),
    Certificate(CertificateError),
    AnyTls,
}

fn case(name: &'static str, verdict: Verdict, params: CertificateParams) -> Case {
    Case {
        name,
        params,
        verdict,
    }
}

fn with(edit: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = leaf([uri(WEB)]);
    edit(&mut params);
    params
}

/// A subject alternative name extension of these raw GeneralNames.
fn raw_names(names: &[(u8, &[u8])]) -> CustomExtension {
    let mut inner = Vec::new();
    for (tag, bytes) in names {
        inner.extend([*tag, u8::try_from(bytes.len()).unwrap()]);
        inner.extend_from_slice(bytes);
    }
    let mut outer = vec![0x30, u8::try_from(inner.len()).unwrap()];
    outer.extend(inner);
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 17], outer);
    extension.set_criticality(true);
    extension
}

fn raw(names: &[(u8, &[u8])]) -> CertificateParams {
    let mut params = leaf([]);
    params.custom_extensions = vec![raw_names(names)];
    params
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn odd_certificates() -> Vec<Case> {
    use Verdict::{Accept, AnyTls, Certificate, Peer};
    let week = Duration::from_secs(7 * 24 * 60 * 60);
    let now = SystemTime::now();
    let not_identity = || Peer("NotAnIdentity");
    vec![
        case("plain", Accept, leaf([uri(WEB)])),
        case(
            "raw form of the plain one",
            Accept,
            raw(&[(0x86, WEB.as_bytes())]),
        ),
        case(
            "DNS names beside the URI",
            Accept,
            leaf([dns("web.shop.svc"), uri(WEB), dns("x")]),
        ),
        case(
            "no usage at all",
            Accept,
            with(|params| params.extended_key_usages = vec![]),
        ),
        case("DNS names only", Peer("NoUriName"), leaf([dns("web.shop.svc")])),
        case(
            "the identity as mail address",
            Peer("NoUriName"),
            leaf([SanType::Rfc822Name(WEB.try_into().unwrap())]),
        ),
        case(
            "the identity as DNS name",
            Peer("NoUriName"),
            raw(&[(0x82, WEB.as_bytes())]),
        ),
        case(
            "the identity as otherName",
            Peer("NoUriName"),
            leaf([SanType::OtherName((vec![1, 2, 3], WEB.into()))]),
        ),
        case(
            "two URIs",
            Peer("SeveralUriNames"),
            leaf([uri(WEB), uri(REVIEWS)]),
        ),
        case(
            "the same URI twice",
            Peer("SeveralUriNames"),
            leaf([uri(WEB), uri(WEB)]),
        ),
        case(
            "an unreadable URI beside",
            Peer("SeveralUriNames"),
            raw(&[(0x86, WEB.as_bytes()), (0x86, b"\xff\xfe")]),
        ),
        case("an unreadable URI", not_identity(), raw(&[(0x86, b"\xff\xfe")])),
        case("NUL at the end", not_identity(), leaf([uri(&format!("{WEB}\0"))])),
        case(
            "NUL before another domain",
            not_identity(),
            leaf([uri(&format!("{WEB}\0.evil.example"))]),
        ),
        case("trailing slash", not_identity(), leaf([uri(&format!("{WEB}/"))])),
        case("query", not_identity(), leaf([uri(&format!("{WEB}?a=b"))])),
        case(
            "percent escapes",
            not_identity(),
            leaf([uri("spiffe://cluster.local/ns/shop/sa/w%65b")]),
        ),
        case(
            "upper-case scheme",
            not_identity(),
            leaf([uri("SPIFFE://cluster.local/ns/shop/sa/web")]),
        ),
        case(
            "user before the domain",
            not_identity(),
            leaf([uri("spiffe://x@cluster.local/ns/shop/sa/web")]),
        ),
        case(
            "another scheme",
            not_identity(),
            leaf([uri("https://cluster.local/ns/shop/sa/web")]),
        ),
        case(
            "a node's name",
            not_identity(),
            leaf([uri("spiffe://cluster.local/node/n1")]),
        ),
        case("empty URI", not_identity(), leaf([uri("")])),
        case(
            "CA flag",
            AnyTls,
            with(|params| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
        ),
        case(
            "names twice",
            AnyTls,
            with(|params| params.custom_extensions = vec![raw_names(&[(0x86, REVIEWS.as_bytes())])]),
        ),
        case(
            "unknown critical extension",
            AnyTls,
            with(|params| {
                let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
                extension.set_criticality(true);
                params.custom_extensions = vec![extension];
            }),
        ),
        case(
            "another usage",
            Certificate(CertificateError::InvalidPurpose),
            with(|params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
            }),
        ),
        case(
            "expired",
            Certificate(CertificateError::Expired),
            with(|params| {
                params.not_before = (now - week).into();
                params.not_after = (now - Duration::from_secs(1)).into();
            }),
        ),
        case(
            "not valid yet",
            Certificate(CertificateError::NotValidYet),
            with(|params| {
                params.not_before = (now + Duration::from_secs(600)).into();
                params.not_after = (now + week).into();
            }),
        ),
    ]
}

fn check(case: &Case, by: &str, result: Result<(), HandshakeError>) {
    let Case { name, verdict, .. } = case;
    match (verdict, result) {
        (Verdict::Accept, Ok(())) => {}
        (Verdict::Peer(expected), Err(HandshakeError::Peer(error))) => {
            assert!(
                format!("{error:?}").starts_with(expected),
                "{name}, by {by}: {error:?}"
            );
            assert_eq!(error.reason(), Reason::TlsFailed);
        }
        (Verdict::Certificate(expected), Err(HandshakeError::Tls(error))) => {
            assert_eq!(
                error,
                rustls::Error::InvalidCertificate(expected.clone()),
                "{name}, by {by}"
            );
        }
        (Verdict::AnyTls, Err(HandshakeError::Tls(_))) => {}
        (verdict, result) => panic!("{name}, by {by}: expected {verdict:?}, got {result:?}"),
    }
}

#[tokio::test]
async fn odd_certificates_are_judged_alike_in_both_directions() {
    for case in odd_certificates() {
        let issued = shared().issue_as(case.params.clone());
        let as_client = judged_by_server(&issued).await;
        if case.verdict == Verdict::Accept {
            assert_eq!(as_client.as_ref().unwrap(), &id(WEB), "{}", case.name);
        }
        check(&case, "the server", as_client.map(drop));
        check(&case, "the client", judged_by_client(&issued).await);
    }
}

#[tokio::test]
async fn a_usage_for_one_direction_does_not_serve_the_other() {
    let purpose = || rustls::Error::InvalidCertificate(CertificateError::InvalidPurpose);
    let only = |usage| shared().issue_as(with(|params| params.extended_key_usages = vec![usage]));
    let client_only = only(ExtendedKeyUsagePurpose::ClientAuth);
    judged_by_server(&client_only).await.unwrap();
    let error = judged_by_client(&client_only).await.unwrap_err();
    assert!(matches!(error, HandshakeError::Tls(error) if error == purpose()));
    let server_only = only(ExtendedKeyUsagePurpose::ServerAuth);
    judged_by_client(&server_only).await.unwrap();
    let error = judged_by_server(&server_only).await.unwrap_err();
    assert!(matches!(error, HandshakeError::Tls(error) if error == purpose()));
}

#[tokio::test]
async fn the_right_name_under_another_root_is_refused() {
    // The other root has the same subject, so that only its key tells them apart.
    let issued = TestCa::new().issue_as(leaf([uri(WEB)]));
    let forged = Issued {
        roots: vec![shared().root_der()],
        ..issued
    };
    for result in [
        judged_by_server(&forged).await.map(drop),
        judged_by_client(&forged).await,
    ] {
        let expected = rustls::Error::InvalidCertificate(CertificateError::BadSignature);
        assert!(matches!(result, Err(HandshakeError::Tls(error)) if error == expected));
    }
}

#[test]
fn an_empty_chain_proves_nobody() {
    assert_eq!(peer_identity(&[]), Err(PeerError::NoCertificate));
    assert_eq!(
        peer_identity(&[CertificateDer::from(vec![0; 10])]),
        Err(PeerError::Malformed)
    );
}
