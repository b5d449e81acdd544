//! Handshakes between the libraries of a build, each with each.

use super::*;
use crate::tls::provider::{self, Library};

/// The mixed pairs of a build with several libraries: each must understand the other, and refuse the same peers.
#[tokio::test]
async fn every_library_meets_every_other() {
    for (client, server) in Library::ALL
        .iter()
        .flat_map(|client| Library::ALL.iter().map(move |server| (client, server)))
    {
        for exchange in [KeyExchange::Standard, KeyExchange::PostQuantumOnly] {
            let (near, far) = mixed(*client, *server, exchange, REVIEWS).await;
            let (near, far) = (near.unwrap(), far.unwrap());
            for session in [&***near.get_ref().1, &***far.get_ref().1] {
                let group = session.negotiated_key_exchange_group().unwrap().name();
                assert_eq!(group, NamedGroup::X25519MLKEM768, "{client:?} to {server:?}");
                assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
            }
            let (near, _) = mixed(*client, *server, exchange, WEB).await;
            let error = near.map(drop).unwrap_err();
            assert_eq!(
                error.reason(),
                Reason::PeerIdentityMismatch,
                "{client:?} to {server:?}"
            );
        }
    }
}

type Met<S> = Result<S, HandshakeError>;

/// A handshake whose ends use these libraries, to a server that should be `expected`.
async fn mixed(
    client: provider::Library,
    server: provider::Library,
    exchange: KeyExchange,
    expected: &str,
) -> (Met<ClientStream<DuplexStream>>, Met<AcceptedStream<DuplexStream>>) {
    let (client, server) = (
        Arc::new(client.crypto(exchange)),
        Arc::new(server.crypto(exchange)),
    );
    let own = |text: &str, crypto: &rustls::crypto::CryptoProvider| {
        let issued = shared().issue(&id(text), SystemTime::now(), Duration::from_secs(60));
        let key = crypto
            .key_provider
            .load_private_key(issued.key.der().clone_key())
            .unwrap();
        Arc::new(Own(Arc::new(rustls::sign::CertifiedKey::new(issued.chain, key))))
    };
    let judge = || only(anchors(&[shared().root_der()]).unwrap());
    let verifier = |crypto: &Arc<_>, acceptable| {
        Arc::new(verify::PeerVerifier::new(judge(), Arc::clone(crypto), acceptable))
    };
    let near = ClientConfig::builder_with_provider(Arc::clone(&client))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier(
            &client,
            verify::Acceptable::OneOf([id(expected)].into()),
        ))
        .with_client_cert_resolver(own(WEB, &client));
    let far = ServerConfig::builder_with_provider(Arc::clone(&server))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier(
            &server,
            verify::Acceptable::TrustDomain("cluster.local".into()),
        ))
        .with_cert_resolver(own(REVIEWS, &server));
    let (one, other) = duplex(64 * 1024);
    let (near, far) = tokio::join!(connect(Arc::new(near), one), accept(Arc::new(far), other));
    (near, far.map(|(stream, _)| stream))
}

#[test]
fn the_library_in_use_is_the_one_the_build_was_made_for() {
    let expected = if cfg!(feature = "boring") {
        "BoringSSL"
    } else {
        "aws-lc"
    };
    assert_eq!(provider::Library::default().name(), expected);
    let random = format!("{:?}", crypto(KeyExchange::Standard).secure_random);
    assert_eq!(random.contains("AwsLc"), !cfg!(feature = "boring"), "{random}");
}
