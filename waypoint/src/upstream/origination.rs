//! TLS to endpoints outside of the mesh, where a policy says that they are spoken to over it. Such an endpoint is never
//! spoken to in clear: if it cannot prove its name, there is no connection.

use std::sync::{Arc, OnceLock};

use tulle_identity::outside::{Name, Outside, OutsideError};
use tulle_identity::{HandshakeError, RootSource};
use tulle_model::Reason;
use tulle_model::policy::BackendTls;
use tulle_model::policy::traffic::SubjectAltName;
use tulle_transport::OpenError;

use super::dial::Socket;
use super::pool::Version;

/// A connection of TLS.
pub type Secured = tulle_identity::tls::ClientStream<Socket>;

/// How a backend is spoken to over TLS.
#[derive(Debug)]
pub struct Origination {
    policy: Arc<BackendTls>,
    /// Made when they are first needed: for bytes, HTTP/1.1 and HTTP/2.
    clients: [OnceLock<Arc<Outside>>; 3],
}

impl Origination {
    /// As this policy says.
    #[must_use]
    pub fn new(policy: &BackendTls) -> Self {
        Self {
            policy: Arc::new(policy.clone()),
            clients: Default::default(),
        }
    }

    /// What it is by. Connections under equal ones may be shared.
    #[must_use]
    pub fn policy(&self) -> &Arc<BackendTls> {
        &self.policy
    }

    /// Begins TLS over a socket. The caller bounds the time.
    ///
    /// # Errors
    /// The endpoint cannot prove its name, or there is nothing to judge it by.
    pub async fn secure(&self, speaks: Option<Version>, socket: Socket) -> Result<Secured, OpenError> {
        let client = self.client(speaks).map_err(|error| failed(&error))?;
        match client.connect(socket).await {
            Ok(stream) => Ok(stream),
            Err(OutsideError::Tls { error, .. }) => Err(OpenError::Tls {
                source: Arc::<HandshakeError>::new(error),
            }),
            Err(error) => Err(failed(&error)),
        }
    }

    fn client(&self, speaks: Option<Version>) -> Result<&Arc<Outside>, OutsideError> {
        let (client, protocol): (_, Option<&[u8]>) = match speaks {
            None => (&self.clients[0], None),
            Some(Version::Http1) => (&self.clients[1], Some(b"http/1.1")),
            Some(Version::Http2) => (&self.clients[2], Some(b"h2")),
        };
        if let Some(client) = client.get() {
            return Ok(client);
        }
        let roots = match &self.policy.roots[..] {
            [] => RootSource::System,
            several => RootSource::Pem(several.iter().map(|pem| &**pem).collect::<Vec<_>>().join("\n")),
        };
        let names: Vec<_> = self.policy.subject_alt_names.iter().map(name).collect();
        let made = Outside::new(&roots, &self.policy.hostname, &names, protocol)?;
        Ok(client.get_or_init(|| Arc::new(made)))
    }
}

fn name(told: &SubjectAltName) -> Name {
    match told {
        SubjectAltName::Hostname(host) => Name::Host(host.to_string()),
        SubjectAltName::Uri(uri) => Name::Uri(uri.to_string()),
    }
}

fn failed(error: &OutsideError) -> OpenError {
    OpenError::Certificate {
        reason: Reason::TlsFailed,
        detail: error.to_string().into(),
    }
}

impl PartialEq for Origination {
    fn eq(&self, other: &Self) -> bool {
        self.policy == other.policy
    }
}
