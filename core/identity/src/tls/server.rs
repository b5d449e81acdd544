//! The server half of a mesh connection.

use std::sync::Arc;

use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::{ServerConfig, version};
use tulle_model::name::Str;

use super::verify::{Acceptable, Judge, PeerVerifier};
use super::{ALPN, KeyExchange, crypto};

/// TLS 1.3, a client certificate of our trust domain required, no tickets.
pub(crate) fn mesh_server(
    exchange: KeyExchange,
    judge: Judge,
    own: Arc<dyn ResolvesServerCert>,
    trust_domain: Str,
) -> Arc<ServerConfig> {
    let crypto = crypto(exchange);
    let verifier = PeerVerifier::new(judge, Arc::clone(&crypto), Acceptable::TrustDomain(trust_domain));
    let mut config = ServerConfig::builder_with_provider(crypto)
        .with_protocol_versions(&[&version::TLS13])
        .expect("the provider has TLS 1.3 suites and groups")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(own);
    // Who carries a lot takes the keys and seals its own records.
    config.enable_secret_extraction = true;
    Arc::new(without_resumption(config))
}

/// ALPN `h2`, and nothing by which a later connection could skip the certificate check.
pub(crate) fn without_resumption(mut config: ServerConfig) -> ServerConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    config
}
