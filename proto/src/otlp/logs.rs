//! Lines of a log (`opentelemetry.proto.logs.v1`).

use prost::Message;

use super::{AnyValue, KeyValue, Resource, Scope};

/// `ExportLogsServiceRequest`
#[derive(Clone, PartialEq, Message)]
pub struct Logs {
    /// Lines by process.
    #[prost(message, repeated, tag = "1")]
    pub resource_logs: Vec<ResourceLogs>,
}

/// Lines of one process.
#[derive(Clone, PartialEq, Message)]
pub struct ResourceLogs {
    /// The process.
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    /// Its lines by kind.
    #[prost(message, repeated, tag = "2")]
    pub scope_logs: Vec<ScopeLogs>,
}

/// Lines of one kind.
#[derive(Clone, PartialEq, Message)]
pub struct ScopeLogs {
    /// The kind.
    #[prost(message, optional, tag = "1")]
    pub scope: Option<Scope>,
    /// The lines.
    #[prost(message, repeated, tag = "2")]
    pub log_records: Vec<LogRecord>,
}

/// One line.
#[derive(Clone, PartialEq, Message)]
pub struct LogRecord {
    /// When, in nanoseconds since 1970.
    #[prost(fixed64, tag = "1")]
    pub time_unix_nano: u64,
    /// How severe, as a number.
    #[prost(int32, tag = "2")]
    pub severity_number: i32,
    /// How severe, as a word.
    #[prost(string, tag = "3")]
    pub severity_text: String,
    /// What is told.
    #[prost(message, optional, tag = "5")]
    pub body: Option<AnyValue>,
    /// Its keys.
    #[prost(message, repeated, tag = "6")]
    pub attributes: Vec<KeyValue>,
    /// When it was seen.
    #[prost(fixed64, tag = "11")]
    pub observed_time_unix_nano: u64,
}

impl LogRecord {
    /// A line.
    #[must_use]
    pub fn new(
        time: u64,
        (severity_number, severity_text): (i32, &str),
        body: &str,
        attributes: Vec<KeyValue>,
    ) -> Self {
        Self {
            time_unix_nano: time,
            severity_number,
            severity_text: severity_text.to_owned(),
            body: Some(AnyValue::text(body)),
            attributes,
            observed_time_unix_nano: time,
        }
    }
}
