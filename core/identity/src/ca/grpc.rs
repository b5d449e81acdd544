//! The client of `istio.v1.auth.IstioCertificateService`.

use std::collections::BTreeMap;
use std::time::Duration;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::Status;
use tulle_model::identity::Identity;
use tulle_proto::ca::IstioCertificateRequest;
use tulle_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;

use super::{CaClient, CaError, CaFuture, Issued, chain};
use crate::channel::AuthenticatedChannel;
use crate::csr;

/// Largest reply that is read.
const REPLY_BYTES_MAX: usize = 1024 * 1024;

/// Whose certificate the authority is told to issue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Impersonation {
    /// A node's proxy asks for its workloads: the identity is sent along.
    #[default]
    Workload,
    /// The caller asks for itself: the authority takes the identity of the credential.
    Own,
}

/// How certificates are asked for.
#[derive(Debug, Clone)]
pub struct GrpcCaOptions {
    /// Validity asked for (`SECRET_TTL`).
    pub ttl: Duration,
    /// Whose certificate is asked for.
    pub impersonation: Impersonation,
    /// Which signer is to sign, if the authority has several.
    pub cert_signer: Option<String>,
    /// How long one request may take.
    pub timeout: Duration,
}

impl Default for GrpcCaOptions {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(24 * 60 * 60),
            impersonation: Impersonation::Workload,
            cert_signer: None,
            timeout: Duration::from_secs(10),
        }
    }
}

/// A certificate authority reached over gRPC.
#[derive(Debug, Clone)]
pub struct GrpcCa {
    client: IstioCertificateServiceClient<AuthenticatedChannel>,
    options: GrpcCaOptions,
}

impl GrpcCa {
    /// Asks over `channel`, which connects when first used.
    #[must_use]
    pub fn new(channel: AuthenticatedChannel, options: GrpcCaOptions) -> Self {
        let client = IstioCertificateServiceClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX);
        Self { client, options }
    }

    async fn ask(&self, identity: &Identity) -> Result<Issued, CaError> {
        let csr::Request { pem, key } = csr::request(identity)?;
        let request = message(pem, identity, &self.options);
        let mut client = self.client.clone();
        let reply = tokio::time::timeout(self.options.timeout, client.create_certificate(request));
        let reply = reply.await.map_err(|_| CaError::Timeout(self.options.timeout))?;
        let reply = reply.map_err(|status| refusal(&status))?.into_inner();
        let (chain, roots) = chain::parse(&reply.cert_chain)?;
        Ok(Issued { key, chain, roots })
    }
}

impl CaClient for GrpcCa {
    fn fetch<'a>(&'a self, identity: &'a Identity) -> CaFuture<'a> {
        Box::pin(self.ask(identity))
    }
}

fn message(csr: String, identity: &Identity, options: &GrpcCaOptions) -> IstioCertificateRequest {
    let text = |text: String| Value {
        kind: Some(Kind::StringValue(text)),
    };
    let mut fields = BTreeMap::new();
    if options.impersonation == Impersonation::Workload {
        fields.insert("ImpersonatedIdentity".to_owned(), text(identity.to_string()));
    }
    if let Some(signer) = &options.cert_signer {
        fields.insert("CertSigner".to_owned(), text(signer.clone()));
    }
    IstioCertificateRequest {
        csr,
        validity_duration: i64::try_from(options.ttl.as_secs()).unwrap_or(i64::MAX),
        metadata: (!fields.is_empty()).then_some(Struct { fields }),
    }
}

/// A status often only says `transport error`; what failed stands in its sources.
fn refusal(status: &Status) -> CaError {
    let mut message = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        message = format!("{message}: {error}");
        source = error.source();
    }
    CaError::Status {
        code: status.code(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(options: &GrpcCaOptions) -> IstioCertificateRequest {
        message("csr".to_owned(), &Identity::new("td", "shop", "web"), options)
    }

    fn field(request: &IstioCertificateRequest, name: &str) -> Option<String> {
        match &request.metadata.as_ref()?.fields.get(name)?.kind {
            Some(Kind::StringValue(text)) => Some(text.clone()),
            _ => None,
        }
    }

    #[test]
    fn a_node_names_the_workload_it_asks_for() {
        let request = asked(&GrpcCaOptions::default());
        assert_eq!(
            field(&request, "ImpersonatedIdentity").unwrap(),
            "spiffe://td/ns/shop/sa/web"
        );
        assert_eq!(request.validity_duration, 86_400);
    }

    #[test]
    fn asking_for_oneself_sends_no_identity() {
        let request = asked(&GrpcCaOptions {
            impersonation: Impersonation::Own,
            ..Default::default()
        });
        assert_eq!(request.metadata, None);
    }

    #[test]
    fn a_signer_is_named_when_configured() {
        let request = asked(&GrpcCaOptions {
            cert_signer: Some("issuer".into()),
            ..Default::default()
        });
        assert_eq!(field(&request, "CertSigner").unwrap(), "issuer");
    }
}
