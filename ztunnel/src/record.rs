//! The story of one connection: what is learned of it phase by phase, and the line and the counts it ends in.

#[cfg(feature = "otlp")]
pub mod otlp;

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU128;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tulle_model::reason::ResponseFlag;
use tulle_model::{Identity, NamespacedName, Reason, Service, Str, Workload};
use tulle_transport::TraceParent;

use crate::error::Error;
use crate::events::Event;
use crate::metrics::Metrics;
use crate::metrics::labels::{Direction, Party, ServiceLabels, TrafficLabels};
use crate::metrics::shared::Shared;

/// One access line; the keys and their order are those of istio ztunnel, then ours.
macro_rules! access {
    ($level:ident, $story:expr, $fields:expr, $message:literal) => {
        tracing::event!(
            target: "access",
            parent: None,
            tracing::Level::$level,
            src.addr = %$story.source_address,
            src.workload = $story.source.pod.as_deref().or($story.source.workload.as_deref()),
            src.namespace = $story.source.namespace.as_deref(),
            src.identity = $fields.source_identity.as_deref(),
            src.cluster = $story.source.cluster.as_deref(),
            dst.addr = %$story.destination_address,
            dst.hbone_addr = $story.authority.as_deref(),
            dst.service = $story.service.hostname.as_deref(),
            dst.workload = $story.destination.pod.as_deref().or($story.destination.workload.as_deref()),
            dst.namespace = $story.destination.namespace.as_deref(),
            dst.identity = $fields.destination_identity.as_deref(),
            dst.cluster = $story.destination.cluster.as_deref(),
            direction = $story.direction.as_str(),
            bytes_sent = $fields.sent,
            bytes_recv = $fields.received,
            duration = $fields.duration,
            error = $fields.error.as_deref(),
            reason = $fields.reason.as_deref(),
            policy = $fields.policy.as_deref(),
            id = %$story.id,
            generation = $story.generation,
            trace_id = $fields.trace.as_deref(),
            $message
        )
    };
}

/// A name for one connection, unique enough to find its line; written as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(u64);

impl ConnectionId {
    /// A fresh name.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The trace that a tunnelled connection is part of, as its two ends name it; written as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(NonZeroU128);

impl TraceId {
    /// The one of a tunnel request; a fresh one if the request names none that can be used.
    #[must_use]
    pub fn of(request: Option<TraceParent>) -> Self {
        let id = |request: TraceParent| NonZeroU128::new(request.trace_id);
        let named = request.and_then(id).or_else(|| id(TraceParent::random()));
        Self(named.unwrap_or(NonZeroU128::MIN))
    }

    /// What the next tunnel request of it says: a step of its own within the trace.
    #[must_use]
    pub fn step(self) -> TraceParent {
        TraceParent {
            trace_id: self.0.get(),
            ..TraceParent::random()
        }
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What is known of a connection so far.
#[derive(Debug, Clone)]
pub struct Story {
    /// Its name.
    pub id: ConnectionId,
    /// Which end this proxy is.
    pub direction: Direction,
    /// When it was accepted.
    pub started: Instant,
    /// Address of the client.
    pub source_address: SocketAddr,
    /// Where the bytes go: the next hop outbound, the application inbound.
    pub destination_address: SocketAddr,
    /// What the tunnel asks for; `None` without a tunnel.
    pub authority: Option<String>,
    /// The client.
    pub source: Shared<Party>,
    /// The server.
    pub destination: Shared<Party>,
    /// The service the client named.
    pub service: Shared<ServiceLabels>,
    /// Whether both ends were proven by mutual TLS.
    pub mutual_tls: bool,
    /// The trace its tunnel request names; `None` without a tunnel.
    pub trace: Option<TraceId>,
    /// The policy that let it pass.
    pub policy: Option<NamespacedName>,
    /// Generation of the configuration it was decided on.
    pub generation: u64,
    /// A next hop, or an application, was chosen: from here on a failure is the end of a connection and no longer
    /// an early refusal.
    pub planned: bool,
}

/// Bytes of a connection, by direction of flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bytes {
    /// From the client towards the server.
    pub from_client: u64,
    /// From the server towards the client.
    pub to_client: u64,
}

impl Story {
    /// The beginning: a connection was accepted.
    #[must_use]
    pub fn begin(direction: Direction, source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            id: ConnectionId::random(),
            direction,
            started: Instant::now(),
            source_address: source,
            destination_address: destination,
            authority: None,
            source: Shared::default(),
            destination: Shared::default(),
            service: Shared::default(),
            mutual_tls: false,
            trace: None,
            policy: None,
            generation: 0,
            planned: false,
        }
    }

    /// Learns the client's workload, of which nothing is proven yet.
    pub fn source_is(&mut self, metrics: &Metrics, workload: &Arc<Workload>) {
        self.source = metrics.described.party(workload, None);
    }

    /// Learns the server's workload, of which nothing is proven yet.
    pub fn destination_is(&mut self, metrics: &Metrics, workload: &Arc<Workload>) {
        self.destination = metrics.described.party(workload, None);
    }

    /// Learns who the client has proven to be, and nothing else.
    pub fn source_proved(&mut self, identity: Identity) {
        self.source = Party::default().proven(Some(identity)).into();
    }

    /// The trace that its tunnel requests name, however many are tried.
    pub fn traced(&mut self) -> TraceId {
        *self.trace.get_or_insert_with(|| TraceId::of(None))
    }

    /// Learns the service the client named.
    pub fn service_is(&mut self, metrics: &Metrics, service: &Arc<Service>) {
        self.service = metrics.described.service(service);
    }

    /// The labels of its series.
    #[must_use]
    pub fn labels(&self, flag: ResponseFlag) -> TrafficLabels {
        TrafficLabels {
            direction: self.direction,
            source: self.source.clone(),
            destination: self.destination.clone(),
            service: self.service.clone(),
            flag,
            mutual_tls: self.mutual_tls,
        }
    }

    /// Ends a connection that never opened: one line, and the counts of its reason.
    pub fn fail(&self, metrics: &Metrics, error: &Error) {
        self.count_failure(metrics, error);
        if self.planned {
            self.line(metrics, Line::Failed, Bytes::default(), Some(error));
        } else {
            self.line(metrics, Line::Refused, Bytes::default(), Some(error));
        }
    }

    /// Says that bytes may flow.
    pub fn opened(&self, metrics: &Metrics) {
        self.line(metrics, Line::Opened, Bytes::default(), None);
    }

    /// Ends a connection that was open.
    pub fn complete(&self, metrics: &Metrics, bytes: Bytes, error: Option<&Error>) {
        match error {
            None => self.line(metrics, Line::Complete, bytes, None),
            Some(error) => {
                self.count_failure(metrics, error);
                self.line(metrics, Line::Failed, bytes, Some(error));
            }
        }
    }

    /// Every refusal of ours counts as denied, every refusal of a peer as refused; both count as failed.
    fn count_failure(&self, metrics: &Metrics, error: &Error) {
        if error.flag() != ResponseFlag::None {
            metrics.count_failed(self.labels(error.flag()));
        }
        let Some(reason) = error.reason() else { return };
        match error {
            _ if error.refused_by_peer().is_some() => metrics.count_refused(reason),
            // Open when its certificate was revoked; that was counted with its tunnel.
            Error::Broken(_) if reason == Reason::CertRevoked => metrics.count_denied(reason, self.direction),
            Error::Broken(_) | Error::Drained => {}
            _ => {
                if matches!(reason, Reason::CertRevoked | Reason::CrlStale) {
                    metrics.count_crl_rejection(self.direction);
                }
                metrics.count_denied(reason, self.direction);
            }
        }
    }

    /// Nothing is made for nobody: most lines of connections that open are kept out by the filter.
    fn line(&self, metrics: &Metrics, line: Line, bytes: Bytes, error: Option<&Error>) {
        if !line.is_logged() && !metrics.events.is_watched() && !is_exported(metrics, &line) {
            return;
        }
        let fields = Fields::of(self, bytes, error);
        metrics.events.tell(|| self.event(&line, &fields));
        #[cfg(feature = "otlp")]
        if let Some(exporter) = metrics.exporter.as_ref().filter(|_| line.is_exported()) {
            exporter.offer(self, &line, &fields);
        }
        match line {
            Line::Opened => access!(DEBUG, self, fields, "connection opened"),
            Line::Complete => access!(INFO, self, fields, "connection complete"),
            Line::Failed => access!(ERROR, self, fields, "connection complete"),
            Line::Refused => access!(WARN, self, fields, "connection failed"),
        }
    }
}

impl Story {
    /// The same as the line, for those who watch.
    fn event(&self, line: &Line, fields: &Fields) -> Event {
        let workload = |party: &Party| party.pod.as_ref().or(party.workload.as_ref()).map(text);
        Event {
            event: line.event(),
            id: self.id.to_string(),
            direction: self.direction.as_str(),
            src: self.source_address.to_string(),
            dst: self.destination_address.to_string(),
            authority: self.authority.clone(),
            source_workload: workload(&self.source),
            source_namespace: self.source.namespace.as_ref().map(text),
            destination_workload: workload(&self.destination),
            destination_namespace: self.destination.namespace.as_ref().map(text),
            service: self.service.hostname.as_ref().map(text),
            mutual_tls: self.mutual_tls,
            bytes_sent: fields.sent,
            bytes_recv: fields.received,
            duration_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            error: fields.error.clone(),
            reason: fields.reason.clone(),
            policy: fields.policy.clone(),
        }
    }
}

fn text(text: &Str) -> String {
    text.to_string()
}

/// Which line.
enum Line {
    Opened,
    Complete,
    Failed,
    Refused,
}

#[cfg(feature = "otlp")]
fn is_exported(metrics: &Metrics, line: &Line) -> bool {
    metrics.exporter.is_some() && line.is_exported()
}

#[cfg(not(feature = "otlp"))]
fn is_exported(_: &Metrics, _: &Line) -> bool {
    false
}

impl Line {
    /// Whether the filter lets it through.
    fn is_logged(&self) -> bool {
        use tracing::{Level, enabled};
        match self {
            Self::Opened => enabled!(target: "access", Level::DEBUG),
            Self::Complete => enabled!(target: "access", Level::INFO),
            Self::Failed => enabled!(target: "access", Level::ERROR),
            Self::Refused => enabled!(target: "access", Level::WARN),
        }
    }

    fn event(&self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Complete => "closed",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

/// Texts of a line that have to be made first.
struct Fields {
    source_identity: Option<String>,
    destination_identity: Option<String>,
    sent: u64,
    received: u64,
    duration: String,
    error: Option<String>,
    reason: Option<String>,
    policy: Option<String>,
    trace: Option<String>,
}

impl Fields {
    fn of(story: &Story, bytes: Bytes, error: Option<&Error>) -> Self {
        // Seen from the local pod: the client sends outbound, the server sends inbound.
        let (sent, received) = match story.direction {
            Direction::Outbound => (bytes.from_client, bytes.to_client),
            Direction::Inbound => (bytes.to_client, bytes.from_client),
        };
        let proven = |party: &Party| {
            let identity = party.principal.as_ref().filter(|_| story.mutual_tls)?;
            Some(identity.to_string())
        };
        let allowed_by = || story.policy.as_ref().map(ToString::to_string);
        Self {
            source_identity: proven(&story.source),
            destination_identity: proven(&story.destination),
            sent,
            received,
            duration: milliseconds(story.started.elapsed()),
            error: error.map(ToString::to_string),
            reason: error.and_then(Error::reason).map(|reason| reason.to_string()),
            policy: error.map_or_else(allowed_by, Error::policy),
            trace: story.trace.map(|trace| trace.to_string()),
        }
    }
}

fn milliseconds(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

#[cfg(test)]
mod tests;
