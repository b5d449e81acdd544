//! `tulle ztunnel-config log`: what the node proxies log, shown and changed.

use std::fmt::Write as _;

use serde::Serialize;
use tulle_runtime::exit::Exit;

use crate::output::{Form, print, table};
use crate::running::Component;

/// Show what the node proxies log, or change it until they start again
///
/// A filter is a level (`error`, `warn`, `info`, `debug`, `trace`, `off`) or a list of levels of targets, such as
/// `access:debug,info`; the form of `RUST_LOG` is taken, too.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub(super) struct Log {
    /// Log this from now on
    #[arg(long, value_name = "FILTER", conflicts_with = "reset")]
    level: Option<String>,
    /// Log again what was logged at the start
    #[arg(short, long)]
    reset: bool,
}

/// What a node's proxy logs.
#[derive(Debug, Serialize)]
struct Logged {
    node: String,
    level: String,
}

impl Log {
    pub(super) async fn run(&self, components: &[Component], form: Form) -> anyhow::Result<Exit> {
        let page = self.page();
        let mut rows = Vec::new();
        for component in components {
            let said = component.tell(&page).await?;
            rows.push(Logged {
                node: component.node.clone(),
                level: in_force(&said).to_owned(),
            });
        }
        print(form, "ztunnel-config.log", &rows, || {
            let mut table = table(&["NODE", "LEVEL"]);
            for row in &rows {
                table.add_row([&row.node, &row.level]);
            }
            table
        })?;
        Ok(Exit::Ok)
    }

    /// The page that does it, or that only says what is in force.
    fn page(&self) -> String {
        match &self.level {
            Some(level) => format!("/logging?level={}", quoted(&filter(level))),
            None if self.reset => "/logging?reset".to_owned(),
            None => "/logging".to_owned(),
        }
    }
}

/// What the page says is in force.
fn in_force(said: &str) -> &str {
    let last = said.trim();
    last.strip_prefix("current log level is ").unwrap_or(last)
}

/// istioctl's form, `target:level`, and its names of levels as the filter writes them. Targets may have `::` in them.
fn filter(text: &str) -> String {
    let level = |level: &str| match level {
        "warning" => "warn".to_owned(),
        "critical" => "error".to_owned(),
        "none" => "off".to_owned(),
        level => level.to_owned(),
    };
    let one = |one: &str| match one.rsplit_once(':') {
        Some((target, of_target)) if !target.ends_with(':') => format!("{target}={}", level(of_target)),
        _ => level(one),
    };
    let all: Vec<_> = text.split(',').map(|part| one(part.trim())).collect();
    all.join(",")
}

/// The value of a query: everything but what never needs it is escaped.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~,=:".contains(&byte) {
            quoted.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(quoted, "%{byte:02X}");
        }
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(level: Option<&str>, reset: bool) -> String {
        let level = level.map(str::to_owned);
        Log { level, reset }.page()
    }

    #[test]
    fn a_look_changes_nothing() {
        assert_eq!(page(None, false), "/logging");
        assert_eq!(page(None, true), "/logging?reset");
    }

    #[test]
    fn levels_are_taken_in_istioctls_form_and_in_ours() {
        for (given, asked) in [
            ("debug", "debug"),
            ("warning", "warn"),
            ("none", "off"),
            ("access:debug,info", "access=debug,info"),
            ("access=debug, critical", "access=debug,error"),
            ("tulle_ztunnel::dns:warning", "tulle_ztunnel::dns=warn"),
            ("tulle_ztunnel::dns=debug", "tulle_ztunnel::dns=debug"),
            ("a[b]=info", "a%5Bb%5D=info"),
            ("info&reset", "info%26reset"),
        ] {
            assert_eq!(
                page(Some(given), false),
                format!("/logging?level={asked}"),
                "{given}"
            );
        }
    }

    #[test]
    fn what_is_in_force_is_what_the_page_says() {
        assert_eq!(
            in_force("current log level is access=debug,info\n"),
            "access=debug,info"
        );
    }
}
