//! The metrics of the process: one registry handle, and how it is written for who asks.

mod process;
mod text;

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::{Metric, Registry as Inner};

pub use text::Format;

/// Every metric of the process. Clones share it.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<Inner>>);

impl Registry {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A registry with what every process exports: `istio_build`, descriptors, tasks and lost log lines.
    #[must_use]
    pub fn for_process(component: &'static str) -> Self {
        let registry = Self::new();
        registry
            .0
            .lock()
            .register_collector(Box::new(process::ProcessMetrics { component }));
        registry
    }

    /// Registers a clone of `metric` and hands it back. A counter's name is given without `_total`.
    pub fn register<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        self.0.lock().register(name, help, metric.clone());
        metric
    }

    /// Registers several metrics under one lock, or uses what this handle does not wrap (prefixes, units, labels).
    pub fn with<T>(&self, register: impl FnOnce(&mut Inner) -> T) -> T {
        register(&mut self.0.lock())
    }

    /// As [`Registry::with`], for metrics whose names begin with `prefix_`.
    pub fn with_prefix<T>(&self, prefix: &str, register: impl FnOnce(&mut Inner) -> T) -> T {
        register(self.0.lock().sub_registry_with_prefix(prefix))
    }

    /// Everything as OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.0.lock()).expect("writing to a string does not fail");
        text
    }

    /// Everything in the given format.
    #[must_use]
    pub fn encode_as(&self, format: Format) -> String {
        match format {
            Format::OpenMetrics => self.encode(),
            Format::Text => text::from_open_metrics(&self.encode()),
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn a_registered_counter_is_exported_and_moves() {
        let registry = Registry::new();
        let counter = registry.register("repairs", "Repairs done", <Counter>::default());
        counter.inc();
        assert!(registry.encode().contains("repairs_total 1"));
    }

    #[test]
    fn the_process_describes_itself() {
        let text = Registry::for_process("agent").encode();
        assert!(
            text.contains("istio_build{component=\"agent\",tag=\"0."),
            "{text}"
        );
        assert!(text.contains("process_open_fds "), "{text}");
        assert!(text.contains("process_max_fds "), "{text}");
        assert!(text.contains("tulle_log_lines_dropped_total "), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
