//! Fetches keys from servers outside of the mesh: by HTTPS alone, to no address that a tenant could mislead us to, and
//! no more of an answer than keys take. Redirects are answers like any other, and none of them is keys.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tulle_identity::{RootSource, outside};
use tulle_runtime::tasks;

use super::jwks::FetchError;
use super::keys::JWKS_BYTES_MAX;
use super::target::Target;
use crate::upstream::dial::Network;

/// Addresses of one host that are tried.
const ADDRESSES_MAX: usize = 4;

/// Fetches by HTTPS.
#[derive(Debug)]
pub struct Https {
    /// Who vouches for servers.
    pub roots: RootSource,
    /// How they are reached.
    pub network: Arc<dyn Network>,
}

impl Https {
    /// The body of an answer with status 200. The caller bounds the time.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn get(&self, target: &Target) -> Result<Bytes, FetchError> {
        let found = match target.host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => self.network.resolve(&target.host).await.map_err(|error| {
                FetchError::Connection(format!("{} cannot be looked up: {error}", target.host))
            })?,
        };
        // One address that nobody may be sent to is enough: whoever hands it out is not to be believed in the others.
        // What is judged here is what is dialled, so that a second look-up cannot lead elsewhere.
        for address in &found {
            target.judge(*address)?;
        }
        let mut last = FetchError::Connection(format!("{} has no address", target.host));
        for address in found.into_iter().take(ADDRESSES_MAX) {
            match self.get_from(target, SocketAddr::new(address, target.port)).await {
                Err(error @ FetchError::Connection(_)) => last = error,
                done => return done,
            }
        }
        Err(last)
    }

    async fn get_from(&self, target: &Target, address: SocketAddr) -> Result<Bytes, FetchError> {
        let broken = |error: &dyn std::fmt::Display| FetchError::Connection(error.to_string());
        let socket = self.network.connect(address).await;
        let socket = socket.map_err(|error| FetchError::Connection(format!("{address}: {error}")))?;
        let stream = outside::connect(&self.roots, &target.host, socket).await;
        let stream = stream.map_err(|error| broken(&error))?;
        let (mut sender, connection) = http1::Builder::new()
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&error))?;
        let connection = tasks::spawn("jwks_https", async move { drop(connection.await) });
        let request = Request::get(&*target.path)
            .header(http::header::HOST, target.authority())
            .header(http::header::ACCEPT, "application/json")
            .body(Empty::<Bytes>::new())
            .map_err(|error| broken(&error))?;
        let answer = async {
            let response = sender
                .send_request(request)
                .await
                .map_err(|error| broken(&error))?;
            if response.status() != StatusCode::OK {
                return Err(FetchError::Status(response.status().as_u16()));
            }
            let body = Limited::new(response.into_body(), JWKS_BYTES_MAX).collect().await;
            let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
                Ok(error) => broken(&error),
                Err(_) => FetchError::TooLong,
            })?;
            Ok(body.to_bytes())
        };
        let answer = answer.await;
        // Nothing more is read of a server that sends without end.
        connection.abort();
        answer
    }
}
