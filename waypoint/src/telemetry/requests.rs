//! Istio's metrics of requests and of TCP streams, as a waypoint reports them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tulle_runtime::drain::DrainWatcher;
use tulle_runtime::metrics::{Collect, Descriptor, LabelSet, Registry, Scrape, Section};

use super::histogram::{DURATION_MS, Histogram, Reading, SIZE_BYTES};
use super::labels::{Of, OfRequest, OfStream, Spoken, TrafficLabels};
use super::series::{self, Series, Table};
use crate::clock::{Clock, Time};

const SECTION: Section = Section {
    title: "Waypoint: traffic",
    about: "\
The destination is the endpoint of the last try, and its service that of the backend; a request that was sent to no
endpoint has `unknown` for the endpoint and the service that was asked for. What a client writes is never a label.
Series with a caller that the control plane does not describe are 2,000 at most, all together 100,000; a series that
nothing touched for 15 minutes is dropped. Copies that mirrors get are not requests.",
};

/// What is counted of requests with the same labels.
#[derive(Debug)]
pub struct Requests {
    count: AtomicU64,
    duration: Histogram<19>,
    request_bytes: Histogram<8>,
    response_bytes: Histogram<8>,
    request_messages: AtomicU64,
    response_messages: AtomicU64,
}

/// What is counted of streams with the same labels.
#[derive(Debug, Default)]
pub struct Streams {
    opened: AtomicU64,
    closed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

/// Sizes of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the answer's body.
    pub response_bytes: u64,
    /// Messages of gRPC to the server.
    pub request_messages: u64,
    /// Messages of gRPC to the client.
    pub response_messages: u64,
}

/// The metrics of traffic. Clones count together.
#[derive(Debug, Clone)]
pub struct Traffic(Arc<Tables>);

#[derive(Debug)]
struct Tables {
    requests: Table<TrafficLabels, Requests>,
    streams: Table<TrafficLabels, Streams>,
}

impl Default for Traffic {
    fn default() -> Self {
        let requests = || Requests {
            count: AtomicU64::new(0),
            duration: Histogram::new(&DURATION_MS),
            request_bytes: Histogram::new(&SIZE_BYTES),
            response_bytes: Histogram::new(&SIZE_BYTES),
            request_messages: AtomicU64::new(0),
            response_messages: AtomicU64::new(0),
        };
        Self(Arc::new(Tables {
            requests: Table::new(requests),
            streams: Table::new(Streams::default),
        }))
    }
}

/// An open stream of bytes; it counts as closed when dropped.
#[derive(Debug)]
pub struct OpenStream {
    series: Arc<Series<TrafficLabels, Streams>>,
    traffic: Traffic,
    flags: &'static str,
    now: Time,
}

impl Traffic {
    /// Metrics that `registry` exports.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let this = Self::default();
        registry.section(&SECTION).collect(this.clone());
        this
    }

    /// A request has ended.
    pub fn request(&self, labels: &TrafficLabels, took: Duration, sizes: &Sizes, now: Time) {
        let series = self.0.requests.touch(labels, now);
        let requests = &series.value;
        requests.count.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        requests.duration.observe_milli(micros);
        requests
            .request_bytes
            .observe_milli(sizes.request_bytes.saturating_mul(1_000));
        requests
            .response_bytes
            .observe_milli(sizes.response_bytes.saturating_mul(1_000));
        if labels.spoken == Spoken::Grpc {
            requests
                .request_messages
                .fetch_add(sizes.request_messages, Ordering::Relaxed);
            requests
                .response_messages
                .fetch_add(sizes.response_messages, Ordering::Relaxed);
        }
    }

    /// A stream of bytes has begun.
    #[must_use]
    pub fn stream(&self, labels: &TrafficLabels, now: Time) -> OpenStream {
        let series = self.0.streams.touch(labels, now);
        series.value.opened.fetch_add(1, Ordering::Relaxed);
        OpenStream {
            series,
            traffic: self.clone(),
            flags: labels.flags,
            now,
        }
    }

    /// Drops series that nobody has touched for a quarter of an hour.
    pub fn sweep(&self, now: Time) {
        self.0.requests.sweep(now);
        self.0.streams.sweep(now);
    }
}

impl OpenStream {
    /// Bytes that went to the client.
    pub fn sent(&self, bytes: u64) {
        self.series.value.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that came from the client.
    pub fn received(&self, bytes: u64) {
        self.series.value.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Something went wrong; the end counts under this flag.
    pub fn failed(&mut self, flags: &'static str, now: Time) {
        (self.flags, self.now) = (flags, now);
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let own = &self.series.labels;
        let closed = if own.flags == self.flags {
            Arc::clone(&self.series)
        } else {
            let labels = TrafficLabels {
                flags: self.flags,
                ..own.clone()
            };
            self.traffic.0.streams.touch(&labels, self.now)
        };
        closed.value.closed.fetch_add(1, Ordering::Relaxed);
    }
}

impl Collect for Traffic {
    const METRICS: &'static [Descriptor] = &[
        Descriptor::counter(
            "istio_requests",
            "Requests, each once whatever its tries, when its answer has ended; answers of the waypoint itself, too",
        )
        .by::<OfRequest>(),
        Descriptor::histogram(
            "istio_request_duration_milliseconds",
            "Time from the head of a request to the last byte of its answer",
        )
        .by::<OfRequest>(),
        Descriptor::histogram("istio_request_bytes", "Bytes of bodies of requests").by::<OfRequest>(),
        Descriptor::histogram("istio_response_bytes", "Bytes of bodies of answers").by::<OfRequest>(),
        Descriptor::counter("istio_request_messages", "Messages of gRPC to servers").by::<OfRequest>(),
        Descriptor::counter("istio_response_messages", "Messages of gRPC to clients").by::<OfRequest>(),
        Descriptor::counter(
            "istio_tcp_connections_opened",
            "Streams of bytes that began; those that reached no endpoint, too",
        )
        .by::<OfStream>(),
        Descriptor::counter("istio_tcp_connections_closed", "Streams of bytes that ended").by::<OfStream>(),
        Descriptor::counter(
            "istio_tcp_sent_bytes",
            "Bytes to clients; those of open streams are added every 15 seconds",
        )
        .by::<OfStream>(),
        Descriptor::counter(
            "istio_tcp_received_bytes",
            "Bytes from clients; those of open streams are added every 15 seconds",
        )
        .by::<OfStream>(),
        Descriptor::counter(
            "tulle_waypoint_series_overflow",
            "Requests and streams counted under `other`, because there were too many series",
        ),
    ];

    fn collect(&self, scrape: &mut Scrape<'_>) -> fmt::Result {
        let requests = self.0.requests.all();
        counters::<_, true>(scrape, "istio_requests", &requests, |one| &one.count)?;
        let duration = "istio_request_duration_milliseconds";
        histograms(scrape, duration, &requests, |one| one.duration.read())?;
        histograms(scrape, "istio_request_bytes", &requests, |one| {
            one.request_bytes.read()
        })?;
        histograms(scrape, "istio_response_bytes", &requests, |one| {
            one.response_bytes.read()
        })?;
        let calls: Vec<_> = requests
            .iter()
            .filter(|one| one.labels.spoken == Spoken::Grpc)
            .cloned()
            .collect();
        counters::<_, true>(scrape, "istio_request_messages", &calls, |one| {
            &one.request_messages
        })?;
        counters::<_, true>(scrape, "istio_response_messages", &calls, |one| {
            &one.response_messages
        })?;
        let streams = self.0.streams.all();
        counters::<_, false>(scrape, "istio_tcp_connections_opened", &streams, |one| {
            &one.opened
        })?;
        counters::<_, false>(scrape, "istio_tcp_connections_closed", &streams, |one| {
            &one.closed
        })?;
        counters::<_, false>(scrape, "istio_tcp_sent_bytes", &streams, |one| &one.sent)?;
        counters::<_, false>(scrape, "istio_tcp_received_bytes", &streams, |one| &one.received)?;
        let overflowed = self.0.requests.overflowed() + self.0.streams.overflowed();
        scrape.counter("tulle_waypoint_series_overflow", overflowed)
    }
}

fn counters<V, const REQUEST: bool>(
    scrape: &mut Scrape<'_>,
    name: &str,
    all: &[Arc<Series<TrafficLabels, V>>],
    get: fn(&V) -> &AtomicU64,
) -> fmt::Result
where
    for<'a> Of<'a, REQUEST>: LabelSet,
{
    let mut counter = scrape.counters(name)?;
    all.iter().try_for_each(|series| {
        let value = get(&series.value).load(Ordering::Relaxed);
        counter.counter(&Of::<REQUEST>(&series.labels), value)
    })
}

fn histograms(
    scrape: &mut Scrape<'_>,
    name: &str,
    all: &[Arc<Series<TrafficLabels, Requests>>],
    read: fn(&Requests) -> Reading,
) -> fmt::Result {
    let mut histogram = scrape.histograms(name)?;
    all.iter().try_for_each(|series| {
        let read = read(&series.value);
        histogram.histogram(&Of::<true>(&series.labels), read.sum, read.count, &read.buckets)
    })
}

/// How long the sweeper waits between two rounds.
pub const SWEEP: Duration = Duration::from_secs(60);

/// Drops series that nobody touches any more, until the process ends.
pub async fn sweep(traffic: Traffic, clock: Clock, drain: DrainWatcher) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => traffic.sweep(clock.now()),
            () = drain.over() => return,
        }
    }
}

const _: () = assert!(SWEEP.as_secs() < series::IDLE_MAX.as_secs());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::party::{Party, ServiceLabels};
    use tulle_model::testing::{service, workload};

    fn labels(code: u16) -> TrafficLabels {
        let web = workload("web").build();
        TrafficLabels {
            source: Arc::new(Party::new(Some(&web), Some(&web.identity()))),
            destination: Arc::new(Party::new(Some(&workload("db").build()), None)),
            service: Arc::new(ServiceLabels::new(Some(&service("db").build()))),
            spoken: Spoken::Http,
            code,
            grpc: None,
            flags: "-",
            mutual_tls: true,
        }
    }

    fn exported(traffic: &Traffic) -> String {
        let registry = Registry::new();
        registry.section(&SECTION).collect(traffic.clone());
        registry.encode()
    }

    #[test]
    fn a_request_moves_every_family_of_requests_once() {
        let traffic = Traffic::default();
        let sizes = Sizes {
            request_bytes: 10,
            response_bytes: 2_000,
            ..Sizes::default()
        };
        traffic.request(&labels(200), Duration::from_millis(3), &sizes, Time::ZERO);
        let text = exported(&traffic);
        let line = |start: &str| {
            text.lines()
                .find(|line| line.starts_with(start))
                .unwrap_or_else(|| panic!("{start}: {text}"))
        };
        let requests = line("istio_requests_total{reporter=\"waypoint\",source_workload=\"web\"");
        for label in [
            "source_principal=\"spiffe://cluster.local/ns/default/sa/web\"",
            "destination_workload=\"db\"",
            "destination_service=\"db.default.svc.cluster.local\"",
            "destination_service_name=\"db\"",
            "destination_service_namespace=\"default\"",
            "request_protocol=\"http\"",
            "response_code=\"200\"",
            "grpc_response_status=\"\"",
            "response_flags=\"-\"",
            "connection_security_policy=\"mutual_tls\"",
        ] {
            assert!(requests.contains(label), "{label}: {requests}");
        }
        assert!(requests.ends_with(" 1"), "{requests}");
        assert!(
            line("istio_request_duration_milliseconds_sum").ends_with(" 3.0"),
            "{text}"
        );
        assert!(
            text.contains("istio_request_duration_milliseconds_bucket{le=\"5.0\""),
            "{text}"
        );
        assert!(text.contains("le=\"+Inf\""), "{text}");
        assert!(line("istio_request_bytes_sum").ends_with(" 10.0"));
        assert!(line("istio_response_bytes_count").ends_with(" 1"));
        assert!(!text.contains("istio_request_messages_total{"), "no gRPC");
    }

    #[test]
    fn the_labels_that_are_written_are_those_that_are_said() {
        let traffic = Traffic::default();
        traffic.request(&labels(200), Duration::ZERO, &Sizes::default(), Time::ZERO);
        let of_stream = TrafficLabels {
            spoken: Spoken::Tcp,
            ..labels(0)
        };
        drop(traffic.stream(&of_stream, Time::ZERO));
        let text = exported(&traffic);
        for (family, said) in [
            ("istio_requests_total{", OfRequest::NAMES),
            ("istio_tcp_connections_opened_total{", OfStream::NAMES),
        ] {
            let line = text.lines().find_map(|line| line.strip_prefix(family)).unwrap();
            let written = line.split("\",").filter_map(|label| label.split('=').next());
            assert!(written.eq(said.iter().map(|label| label.name)), "{line}");
        }
    }

    #[test]
    fn messages_of_grpc_are_counted() {
        let traffic = Traffic::default();
        let labels = TrafficLabels {
            spoken: Spoken::Grpc,
            grpc: Some(0),
            ..labels(200)
        };
        let sizes = Sizes {
            request_messages: 3,
            response_messages: 4,
            ..Sizes::default()
        };
        traffic.request(&labels, Duration::ZERO, &sizes, Time::ZERO);
        let text = exported(&traffic);
        let count = |name: &str| {
            text.lines()
                .find(|line| line.starts_with(name))
                .unwrap()
                .rsplit(' ')
                .next()
                .unwrap()
                .to_owned()
        };
        assert_eq!(count("istio_request_messages_total{"), "3");
        assert_eq!(count("istio_response_messages_total{"), "4");
        assert!(text.contains("grpc_response_status=\"0\""));
    }

    #[test]
    fn requests_with_other_labels_are_other_series() {
        let traffic = Traffic::default();
        for code in [200, 503, 200] {
            traffic.request(&labels(code), Duration::ZERO, &Sizes::default(), Time::ZERO);
        }
        let text = exported(&traffic);
        let lines = text
            .lines()
            .filter(|line| line.starts_with("istio_requests_total{"));
        let mut counts: Vec<_> = lines.map(|line| line.rsplit(' ').next().unwrap()).collect();
        counts.sort_unstable();
        assert_eq!(counts, ["1", "2"]);
    }

    #[test]
    fn a_stream_counts_its_bytes_and_its_end() {
        let traffic = Traffic::default();
        let labels = TrafficLabels {
            spoken: Spoken::Tcp,
            ..labels(0)
        };
        let mut stream = traffic.stream(&labels, Time::ZERO);
        stream.sent(7);
        stream.received(5);
        stream.failed("UF", Time::ZERO);
        drop(stream);
        let text = exported(&traffic);
        let has = |start: &str, parts: &[&str]| {
            let mut lines = text.lines().filter(|line| line.starts_with(start));
            assert!(
                lines.any(|line| parts.iter().all(|part| line.contains(part))),
                "{start} {parts:?}: {text}"
            );
        };
        has(
            "istio_tcp_connections_opened_total{",
            &["response_flags=\"-\"", "} 1"],
        );
        has(
            "istio_tcp_connections_closed_total{",
            &["response_flags=\"UF\"", "} 1"],
        );
        has("istio_tcp_sent_bytes_total{", &["} 7"]);
        has(
            "istio_tcp_received_bytes_total{",
            &["} 5", "request_protocol=\"tcp\""],
        );
        assert!(!text.contains("tcp_sent_bytes_total{response_code"));
    }

    #[test]
    fn sources_that_nobody_describes_share_a_series_when_they_are_too_many() {
        let traffic = Traffic::default();
        for n in 0..=series::FOREIGN_MAX {
            let identity = tulle_model::Identity::new("cluster.local", format!("ns-{n}"), "x");
            let labels = TrafficLabels {
                source: Arc::new(Party::new(None, Some(&identity))),
                ..labels(200)
            };
            traffic.request(&labels, Duration::ZERO, &Sizes::default(), Time::ZERO);
        }
        let text = exported(&traffic);
        assert!(text.contains("source_workload=\"other\""));
        assert!(
            text.contains("tulle_waypoint_series_overflow_total 1"),
            "it is counted"
        );
    }
}
