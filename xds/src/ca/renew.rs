//! Keeps the server's own certificate fresh: renewed at half life, without touching open connections.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tulle_identity::Acceptor;
use tulle_identity::acceptor::AcceptorError;
use tulle_model::Str;
use tulle_runtime::drain::DrainWatcher;

use crate::ca::Authority;
use crate::ca::issue::{IssueError, ServerCertificate, TTL_DEFAULT};

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
    let (chain, certificate) = chain(authority, names)?;
    let bundle = &authority.issuing().bundle;
    Ok(tulle_identity::server_acceptor(
        &chain,
        &certificate.key_pem,
        Some(bundle),
    )?)
}

/// Renews the acceptor's certificate until the drain starts.
pub async fn keep_fresh(authority: Arc<Authority>, names: Vec<Str>, acceptor: Acceptor, drain: DrainWatcher) {
    let mut pause = TTL_DEFAULT / 2;
    let mut moved = authority.moved();
    loop {
        tokio::select! {
            () = sleep(pause) => {}
            // Another issuer, or other roots that clients may come with.
            Ok(()) = moved.changed() => {}
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

/// The chain goes up to the roots: a node that joins knows only the hash of one.
fn chain(
    authority: &Authority,
    names: &[Str],
) -> Result<(String, ServerCertificate), ServerCertificateError> {
    let certificate = authority.server_certificate(names)?;
    let chain = authority.issuing().chain_with_roots(&certificate.leaf.pem);
    Ok((chain, certificate))
}

fn renew(authority: &Authority, names: &[Str], acceptor: &Acceptor) -> Result<(), ServerCertificateError> {
    let (chain, certificate) = chain(authority, names)?;
    let bundle = &authority.issuing().bundle;
    acceptor.replace(&chain, &certificate.key_pem, Some(bundle))?;
    tracing::info!(serial = %certificate.leaf.serial, "the server's certificate was renewed");
    Ok(())
}
