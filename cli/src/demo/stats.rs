//! What a demo service reports of its calls, one JSON line at a time.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Counts per called service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stats {
    pub(crate) calls: BTreeMap<String, CallStats>,
}

/// Counts of one called service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CallStats {
    /// Pages answered, each on a connection of its own.
    pub(crate) pages: u64,
    /// Pages that failed.
    pub(crate) failed: u64,
    /// The newest failure.
    pub(crate) last_error: Option<String>,
    /// Connections that were opened before the mesh came.
    pub(crate) old: PinnedStats,
    /// Connections that were opened when asked to, through the mesh.
    pub(crate) pinned: PinnedStats,
}

/// Counts of connections that stay open for good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PinnedStats {
    /// Connections open now.
    pub(crate) open: u64,
    /// Connections that ended without our doing.
    pub(crate) lost: u64,
    /// Lines that came back.
    pub(crate) echoes: u64,
}
