//! What the process knows of itself at the moment of a scrape.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::{build_info, limits, tasks, telemetry};

/// Values read at each scrape, not kept.
#[derive(Debug)]
pub(super) struct ProcessMetrics {
    pub(super) component: &'static str,
}

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let labels = [
            ("component", self.component.to_owned()),
            ("tag", build_info::tag()),
        ];
        let mut build =
            encoder.encode_descriptor("istio_build", "Build of the component", None, MetricType::Gauge)?;
        ConstGauge::new(1_i64).encode(build.encode_family(&labels)?)?;
        gauge(
            &mut encoder,
            "process_open_fds",
            "Open file descriptors",
            limits::open_descriptors(),
        )?;
        gauge(
            &mut encoder,
            "process_max_fds",
            "Limit of open file descriptors",
            limits::max_descriptors(),
        )?;
        let dropped = encoder.encode_descriptor(
            "tulle_log_lines_dropped",
            "Log lines lost because the queue was full",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(telemetry::lines_dropped()).encode(dropped)?;
        task_counts(encoder)
    }
}

fn task_counts(mut encoder: DescriptorEncoder) -> fmt::Result {
    let counts = tasks::counts();
    let mut running = encoder.encode_descriptor("tulle_tasks", "Running tasks", None, MetricType::Gauge)?;
    for count in &counts {
        let value = ConstGauge::new(i64::try_from(count.running).unwrap_or(i64::MAX));
        value.encode(running.encode_family(&[("task", count.name)])?)?;
    }
    let mut panics = encoder.encode_descriptor(
        "tulle_task_panics",
        "Tasks that panicked",
        None,
        MetricType::Counter,
    )?;
    for count in &counts {
        ConstCounter::new(count.panicked).encode(panics.encode_family(&[("task", count.name)])?)?;
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> fmt::Result {
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric)
}
