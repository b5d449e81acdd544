//! How lines are written.

use serde::Serialize;
use tulle_runtime::config::Collector;

/// How lines are written.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Log {
    /// Levels by target.
    pub filter: String,
    /// JSON instead of text.
    pub json: bool,
}

pub(super) fn read(read: &mut Collector<'_>) -> Log {
    let format = read.string("LOG_FORMAT", "text");
    if !["text", "json", "plain"].contains(&format.as_str()) {
        read.problem("LOG_FORMAT", &format, "must be text or json");
    }
    Log {
        filter: read.string("RUST_LOG", "info"),
        json: format == "json",
    }
}
