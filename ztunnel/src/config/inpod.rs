//! The in-pod protocol.

use std::path::PathBuf;

use serde::Serialize;
use tulle_runtime::config::Collector;

const DEFAULT_INPOD_SOCKET: &str = "/var/run/ztunnel/ztunnel.sock";

/// In-pod protocol.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inpod {
    /// The agent's socket.
    pub socket: PathBuf,
    /// SO_REUSEPORT on listeners that the agent does not hand over.
    pub port_reuse: bool,
}

pub(super) fn read(read: &mut Collector<'_>) -> Inpod {
    Inpod {
        socket: read.string("INPOD_UDS", DEFAULT_INPOD_SOCKET).into(),
        port_reuse: read.bool("INPOD_PORT_REUSE", false),
    }
}
