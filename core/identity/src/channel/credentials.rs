//! What each request to the control plane carries: the token, the cluster, and configured headers.

use std::fmt;
use std::sync::Arc;

use tonic::metadata::{Ascii, MetadataKey, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::{ChannelConfig, ChannelError, TokenSource};

/// Adds token, cluster and headers to each request.
#[derive(Clone)]
pub struct Credentials {
    token: TokenSource,
    metadata: Arc<[(MetadataKey<Ascii>, MetadataValue<Ascii>)]>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.metadata.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Credentials")
            .field("token", &self.token)
            .field("metadata", &names)
            .finish()
    }
}

impl Credentials {
    /// Checks that all of it can be sent.
    ///
    /// # Errors
    /// When a name or value is not valid gRPC metadata.
    pub fn new(config: &ChannelConfig) -> Result<Self, ChannelError> {
        let cluster = config.cluster_id.iter().map(|id| ("clusterid", id.as_str()));
        let headers = config
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let metadata: Result<Vec<_>, _> = cluster
            .chain(headers)
            .map(|(name, value)| entry(name, value))
            .collect();
        Ok(Self {
            token: config.token.clone(),
            metadata: metadata?.into(),
        })
    }
}

fn entry(name: &str, value: &str) -> Result<(MetadataKey<Ascii>, MetadataValue<Ascii>), ChannelError> {
    let invalid = || ChannelError::Header(name.to_owned());
    let key = MetadataKey::from_bytes(name.to_ascii_lowercase().as_bytes()).map_err(|_| invalid())?;
    Ok((key, value.parse().map_err(|_| invalid())?))
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        for (name, value) in self.metadata.iter() {
            request.metadata_mut().insert(name.clone(), value.clone());
        }
        let token = self
            .token
            .read()
            .map_err(|error| Status::unauthenticated(error.to_string()))?;
        if let Some(token) = token {
            let bearer: Result<MetadataValue<Ascii>, _> = format!("Bearer {token}").parse();
            let mut bearer =
                bearer.map_err(|_| Status::unauthenticated("the token is not valid in a header"))?;
            bearer.set_sensitive(true);
            request.metadata_mut().insert("authorization", bearer);
        }
        Ok(request)
    }
}
