//! The rows of `tulle status`: one for each component, those of other machines included.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::Value;
use tulle_model::Reason;

use super::served::{Progress, Served, Stream, Who};
use crate::running::Component;

/// One row of the table.
#[derive(Debug, Default, Serialize)]
pub(super) struct Row {
    pub(super) component: String,
    pub(super) node: String,
    pub(super) version: String,
    /// Generation of the folder; of a proxy, if it lacks nothing of it.
    pub(super) generation: Option<u64>,
    /// Whether everything sent to it was accepted, by the control plane's account.
    pub(super) sync: Option<String>,
    /// Resources and removals that it lacks, by the same account.
    pub(super) behind: Option<usize>,
    /// Age of the oldest of them.
    pub(super) lag_ms: Option<u64>,
    /// What the control plane knows of it: identity, features, since when it is connected, and to which replica.
    #[serde(flatten)]
    pub(super) stream: Option<Stream>,
    /// Of a control plane: itself and the owner of its state folder.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) replicas: Vec<Value>,
    /// Of a control plane: how far each kind of object is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) sources: Vec<Value>,
    pub(super) connections: Option<usize>,
    pub(super) certificates: Option<usize>,
    pub(super) next_expiry: Option<String>,
    /// Whose certificate that is.
    pub(super) next_expiry_of: Option<String>,
    pub(super) state: State,
    /// What a person should know, one line each.
    pub(super) findings: Vec<String>,
}

/// What is to be said of a component in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(into = "&'static str")]
pub(super) enum State {
    /// It is ready, and has all that it is to have.
    Ok,
    /// It is well, and on its way to the newest configuration.
    Applying,
    /// It runs on another machine: only that it is connected is known.
    Connected,
    /// There is a finding.
    Attention,
    NotReady,
    #[default]
    Silent,
}

impl From<State> for &'static str {
    fn from(state: State) -> Self {
        match state {
            State::Ok => "ok",
            State::Applying => "applying",
            State::Connected => "connected",
            State::Attention => "attention",
            State::NotReady => "not ready",
            State::Silent => "does not answer",
        }
    }
}

impl State {
    pub(super) fn is_well(self) -> bool {
        matches!(self, Self::Ok | Self::Applying | Self::Connected)
    }
}

impl Row {
    pub(super) fn of(component: &Component) -> Self {
        Self {
            component: component.kind.as_str().to_owned(),
            node: component.node.clone(),
            version: "-".to_owned(),
            ..Self::default()
        }
    }

    /// Not ready, or something to know: not ok.
    pub(super) async fn judge(mut self, component: &Component) -> Self {
        self.state = match component.text("/healthz/ready").await {
            Err(error) => {
                self.findings.push(format!("{error:#}"));
                State::NotReady
            }
            Ok(_) if self.findings.is_empty() => State::Ok,
            Ok(_) => State::Attention,
        };
        self
    }

    /// Adds what the control plane says of it.
    pub(super) fn follow(&mut self, progress: &Progress) {
        self.sync = Some(progress.to_string());
        self.behind = Some(progress.behind);
        self.lag_ms = u64::try_from(progress.lag.as_millis()).ok();
        self.generation = progress.generation;
        self.stream.clone_from(&progress.stream);
        if progress.is_late() {
            let (code, lacking) = (Reason::ConfigStale.code(), progress.lacking());
            self.findings.push(format!(
                "{code} it has not accepted the newest configuration: {lacking}; see its log, and that it is not stopped"
            ));
        }
        self.state = match self.state {
            State::Ok | State::Connected if progress.is_late() => State::Attention,
            State::Ok | State::Connected if progress.is_behind() => State::Applying,
            state => state,
        };
    }

    /// The control plane that serves it, or that it is.
    fn replica(&self) -> Option<&str> {
        let own = self.replicas.first().and_then(|own| own["name"].as_str());
        own.or_else(|| self.stream.as_ref().map(|stream| stream.replica.as_str()))
    }

    /// `owner`, or whose replica it is.
    pub(super) fn role(&self) -> Option<String> {
        let (own, owner) = (self.replicas.first()?, self.replicas.get(1));
        let name = own["name"].as_str()?;
        Some(
            match (
                own["role"] == "replica",
                owner.and_then(|owner| owner["name"].as_str()),
            ) {
                (false, _) => format!("{name} owns its state folder"),
                (true, Some(owner)) => format!("{name} is a replica; {owner} owns the state folder"),
                (true, None) => format!("{name} is a replica, and no control plane owns the state folder"),
            },
        )
    }

    /// Adds the certificates of a proxy's dump.
    pub(super) fn certified(&mut self, certificates: &[&Value]) {
        self.certificates = Some(certificates.len());
        let ends = certificates.iter().filter_map(|one| {
            let end = one["notAfter"].as_str()?;
            Some((end.parse::<Timestamp>().ok()?, end, &one["identity"]))
        });
        if let Some((_, end, identity)) = ends.min_by_key(|(time, ..)| *time) {
            self.next_expiry = Some(end.to_owned());
            self.next_expiry_of = identity.as_str().map(str::to_owned);
        }
    }
}

/// Rows of the proxies that have no socket on this machine.
pub(super) fn elsewhere(served: &Served, covered: &[Who]) -> Vec<Row> {
    let others = served.others(covered).into_iter();
    let rows = others.map(|(client, progress)| {
        let mut row = Row {
            component: client.kind.clone(),
            node: client.node.clone(),
            version: match client.version.as_str() {
                "" => "-".to_owned(),
                version => version.to_owned(),
            },
            state: State::Connected,
            ..Row::default()
        };
        row.follow(&progress);
        row
    });
    rows.collect()
}

/// How long the proxies that were asked can go on if nothing is signed any more.
pub(super) fn budget(rows: &[Row], now: Timestamp) -> Option<String> {
    let proxies = rows.iter().filter(|row| row.certificates.is_some());
    let ends = proxies.filter_map(|row| Some((row.next_expiry.as_ref()?.parse::<Timestamp>().ok()?, row)));
    let (end, first) = ends.min_by_key(|(end, _)| *end)?;
    // Whole minutes: nobody acts on seconds.
    let left = now.duration_until(end).max(SignedDuration::ZERO).as_mins();
    let is_proxy = |row: &&Row| matches!(row.component.as_str(), "ztunnel" | "waypoint");
    let unasked = rows
        .iter()
        .filter(is_proxy)
        .filter(|row| row.certificates.is_none());
    let unasked = match unasked.count() {
        0 => String::new(),
        count => format!("; {count} proxies did not say"),
    };
    Some(format!(
        "CA outage budget: {:#} (first to expire if nothing were signed any more: {} on {}{unasked})",
        SignedDuration::from_mins(left),
        first.next_expiry_of.as_deref().unwrap_or("-"),
        first.node,
    ))
}

pub(super) fn table(rows: &[Row]) -> comfy_table::Table {
    let header = [
        "COMPONENT",
        "NODE",
        "VERSION",
        "GEN",
        "SYNC",
        "CONNS",
        "CERTS",
        "NEXT-EXPIRY",
        "CONNECTED-SINCE",
        "REPLICA",
        "STATE",
    ];
    let mut table = crate::output::table(&header);
    let said = |text: Option<&str>| text.filter(|text| !text.is_empty()).unwrap_or("-").to_owned();
    let number = |value: Option<usize>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    for row in rows {
        table.add_row([
            row.component.clone(),
            if row.node.is_empty() {
                "-".to_owned()
            } else {
                row.node.clone()
            },
            row.version.clone(),
            row.generation
                .map_or_else(|| "-".to_owned(), |generation| generation.to_string()),
            row.sync.clone().unwrap_or_else(|| "-".to_owned()),
            number(row.connections),
            number(row.certificates),
            row.next_expiry.clone().unwrap_or_else(|| "-".to_owned()),
            said(row.stream.as_ref().map(|stream| stream.connected_since.as_str())),
            said(row.replica()),
            <&str>::from(row.state).to_owned(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn served(lag_ms: u64) -> Served {
        let ty = json!({"head": 3, "behind": 2, "unacked": 1, "lagMs": lag_ms});
        let client = json!({"node": "n9", "kind": "ztunnel", "version": "", "address": null, "types": {"a": ty}, "rejections": []});
        let page =
            json!({"head": 3, "source": {"generation": 4}, "clients": [client], "more": {"clients": 0}});
        serde_json::from_value(page).unwrap()
    }

    #[test]
    fn a_proxy_on_another_machine_has_a_row_and_is_applying_before_it_is_late() {
        let rows = elsewhere(&served(340), &[]);
        let [row] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!((row.component.as_str(), row.node.as_str()), ("ztunnel", "n9"));
        assert_eq!(row.sync.as_deref(), Some("2 changes, 340 ms"));
        assert_eq!((row.state, row.findings.len()), (State::Applying, 0));
        let late = &elsewhere(&served(60_000), &[])[0];
        assert_eq!(late.state, State::Attention);
        assert!(late.findings[0].starts_with("T0204"), "{late:?}");
    }

    #[test]
    fn a_row_says_who_it_is_and_who_serves_it_since_when() {
        let client = |since: &str| {
            json!({"node": "n9", "kind": "ztunnel", "version": "0.4.0", "address": null, "types": {}, "rejections": [],
                "identity": "spiffe://td/node/n9", "replica": "m:15012", "features": {"trust": true, "dryRun": false}, "connectedSince": since})
        };
        let clients = [client("2026-01-01T00:00:00Z"), client("2026-01-02T00:00:00Z")];
        let page =
            json!({"head": 3, "source": {"generation": 4}, "clients": clients, "more": {"clients": 0}});
        let rows = elsewhere(&serde_json::from_value(page).unwrap(), &[]);
        let told = serde_json::to_value(&rows).unwrap();
        let told = |name: &str| told[0][name].clone();
        assert_eq!(told("identity"), "spiffe://td/node/n9");
        assert_eq!(
            (told("replica"), told("features")),
            (json!("m:15012"), json!(["trust"]))
        );
        assert_eq!(
            told("connected_since"),
            "2026-01-01T00:00:00Z",
            "of the older one of both"
        );
        let line = table(&rows).to_string();
        assert!(
            line.contains("m:15012") && line.contains("2026-01-01T00:00:00Z"),
            "{line}"
        );
    }

    #[test]
    fn a_control_plane_says_who_owns_the_state_folder() {
        let role = |replicas: Value| {
            let row = Row {
                replicas: replicas.as_array().unwrap().clone(),
                ..Row::default()
            };
            row.role().unwrap_or_default()
        };
        let (a, b) = (
            json!({"name": "a", "role": "owner"}),
            json!({"name": "b", "role": "replica"}),
        );
        assert_eq!(role(json!([a])), "a owns its state folder");
        assert_eq!(role(json!([b, a])), "b is a replica; a owns the state folder");
        assert_eq!(
            role(json!([b])),
            "b is a replica, and no control plane owns the state folder"
        );
        assert_eq!(role(json!([])), "", "an older one does not say");
    }

    #[test]
    fn what_a_component_of_this_machine_lacks_does_not_hide_that_it_is_not_ready() {
        let mut row = Row {
            state: State::NotReady,
            ..Row::default()
        };
        let who = Who::OnNode {
            kind: "ztunnel".to_owned(),
            node: "n9".to_owned(),
        };
        row.follow(&served(60_000).progress(&who).unwrap());
        assert_eq!((row.state, row.findings.len()), (State::NotReady, 1));
    }

    #[test]
    fn the_budget_ends_with_the_first_certificate_of_a_proxy() {
        let certified = |node: &str, ends: &[&str]| {
            let certificates: Vec<Value> = ends
                .iter()
                .map(|end| json!({"identity": format!("spiffe://td/ns/{node}/sa/a"), "notAfter": end}))
                .collect();
            let mut row = Row {
                node: node.to_owned(),
                ..Row::default()
            };
            row.certified(&certificates.iter().collect::<Vec<_>>());
            row
        };
        let issuer = Row {
            next_expiry: Some("2026-01-01T00:00:01Z".to_owned()),
            ..Row::default()
        };
        let elsewhere = Row {
            component: "ztunnel".to_owned(),
            ..Row::default()
        };
        let rows = [
            issuer,
            elsewhere,
            certified("n1", &["2026-01-02T03:00:00Z", "2026-01-01T12:40:59Z"]),
            certified("n2", &["2026-01-01T20:00:00+00:00"]),
        ];
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let said = budget(&rows, now).unwrap();
        assert!(
            said.contains(" 12h 40m ")
                && said.contains("spiffe://td/ns/n1/sa/a on n1; 1 proxies did not say"),
            "{said}"
        );
        let past = "2027-01-01T00:00:00Z".parse().unwrap();
        assert!(budget(&rows, past).unwrap().contains(" 0s "));
        assert_eq!(budget(&rows[..1], now), None);
    }
}
