//! Values read at each scrape from what is served, who is connected and who signs.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::sync::watch;

use super::TypeLabel;
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

impl Collector for Observed {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let snapshot = self.snapshots.borrow().clone();
        self.configuration(&snapshot, &mut encoder)?;
        let lag = Lag::of(&self.clients, Instant::now());
        let help = "Longest wait of a client's answer";
        gauge(
            &mut encoder,
            "tulle_xds_stream_lag_seconds",
            help,
            lag.wait.as_secs_f64(),
        )?;
        let help = "Changes that the client furthest behind lacks";
        let changes = i64::try_from(lag.changes).unwrap_or(i64::MAX);
        gauge(&mut encoder, "tulle_xds_stream_lag_changes", help, changes)?;
        self.issuer(&mut encoder)
    }
}

impl Observed {
    fn configuration(&self, snapshot: &Snapshot, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let (objects, count) = (snapshot.objects(), |count: usize| {
            i64::try_from(count).unwrap_or(i64::MAX)
        });
        let sequence = i64::try_from(snapshot.sequence()).unwrap_or(i64::MAX);
        gauge(
            encoder,
            "tulle_xds_head_seq",
            "Number of the newest cut",
            sequence,
        )?;
        let generation = i64::try_from(objects.generation).unwrap_or(i64::MAX);
        gauge(
            encoder,
            "tulle_xds_config_generation",
            "Generation of the configuration",
            generation,
        )?;
        let help = "Findings that refuse an object or file";
        gauge(
            encoder,
            "tulle_xds_config_rejected_objects",
            help,
            count(objects.errors().count()),
        )?;
        let help = "Objects of which a newer form is refused";
        gauge(
            encoder,
            "tulle_xds_config_stale_objects",
            help,
            count(objects.stale()),
        )?;
        let help = "Whether the sources were read completely";
        let mut family =
            encoder.encode_descriptor("tulle_xds_source_synced", help, None, MetricType::Gauge)?;
        let synced = ConstGauge::new(i64::from(snapshot.synced()));
        synced.encode(family.encode_family(&[("kind", "folder")])?)?;
        let help = "Resources served";
        let mut family = encoder.encode_descriptor("tulle_xds_resources", help, None, MetricType::Gauge)?;
        for ty in ResourceType::ALL {
            let value = ConstGauge::new(count(snapshot.count(ty)));
            value.encode(family.encode_family(&TypeLabel::from(ty))?)?;
        }
        Ok(())
    }

    fn issuer(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let certificates = self.keeper.certificates();
        let now = jiff::Timestamp::now().as_second();
        let first_end = |roles: &[&str]| {
            let ends = certificates.iter().filter(|one| roles.contains(&one.role));
            ends.map(|one| one.not_after).min().unwrap_or_default()
        };
        for (what, help, end) in [
            ("root_cert", "End of the root certificate", first_end(&["root"])),
            (
                "cert_chain",
                "End of the issuer's certificate",
                first_end(&["issuer", "intermediate"]),
            ),
        ] {
            let name = |unit: &str| format!("citadel_server_{what}_expiry_{unit}");
            gauge(encoder, &name("timestamp"), help, end)?;
            gauge(encoder, &name("seconds"), help, end - now)?;
        }
        let help = "Time left of each certificate in use";
        let mut family =
            encoder.encode_descriptor("tulle_ca_not_after_seconds", help, None, MetricType::Gauge)?;
        for one in certificates {
            let labels = [("role", one.role.to_owned()), ("serial", one.serial)];
            ConstGauge::new(one.not_after - now).encode(family.encode_family(&labels)?)?;
        }
        let help = "Phase of the root's rotation: 0 stable, 1 distribute, 2 switch, 3 retire";
        gauge(
            encoder,
            "tulle_ca_rotation_phase",
            help,
            self.keeper.phase() as i64,
        )?;
        gauge(
            encoder,
            "tulle_ca_rotation_overdue",
            "Whether the rotation has waited past its deadline",
            i64::from(self.keeper.is_overdue()),
        )?;
        let entries = i64::try_from(self.keeper.denied.entries().len()).unwrap_or(i64::MAX);
        gauge(
            encoder,
            "tulle_ca_denylist_entries",
            "Entries of the deny-list",
            entries,
        )?;
        gauge(
            encoder,
            "tulle_ca_log_unwritable",
            "Whether what is issued cannot be written down, so that nothing is signed",
            i64::from(self.keeper.is_unwritten()),
        )?;
        let jumps = i64::try_from(self.keeper.clock_jumps()).unwrap_or(i64::MAX);
        gauge(
            encoder,
            "tulle_ca_clock_jumps",
            "Times the system's clock jumped",
            jumps,
        )
    }
}

/// How far the client is that is furthest behind, by time and by changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Lag {
    /// How long its oldest unanswered response waits, in whole milliseconds.
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

fn gauge(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    value: impl EncodeGaugeValue,
) -> fmt::Result {
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(metric)
}
