//! `tulle ca`: the certificate authority of the control plane on this machine.
//!
//! Commands go over the admin socket, so they also work when every certificate has ended.

use std::time::Duration;

use nix::unistd::Uid;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tulle_runtime::config::parse_duration;
use tulle_runtime::exit::Exit;

use super::Reading;
use crate::output::{print, table};
use crate::running::{Component, Kind};

/// Show and change whom the mesh believes: issuer, rotation of the root, deny-list
///
/// Works on the admin socket of the control plane on this machine.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tulle ca status
  tulle ca rotate
  tulle ca deny spiffe://cluster.local/ns/shop/sa/web --for 1h --reason 'stolen key'
  tulle ca deny node:n1
  tulle ca allow node:n1")]
pub(crate) struct Ca {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show the issuer, the phase of a rotation and what it waits for
    Status,
    /// Begin to replace the root; nothing breaks while it goes on
    Rotate {
        /// With a rotation under way: go on without nodes that are absent
        #[arg(long)]
        force: bool,
        /// Show what it would begin from, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Go back to the root before; possible until the old one is given up
    Rollback {
        /// Show what it would begin from, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Refuse an identity, a certificate (serial:HEX) or a node (node:NAME) everywhere, and close its connections
    Deny {
        /// spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT, serial:HEX or node:NAME
        subject: String,
        /// Until when; for ever without it
        #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
        duration: Option<Duration>,
        /// Why
        #[arg(long, default_value = "")]
        reason: String,
        /// Show the list, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Take an entry off the deny-list
    Allow {
        /// As it stands in `tulle ca list`
        subject: String,
        /// Show the list, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Show the deny-list
    List,
}

/// What the control plane says of its authority.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    phase: String,
    since: String,
    waiting: Vec<String>,
    #[serde(default)]
    overdue: bool,
    generation: u64,
    holding: usize,
    lacking: usize,
    source: String,
    certificates: Vec<Certificate>,
    denied: usize,
    suspects: Vec<String>,
    crl_stale: bool,
    problem: Option<String>,
    #[serde(default)]
    expires_soon: Option<String>,
    clock_jumps: u64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    role: String,
    serial: String,
    not_after: i64,
}

/// One entry of the deny-list.
#[derive(Debug, Deserialize, Serialize)]
struct Denied {
    subject: String,
    reason: String,
    until: Option<i64>,
    by: String,
}

pub(crate) async fn run(ca: Ca) -> anyhow::Result<Exit> {
    let control = ca.reading.run_dir().component(Kind::Control, "");
    let by = format!("uid {}", Uid::effective());
    match ca.command {
        Command::Status | Command::Rotate { dry_run: true, .. } | Command::Rollback { dry_run: true } => {
            status(&ca.reading, &control.json("/ca").await?)
        }
        Command::Rotate { force, .. } => {
            let status: Status = control.ask("/ca/rotate", &json!({"force": force})).await?;
            self::status(&ca.reading, &status)
        }
        Command::Rollback { .. } => {
            let status: Status = control.ask("/ca/rollback", &json!({})).await?;
            self::status(&ca.reading, &status)
        }
        Command::List | Command::Deny { dry_run: true, .. } | Command::Allow { dry_run: true, .. } => {
            list(&ca.reading, &control).await
        }
        Command::Deny {
            subject,
            duration,
            reason,
            ..
        } => {
            let seconds = duration.map(|duration| duration.as_secs());
            let entry = json!({"subject": subject, "reason": reason, "seconds": seconds, "by": by});
            let _: Status = control.ask("/ca/deny", &entry).await?;
            list(&ca.reading, &control).await
        }
        Command::Allow { subject, .. } => {
            let _: Status = control.ask("/ca/allow", &json!({"subject": subject})).await?;
            list(&ca.reading, &control).await
        }
    }
}

impl Status {
    /// Whether nothing calls for somebody.
    fn is_well(&self) -> bool {
        let is_told_of = self.problem.is_some() || self.expires_soon.is_some();
        !is_told_of && !self.overdue && !self.crl_stale && self.suspects.is_empty()
    }
}

/// A finding that calls for somebody makes the command fail.
fn status(reading: &Reading, status: &Status) -> anyhow::Result<Exit> {
    let rows = || {
        let mut table = table(&["CERTIFICATE", "SERIAL", "ENDS"]);
        for one in &status.certificates {
            table.add_row([one.role.clone(), one.serial.clone(), time(one.not_after)]);
        }
        table
    };
    print(reading.output(), "ca.status", std::slice::from_ref(status), rows)?;
    if reading.output() == crate::output::Form::Table {
        println!(
            "issuer: {}   rotation: {} since {}",
            status.source, status.phase, status.since
        );
        println!(
            "roots: generation {}, accepted by {} connected clients, {} have not yet",
            status.generation, status.holding, status.lacking
        );
        for waiting in &status.waiting {
            println!("waits: {waiting}");
        }
        if status.overdue {
            println!("problem: the rotation has waited past its deadline; somebody has to decide");
        }
        println!("deny-list: {} entries", status.denied);
        for node in &status.suspects {
            println!("suspect: node {node}: its join token came a second time");
        }
        if status.crl_stale {
            println!("problem: the revocation list is past its time; proxies refuse what they cannot check");
        }
        for problem in status.problem.iter().chain(&status.expires_soon) {
            println!("problem: {problem}");
        }
    }
    Ok(if status.is_well() { Exit::Ok } else { Exit::Failed })
}

async fn list(reading: &Reading, control: &Component) -> anyhow::Result<Exit> {
    let denied: Vec<Denied> = control.json("/ca/denied").await?;
    let rows = || {
        let mut table = table(&["SUBJECT", "UNTIL", "BY", "REASON"]);
        for one in &denied {
            let until = one.until.map_or_else(|| "for ever".to_owned(), time);
            table.add_row([one.subject.clone(), until, one.by.clone(), one.reason.clone()]);
        }
        table
    };
    print(reading.output(), "ca.denied", &denied, rows)?;
    Ok(Exit::Ok)
}

/// Seconds since 1970 as people write it.
fn time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page of a control plane that nothing is wrong with.
    fn page() -> serde_json::Value {
        json!({
            "phase": "stable", "since": "2026-01-01T00:00:00Z", "waiting": [], "generation": 1, "holding": 1,
            "lacking": 0, "source": "own root", "certificates": [], "denied": 0, "suspects": [],
            "crlStale": false, "problem": null, "clockJumps": 0
        })
    }

    #[test]
    fn whatever_calls_for_somebody_is_not_well() {
        let is_well = |page| serde_json::from_value::<Status>(page).unwrap().is_well();
        assert!(is_well(page()));
        for (name, value) in [
            ("problem", json!("no key")),
            ("expiresSoon", json!("T0308")),
            ("crlStale", json!(true)),
            ("overdue", json!(true)),
            ("suspects", json!(["n1"])),
        ] {
            let mut page = page();
            page[name] = value;
            assert!(!is_well(page), "{name}");
        }
    }
}
