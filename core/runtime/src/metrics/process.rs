//! What the process knows of itself at the moment of a scrape.

use std::fmt;

use super::{Collect, Descriptor, Scrape, Section, whole};
use crate::{build_info, label_set, limits, tasks, telemetry};

pub(super) const SECTION: Section = Section {
    title: "Processes",
    about: "",
};

/// Values read at each scrape, not kept.
#[derive(Debug)]
pub(super) struct ProcessMetrics {
    pub(super) component: &'static str,
}

label_set! {
    struct Build {
        component: &'static str,
        tag: String,
    }
}

label_set! {
    struct Task {
        task: &'static str,
    }
}

impl Collect for ProcessMetrics {
    const METRICS: &'static [Descriptor] = &[
        Descriptor::gauge("istio_build", "Build of the component; always 1").by::<Build>(),
        Descriptor::gauge("process_open_fds", "Open file descriptors"),
        Descriptor::gauge("process_max_fds", "Limit of open file descriptors"),
        Descriptor::counter(
            "tulle_log_lines_dropped",
            "Log lines lost because the queue was full",
        ),
        Descriptor::gauge("tulle_tasks", "Running tasks").by::<Task>(),
        Descriptor::counter("tulle_task_panics", "Tasks that panicked; each is a bug").by::<Task>(),
    ];

    fn collect(&self, scrape: &mut Scrape<'_>) -> fmt::Result {
        let build = Build {
            component: self.component,
            tag: build_info::tag(),
        };
        scrape.gauges("istio_build")?.gauge(&build, 1_i64)?;
        scrape.gauge("process_open_fds", whole(limits::open_descriptors()))?;
        scrape.gauge("process_max_fds", whole(limits::max_descriptors()))?;
        scrape.counter("tulle_log_lines_dropped", telemetry::lines_dropped())?;
        let counts = tasks::counts();
        let mut running = scrape.gauges("tulle_tasks")?;
        for count in &counts {
            running.gauge(&Task { task: count.name }, whole(count.running))?;
        }
        let mut panics = scrape.counters("tulle_task_panics")?;
        for count in &counts {
            panics.counter(&Task { task: count.name }, count.panicked)?;
        }
        Ok(())
    }
}
