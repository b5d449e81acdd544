//! The client half of a mesh connection.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::{ClientConfig, version};
use tulle_model::identity::Identity;

use super::verify::{Acceptable, Judge, PeerVerifier};
use super::{ALPN, KeyExchange, crypto};

/// TLS 1.3, own certificate shown, the server one of `expected`, no SNI, no resumption.
///
/// A resumed session would skip the verifier, so a change of roots or of the expected set would not be seen.
pub(crate) fn mesh_client(
    exchange: KeyExchange,
    judge: Judge,
    own: Arc<dyn ResolvesClientCert>,
    expected: BTreeSet<Identity>,
) -> Arc<ClientConfig> {
    let crypto = crypto(exchange);
    let verifier = PeerVerifier::new(judge, Arc::clone(&crypto), Acceptable::OneOf(expected));
    let mut config = ClientConfig::builder_with_provider(crypto)
        .with_protocol_versions(&[&version::TLS13])
        .expect("the provider has TLS 1.3 suites and groups")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(own);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.enable_early_data = false;
    config.resumption = Resumption::disabled();
    // Who carries a lot takes the keys and seals its own records.
    config.enable_secret_extraction = true;
    Arc::new(config)
}
