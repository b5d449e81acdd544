//! The line of figures that a scenario ends with, and the targets it is held to.

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::load::{Load, Report};

/// A latency counts as unaffected up to this ratio of the quiet one …
const UNAFFECTED_RATIO: f64 = 1.25;
/// … or up to this much above it.
const UNAFFECTED_EXTRA: Duration = Duration::from_millis(2);

/// Named figures of one scenario, and the targets that were missed.
#[derive(Debug, Clone)]
pub struct Figure {
    id: &'static str,
    values: Vec<(String, String)>,
    missed: Vec<String>,
    notes: Vec<String>,
    skipped: Option<String>,
}

impl Figure {
    /// A line without figures yet.
    #[must_use]
    pub fn new(id: &'static str) -> Self {
        Self {
            id,
            values: Vec::new(),
            missed: Vec::new(),
            notes: Vec::new(),
            skipped: None,
        }
    }

    /// A scenario that cannot run here, and why; it counts as neither held nor missed.
    #[must_use]
    pub fn skipped(id: &'static str, reason: impl Into<String>) -> Self {
        Self {
            skipped: Some(reason.into()),
            ..Self::new(id)
        }
    }

    /// Why it could not run here.
    #[must_use]
    pub fn skipped_because(&self) -> Option<&str> {
        self.skipped.as_deref()
    }

    /// Adds a figure that has no target.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.values.push((name.to_owned(), value.to_string()));
        self
    }

    /// Adds a figure with its target.
    #[must_use]
    pub fn expect(mut self, name: &str, value: impl fmt::Display, holds: bool, target: &str) -> Self {
        let value = value.to_string();
        if !holds {
            self.missed.push(format!("{name}={value}, target {target}"));
        }
        self.values.push((name.to_owned(), value));
        self
    }

    /// A count that must be zero.
    #[must_use]
    pub fn none(self, name: &str, count: impl Into<u64>) -> Self {
        let count = count.into();
        self.expect(name, count, count == 0, "0")
    }

    /// A time with an upper bound.
    #[must_use]
    pub fn within(self, name: &str, time: Duration, bound: Duration) -> Self {
        let target = format!("≤ {}", milliseconds(bound));
        self.expect(name, milliseconds(time), time <= bound, &target)
    }

    /// Memory with an upper bound.
    #[must_use]
    pub fn kib(self, name: &str, kib: f64, bound: f64) -> Self {
        self.expect(name, format!("{kib:.1}"), kib <= bound, &format!("≤ {bound}"))
    }

    /// What a load lost: lasting connections, new connections that failed, and answers that differ.
    #[must_use]
    pub fn losses(self, load: &Load, reports: &[&Report]) -> Self {
        let (established, lost) = load.established();
        let failed: usize = reports.iter().map(|report| report.connects.failed).sum();
        let tried: usize = reports
            .iter()
            .map(|report| report.connects.failed + report.connects.ok)
            .sum();
        self.expect(
            "established_lost",
            format!("{lost}/{established}"),
            lost == 0,
            "0",
        )
        .expect("failed_new", format!("{failed}/{tried}"), failed == 0, "0")
        .none("corrupt", load.corrupt())
        .noting(load.failures())
    }

    /// A report's p99 of requests beside the quiet one, and the band of the quiet halves.
    #[must_use]
    pub fn latency(self, quiet: [&Report; 2], under: &Report) -> Self {
        let [first, second] = quiet.map(|report| report.requests.p99);
        let base = first.max(second);
        self.with_time("p99_quiet", base)
            .unaffected("p99", base, under.requests.p99)
            .with("band", format!("±{}", milliseconds(first.abs_diff(second))))
    }

    /// A latency that must be about what it is when nothing happens.
    #[must_use]
    pub fn unaffected(self, name: &str, quiet: Duration, now: Duration) -> Self {
        // Nothing can be said beside a quiet time without answers.
        let holds = quiet < Duration::MAX
            && (now <= quiet + UNAFFECTED_EXTRA
                || now.as_secs_f64() <= quiet.as_secs_f64() * UNAFFECTED_RATIO);
        self.expect(name, milliseconds(now), holds, "≤ 1.25 × quiet or + 2 ms")
    }

    /// Adds a time that has no target.
    #[must_use]
    pub fn with_time(self, name: &str, time: Duration) -> Self {
        self.with(name, milliseconds(time))
    }

    /// Keeps texts for whoever looks into a miss.
    #[must_use]
    pub fn noting(mut self, notes: Vec<String>) -> Self {
        self.notes.extend(notes);
        self
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &'static str {
        self.id
    }

    /// Targets that were missed; empty is a pass.
    #[must_use]
    pub fn missed(&self) -> &[String] {
        &self.missed
    }

    /// Texts for whoever looks into a miss.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The line as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        let values: Map<_, _> = self
            .values
            .iter()
            .map(|(name, value)| (name.clone(), Value::from(value.clone())))
            .collect();
        json!({"id": self.id, "figures": values, "missed": self.missed, "notes": self.notes,
            "skipped": self.skipped})
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.id)?;
        if let Some(reason) = &self.skipped {
            write!(formatter, " SKIPPED {reason}")?;
        }
        for (name, value) in &self.values {
            write!(formatter, " {name}={value}")?;
        }
        Ok(())
    }
}

fn milliseconds(time: Duration) -> String {
    if time == Duration::MAX {
        return "never".into();
    }
    let value = time.as_secs_f64() * 1000.0;
    if value < 10.0 {
        format!("{value:.1}ms")
    } else {
        format!("{value:.0}ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_every_figure_and_what_missed_its_target() {
        let figure = Figure::new("F05").none("refused", 0_u64).within(
            "gap_max",
            Duration::from_millis(70),
            Duration::from_millis(50),
        );
        assert_eq!(figure.to_string(), "F05 refused=0 gap_max=70ms");
        assert_eq!(figure.missed(), ["gap_max=70ms, target ≤ 50ms"]);
    }

    #[test]
    fn no_answer_at_all_misses_a_latency() {
        let quiet = Duration::from_millis(5);
        let missed = |quiet, now| Figure::new("F13").unaffected("p99", quiet, now).missed().len();
        assert_eq!(missed(quiet, Duration::MAX), 1);
        assert_eq!(missed(Duration::MAX, Duration::MAX), 1);
        assert_eq!(missed(quiet, Duration::from_millis(6)), 0);
    }
}
