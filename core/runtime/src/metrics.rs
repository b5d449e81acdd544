//! The metrics of the process: they are registered, described for the reference, and written for who asks.

#![expect(
    clippy::disallowed_types,
    reason = "what is registered here is described, too"
)]

mod collect;
mod describe;
mod process;
mod text;

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::{Metric, Registry as Inner};

pub use collect::{Collect, Scrape, Series, whole};
pub use describe::{Descriptor, Label, LabelNames, LabelSet, Labelled, Section};
pub use text::Format;

use self::collect::Collected;

/// Where metrics are registered before they are exported.
#[derive(Default)]
pub struct Registry(Mutex<Registered>);

#[derive(Default)]
struct Registered {
    inner: Inner,
    described: Vec<(&'static Section, Descriptor)>,
}

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
            .section(&process::SECTION)
            .collect(process::ProcessMetrics { component });
        registry
    }

    /// Where the metrics of one subject are registered.
    #[must_use]
    pub fn section(&self, section: &'static Section) -> InSection<'_> {
        let registry = self;
        InSection { registry, section }
    }

    /// What is exported: nothing is registered after this.
    #[must_use]
    pub fn seal(self) -> Exposition {
        Exposition(Arc::new(self.0.into_inner()))
    }

    /// Everything as OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        self.0.lock().encode()
    }
}

/// A registry that takes metrics of one section of the reference.
#[derive(Debug, Clone, Copy)]
pub struct InSection<'a> {
    registry: &'a Registry,
    section: &'static Section,
}

impl InSection<'_> {
    /// Registers a clone of `metric` and hands it back. A counter's name is given without `_total`; a name that ends in
    /// seconds or bytes has that unit.
    pub fn register<M: Metric + Labelled + Clone>(
        &self,
        name: &'static str,
        help: &'static str,
        metric: M,
    ) -> M {
        let descriptor = Descriptor {
            name,
            kind: metric.metric_type(),
            labels: M::NAMES,
            help,
        };
        let mut registered = self.registry.0.lock();
        registered.describe(self.section, &descriptor);
        match descriptor.stem_and_unit() {
            (stem, Some(unit)) => {
                let unit = unit.clone();
                registered
                    .inner
                    .register_with_unit(stem, help, unit, metric.clone());
            }
            (name, None) => registered.inner.register(name, help, metric.clone()),
        }
        metric
    }

    /// Registers what reads its values at each scrape.
    pub fn collect<C: Collect>(&self, collector: C) {
        let mut registered = self.registry.0.lock();
        for descriptor in C::METRICS {
            registered.describe(self.section, descriptor);
        }
        registered
            .inner
            .register_collector(Box::new(Collected(collector)));
    }
}

impl Registered {
    fn describe(&mut self, section: &'static Section, descriptor: &Descriptor) {
        let is_new = self.described.iter().all(|(_, one)| one.name != descriptor.name);
        assert!(is_new, "{} is registered twice", descriptor.name);
        self.described.push((section, *descriptor));
    }

    fn encode(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.inner).expect("writing to a string does not fail");
        text
    }
}

/// Every metric of the process. Clones share it.
#[derive(Clone)]
pub struct Exposition(Arc<Registered>);

impl Exposition {
    /// Everything as OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        self.0.encode()
    }

    /// Everything in the given format.
    #[must_use]
    pub fn encode_as(&self, format: Format) -> String {
        match format {
            Format::OpenMetrics => self.encode(),
            Format::Text => text::from_open_metrics(&self.encode()),
        }
    }

    /// What can be in it, by section, in the order in which it was registered.
    #[must_use]
    pub fn described(&self) -> &[(&'static Section, Descriptor)] {
        &self.0.described
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

impl fmt::Debug for Exposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exposition").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family;
    use prometheus_client::metrics::histogram::Histogram;

    const REPAIRS: Section = Section {
        title: "Repairs",
        about: "",
    };

    crate::label_set! {
        struct OfRepair {
            /// `rules`,
            /// `routes`
            r#type: &'static str,
        }
    }

    #[test]
    fn a_registered_counter_is_exported_and_moves() {
        let registry = Registry::new();
        let counter = registry
            .section(&REPAIRS)
            .register("repairs", "Repairs done", <Counter>::default());
        counter.inc();
        assert!(registry.encode().contains("repairs_total 1"));
    }

    #[test]
    fn what_is_registered_is_described_before_it_has_a_series() {
        let registry = Registry::new();
        let repairs: Family<OfRepair, Counter> =
            registry
                .section(&REPAIRS)
                .register("repairs", "Repairs done", Family::default());
        let page = registry.seal();
        assert_eq!(page.encode(), "# EOF\n");
        let [(section, repair)] = page.described() else {
            panic!("{:?}", page.described())
        };
        assert_eq!(*section, &REPAIRS);
        assert_eq!(
            (&*repair.exported_name(), repair.help),
            ("repairs_total", "Repairs done")
        );
        let label = repair.labels.iter().next().unwrap();
        assert_eq!((label.name, label.says), ("type", " `rules`, `routes`"));
        repairs.get_or_create(&OfRepair { r#type: "rules" }).inc();
        let series = format!("repairs_total{{{}=\"rules\"}} 1", label.name);
        assert!(page.encode().contains(&series), "{}", page.encode());
    }

    #[test]
    fn the_end_of_a_name_is_its_unit() {
        let registry = Registry::new();
        let section = registry.section(&REPAIRS);
        section.register("repair_seconds", "How long", Histogram::new([1.0]));
        section.register("repaired_bytes", "How much", <Counter>::default());
        let text = registry.encode();
        assert!(text.contains("# UNIT repair_seconds seconds"), "{text}");
        assert!(text.contains("repair_seconds_count 0"), "{text}");
        assert!(text.contains("# UNIT repaired_bytes bytes"), "{text}");
        assert!(text.contains("repaired_bytes_total 0"), "{text}");
    }

    #[test]
    #[should_panic(expected = "repairs is registered twice")]
    fn a_name_is_registered_once() {
        let registry = Registry::new();
        for _ in 0..2 {
            let section = registry.section(&REPAIRS);
            section.register("repairs", "Repairs done", <Counter>::default());
        }
    }

    /// Writes its metric with other labels than it describes, or as it does.
    #[derive(Debug)]
    struct Repaired {
        as_described: bool,
    }

    impl Collect for Repaired {
        const METRICS: &'static [Descriptor] =
            &[Descriptor::gauge("repaired", "What was repaired").by::<OfRepair>()];

        fn collect(&self, scrape: &mut Scrape<'_>) -> fmt::Result {
            if !self.as_described {
                return scrape.gauge("repaired", 1_i64);
            }
            scrape
                .gauges("repaired")?
                .gauge(&OfRepair { r#type: "rules" }, 1_i64)
        }
    }

    fn collected(as_described: bool) -> String {
        let registry = Registry::new();
        registry.section(&REPAIRS).collect(Repaired { as_described });
        registry.encode()
    }

    #[test]
    fn a_collector_writes_what_it_describes() {
        assert!(collected(true).contains("repaired{type=\"rules\"} 1"));
    }

    #[test]
    #[should_panic(expected = "repaired is not among what its collector describes")]
    fn a_collector_writes_nothing_else() {
        collected(false);
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
