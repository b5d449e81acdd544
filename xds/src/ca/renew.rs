//! Keeps the server's own certificate fresh: renewed at half life, without touching open connections.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tulle_identity::Acceptor;
use tulle_identity::acceptor::AcceptorError;
use tulle_model::Str;
use tulle_runtime::drain::DrainWatcher;

use crate::ca::Authority;
use crate::ca::issue::{IssueError, TTL_DEFAULT};

/// Pause after a renewal that failed; the old certificate has half its life left.
const RETRY: Duration = Duration::from_secs(60);

/// Why the server has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum ServerCertificateError {
    /// It could not be issued.
    #[error("the server's certificate cannot be issued: {0}")]
    Issue(#[from] IssueError),
    /// It cannot be served with.
    #[error("the server's certificate cannot be used: {0}")]
    Use(#[from] AcceptorError),
}

/// An acceptor with a first certificate for these names.
///
/// # Errors
/// A name cannot be used, or the issuer cannot sign.
pub fn acceptor(authority: &Authority, names: &[Str]) -> Result<Acceptor, ServerCertificateError> {
    let certificate = authority.server_certificate(names)?;
    Ok(tulle_identity::server_acceptor(
        &certificate.leaf.pem,
        &certificate.key_pem,
        None,
    )?)
}

/// Renews the acceptor's certificate until the drain starts.
pub async fn keep_fresh(authority: Arc<Authority>, names: Vec<Str>, acceptor: Acceptor, drain: DrainWatcher) {
    let mut pause = TTL_DEFAULT / 2;
    loop {
        tokio::select! {
            () = sleep(pause) => {}
            _ = drain.signaled() => return,
        }
        pause = match renew(&authority, &names, &acceptor) {
            Ok(()) => TTL_DEFAULT / 2,
            Err(error) => {
                tracing::error!(%error, "the server's certificate was not renewed");
                RETRY
            }
        };
    }
}

fn renew(authority: &Authority, names: &[Str], acceptor: &Acceptor) -> Result<(), ServerCertificateError> {
    let certificate = authority.server_certificate(names)?;
    acceptor.replace(&certificate.leaf.pem, &certificate.key_pem, None)?;
    tracing::info!(serial = %certificate.leaf.serial, "the server's certificate was renewed");
    Ok(())
}
