//! The access log: one line for a request or stream, as text or JSON, with Istio's keys and ours.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use tulle_model::waypoint::AccessLog;
use tulle_model::{Reason, Str};

/// Bytes of one value; the rest is cut off.
pub const VALUE_BYTES_MAX: usize = 1_024;

/// Everything a line can say. What is not known is `-`.
#[derive(Debug, Clone, Default)]
pub struct Entry<'a> {
    /// When the request began.
    pub start: Option<SystemTime>,
    /// Method.
    pub method: Option<&'a str>,
    /// Path and query as they came, but for tokens.
    pub path: Option<&'a str>,
    /// What the client speaks: `HTTP/1.1`.
    pub protocol: Option<&'a str>,
    /// Status; 0 for streams and for requests that ended without.
    pub status: u16,
    /// Status of gRPC.
    pub grpc: Option<u32>,
    /// Flag; `-` where nothing is wrong.
    pub flag: &'static str,
    /// Why it ended, if not by the application.
    pub reason: Option<Reason>,
    /// Why the connection to the endpoint failed.
    pub transport_failure: Option<&'a str>,
    /// Bytes of the client's body.
    pub received: u64,
    /// Bytes of the answer's body.
    pub sent: u64,
    /// How long it took.
    pub duration: Duration,
    /// How long the endpoint took to begin its answer.
    pub upstream_time: Option<Duration>,
    /// `x-forwarded-for` as it came.
    pub forwarded_for: Option<&'a str>,
    /// `user-agent`.
    pub user_agent: Option<&'a str>,
    /// Id.
    pub request_id: Option<&'a str>,
    /// Host.
    pub authority: Option<&'a str>,
    /// The endpoint.
    pub upstream_host: Option<SocketAddr>,
    /// The backend: host and port.
    pub upstream_cluster: Option<&'a str>,
    /// Our end of the connection to the endpoint.
    pub upstream_local: Option<SocketAddr>,
    /// What the client asked for.
    pub downstream_local: Option<SocketAddr>,
    /// The client.
    pub downstream_remote: Option<SocketAddr>,
    /// Server name of TLS.
    pub server_name: Option<&'a str>,
    /// The route.
    pub route: Option<&'a str>,
    /// The client's identity.
    pub source_principal: Option<&'a str>,
    /// The client's workload.
    pub source_workload: Option<&'a str>,
    /// The client's namespace.
    pub source_namespace: Option<&'a str>,
    /// The policy that decided.
    pub policy: Option<&'a str>,
    /// A policy on trial would have denied it.
    pub dry_run_denied: bool,
    /// Id of the line.
    pub id: Option<&'a str>,
    /// The configuration it was decided by.
    pub generation: u64,
    /// Tries.
    pub attempts: u32,
    /// The trace.
    pub trace_id: Option<&'a str>,
}

/// A value of a line.
enum Value<'a> {
    Text(&'a str),
    Owned(String),
    Number(u64),
    Nothing,
}

impl Entry<'_> {
    /// Whether this setting wants a line: errors are statuses from 400 on, and flags.
    #[must_use]
    pub fn is_wanted(&self, setting: AccessLog) -> bool {
        match setting {
            AccessLog::Off => false,
            AccessLog::All => true,
            AccessLog::Errors => {
                let failed_call = self.grpc.is_some_and(|status| status != 0);
                self.status >= 400 || failed_call || !matches!(self.flag, "" | "-") || self.reason.is_some()
            }
        }
    }

    /// The line, without its end.
    #[must_use]
    pub fn line(&self, json: bool) -> String {
        let mut line = String::with_capacity(1_024);
        if json {
            line.push('{');
        }
        for (key, value) in self.pairs() {
            if json {
                json_pair(&mut line, key, &value);
            } else {
                text_pair(&mut line, key, &value);
            }
        }
        if json {
            line.push('}');
        }
        line
    }

    #[expect(
        clippy::too_many_lines,
        reason = "a list of keys in the order they are written"
    )]
    fn pairs(&self) -> [(&'static str, Value<'_>); 36] {
        let text = |value: Option<&'_ str>| match value {
            Some(text) if !text.is_empty() => Value::Owned(text.to_owned()),
            _ => Value::Nothing,
        };
        let address = |value: Option<SocketAddr>| match value {
            Some(address) => Value::Owned(address.to_string()),
            None => Value::Nothing,
        };
        let millis = |time: Duration| Value::Number(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let code = self.reason.map_or(Value::Nothing, |reason| {
            Value::Owned(format!("{} {}", reason.code(), reason.token()))
        });
        let details = match self.reason {
            Some(reason) => Value::Text(reason.token()),
            None if self.status > 0 => Value::Text("via_upstream"),
            None => Value::Nothing,
        };
        let termination = match self.reason {
            Some(reason) if self.status == 0 => Value::Text(reason.token()),
            _ => Value::Nothing,
        };
        let flag = if self.flag.is_empty() { "-" } else { self.flag };
        [
            (
                "start_time",
                self.start.map_or(Value::Nothing, |at| Value::Owned(date(at))),
            ),
            ("method", text(self.method)),
            ("path", text(self.path)),
            ("protocol", text(self.protocol)),
            ("response_code", Value::Number(self.status.into())),
            (
                "grpc_status",
                self.grpc
                    .map_or(Value::Nothing, |code| Value::Number(code.into())),
            ),
            ("response_flags", Value::Text(flag)),
            ("response_code_details", details),
            ("connection_termination_details", termination),
            ("upstream_transport_failure_reason", text(self.transport_failure)),
            ("bytes_received", Value::Number(self.received)),
            ("bytes_sent", Value::Number(self.sent)),
            ("duration", millis(self.duration)),
            (
                "upstream_service_time",
                self.upstream_time.map_or(Value::Nothing, millis),
            ),
            ("x_forwarded_for", text(self.forwarded_for)),
            ("user_agent", text(self.user_agent)),
            ("request_id", text(self.request_id)),
            ("authority", text(self.authority)),
            ("upstream_host", address(self.upstream_host)),
            ("upstream_cluster", text(self.upstream_cluster)),
            ("upstream_local_address", address(self.upstream_local)),
            ("downstream_local_address", address(self.downstream_local)),
            ("downstream_remote_address", address(self.downstream_remote)),
            ("requested_server_name", text(self.server_name)),
            ("route_name", text(self.route)),
            ("source_principal", text(self.source_principal)),
            ("source_workload", text(self.source_workload)),
            ("source_namespace", text(self.source_namespace)),
            ("reason", code),
            ("policy", text(self.policy)),
            (
                "dry_run_denied",
                if self.dry_run_denied {
                    Value::Text("true")
                } else {
                    Value::Nothing
                },
            ),
            ("id", text(self.id)),
            ("generation", Value::Number(self.generation)),
            ("attempts", Value::Number(self.attempts.into())),
            ("trace_id", text(self.trace_id)),
            ("reporter", Value::Text("waypoint")),
        ]
    }
}

/// `key=value`; a value with anything but plain characters stands in quotes.
fn text_pair(line: &mut String, key: &str, value: &Value<'_>) {
    if !line.is_empty() {
        line.push(' ');
    }
    line.push_str(key);
    line.push('=');
    match value {
        Value::Nothing => line.push('-'),
        Value::Number(number) => write!(line, "{number}").expect("writing to a string does not fail"),
        Value::Text(text) => plain_or_quoted(line, text),
        Value::Owned(text) => plain_or_quoted(line, text),
    }
}

fn plain_or_quoted(line: &mut String, text: &str) {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'=');
    if text.bytes().all(plain) && text.len() <= VALUE_BYTES_MAX {
        line.push_str(text);
    } else {
        quoted(line, text);
    }
}

fn json_pair(line: &mut String, key: &str, value: &Value<'_>) {
    if line.len() > 1 {
        line.push(',');
    }
    quoted(line, key);
    line.push(':');
    match value {
        Value::Nothing => line.push_str("null"),
        Value::Number(number) => write!(line, "{number}").expect("writing to a string does not fail"),
        Value::Text(text) => quoted(line, text),
        Value::Owned(text) => quoted(line, text),
    }
}

/// In quotes, cut to its bound, nothing in it that could end a line or a value: JSON's escapes, for both forms.
fn quoted(line: &mut String, text: &str) {
    line.push('"');
    for letter in cut(text).chars() {
        match letter {
            '"' | '\\' => line.extend(['\\', letter]),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            // Also what terminals and viewers of logs take for the end of a line, or for a change of direction.
            control
                if control.is_control()
                    || matches!(control, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                write!(line, "\\u{:04x}", u32::from(control)).expect("writing to a string does not fail");
            }
            other => line.push(other),
        }
    }
    line.push('"');
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(VALUE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// RFC 3339 with milliseconds.
fn date(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    let millis = since.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Year, month and day of a day since 1970. Years begin in March here, so that leap days come last.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

/// The names of the keys, in order, for the reference.
#[must_use]
pub fn keys() -> Vec<Str> {
    Entry::default()
        .pairs()
        .iter()
        .map(|(key, _)| Str::from(*key))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry<'static> {
        Entry {
            start: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_709_210_096_789)),
            method: Some("GET"),
            path: Some("/a b?q=\"1\""),
            protocol: Some("HTTP/1.1"),
            status: 503,
            flag: "UH",
            reason: Some(Reason::NoHealthyEndpoint),
            duration: Duration::from_millis(12),
            attempts: 3,
            upstream_cluster: Some("db.default.svc.cluster.local:80"),
            ..Entry::default()
        }
    }

    #[test]
    fn json_is_one_object_with_every_key() {
        let line = entry().line(true);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["start_time"], "2024-02-29T12:34:56.789Z");
        assert_eq!(value["path"], "/a b?q=\"1\"");
        assert_eq!(value["response_code"], 503);
        assert_eq!(value["response_flags"], "UH");
        assert_eq!(value["response_code_details"], "no_healthy_endpoint");
        assert_eq!(value["reason"], "T0506 no_healthy_endpoint");
        assert_eq!(value["attempts"], 3);
        assert!(value["user_agent"].is_null());
        assert_eq!(value.as_object().unwrap().len(), 36);
        assert_eq!(keys().len(), 36);
    }

    #[test]
    fn text_has_pairs_and_quotes_what_is_not_plain() {
        let line = entry().line(false);
        assert!(line.starts_with("start_time=2024-02-29T12:34:56.789Z method=GET path=\"/a b?q=\\\"1\\\"\" protocol=HTTP/1.1 response_code=503"), "{line}");
        assert!(line.contains(" user_agent=- "), "{line}");
    }

    #[test]
    fn no_value_breaks_a_line_or_forges_another() {
        let bad = "x\r\nstart_time=1 \u{2028}\u{1b}[31m";
        for json in [false, true] {
            let line = Entry {
                user_agent: Some(bad),
                ..entry()
            }
            .line(json);
            assert!(
                !line.chars().any(char::is_control) && !line.contains('\u{2028}'),
                "{line}"
            );
        }
    }

    #[test]
    fn long_values_are_cut() {
        let long = "ä".repeat(VALUE_BYTES_MAX);
        let line = Entry {
            user_agent: Some(&long),
            ..entry()
        }
        .line(true);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["user_agent"].as_str().unwrap().len(), VALUE_BYTES_MAX);
    }

    #[test]
    fn errors_are_statuses_and_flags() {
        let wanted = |status, flag, grpc| {
            Entry {
                status,
                flag,
                grpc,
                ..Entry::default()
            }
            .is_wanted(AccessLog::Errors)
        };
        assert!(!wanted(200, "-", None));
        assert!(!wanted(302, "-", Some(0)));
        assert!(wanted(404, "-", None));
        assert!(wanted(200, "DI", None));
        assert!(wanted(200, "-", Some(5)), "a call of gRPC fails with status 200");
        assert!(Entry::default().is_wanted(AccessLog::All) && !entry().is_wanted(AccessLog::Off));
    }

    #[test]
    fn dates_are_right_at_the_edges() {
        let at = |seconds| date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000Z");
        assert_eq!(at(4_107_542_399), "2100-02-28T23:59:59.000Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000Z");
    }

    proptest::proptest! {
        #[test]
        fn any_value_makes_a_line_that_can_be_read(text in ".*") {
            let line = Entry { path: Some(&text), ..entry() }.line(true);
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            if !text.is_empty() {
                proptest::prop_assert_eq!(value["path"].as_str().unwrap(), cut(&text));
            }
        }
    }
}
