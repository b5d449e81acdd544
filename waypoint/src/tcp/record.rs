//! One stream of bytes as it goes: counted when it begins, as it moves, and when it ends, and told once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use tulle_model::{Reason, Str};
use tulle_transport::Transfer;

use super::Reached;
use crate::clock::Time;
use crate::context::Waypoint;
use crate::listener::arrival::Arrival;
use crate::snapshot::Snapshot;
use crate::telemetry::access::Entry;
use crate::telemetry::labels::{Spoken, TrafficLabels};
use crate::telemetry::party::{Party, ServiceLabels};
use crate::telemetry::request_id::fresh;
use crate::telemetry::requests::OpenStream;
use crate::upstream::backend::Backend;

/// What is known of one stream.
pub(super) struct Record<'a> {
    waypoint: &'a Waypoint,
    arrival: &'a Arrival,
    source: Arc<Party>,
    server_name: Option<String>,
    route: Option<Str>,
    generation: u64,
    on_trial: AtomicBool,
    started: SystemTime,
    begun: Time,
}

/// A stream that reached an endpoint.
pub(super) struct Carried {
    open: OpenStream,
    backend: String,
    upstream: SocketAddr,
    local: Option<SocketAddr>,
    attempts: u32,
    sent: u64,
    received: u64,
}

impl Carried {
    /// Counts what has moved since the last time.
    pub(super) fn count(&mut self, transfer: &Transfer) {
        // The client is the near end of the copy: what it sent is what was received here.
        let (received, sent) = (transfer.sent(), transfer.received());
        self.open.received(received.saturating_sub(self.received));
        self.open.sent(sent.saturating_sub(self.sent));
        (self.received, self.sent) = (received, sent);
    }
}

impl<'a> Record<'a> {
    pub(super) fn begin(
        waypoint: &'a Waypoint,
        arrival: &'a Arrival,
        snapshot: &Snapshot,
        server_name: Option<String>,
    ) -> Self {
        let identity = arrival.source.identity.as_ref();
        Self {
            waypoint,
            arrival,
            source: Arc::new(Party::new(arrival.workload.as_deref(), identity)),
            server_name,
            route: None,
            generation: snapshot.mesh.generation(),
            on_trial: AtomicBool::new(false),
            started: SystemTime::now(),
            begun: waypoint.clock.now(),
        }
    }

    /// Its rule was found.
    pub(super) fn routed(&mut self, route: Option<&Str>) {
        self.route = route.cloned();
    }

    /// Is set where a policy on trial would have refused it.
    pub(super) fn on_trial(&self) -> &AtomicBool {
        &self.on_trial
    }

    /// An endpoint was reached: the stream is open.
    pub(super) fn opened(&self, reached: &Reached) -> Carried {
        let (backend, endpoint) = (&*reached.backend, reached.held.0.endpoint());
        let labels = TrafficLabels {
            destination: Arc::clone(&endpoint.party),
            mutual_tls: endpoint.is_tunnelled(),
            ..self.labels(backend, "-")
        };
        Carried {
            open: self.waypoint.metrics.traffic.stream(&labels, self.begun),
            backend: backend.key.told(),
            upstream: reached.address,
            local: reached.opened.local(),
            attempts: reached.attempts,
            sent: 0,
            received: 0,
        }
    }

    /// The stream has ended; with a reason if not by its two sides.
    pub(super) fn ended(&self, mut carried: Carried, reason: Option<Reason>) {
        if let Some(reason) = reason {
            carried
                .open
                .failed(reason.answer().flag, self.waypoint.clock.now());
        }
        self.write(Entry {
            reason,
            received: carried.received,
            sent: carried.sent,
            upstream_cluster: Some(&carried.backend),
            upstream_host: Some(carried.upstream),
            upstream_local: carried.local,
            attempts: carried.attempts,
            ..Entry::default()
        });
    }

    /// No endpoint was reached, or none was to be: it began and ended at once.
    pub(super) fn refused(&self, backend: &Backend, reason: Reason, policy: Option<&str>) {
        let labels = self.labels(backend, reason.answer().flag);
        drop(self.waypoint.metrics.traffic.stream(&labels, self.begun));
        self.write(Entry {
            reason: Some(reason),
            policy,
            upstream_cluster: Some(&backend.key.told()),
            ..Entry::default()
        });
    }

    fn labels(&self, backend: &Backend, flags: &'static str) -> TrafficLabels {
        let cluster = backend.cluster();
        TrafficLabels {
            source: Arc::clone(&self.source),
            destination: Party::nobody(),
            service: cluster.map_or_else(ServiceLabels::nothing, |cluster| Arc::clone(cluster.labels())),
            spoken: Spoken::Tcp,
            code: 0,
            grpc: None,
            flags,
            mutual_tls: false,
        }
    }

    /// Writes the access line, if the settings want one.
    fn write(&self, outcome: Entry<'_>) {
        let waypoint = self.waypoint;
        let Some(log) = &waypoint.log else { return };
        let outcome = Entry {
            flag: outcome.reason.map_or("-", |reason| reason.answer().flag),
            ..outcome
        };
        let settings = Arc::clone(&waypoint.view.load().settings);
        if !outcome.is_wanted(settings.telemetry.access_log) {
            return;
        }
        let (arrival, id) = (self.arrival, fresh(rand::random()));
        let line = Entry {
            start: Some(self.started),
            duration: waypoint.clock.now().since(self.begun),
            downstream_local: Some(arrival.destination.address),
            downstream_remote: Some(SocketAddr::new(arrival.source.ip, arrival.peer_address.port())),
            server_name: self.server_name.as_deref(),
            route: self.route.as_deref(),
            dry_run_denied: self.on_trial.load(Ordering::Relaxed),
            source_principal: Some(&self.source.principal),
            source_workload: Some(&self.source.workload),
            source_namespace: Some(&self.source.namespace),
            id: id.to_str().ok(),
            generation: self.generation,
            ..outcome
        };
        log.access(line.line(settings.telemetry.json));
    }
}
