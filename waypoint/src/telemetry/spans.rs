//! Spans: one of the server for a request, one of the client for each try, told to a collector.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use prometheus_client::metrics::counter::Counter;
use prost::Message;
use tulle_model::{Reason, Str};
use tulle_proto::otlp::trace::{ResourceSpans, ScopeSpans, Span, Status, Traces};
use tulle_proto::otlp::{KeyValue, Resource, Scope};
use tulle_runtime::metrics::Registry;
use tulle_runtime::telemetry::export::{self, Bounds, Collector, Delivering};

use super::party::Party;
use super::trace::Trace;
use crate::metrics::SECTION;

/// Spans that wait at most.
pub const SPANS_MAX: usize = 2_048;
/// Spans of one message.
const BATCH_SPANS_MAX: usize = 512;
/// A server's span.
const SERVER: i32 = 2;
/// A client's span.
const CLIENT: i32 = 3;
/// An error.
const ERROR: i32 = 2;

/// How spans leave: one call of gRPC with a whole message. Whoever can reach a service provides it.
pub trait Transport: Send + Sync + 'static {
    /// Delivers the body of the call.
    fn post(&self, body: Bytes) -> Delivering;
}

/// Takes spans. Clones share it.
#[derive(Debug, Clone)]
pub struct Spans(export::Exporter<Span>);

struct ToCollector<T> {
    transport: T,
    resource: Resource,
}

impl Spans {
    /// The counter of what the collector did not take.
    #[must_use]
    pub fn counter(registry: &Registry) -> Counter {
        registry.section(&SECTION).register(
            "tulle_waypoint_spans_dropped",
            "Spans that the collector did not take",
            Counter::default(),
        )
    }

    /// Starts to export for the waypoint `<namespace>/<gateway>`.
    #[must_use]
    pub fn start(waypoint: &str, transport: impl Transport, dropped: Counter) -> Self {
        let resource = Resource::new(vec![
            KeyValue::text("service.name", waypoint),
            KeyValue::text("service.version", &tulle_runtime::build_info::tag()),
        ]);
        let bounds = Bounds {
            records: SPANS_MAX,
            batch: BATCH_SPANS_MAX,
        };
        let collector = ToCollector { transport, resource };
        Self(export::Exporter::start(
            "export-spans",
            bounds,
            collector,
            dropped,
        ))
    }

    /// Takes the span of a request, if its trace is sampled.
    pub fn request(&self, trace: &Trace, told: &Told<'_>) {
        if trace.sampled {
            let parent = trace.parent;
            self.0.offer(|| span(trace, trace.span, parent, SERVER, told));
        }
    }

    /// Takes the span of a try, if its trace is sampled.
    pub fn attempt(&self, trace: &Trace, id: u64, told: &Told<'_>) {
        if trace.sampled {
            self.0.offer(|| span(trace, id, Some(trace.span), CLIENT, told));
        }
    }
}

/// What a span says.
#[derive(Debug, Clone)]
pub struct Told<'a> {
    /// Name: the backend's host and port, never what the client wrote.
    pub name: &'a str,
    /// Start.
    pub start: SystemTime,
    /// End.
    pub end: SystemTime,
    /// Who asked.
    pub source: &'a Party,
    /// Who answered.
    pub destination: &'a Party,
    /// The route.
    pub route: Option<&'a str>,
    /// Method.
    pub method: Option<&'a str>,
    /// Status.
    pub status: u16,
    /// Status of gRPC.
    pub grpc: Option<u32>,
    /// Why it ended, if not by the application.
    pub reason: Option<Reason>,
    /// Id of the request.
    pub request_id: Option<&'a str>,
    /// What else the trace carries.
    pub tracestate: Option<&'a str>,
    /// Which try, from 1.
    pub attempt: Option<u32>,
}

fn span(trace: &Trace, id: u64, parent: Option<u64>, kind: i32, told: &Told<'_>) -> Span {
    let failed = told.status >= 500 || told.status == 0 || matches!(told.grpc, Some(2 | 4 | 12..=15));
    let message = told.reason.map(Reason::token).unwrap_or_default();
    Span {
        trace_id: trace.id.to_be_bytes().to_vec(),
        span_id: id.to_be_bytes().to_vec(),
        trace_state: told.tracestate.unwrap_or_default().to_owned(),
        parent_span_id: parent
            .map(|parent| parent.to_be_bytes().to_vec())
            .unwrap_or_default(),
        name: told.name.to_owned(),
        kind,
        start_time_unix_nano: nanos(told.start),
        end_time_unix_nano: nanos(told.end),
        attributes: attributes(told),
        status: failed.then(|| Status {
            message: message.to_owned(),
            code: ERROR,
        }),
    }
}

fn attributes(told: &Told<'_>) -> Vec<KeyValue> {
    let mut attributes = Vec::with_capacity(12);
    let mut text = |key: &str, value: Option<&str>| {
        attributes.extend(value.map(|value| KeyValue::text(key, value)));
    };
    let known = |text: &'_ Str| (**text != *super::party::UNKNOWN).then(|| text.to_string());
    text(
        "istio.downstream.workload",
        known(&told.source.workload).as_deref(),
    );
    text(
        "istio.downstream.namespace",
        known(&told.source.namespace).as_deref(),
    );
    text(
        "istio.upstream.workload",
        known(&told.destination.workload).as_deref(),
    );
    text(
        "istio.upstream.namespace",
        known(&told.destination.namespace).as_deref(),
    );
    text("route", told.route);
    text("http.request.method", told.method);
    text("guid:x-request-id", told.request_id);
    text("reason", told.reason.map(Reason::token));
    let numbers = [
        (
            "http.response.status_code",
            Some(u64::from(told.status)).filter(|status| *status > 0),
        ),
        ("rpc.grpc.status_code", told.grpc.map(u64::from)),
        ("attempt", told.attempt.map(u64::from)),
    ];
    for (key, number) in numbers {
        attributes.extend(number.map(|number| KeyValue::count(key, number)));
    }
    attributes
}

fn nanos(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl<T: Transport> Collector<Span> for ToCollector<T> {
    fn encode(&self, spans: Vec<Span>) -> Bytes {
        let traces = Traces {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(Scope {
                        name: "tulle.waypoint".to_owned(),
                    }),
                    spans,
                }],
            }],
        };
        framed(&traces)
    }

    fn post(&self, message: Bytes) -> Delivering {
        self.transport.post(message)
    }
}

/// A message of gRPC: not compressed, its length, itself.
fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(length + 5);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode(&mut bytes).expect("the buffer grows");
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::super::trace::Ids;
    use super::*;
    use std::time::Duration;
    use tokio::sync::mpsc;
    use tulle_model::testing::workload;

    struct Kept(mpsc::UnboundedSender<Traces>);

    impl Transport for Kept {
        fn post(&self, body: Bytes) -> Delivering {
            assert_eq!(body[0], 0);
            assert_eq!(
                usize::try_from(u32::from_be_bytes(body[1..5].try_into().unwrap())).unwrap(),
                body.len() - 5
            );
            let _ = self.0.send(Traces::decode(&body[5..]).unwrap());
            Box::pin(async { Ok(()) })
        }
    }

    fn told(party: &Party) -> Told<'_> {
        Told {
            name: "db.default.svc.cluster.local:80",
            start: UNIX_EPOCH + Duration::from_secs(1),
            end: UNIX_EPOCH + Duration::from_secs(2),
            source: party,
            destination: party,
            route: Some("HTTPRoute/default/canary/0"),
            method: Some("GET"),
            status: 503,
            grpc: None,
            reason: Some(Reason::UpstreamReset),
            request_id: Some("id"),
            tracestate: None,
            attempt: Some(1),
        }
    }

    fn trace(sampled: bool) -> Trace {
        let chance = if sampled { 0 } else { 1 };
        Trace::begin(None, 1, Ids { trace: 7, span: 9 }, chance)
    }

    #[tokio::test]
    async fn spans_of_a_request_and_its_tries_arrive_as_a_tree() {
        let (sender, mut messages) = mpsc::unbounded_channel();
        let spans = Spans::start("default/waypoint", Kept(sender), Counter::default());
        let party = Party::new(Some(&workload("web").build()), None);
        spans.attempt(&trace(true), 11, &told(&party));
        spans.request(&trace(true), &told(&party));
        let traces = messages.recv().await.unwrap();
        let [attempt, request] = &traces.resource_spans[0].scope_spans[0].spans[..] else {
            panic!("two spans: {traces:?}")
        };
        assert_eq!(attempt.parent_span_id, request.span_id);
        assert_eq!((attempt.kind, request.kind), (CLIENT, SERVER));
        assert!(request.parent_span_id.is_empty());
        assert_eq!(request.status.as_ref().unwrap().message, "upstream_reset");
        for expected in [
            KeyValue::text("istio.downstream.workload", "web"),
            KeyValue::text("istio.upstream.namespace", "default"),
            KeyValue::text("route", "HTTPRoute/default/canary/0"),
            KeyValue::text("reason", "upstream_reset"),
            KeyValue::count("http.response.status_code", 503),
        ] {
            assert!(
                request.attributes.contains(&expected),
                "{expected:?}: {request:?}"
            );
        }
    }

    #[tokio::test]
    async fn spans_that_find_no_place_are_dropped_and_counted() {
        let (sender, _messages) = mpsc::unbounded_channel();
        let dropped = Counter::default();
        let spans = Spans::start("default/waypoint", Kept(sender), dropped.clone());
        let party = Party::new(None, None);
        // The task of delivery has no turn meanwhile.
        (0..SPANS_MAX + 3).for_each(|_| spans.request(&trace(true), &told(&party)));
        assert_eq!(dropped.get(), 3);
        spans.request(&trace(false), &told(&party));
        assert_eq!(dropped.get(), 3, "what is not sampled is not told");
    }
}
