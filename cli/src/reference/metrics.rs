//! The page of metrics: what each component registers.

use std::fmt::Write as _;

use tulle_runtime::metrics::{Descriptor, Exposition, LabelNames, Section};

use super::{cell, table};

const HEAD: &str = "\
# Metrics

<!-- Written by `tulle reference metrics` from where metrics are registered; edit their help texts instead. -->

Each component serves its metrics in OpenMetrics text, or in Prometheus text for who asks for that: the node proxy and
waypoints at port 15020 (`/metrics`, `/stats/prometheus`), the control plane at 15014, the agent at 15024 (`/metrics`), and
each of them at its admin socket. Names without the prefix `tulle_` are Istio's, so that existing dashboards go on working.

A family without labels always has one series. One with labels appears with its first series: a counter of refusals
that is not there has counted none. Names stand here as they are exported: a counter ends in `_total`.
";

/// One section, and the components that export it.
struct Entry<'a> {
    section: &'static Section,
    of: Vec<&'static str>,
    metrics: Vec<&'a Descriptor>,
}

/// What each component exports.
fn components() -> [(&'static str, Exposition); 4] {
    [
        ("the node proxy", tulle_ztunnel::metrics::reference()),
        ("the agent", tulle_agent::metrics::reference()),
        ("the control plane", tulle_xds::metrics::reference()),
        ("waypoints", tulle_waypoint::metrics::reference()),
    ]
}

fn entries<'a>(components: &'a [(&'static str, Exposition)]) -> Vec<Entry<'a>> {
    let mut entries = Vec::<Entry<'a>>::new();
    for (component, exposition) in components {
        for (section, metric) in exposition.described() {
            let found = entries.iter().position(|entry| entry.section == *section);
            let found = found.unwrap_or_else(|| {
                entries.push(Entry {
                    section,
                    of: Vec::new(),
                    metrics: Vec::new(),
                });
                entries.len() - 1
            });
            let entry = &mut entries[found];
            if entry.of.last() != Some(component) {
                entry.of.push(component);
            }
            if entry.of.len() == 1 {
                entry.metrics.push(metric);
            }
        }
    }
    entries
}

pub(super) fn page() -> String {
    let (mut page, components) = (HEAD.to_owned(), components());
    for entry in entries(&components) {
        write!(page, "\n{}", text(&entry, components.len())).expect("writing to a string does not fail");
    }
    page
}

fn text(entry: &Entry<'_>, components: usize) -> String {
    let of = match entry.of.as_slice() {
        all if all.len() == components => "every component".to_owned(),
        of => of.join(", "),
    };
    let mut text = format!("## {}\n\nExported by {of}.\n\n", entry.section.title);
    if !entry.section.about.is_empty() {
        text += entry.section.about;
        text += "\n\n";
    }
    let head = ["Metric", "Type", "Labels", "Meaning"];
    text += &table(&head, entry.metrics.iter().map(|metric| row(metric)));
    let mut together = Vec::<LabelNames>::new();
    for labels in entry.metrics.iter().map(|metric| metric.labels) {
        if !labels.of.is_empty() && !together.contains(&labels) {
            text += &list(labels);
            together.push(labels);
        }
    }
    text
}

fn row(metric: &Descriptor) -> Vec<String> {
    vec![
        format!("`{}`", metric.exported_name()),
        metric.kind.as_str().to_owned(),
        labels(metric.labels),
        cell(metric.help),
    ]
}

/// The labels of one metric, in a cell.
fn labels(labels: LabelNames) -> String {
    if !labels.of.is_empty() {
        return format!("of {}", labels.of);
    }
    let each: Vec<_> = labels
        .iter()
        .map(|label| match label.says {
            "" => format!("`{}`", label.name),
            says => format!("`{}`: {}", label.name, cell(says)),
        })
        .collect();
    match each.as_slice() {
        [] => "–".to_owned(),
        _ if labels.iter().all(|label| label.says.is_empty()) => each.join(", "),
        each => each.join("; "),
    }
}

/// Labels that several metrics have, below their table. Neighbours of which the same is said share a line.
fn list(labels: LabelNames) -> String {
    let mut text = format!("\nThe labels of {}:\n\n", labels.of);
    let groups = labels.groups.iter();
    for alike in groups.flat_map(|group| group.chunk_by(|one, next| one.says == next.says)) {
        let names: Vec<_> = alike.iter().map(|label| format!("`{}`", label.name)).collect();
        let says = match alike[0].says {
            "" => String::new(),
            says => format!(": {}", cell(says)),
        };
        writeln!(text, "- {}{says}", names.join(", ")).expect("writing to a string does not fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A section is listed as its first component exports it.
    #[test]
    fn a_section_is_the_same_in_each_component() {
        let components = components();
        for entry in entries(&components) {
            for (component, exposition) in &components {
                let described = exposition.described().iter();
                let own: Vec<_> = described
                    .filter(|(section, _)| *section == entry.section)
                    .map(|(_, metric)| row(metric))
                    .collect();
                let listed: Vec<_> = entry.metrics.iter().map(|metric| row(metric)).collect();
                assert!(
                    own.is_empty() || own == listed,
                    "{component}: {}",
                    entry.section.title
                );
            }
        }
    }

    #[test]
    fn labels_are_listed_with_what_they_say() {
        use tulle_runtime::metrics::Label;
        const SAID: LabelNames = LabelNames {
            of: "",
            groups: &[&[Label::new("a"), Label::says("b", "one|two")]],
        };
        assert_eq!(labels(SAID), "`a`; `b`: one\\|two");
        let together = LabelNames { of: "both", ..SAID };
        assert_eq!(labels(together), "of both");
        assert_eq!(
            list(together),
            "\nThe labels of both:\n\n- `a`\n- `b`: one\\|two\n"
        );
        assert_eq!(labels(LabelNames::NONE), "–");
    }
}
