//! Counters of the stream, and gauges of the configuration's state that are read when asked for.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tulle_proto::discovery::DeltaDiscoveryResponse;
use tulle_runtime::metrics::Registry;

use crate::resource::ResourceType;
use crate::state::MeshState;

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

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Url {
    url: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Termination {
    reason: TerminationReason,
}

impl Metrics {
    /// Registers the counters, and the gauges of `state`.
    #[must_use]
    pub fn register(registry: &Registry, state: &MeshState) -> Self {
        let metrics = Self::default();
        registry.with(|inner| {
            inner.register(
                "istio_xds_message",
                "Responses received",
                metrics.messages.clone(),
            );
            inner.register_with_unit(
                "istio_xds_message",
                "Size of the resources received",
                Unit::Bytes,
                metrics.bytes.clone(),
            );
            inner.register(
                "istio_xds_connection_terminations",
                "Streams to the control plane that ended",
                metrics.terminations.clone(),
            );
            inner.register_collector(Box::new(StateGauges { state: state.clone() }));
        });
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

impl Collector for StateGauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let status = self.state.status();
        let generation = i64::try_from(self.state.snapshot().generation()).unwrap_or(i64::MAX);
        let rejected = i64::try_from(status.rejected()).unwrap_or(i64::MAX);
        let mut gauge = |name: &str, help: &str, value: i64| {
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)
        };
        gauge(
            "tulle_config_generation",
            "Batches of configuration that changed something",
            generation,
        )?;
        gauge(
            "tulle_config_rejected",
            "Resources whose newest version is not in force",
            rejected,
        )?;
        let Some(age) = status.age() else { return Ok(()) };
        let gauge = ConstGauge::new(age.as_secs_f64());
        let help = "Time since the control plane was last heard, 0 while connected";
        let metric =
            encoder.encode_descriptor("tulle_config_age_seconds", help, None, gauge.metric_type())?;
        gauge.encode(metric)
    }
}
