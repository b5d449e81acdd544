//! The page of environment variables: those of the node proxy, and those of waypoints.

use std::fmt::Write as _;

use tulle_runtime::config::{Preset, Variable};
use tulle_waypoint::config::reference::VARIABLES as OF_WAYPOINTS;
use tulle_ztunnel::config::reference::VARIABLES;

use super::table;

const HEAD: &str = "\
# Configuration of the node proxy and of waypoints

<!-- Written by `tulle reference config` from src/config/reference.rs of ztunnel and waypoint; edit those instead. -->

`tulle ztunnel` and a waypoint's process, `tulle waypoint`, are configured by environment variables only; those without
the prefix `TULLE_` are ztunnel's. The other components have options, some with a variable: see
[the command line](cli.md).

Durations are written as `500ms`, `10s`, `5m`, `24h`; sizes in bytes or as `256KiB`, `4MiB`; truth values as `true`
and `false`. An empty variable counts as not set. A value that cannot be used ends the start with exit code 64, and
all such values are listed together. What is in force is part of `GET /config_dump`.
";

pub(super) fn page() -> String {
    let mut page = HEAD.to_owned();
    for (heading, variables) in VARIABLES.iter().chain(OF_WAYPOINTS) {
        let rows = table(&["Variable", "Default", "Meaning"], variables.iter().map(row));
        write!(page, "\n## {heading}\n\n{rows}").expect("writing to a string does not fail");
    }
    page
}

/// The texts of the list are Markdown already.
fn row(variable: &Variable) -> Vec<String> {
    let default = match variable.default {
        Preset::Nothing => "–".to_owned(),
        Preset::Value(value) => format!("`{value}`"),
        Preset::Depends(words) => words.to_owned(),
    };
    vec![
        format!("`{}`", variable.name),
        default,
        variable.meaning.to_owned(),
    ]
}
