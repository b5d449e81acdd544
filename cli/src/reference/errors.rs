//! The page of error codes.

use std::fmt::Write as _;

use tulle_model::Reason;

use super::{cell, table};

const HEAD: &str = "\
# Error codes

<!-- Written by `tulle reference errors` from core/model/src/reason.rs; edit that instead. -->

A code is stable and never reused; its token names the cause. Both appear in the header `x-tulle-reason`, in access
lines, in the metrics `tulle_denied_total` and `tulle_refused_total`, in `tulle explain` and in errors of the command
line. `tulle codes T0412` says the same offline. *Flag* is the value of the label `response_flags` of connections
that ended for this reason.
";

/// What the first two digits of a code say.
const RANGES: &[(&str, &str)] = &[
    ("T00", "start-up, configuration, usage"),
    ("T01", "enrolment, capture, agent"),
    ("T02", "configuration objects and their delivery"),
    ("T03", "control plane, certificate authority, nodes"),
    ("T04", "refusals by policy or protocol"),
    ("T05", "connections and identity"),
    ("T06", "HTTP at a waypoint"),
    ("T07", "names"),
    ("T08", "findings of checks"),
];

pub(super) fn page() -> String {
    let mut page = HEAD.to_owned();
    for (range, of_what) in RANGES {
        let reasons = Reason::ALL
            .iter()
            .filter(|reason| reason.code().starts_with(range));
        let rows: Vec<_> = reasons.map(|reason| row(*reason)).collect();
        if !rows.is_empty() {
            let rows = table(&["Code", "Token", "Flag", "Meaning"], rows);
            write!(page, "\n## {range}xx: {of_what}\n\n{rows}").expect("writing to a string does not fail");
        }
    }
    page
}

fn row(reason: Reason) -> Vec<String> {
    vec![
        reason.code().to_owned(),
        format!("`{}`", reason.token()),
        format!("`{}`", reason.flag().as_str()),
        cell(reason.help()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_on_the_page_once() {
        let page = page();
        for reason in Reason::ALL {
            let row = format!("\n| {} |", reason.code());
            assert_eq!(page.matches(&row).count(), 1, "{reason}");
        }
    }
}
