use std::io::{self, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use tulle_runtime::telemetry::{self, LogFormat};

use super::*;

/// The keys of an access line, in their order.
pub(super) const KEYS: [&str; 22] = [
    "src.addr",
    "src.workload",
    "src.namespace",
    "src.identity",
    "src.cluster",
    "dst.addr",
    "dst.hbone_addr",
    "dst.service",
    "dst.workload",
    "dst.namespace",
    "dst.identity",
    "dst.cluster",
    "direction",
    "bytes_sent",
    "bytes_recv",
    "duration",
    "error",
    "reason",
    "policy",
    "id",
    "generation",
    "trace_id",
];

pub(super) const BYTES: Bytes = Bytes {
    from_client: 3,
    to_client: 5,
};

/// A log that a test reads.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is logged while `tell` runs.
fn logged(format: LogFormat, filter: &str, tell: impl FnOnce(&Metrics)) -> String {
    let log = Log::default();
    let (dispatch, handle) = telemetry::to_sink(format, filter, log.clone()).unwrap();
    tracing::dispatcher::with_default(&dispatch, || tell(&Metrics::default()));
    handle.flush();
    String::from_utf8(log.0.lock().clone()).unwrap()
}

/// A story with everything in it.
pub(super) fn story(direction: Direction) -> Story {
    let party = |name: &str| {
        Shared::new(Party {
            pod: Some(name.into()),
            namespace: Some("shop".into()),
            principal: Some(Identity::new("td", "shop", name)),
            cluster: Some("west".into()),
            ..Party::default()
        })
    };
    let address = |text: &str| text.parse().unwrap();
    Story {
        authority: Some("192.0.2.2:80".to_owned()),
        source: party("web"),
        destination: party("db"),
        service: Shared::new(ServiceLabels {
            hostname: Some("db.shop.svc.cluster.local".into()),
            ..ServiceLabels::default()
        }),
        mutual_tls: true,
        trace: Some(TraceId::of(None)),
        planned: true,
        ..Story::begin(direction, address("192.0.2.1:40000"), address("192.0.2.2:15008"))
    }
}

pub(super) fn denied() -> Error {
    Error::Overload("a reason")
}

fn assert_in_order(line: &str, written: impl Fn(&str) -> String) {
    let places: Vec<usize> = KEYS
        .iter()
        .filter(|key| **key != "policy")
        .map(|key| {
            line.find(&written(key))
                .unwrap_or_else(|| panic!("{key} is missing in {line}"))
        })
        .collect();
    assert!(places.is_sorted(), "{places:?} in {line}");
}

#[test]
fn the_keys_of_a_line_stand_in_their_order_in_text_and_json() {
    let tell = |metrics: &Metrics| story(Direction::Outbound).complete(metrics, BYTES, Some(&denied()));
    let text = logged(LogFormat::Text, "info", tell);
    assert_in_order(&text, |key| format!(" {key}="));
    let json = logged(LogFormat::Json, "info", tell);
    assert_in_order(&json, |key| format!("\"{key}\":"));
    let line: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(line["target"], "access");
    assert_eq!(line["level"], "ERROR");
    assert_eq!(line["message"], "connection complete");
    assert_eq!(line["src.identity"], "spiffe://td/ns/shop/sa/web");
    assert_eq!(line["reason"], "T0515 overload");
    assert!(line["duration"].as_str().unwrap().ends_with("ms"));
}

#[test]
fn bytes_are_counted_as_the_local_pod_sees_them() {
    for (direction, sent, received) in [(Direction::Outbound, 3, 5), (Direction::Inbound, 5, 3)] {
        let line = logged(LogFormat::Json, "info", |metrics| {
            story(direction).complete(metrics, BYTES, None);
        });
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&line["bytes_sent"], &line["bytes_recv"]),
            (&sent.into(), &received.into())
        );
        assert_eq!(
            (&line["level"], &line["error"]),
            (&"INFO".into(), &serde_json::Value::Null)
        );
    }
}

#[test]
fn identities_stand_in_a_line_with_mutual_tls_only() {
    let line = logged(LogFormat::Json, "info", |metrics| {
        let plain = Story {
            mutual_tls: false,
            ..story(Direction::Inbound)
        };
        plain.complete(metrics, BYTES, None);
    });
    assert!(!line.contains("spiffe://"), "{line}");
}

#[test]
fn each_line_has_its_level() {
    let tell = |metrics: &Metrics| {
        story(Direction::Inbound).opened(metrics);
        let early = Story {
            planned: false,
            ..story(Direction::Inbound)
        };
        early.fail(metrics, &denied());
    };
    let lines = |filter| {
        let log = logged(LogFormat::Json, filter, tell);
        let line = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            format!("{} {}", line["level"], line["message"]).replace('"', "")
        };
        log.lines().map(line).collect::<Vec<_>>()
    };
    assert_eq!(lines("info"), ["WARN connection failed"]);
    assert_eq!(
        lines("access=debug"),
        ["DEBUG connection opened", "WARN connection failed"]
    );
    assert!(lines("error").is_empty());
}

#[test]
fn a_log_that_nobody_reads_loses_lines_and_never_time() {
    const LINES: u64 = 20_000;
    let (unread, sink) = io::pipe().unwrap();
    let (dispatch, _handle) = telemetry::to_sink(LogFormat::Json, "info", sink).unwrap();
    let (metrics, story) = (Metrics::default(), story(Direction::Inbound));
    let before = telemetry::lines_dropped();
    tracing::dispatcher::with_default(&dispatch, || {
        // Each of these would wait for ever if it waited for the sink.
        (0..LINES).for_each(|_| story.complete(&metrics, BYTES, None));
    });
    // The pipe took a few, the queue its bound, and all others are counted.
    let dropped = telemetry::lines_dropped() - before;
    let queued = u64::try_from(telemetry::QUEUE_LINES_MAX).unwrap();
    assert!(
        dropped > LINES - queued - 1_000 && dropped <= LINES - queued,
        "{dropped}"
    );
    let before = telemetry::lines_dropped();
    tracing::dispatcher::with_default(&dispatch, || {
        (0..telemetry::QUEUE_RESERVE_LINES_MAX).for_each(|_| story.fail(&metrics, &denied()));
    });
    assert_eq!(
        telemetry::lines_dropped(),
        before,
        "refusals have room of their own"
    );
    drop(unread);
}
