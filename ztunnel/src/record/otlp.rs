//! Access lines, exported to a collector of OpenTelemetry (OTLP over HTTP) beside the log.
//!
//! A bounded queue lies between: what the collector does not take in time is dropped and counted; nothing waits for it.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::StatusCode;
use prometheus_client::metrics::counter::Counter;
use prost::Message;
use tokio::net::TcpStream;
use tulle_proto::otlp::logs::{LogRecord, Logs, ResourceLogs, ScopeLogs};
use tulle_proto::otlp::{KeyValue, Resource, Scope};
use tulle_runtime::telemetry::export::{self, Bounds, Collector, Delivering, DeliveryError};
use tulle_runtime::{build_info, http_client};

use super::{Fields, Line, Story};
use crate::config::{Config, LogCollector};

/// Lines that wait at most.
pub const LINES_MAX: usize = 10_000;

/// Lines of one request.
const BATCH_LINES_MAX: usize = 512;

/// Takes lines for the collector. Clones share it.
#[derive(Debug, Clone)]
pub struct Exporter(export::Exporter<LogRecord>);

impl Exporter {
    /// Starts to export, if the configuration names a collector; `dropped` counts what it does not take.
    #[must_use]
    pub fn of(config: &Config, dropped: Counter) -> Option<Self> {
        let collector = config.log.collector.clone()?;
        let resource = Resource::new(vec![
            KeyValue::text("service.name", "ztunnel"),
            KeyValue::text("service.version", &build_info::tag()),
            KeyValue::text("k8s.node.name", &config.node),
            KeyValue::text("k8s.cluster.name", &config.cluster_id),
        ]);
        Some(Self::start(collector, resource, dropped))
    }

    fn start(collector: LogCollector, resource: Resource, dropped: Counter) -> Self {
        let bounds = Bounds {
            records: LINES_MAX,
            batch: BATCH_LINES_MAX,
        };
        let lines = Lines { collector, resource };
        Self(export::Exporter::start(
            "export-access-lines",
            bounds,
            lines,
            dropped,
        ))
    }

    /// Takes a line, or drops and counts it.
    pub(super) fn offer(&self, story: &Story, line: &Line, fields: &Fields) {
        self.0.offer(|| record(story, line, fields));
    }
}

/// The end of the queue.
struct Lines {
    collector: LogCollector,
    resource: Resource,
}

impl Collector<LogRecord> for Lines {
    fn encode(&self, log_records: Vec<LogRecord>) -> Bytes {
        let logs = Logs {
            resource_logs: vec![ResourceLogs {
                resource: Some(self.resource.clone()),
                scope_logs: vec![ScopeLogs {
                    scope: Some(Scope {
                        name: tulle_runtime::telemetry::ACCESS.to_owned(),
                    }),
                    log_records,
                }],
            }],
        };
        Bytes::from(logs.encode_to_vec())
    }

    fn post(&self, message: Bytes) -> Delivering {
        Box::pin(post(self.collector.clone(), message))
    }
}

async fn post(collector: LogCollector, body: Bytes) -> Result<(), DeliveryError> {
    let unreachable = |error: &dyn std::fmt::Display| DeliveryError::Unreachable(error.to_string());
    let LogCollector { authority, path } = &collector;
    let stream = TcpStream::connect(&**authority).await;
    let stream = stream.map_err(|error| unreachable(&error))?;
    let answer = http_client::post(stream, authority, path, "application/x-protobuf", body).await;
    match answer.map_err(|error| unreachable(&error))?.status() {
        taken if taken.is_success() => Ok(()),
        // These are the answers that a client may repeat after (OTLP, "Failures").
        status @ (StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT) => Err(unreachable(&status)),
        refused => Err(DeliveryError::Refused(format!("status {refused}"))),
    }
}

/// A line with the keys of the log, in their order.
fn record(story: &Story, line: &Line, fields: &Fields) -> LogRecord {
    let mut attributes = Vec::with_capacity(22);
    let mut text = |key: &str, value: Option<&str>| {
        attributes.extend(value.map(|value| KeyValue::text(key, value)));
    };
    let pod = |party: &super::Party| party.pod.clone().or_else(|| party.workload.clone());
    text("src.addr", Some(&story.source_address.to_string()));
    text("src.workload", pod(&story.source).as_deref());
    text("src.namespace", story.source.namespace.as_deref());
    text("src.identity", fields.source_identity.as_deref());
    text("src.cluster", story.source.cluster.as_deref());
    text("dst.addr", Some(&story.destination_address.to_string()));
    text("dst.hbone_addr", story.authority.as_deref());
    text("dst.service", story.service.hostname.as_deref());
    text("dst.workload", pod(&story.destination).as_deref());
    text("dst.namespace", story.destination.namespace.as_deref());
    text("dst.identity", fields.destination_identity.as_deref());
    text("dst.cluster", story.destination.cluster.as_deref());
    text("direction", Some(story.direction.as_str()));
    attributes.push(KeyValue::count("bytes_sent", fields.sent));
    attributes.push(KeyValue::count("bytes_recv", fields.received));
    let mut text = |key: &str, value: Option<&str>| {
        attributes.extend(value.map(|value| KeyValue::text(key, value)));
    };
    text("duration", Some(&fields.duration));
    text("error", fields.error.as_deref());
    text("reason", fields.reason.as_deref());
    text("policy", fields.policy.as_deref());
    text("id", Some(&story.id.to_string()));
    attributes.push(KeyValue::count("generation", story.generation));
    attributes.extend(
        fields
            .trace
            .as_deref()
            .map(|trace| KeyValue::text("trace_id", trace)),
    );
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (severity, body) = line.severity();
    LogRecord::new(
        u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        severity,
        body,
        attributes,
    )
}

impl Line {
    /// Ends and refusals are, as the log has them by default.
    pub(super) fn is_exported(&self) -> bool {
        !matches!(self, Self::Opened)
    }

    /// As the log has it, in numbers of OpenTelemetry.
    fn severity(&self) -> ((i32, &'static str), &'static str) {
        match self {
            Self::Opened => ((5, "DEBUG"), "connection opened"),
            Self::Complete => ((9, "INFO"), "connection complete"),
            Self::Failed => ((17, "ERROR"), "connection complete"),
            Self::Refused => ((13, "WARN"), "connection failed"),
        }
    }
}

#[cfg(test)]
mod tests;
