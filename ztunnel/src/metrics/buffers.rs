//! Memory that carries bytes, as it is at the moment of a scrape.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

/// What copies hold now.
#[derive(Debug)]
pub(super) struct Buffers;

impl Collector for Buffers {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let lent = encoder.encode_descriptor(
            "tulle_buffer_bytes",
            "Bytes of the buffers that connections hold now",
            None,
            MetricType::Gauge,
        )?;
        let bytes = tulle_transport::copy::buffer_bytes();
        ConstGauge::new(i64::try_from(bytes).unwrap_or(i64::MAX)).encode(lent)
    }
}
