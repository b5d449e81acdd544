//! Metrics whose values are read at each scrape, not kept.

use std::fmt;
use std::marker::PhantomData;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;

use super::describe::{Descriptor, LabelNames, LabelSet};

/// What reads values when it is asked.
pub trait Collect: fmt::Debug + Send + Sync + 'static {
    /// Each metric that it can write; it writes no other.
    const METRICS: &'static [Descriptor];

    /// Writes the values of this moment.
    ///
    /// # Errors
    /// Those of writing.
    fn collect(&self, scrape: &mut Scrape<'_>) -> fmt::Result;
}

/// What is not there yet has no values.
impl<C: Collect> Collect for Option<C> {
    const METRICS: &'static [Descriptor] = C::METRICS;

    fn collect(&self, scrape: &mut Scrape<'_>) -> fmt::Result {
        self.as_ref()
            .map_or(Ok(()), |collector| collector.collect(scrape))
    }
}

/// A collector as the registry takes it.
#[derive(Debug)]
pub(super) struct Collected<C>(pub(super) C);

impl<C: Collect> Collector for Collected<C> {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let metrics = C::METRICS;
        self.0.collect(&mut Scrape { encoder, metrics })
    }
}

/// Where a collector writes to; errors are those of writing.
#[derive(Debug)]
pub struct Scrape<'a> {
    encoder: DescriptorEncoder<'a>,
    metrics: &'static [Descriptor],
}

impl Scrape<'_> {
    /// Writes a gauge without labels.
    pub fn gauge(&mut self, name: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        self.begin(name, MetricType::Gauge, LabelNames::NONE)?
            .encode_gauge(&value)
    }

    /// Writes a counter without labels.
    pub fn counter(&mut self, name: &str, value: u64) -> fmt::Result {
        self.begin(name, MetricType::Counter, LabelNames::NONE)?
            .encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    /// Begins a gauge with labels.
    pub fn gauges<S: LabelSet>(&mut self, name: &str) -> Result<Series<'_, S>, fmt::Error> {
        self.family(name, MetricType::Gauge)
    }

    /// Begins a counter with labels.
    pub fn counters<S: LabelSet>(&mut self, name: &str) -> Result<Series<'_, S>, fmt::Error> {
        self.family(name, MetricType::Counter)
    }

    /// Begins a histogram with labels.
    pub fn histograms<S: LabelSet>(&mut self, name: &str) -> Result<Series<'_, S>, fmt::Error> {
        self.family(name, MetricType::Histogram)
    }

    fn family<S: LabelSet>(&mut self, name: &str, kind: MetricType) -> Result<Series<'_, S>, fmt::Error> {
        Ok(Series(self.begin(name, kind, S::NAMES)?, PhantomData))
    }

    fn begin(
        &mut self,
        name: &str,
        kind: MetricType,
        labels: LabelNames,
    ) -> Result<MetricEncoder<'_>, fmt::Error> {
        let is_it = |one: &&Descriptor| {
            one.name == name && one.kind.as_str() == kind.as_str() && one.labels == labels
        };
        let metric = self.metrics.iter().find(is_it);
        let metric = metric.unwrap_or_else(|| panic!("{name} is not among what its collector describes"));
        let (stem, unit) = metric.stem_and_unit();
        self.encoder.encode_descriptor(stem, metric.help, unit, kind)
    }
}

/// Where the series of one metric are written to; errors are those of writing.
#[derive(Debug)]
pub struct Series<'a, S>(MetricEncoder<'a>, PhantomData<S>);

impl<S: EncodeLabelSet> Series<'_, S> {
    /// Writes one of a gauge.
    pub fn gauge(&mut self, labels: &S, value: impl EncodeGaugeValue) -> fmt::Result {
        self.0.encode_family(labels)?.encode_gauge(&value)
    }

    /// Writes one of a counter.
    pub fn counter(&mut self, labels: &S, value: u64) -> fmt::Result {
        self.0
            .encode_family(labels)?
            .encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    /// Writes one of a histogram: upper bounds with what was observed between it and the one before.
    pub fn histogram(&mut self, labels: &S, sum: f64, count: u64, buckets: &[(f64, u64)]) -> fmt::Result {
        self.0
            .encode_family(labels)?
            .encode_histogram::<NoLabelSet>(sum, count, buckets, None)
    }
}

/// A number as gauges take it; what is beyond is the most there is.
#[must_use]
pub fn whole(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}
