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
that ended for this reason at a node proxy. For what a waypoint can end, *HTTP* and *gRPC* are the statuses of its answer to a
request, unless a policy or whoever decides says another, and *Waypoint* is the value of `response_flags` in its metrics and
access lines.
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

/// What a waypoint can end requests and streams for.
const AT_WAYPOINTS: &[&str] = &["T04", "T05", "T06", "T07"];

pub(super) fn page() -> String {
    let mut page = HEAD.to_owned();
    for (range, of_what) in RANGES {
        let reasons = Reason::ALL
            .iter()
            .filter(|reason| reason.code().starts_with(range));
        let answered = AT_WAYPOINTS.contains(range);
        let rows: Vec<_> = reasons.map(|reason| row(*reason, answered)).collect();
        if !rows.is_empty() {
            let names: &[&str] = if answered {
                &["Code", "Token", "Flag", "HTTP", "gRPC", "Waypoint", "Meaning"]
            } else {
                &["Code", "Token", "Flag", "Meaning"]
            };
            let rows = table(names, rows);
            write!(page, "\n## {range}xx: {of_what}\n\n{rows}").expect("writing to a string does not fail");
        }
    }
    page
}

fn row(reason: Reason, answered: bool) -> Vec<String> {
    let mut row = vec![
        reason.code().to_owned(),
        format!("`{}`", reason.token()),
        format!("`{}`", reason.flag().as_str()),
    ];
    if answered {
        let answer = reason.answer();
        row.extend([answer.status.to_string(), answer.grpc.to_string()]);
        row.push(format!("`{}`", answer.flag));
    }
    row.push(cell(reason.help()));
    row
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

    #[test]
    fn what_a_waypoint_answers_stands_beside_the_flag_of_connections() {
        let page = page();
        for row in [
            "\n| T0412 | `policy_denied` | `DENY` | 403 | 7 | `-` | ",
            "\n| T0501 | `connect_failed` | `CONNECT` | 503 | 14 | `UF` | ",
        ] {
            assert!(page.contains(row), "{row}");
        }
    }
}
