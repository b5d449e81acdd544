//! Counters of the stream, and gauges of the configuration's state that are read when asked for.

use std::fmt;

use prometheus_client::encoding::EncodeLabelValue;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tulle_proto::discovery::DeltaDiscoveryResponse;
use tulle_runtime::label_set;
use tulle_runtime::metrics::{Collect, Descriptor, Registry, Scrape, Section, whole};

use crate::resource::ResourceType;
use crate::state::MeshState;

const SECTION: Section = Section {
    title: "Configuration from the control plane",
    about: "",
};

/// What the client counts.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    messages: Family<Url, Counter>,
    bytes: Family<Url, Counter>,
    terminations: Family<Termination, Counter>,
}

/// Why a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum TerminationReason {
    /// It could not be opened.
    ConnectionError,
    /// It was broken off.
    Error,
    /// The server ended it in order; the client comes back.
    Reconnect,
    /// The client ended it.
    Complete,
}

label_set! {
    struct Url {
        /// type of resource
        url: &'static str,
    }
}

label_set! {
    struct Termination {
        /// `ConnectionError`, `Error`, `Reconnect`, `Complete`
        reason: TerminationReason,
    }
}

impl Metrics {
    /// Registers the counters, and the gauges of `state`.
    #[must_use]
    pub fn register(registry: &Registry, state: &MeshState) -> Self {
        let section = registry.section(&SECTION);
        let metrics = Self {
            messages: section.register("istio_xds_message", "Responses received", Family::default()),
            bytes: section.register(
                "istio_xds_message_bytes",
                "Size of the resources received",
                Family::default(),
            ),
            terminations: section.register(
                "istio_xds_connection_terminations",
                "Streams to the control plane that ended",
                Family::default(),
            ),
        };
        section.collect(StateGauges { state: state.clone() });
        metrics
    }

    pub(crate) fn received(&self, response: &DeltaDiscoveryResponse) {
        // The server's own words would be labels without bound.
        let url = ResourceType::from_type_url(&response.type_url).map_or("unknown", ResourceType::type_url);
        let size = |body: &prost_types::Any| body.value.len() as u64;
        let bytes = response
            .resources
            .iter()
            .filter_map(|resource| resource.resource.as_ref().map(size))
            .sum();
        self.messages.get_or_create(&Url { url }).inc();
        self.bytes.get_or_create(&Url { url }).inc_by(bytes);
    }

    pub(crate) fn ended(&self, reason: TerminationReason) {
        self.terminations.get_or_create(&Termination { reason }).inc();
    }
}

/// Age, generation and rejections, as they are at the moment of a scrape.
#[derive(Debug)]
struct StateGauges {
    state: MeshState,
}

impl Collect for StateGauges {
    const METRICS: &'static [Descriptor] = &[
        Descriptor::gauge(
            "tulle_config_generation",
            "Batches of configuration that changed something",
        ),
        Descriptor::gauge(
            "tulle_config_rejected",
            "Resources whose newest version is not in force",
        ),
        Descriptor::gauge(
            "tulle_config_age_seconds",
            "Time since the control plane was last heard, 0 while connected; absent before the first connection",
        ),
    ];

    fn collect(&self, scrape: &mut Scrape<'_>) -> fmt::Result {
        let status = self.state.status();
        let generation = self.state.snapshot().generation();
        scrape.gauge("tulle_config_generation", whole(generation))?;
        scrape.gauge("tulle_config_rejected", whole(status.rejected()))?;
        match status.age() {
            Some(age) => scrape.gauge("tulle_config_age_seconds", age.as_secs_f64()),
            None => Ok(()),
        }
    }
}
