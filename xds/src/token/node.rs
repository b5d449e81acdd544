//! The node's side of joining: what `tulle node join` does.

use std::path::Path;

use tulle_identity::channel::node::{JoinError, JoinToken, join};

/// Exchanges a join token for the certificate of this node, and keeps it in `folder`. Gives the node's name.
///
/// # Errors
/// The token or the address cannot be used, the control plane is not that of the token or refuses it, or the folder
/// cannot be written.
pub async fn join_node(
    address: &str,
    server_name: Option<String>,
    token: &str,
    folder: &Path,
) -> Result<String, JoinError> {
    let token: JoinToken = token.parse()?;
    let address = address
        .parse()
        .map_err(|_| JoinError::Address(address.to_owned()))?;
    let joined = join(address, server_name, &token).await?;
    joined.save(folder)?;
    Ok(joined.node)
}
