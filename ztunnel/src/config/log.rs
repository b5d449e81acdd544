//! How lines are written.

use std::str::FromStr;

use http::Uri;
use serde::Serialize;
use tulle_runtime::config::Collector;

/// Names the collector.
pub(super) const COLLECTOR: &str = "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT";

/// Where collectors listen for OTLP over HTTP.
const COLLECTOR_PORT: u16 = 4318;

/// And what they take lines at.
const COLLECTOR_PATH: &str = "/v1/logs";

/// How lines are written.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Log {
    /// Levels by target.
    pub filter: String,
    /// JSON instead of text.
    pub json: bool,
    /// Where access lines are exported to, beside the log.
    pub collector: Option<LogCollector>,
}

/// A collector of OpenTelemetry that takes lines over HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LogCollector {
    /// `host:port`.
    pub authority: String,
    /// Where lines are posted to.
    pub path: String,
}

/// Why a text names no collector.
#[derive(Debug, thiserror::Error)]
#[error("must be http://host[:port][/path]; a collector that wants TLS is reached through one on the node")]
pub struct NotACollector;

impl FromStr for LogCollector {
    type Err = NotACollector;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url: Uri = text.parse().map_err(|_| NotACollector)?;
        let host = url.host().filter(|_| url.scheme_str() == Some("http"));
        let host = host.ok_or(NotACollector)?;
        Ok(Self {
            authority: format!("{host}:{}", url.port_u16().unwrap_or(COLLECTOR_PORT)),
            path: match url.path() {
                "" | "/" => COLLECTOR_PATH.to_owned(),
                path => path.to_owned(),
            },
        })
    }
}

pub(super) fn read(read: &mut Collector<'_>) -> Log {
    let format = read.string("LOG_FORMAT", "text");
    if !["text", "json", "plain"].contains(&format.as_str()) {
        read.problem("LOG_FORMAT", &format, "must be text or json");
    }
    Log {
        filter: read.string("RUST_LOG", "info"),
        json: format == "json",
        collector: read.optional(COLLECTOR, str::parse),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_has_a_port_and_a_path_of_its_own_unless_others_are_named() {
        let read = |text: &str| {
            text.parse::<LogCollector>()
                .map(|at| format!("{} {}", at.authority, at.path))
        };
        assert_eq!(read("http://collector").unwrap(), "collector:4318 /v1/logs");
        assert_eq!(read("http://192.0.2.1:80/in").unwrap(), "192.0.2.1:80 /in");
        assert_eq!(
            read("http://[2001:db8::1]/").unwrap(),
            "[2001:db8::1]:4318 /v1/logs"
        );
        for bad in ["https://collector", "collector:4318", "", "http://"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
