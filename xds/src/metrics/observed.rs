//! Values read at each scrape from what is served, who is connected and who signs.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tulle_runtime::label_set;
use tulle_runtime::metrics::{Collect, Descriptor, Scrape, whole};

use super::{SourceLabel, TypeLabel};
use crate::ca::keeper::Keeper;
use crate::snapshot::{ResourceType, Snapshot};
use crate::status::Clients;

/// What is looked at during a scrape.
#[derive(Debug)]
pub struct Observed {
    /// What is served.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Who is connected.
    pub clients: Clients,
    /// Who signs.
    pub keeper: Arc<Keeper>,
}

label_set! {
    struct OfCertificate {
        /// `issuer`, `intermediate`, `root`
        role: &'static str,
        serial: String,
    }
}

impl Collect for Observed {
    const METRICS: &'static [Descriptor] = &[
        Descriptor::gauge(
            "tulle_xds_head_seq",
            "Number of the newest cut of the configuration, the same for all types",
        ),
        Descriptor::gauge("tulle_xds_config_generation", "Generation of the configuration"),
        Descriptor::gauge(
            "tulle_xds_config_rejected_objects",
            "Findings that refuse an object or file",
        ),
        Descriptor::gauge(
            "tulle_xds_config_stale_objects",
            "Objects of which a newer form is refused",
        ),
        Descriptor::gauge(
            "tulle_xds_source_synced",
            "1 when the source was read completely; of a folder: `folder`",
        )
        .by::<SourceLabel>(),
        Descriptor::gauge("tulle_xds_resources", "Resources served").by::<TypeLabel>(),
        Descriptor::gauge(
            "tulle_xds_stream_lag_seconds",
            "Age of the oldest change that a client has not accepted, to the millisecond",
        ),
        Descriptor::gauge(
            "tulle_xds_stream_lag_changes",
            "Resources and removals that the client furthest behind lacks",
        ),
        Descriptor::gauge(
            "citadel_server_root_cert_expiry_timestamp",
            "End of the root certificate, as a Unix timestamp",
        ),
        Descriptor::gauge(
            "citadel_server_root_cert_expiry_seconds",
            "Time until the end of the root certificate",
        ),
        Descriptor::gauge(
            "citadel_server_cert_chain_expiry_timestamp",
            "End of the issuer's certificate, as a Unix timestamp",
        ),
        Descriptor::gauge(
            "citadel_server_cert_chain_expiry_seconds",
            "Time until the end of the issuer's certificate",
        ),
        Descriptor::gauge(
            "tulle_ca_not_after_seconds",
            "Time left of each certificate in use",
        )
        .by::<OfCertificate>(),
        Descriptor::gauge(
            "tulle_ca_rotation_phase",
            "Phase of the root's rotation: 0 stable, 1 distribute, 2 switch, 3 retire",
        ),
        Descriptor::gauge(
            "tulle_ca_rotation_overdue",
            "1 while a rotation has waited past `--rotation-deadline` for absent nodes; `tulle ca rotate --force` goes \
             on without them",
        ),
        Descriptor::gauge("tulle_ca_denylist_entries", "Entries of the deny-list"),
        Descriptor::gauge(
            "tulle_ca_denylist_unlisted",
            "Denied certificates that the full deny-list has no room for: the control plane refuses them, and no proxy is told",
        ),
        Descriptor::gauge(
            "tulle_ca_log_unwritable",
            "1 while what is issued cannot be written down, as on a full disk; nothing is signed until it can",
        ),
        Descriptor::gauge(
            "tulle_ca_clock_jumps",
            "Times the system's clock jumped by more than a minute",
        ),
    ];

    fn collect(&self, scrape: &mut Scrape<'_>) -> fmt::Result {
        let snapshot = self.snapshots.borrow().clone();
        configuration(&snapshot, scrape)?;
        let lag = Lag::of(&self.clients, Instant::now());
        scrape.gauge("tulle_xds_stream_lag_seconds", lag.wait.as_secs_f64())?;
        scrape.gauge("tulle_xds_stream_lag_changes", whole(lag.changes))?;
        issuer(&self.keeper, scrape)
    }
}

fn configuration(snapshot: &Snapshot, scrape: &mut Scrape<'_>) -> fmt::Result {
    let objects = snapshot.objects();
    let rejected = objects.errors().count();
    scrape.gauge("tulle_xds_head_seq", whole(snapshot.sequence()))?;
    scrape.gauge("tulle_xds_config_generation", whole(objects.generation))?;
    scrape.gauge("tulle_xds_config_rejected_objects", whole(rejected))?;
    scrape.gauge("tulle_xds_config_stale_objects", whole(objects.stale()))?;
    let folder = SourceLabel { kind: "folder" };
    let synced = i64::from(snapshot.synced());
    scrape.gauges("tulle_xds_source_synced")?.gauge(&folder, synced)?;
    let mut resources = scrape.gauges("tulle_xds_resources")?;
    ResourceType::ALL
        .into_iter()
        .try_for_each(|ty| resources.gauge(&TypeLabel::from(ty), whole(snapshot.count(ty))))
}

fn issuer(keeper: &Keeper, scrape: &mut Scrape<'_>) -> fmt::Result {
    let certificates = keeper.certificates();
    let now = jiff::Timestamp::now().as_second();
    let first_end = |roles: &[&str]| {
        let ends = certificates.iter().filter(|one| roles.contains(&one.role));
        ends.map(|one| one.not_after).min().unwrap_or_default()
    };
    let (root, chain) = (first_end(&["root"]), first_end(&["issuer", "intermediate"]));
    scrape.gauge("citadel_server_root_cert_expiry_timestamp", root)?;
    scrape.gauge("citadel_server_root_cert_expiry_seconds", root - now)?;
    scrape.gauge("citadel_server_cert_chain_expiry_timestamp", chain)?;
    scrape.gauge("citadel_server_cert_chain_expiry_seconds", chain - now)?;
    let mut left = scrape.gauges("tulle_ca_not_after_seconds")?;
    for one in certificates {
        let (role, serial) = (one.role, one.serial);
        left.gauge(&OfCertificate { role, serial }, one.not_after - now)?;
    }
    scrape.gauge("tulle_ca_rotation_phase", keeper.phase() as i64)?;
    scrape.gauge("tulle_ca_rotation_overdue", i64::from(keeper.is_overdue()))?;
    let entries = keeper.denied.entries().len();
    scrape.gauge("tulle_ca_denylist_entries", whole(entries))?;
    let unlisted = keeper.denied.unlisted();
    scrape.gauge("tulle_ca_denylist_unlisted", whole(unlisted))?;
    scrape.gauge("tulle_ca_log_unwritable", i64::from(keeper.is_unwritten()))?;
    scrape.gauge("tulle_ca_clock_jumps", whole(keeper.clock_jumps()))
}

/// How far the client is that is furthest behind, by time and by changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Lag {
    /// Age of the oldest change that it lacks, in whole milliseconds.
    pub(crate) wait: Duration,
    /// Resources and removals that it lacks.
    pub(crate) changes: usize,
}

impl Lag {
    pub(crate) fn of(clients: &Clients, now: Instant) -> Self {
        let clients = clients.list(now);
        let types = clients.iter().flat_map(|client| client.types.values());
        types.fold(Self::default(), |most, ty| Self {
            wait: most.wait.max(Duration::from_millis(ty.lag_ms)),
            changes: most.changes.max(ty.behind),
        })
    }
}
