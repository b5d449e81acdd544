//! The labels of a connection's series, as Istio's dashboards know them. What is not known is `unknown`.

use std::fmt;
use std::sync::{Arc, LazyLock};

use prometheus_client::encoding::{
    EncodeLabel, EncodeLabelSet, EncodeLabelValue, LabelSetEncoder, LabelValueEncoder,
};
use tulle_model::reason::ResponseFlag;
use tulle_model::workload::Workload;
use tulle_model::{Identity, Service, Str};
use tulle_runtime::label_set;
use tulle_runtime::metrics::{Label, LabelNames, LabelSet};

use super::series::Overflow;
use super::shared::{Made, Shared};

/// Which end of the connection this proxy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The client's end; label `reporter="source"`.
    Outbound,
    /// The server's end; label `reporter="destination"`.
    Inbound,
}

impl Direction {
    /// As the access log and Tulle's own labels say it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }

    /// As Istio's label `reporter` says it.
    #[must_use]
    pub fn reporter(self) -> &'static str {
        match self {
            Self::Outbound => "source",
            Self::Inbound => "destination",
        }
    }
}

impl EncodeLabelValue for Direction {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.as_str().encode(encoder)
    }
}

/// Which end reports, as the label `reporter` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reporter(pub Direction);

impl EncodeLabelValue for Reporter {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.0.reporter().encode(encoder)
    }
}

/// One end of a connection, described for telemetry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Party {
    /// Name of the pod; not a label, the access log has it.
    pub pod: Option<Str>,
    /// Name of the owner.
    pub workload: Option<Str>,
    /// Canonical service.
    pub canonical_service: Option<Str>,
    /// Canonical revision.
    pub canonical_revision: Option<Str>,
    /// Namespace.
    pub namespace: Option<Str>,
    /// Identity proven by mutual TLS.
    pub principal: Option<Identity>,
    /// Cluster.
    pub cluster: Option<Str>,
    /// Region.
    pub region: Option<Str>,
    /// Zone.
    pub zone: Option<Str>,
}

/// Empty text is no text.
fn known(text: &Str) -> Option<Str> {
    (!text.is_empty()).then(|| text.clone())
}

impl Party {
    /// What the control plane knows of a workload. The principal is left out: only a handshake proves it.
    #[must_use]
    pub fn of(workload: &Workload) -> Self {
        Self {
            pod: known(&workload.name),
            workload: known(&workload.workload_name),
            canonical_service: known(&workload.canonical_name),
            canonical_revision: known(&workload.canonical_revision),
            namespace: known(&workload.namespace),
            principal: None,
            cluster: known(&workload.cluster_id),
            region: known(&workload.locality.region),
            zone: known(&workload.locality.zone),
        }
    }

    /// The party of what exceeds the bound.
    fn overflow() -> Self {
        Self {
            pod: None,
            workload: overflow(),
            canonical_service: overflow(),
            canonical_revision: overflow(),
            namespace: overflow(),
            principal: None,
            cluster: overflow(),
            region: None,
            zone: None,
        }
    }

    /// The same party with a proven identity.
    #[must_use]
    pub fn proven(mut self, identity: Option<Identity>) -> Self {
        self.principal = identity;
        self
    }
}

/// The service a connection is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ServiceLabels {
    /// Host name.
    pub hostname: Option<Str>,
    /// Namespace.
    pub namespace: Option<Str>,
    /// Short name.
    pub name: Option<Str>,
}

impl ServiceLabels {
    /// The labels of a service.
    #[must_use]
    pub fn of(service: &Service) -> Self {
        Self {
            hostname: known(&service.hostname),
            namespace: known(&service.namespace),
            name: known(&service.name),
        }
    }
}

static NOBODY: LazyLock<Shared<Party>> = LazyLock::new(|| Party::default().into());

static NO_SERVICE: LazyLock<Shared<ServiceLabels>> = LazyLock::new(|| ServiceLabels::default().into());

/// Nothing is known.
impl Default for Shared<Party> {
    fn default() -> Self {
        Self::clone(&NOBODY)
    }
}

/// None was named.
impl Default for Shared<ServiceLabels> {
    fn default() -> Self {
        Self::clone(&NO_SERVICE)
    }
}

/// The labels of what the mesh describes, made once for each workload and service.
#[derive(Debug, Clone, Default)]
pub struct Described {
    parties: Made<Workload, bool, Party>,
    services: Made<Service, (), ServiceLabels>,
}

impl Described {
    /// A workload, and the identity that was proven of it, if one was.
    #[must_use]
    pub fn party(&self, workload: &Arc<Workload>, proven: Option<Identity>) -> Shared<Party> {
        match proven {
            None => self.parties.of(workload, false, Party::of),
            Some(own) if own == workload.identity() => self
                .parties
                .of(workload, true, |workload| Party::of(workload).proven(Some(own))),
            other => Party::of(workload).proven(other).into(),
        }
    }

    /// A service.
    #[must_use]
    pub fn service(&self, service: &Arc<Service>) -> Shared<ServiceLabels> {
        self.services.of(service, (), ServiceLabels::of)
    }

    /// Forgets what the mesh describes otherwise now.
    pub fn sweep(&self) {
        self.parties.sweep();
        self.services.sweep();
    }
}

/// Every label of the `istio_tcp_*` families.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrafficLabels {
    /// Which end reports.
    pub direction: Direction,
    /// The client.
    pub source: Shared<Party>,
    /// The server.
    pub destination: Shared<Party>,
    /// The service, if the client named one.
    pub service: Shared<ServiceLabels>,
    /// How it ended; `-` while nothing is wrong.
    pub flag: ResponseFlag,
    /// Whether both ends were proven by mutual TLS.
    pub mutual_tls: bool,
}

impl TrafficLabels {
    /// The one series of a direction that takes what exceeds the bound.
    #[must_use]
    pub fn overflowed(direction: Direction) -> Self {
        Self {
            direction,
            source: Party::overflow().into(),
            destination: Party::overflow().into(),
            service: Shared::new(ServiceLabels {
                hostname: overflow(),
                namespace: overflow(),
                name: overflow(),
            }),
            flag: ResponseFlag::None,
            mutual_tls: false,
        }
    }
}

impl Overflow for TrafficLabels {
    fn overflow(&self) -> Self {
        Self::overflowed(self.direction)
    }
}

/// The labels of a host name that was looked up for a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NameLabels {
    /// The client.
    pub source: Shared<Party>,
    /// The name.
    pub hostname: Str,
}

impl Overflow for NameLabels {
    fn overflow(&self) -> Self {
        Self {
            source: Party::overflow().into(),
            hostname: Str::clone(&OVERFLOW_TEXT),
        }
    }
}

impl EncodeLabelSet for NameLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let mut labels = Labels {
            encoder,
            prefix: "source_",
        };
        labels.party(&self.source)?;
        labels.prefix = "";
        labels.text("hostname", &self.hostname)
    }
}

fn overflow() -> Option<Str> {
    Some(Str::clone(&OVERFLOW_TEXT))
}

const UNKNOWN: &str = "unknown";

static OVERFLOW_TEXT: LazyLock<Str> = LazyLock::new(|| Arc::from("overflow"));

static UNKNOWN_TEXT: LazyLock<Str> = LazyLock::new(|| Arc::from(UNKNOWN));

/// Writes labels with one prefix.
struct Labels<'a, 'b> {
    encoder: &'a mut LabelSetEncoder<'b>,
    prefix: &'static str,
}

impl Labels<'_, '_> {
    fn text(&mut self, name: &str, value: &str) -> fmt::Result {
        (format!("{}{name}", self.prefix).as_str(), value).encode(self.encoder.encode_label())
    }

    fn optional(&mut self, name: &str, value: Option<&Str>) -> fmt::Result {
        self.text(name, value.unwrap_or(&UNKNOWN_TEXT))
    }

    fn party(&mut self, party: &Party) -> fmt::Result {
        self.optional("workload", party.workload.as_ref())?;
        self.optional("canonical_service", party.canonical_service.as_ref())?;
        self.optional("canonical_revision", party.canonical_revision.as_ref())?;
        self.optional("workload_namespace", party.namespace.as_ref())?;
        match &party.principal {
            Some(identity) => self.text("principal", &identity.to_string())?,
            None => self.text("principal", UNKNOWN)?,
        }
        self.optional("app", party.canonical_service.as_ref())?;
        self.optional("version", party.canonical_revision.as_ref())?;
        self.optional("cluster", party.cluster.as_ref())?;
        for (name, value) in [("region", &party.region), ("zone", &party.zone)] {
            if let Some(value) = value {
                self.text(name, value)?;
            }
        }
        Ok(())
    }
}

impl EncodeLabelSet for TrafficLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let mut labels = Labels { encoder, prefix: "" };
        labels.text("reporter", self.direction.reporter())?;
        labels.prefix = "source_";
        labels.party(&self.source)?;
        labels.prefix = "destination_";
        labels.optional("service", self.service.hostname.as_ref())?;
        labels.optional("service_namespace", self.service.namespace.as_ref())?;
        labels.optional("service_name", self.service.name.as_ref())?;
        labels.party(&self.destination)?;
        labels.prefix = "";
        labels.text("request_protocol", "tcp")?;
        labels.text("response_flags", self.flag.as_str())?;
        let security = if self.mutual_tls { "mutual_tls" } else { UNKNOWN };
        labels.text("connection_security_policy", security)
    }
}

label_set! {
    /// Labels of counters of this proxy's refusals.
    pub struct RefusalLabels {
        /// [the stable code](errors.md)
        pub code: &'static str,
        /// its token
        pub reason: &'static str,
        /// `outbound`, `inbound`
        pub direction: Direction,
    }
}

label_set! {
    /// Labels of counters of peers' refusals.
    pub struct PeerRefusalLabels {
        /// [the stable code](errors.md)
        pub code: &'static str,
        /// its token
        pub reason: &'static str,
    }
}

label_set! {
    /// The label `reporter` alone.
    pub struct ReporterLabel {
        /// `source`, `destination`
        pub reporter: Reporter,
    }
}

impl From<Direction> for ReporterLabel {
    fn from(direction: Direction) -> Self {
        Self {
            reporter: Reporter(direction),
        }
    }
}

label_set! {
    /// The label `direction` alone.
    pub struct DirectionLabel {
        /// `outbound`, `inbound`
        pub direction: Direction,
    }
}

impl From<Direction> for DirectionLabel {
    fn from(direction: Direction) -> Self {
        Self { direction }
    }
}

/// The labels that [`Labels::party`] writes with this prefix.
macro_rules! party {
    ($prefix:literal) => {
        &[
            Label::new(concat!($prefix, "workload")),
            Label::new(concat!($prefix, "canonical_service")),
            Label::new(concat!($prefix, "canonical_revision")),
            Label::new(concat!($prefix, "workload_namespace")),
            Label::new(concat!($prefix, "principal")),
            Label::new(concat!($prefix, "app")),
            Label::new(concat!($prefix, "version")),
            Label::new(concat!($prefix, "cluster")),
            Label::says(concat!($prefix, "region"), "where they are known"),
            Label::says(concat!($prefix, "zone"), "where they are known"),
        ]
    };
}

impl LabelSet for TrafficLabels {
    const NAMES: LabelNames = LabelNames {
        of: "traffic",
        groups: &[
            &[Label::says(
                "reporter",
                "`source` at the client's proxy, `destination` at the server's",
            )],
            party!("source_"),
            &[
                Label::new("destination_service"),
                Label::new("destination_service_namespace"),
                Label::new("destination_service_name"),
            ],
            party!("destination_"),
            &[
                Label::says("request_protocol", "`tcp`"),
                Label::says("response_flags", "`-`, or the flag of [the reason](errors.md)"),
                Label::says("connection_security_policy", "`mutual_tls` or `unknown`"),
            ],
        ],
    };
}

impl LabelSet for NameLabels {
    const NAMES: LabelNames = LabelNames {
        of: "looked up names",
        groups: &[party!("source_"), &[Label::new("hostname")]],
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family;
    use std::hash::Hash;
    use tulle_runtime::metrics::{Registry, Section};

    const SECTION: Section = Section {
        title: "Labels",
        about: "",
    };

    /// What is written of a set, and what is said of it.
    fn check<S>(labels: &S)
    where
        S: LabelSet + EncodeLabelSet + Clone + Eq + Hash + fmt::Debug + Send + Sync + 'static,
    {
        let registry = Registry::new();
        let family: Family<S, Counter> =
            registry
                .section(&SECTION)
                .register("labelled", "Labelled", Family::default());
        family.get_or_create(labels).inc();
        let text = registry.encode();
        let written = text.split('{').nth(1).and_then(|rest| rest.split('}').next());
        let written = written.unwrap_or_default().split(',');
        let written: Vec<_> = written.filter_map(|label| label.split('=').next()).collect();
        let said: Vec<_> = S::NAMES.iter().map(|label| label.name).collect();
        assert_eq!(written, said);
    }

    #[test]
    fn the_labels_of_traffic_are_those_that_are_said() {
        let party = Party {
            region: Some("north".into()),
            zone: Some("a".into()),
            ..Party::default()
        };
        let source = Shared::new(party);
        check(&NameLabels {
            source: source.clone(),
            hostname: "db".into(),
        });
        check(&TrafficLabels {
            source: source.clone(),
            destination: source,
            ..TrafficLabels::overflowed(Direction::Inbound)
        });
    }
}
