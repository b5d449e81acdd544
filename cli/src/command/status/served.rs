//! What the control plane says of its clients: how far each of them is, those on other machines included.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

/// A change that is lacking for longer is a finding: the proxy goes on with what it had.
pub(super) const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// Everyone who is connected to the control plane.
#[derive(Debug, Deserialize)]
pub(super) struct Served {
    /// The newest cut.
    head: u64,
    source: Source,
    clients: Vec<Client>,
    more: More,
}

/// What the page leaves out.
#[derive(Debug, Deserialize)]
struct More {
    clients: usize,
}

#[derive(Debug, Deserialize)]
struct Source {
    generation: u64,
}

/// One stream of a client.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Client {
    pub(super) node: String,
    pub(super) kind: String,
    pub(super) version: String,
    #[serde(default)]
    pub(super) identity: String,
    #[serde(default)]
    pub(super) replica: String,
    #[serde(default)]
    pub(super) features: BTreeMap<String, bool>,
    #[serde(default)]
    pub(super) connected_since: String,
    address: Option<SocketAddr>,
    types: BTreeMap<String, Type>,
    rejections: Vec<IgnoredAny>,
}

/// How far a client is with one type.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Type {
    head: u64,
    behind: usize,
    unacked: usize,
    lag_ms: u64,
}

/// Whom a row of the table stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    /// A node's agent or proxy.
    OnNode {
        /// Which of them.
        kind: String,
        /// The node.
        node: String,
    },
    /// An instance of a waypoint; it may show the credential of its node, so that only its address tells it.
    Instance(Option<IpAddr>),
}

/// What the control plane knows of those that a row stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Stream {
    /// Whom its credential names.
    pub(super) identity: String,
    /// The control plane that serves it.
    pub(super) replica: String,
    /// What it announced that it understands.
    pub(super) features: Vec<String>,
    /// Since when the oldest of its streams stands, RFC 3339.
    pub(super) connected_since: String,
}

/// How far those are that a row stands for: a proxy and its successor during an upgrade.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    streams: usize,
    /// Of the newest stream, if there is one.
    pub(super) stream: Option<Stream>,
    /// Resources and removals that they lack.
    pub(super) behind: usize,
    unacked: usize,
    rejected: usize,
    /// Age of the oldest of them.
    pub(super) lag: Duration,
    /// The generation in force at all of them, where that is known.
    pub(super) generation: Option<u64>,
}

impl Served {
    /// How far somebody is; nothing is known of who may be among those that are left out.
    pub(super) fn progress(&self, who: &Who) -> Option<Progress> {
        let progress = self.of(self.clients.iter().filter(|client| client.who() == *who));
        (progress.streams > 0 || self.more.clients == 0).then_some(progress)
    }

    /// Streams, those that the page leaves out included.
    pub(super) fn streams(&self) -> usize {
        self.clients.len() + self.more.clients
    }

    /// Clients that the page leaves out; they lack nothing.
    pub(super) fn unlisted(&self) -> usize {
        self.more.clients
    }

    /// Clients that no row stands for yet, one of each, with how far its kind on its node is.
    pub(super) fn others(&self, covered: &[Who]) -> Vec<(&Client, Progress)> {
        let mut others: BTreeMap<(&str, &str, Who), Vec<&Client>> = BTreeMap::new();
        for client in &self.clients {
            let who = client.who();
            if !covered.contains(&who) {
                others
                    .entry((&client.kind, &client.node, who))
                    .or_default()
                    .push(client);
            }
        }
        let streams = others.into_values();
        streams
            .filter_map(|streams| Some((*streams.last()?, self.of(streams.iter().copied()))))
            .collect()
    }

    fn of<'a>(&self, clients: impl Iterator<Item = &'a Client>) -> Progress {
        let mut progress = Progress::default();
        let mut is_at_head = true;
        for client in clients {
            progress.streams += 1;
            progress.stream = Some(client.stream(progress.stream.take()));
            progress.rejected += client.rejections.len();
            for ty in client.types.values() {
                progress.behind += ty.behind;
                progress.unacked += ty.unacked;
                progress.lag = progress.lag.max(Duration::from_millis(ty.lag_ms));
                is_at_head &= ty.head >= self.head;
            }
            is_at_head &= !client.types.is_empty();
        }
        let is_known = is_at_head && progress.streams > 0 && progress.rejected == 0 && !progress.is_behind();
        progress.generation = is_known.then_some(self.source.generation);
        progress
    }
}

impl Client {
    /// What is known of it, beside an older stream of the same.
    fn stream(&self, older: Option<Stream>) -> Stream {
        let features = self.features.iter().filter(|(_, has)| **has);
        let since = older.map(|older| older.connected_since);
        Stream {
            identity: self.identity.clone(),
            replica: self.replica.clone(),
            features: features.map(|(name, _)| name.clone()).collect(),
            connected_since: since.unwrap_or_else(|| self.connected_since.clone()),
        }
    }

    fn who(&self) -> Who {
        if self.kind == "waypoint" {
            return Who::Instance(self.address.map(|address| address.ip().to_canonical()));
        }
        Who::OnNode {
            kind: self.kind.clone(),
            node: self.node.clone(),
        }
    }
}

impl Progress {
    /// Whether something is on its way.
    pub(super) fn is_behind(&self) -> bool {
        self.behind > 0 || self.unacked > 0
    }

    /// Whether it has been for too long.
    pub(super) fn is_late(&self) -> bool {
        self.lag > ANSWERS_WITHIN
    }

    /// `12 changes, 340 ms`: what is lacking, and the age of the oldest of it.
    pub(super) fn lacking(&self) -> String {
        let plural = if self.behind == 1 { "" } else { "s" };
        format!("{} change{plural}, {} ms", self.behind, self.lag.as_millis())
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { streams: 0, .. } => f.write_str("not connected"),
            Self {
                rejected: rejected @ 1..,
                ..
            } => write!(f, "rejects {rejected}"),
            _ if self.is_behind() => f.write_str(&self.lacking()),
            _ => f.write_str("synced"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn client(kind: &str, node: &str, address: &str, types: Value) -> Value {
        json!({"node": node, "kind": kind, "version": "0.4.0", "address": address, "types": types, "rejections": []})
    }

    fn ty(head: u64, behind: usize, unacked: usize, lag: u64) -> Value {
        json!({"a": {"head": head, "behind": behind, "unacked": unacked, "lagMs": lag}})
    }

    fn served(clients: &[Value]) -> Served {
        let page =
            json!({"head": 9, "source": {"generation": 187}, "clients": clients, "more": {"clients": 0}});
        serde_json::from_value(page).unwrap()
    }

    fn proxy(node: &str) -> Who {
        Who::OnNode {
            kind: "ztunnel".to_owned(),
            node: node.to_owned(),
        }
    }

    #[test]
    fn what_a_proxy_lacks_is_counted_in_changes_and_milliseconds() {
        let served = served(&[
            client("ztunnel", "n1", "10.0.0.1:5", ty(9, 12, 1, 340)),
            client("ztunnel", "n2", "10.0.0.2:5", ty(9, 0, 0, 0)),
            client("agent", "n2", "10.0.0.2:6", ty(9, 1, 1, 5)),
        ]);
        let lagging = served.progress(&proxy("n1")).unwrap();
        assert_eq!(lagging.to_string(), "12 changes, 340 ms");
        assert_eq!(lagging.generation, None);
        let synced = served.progress(&proxy("n2")).unwrap();
        assert_eq!(
            (synced.to_string().as_str(), synced.generation),
            ("synced", Some(187))
        );
        assert_eq!(
            served.progress(&proxy("n3")).unwrap().to_string(),
            "not connected"
        );
    }

    #[test]
    fn who_may_be_left_out_of_the_page_is_not_called_unconnected() {
        let mut served = served(&[client("ztunnel", "n1", "10.0.0.1:5", ty(9, 0, 0, 0))]);
        served.more.clients = 1;
        assert!(served.progress(&proxy("n1")).is_some());
        assert_eq!(served.progress(&proxy("n3")), None);
    }

    #[test]
    fn who_has_not_seen_the_newest_cut_has_no_known_generation() {
        let served = served(&[client("ztunnel", "n1", "10.0.0.1:5", ty(8, 0, 0, 0))]);
        assert_eq!(served.progress(&proxy("n1")).unwrap().generation, None);
    }

    #[test]
    fn an_answer_is_late_after_ten_seconds() {
        let served = served(&[
            client("ztunnel", "n1", "10.0.0.1:5", ty(9, 1, 1, 10_000)),
            client("ztunnel", "n2", "10.0.0.1:5", ty(9, 1, 1, 10_001)),
        ]);
        let late = |node| served.progress(&proxy(node)).unwrap().is_late();
        assert_eq!((late("n1"), late("n2")), (false, true));
    }

    #[test]
    fn clients_without_a_row_are_listed_once_each_with_all_their_streams() {
        let served = served(&[
            client("ztunnel", "n1", "10.0.0.1:5", ty(9, 0, 0, 0)),
            client("ztunnel", "n2", "10.0.0.2:5", ty(9, 3, 1, 7)),
            client("ztunnel", "n2", "10.0.0.2:6", ty(9, 4, 1, 9)),
            client("waypoint", "shop/way", "[::ffff:10.0.0.7]:5", ty(9, 0, 0, 0)),
            client("waypoint", "shop/way", "10.0.0.8:5", ty(9, 0, 0, 0)),
        ]);
        let covered = [proxy("n1"), Who::Instance(Some([10, 0, 0, 7].into()))];
        let others: Vec<_> = served
            .others(&covered)
            .iter()
            .map(|(client, progress)| format!("{} {} {progress}", client.kind, client.node))
            .collect();
        assert_eq!(others, ["waypoint shop/way synced", "ztunnel n2 7 changes, 9 ms"]);
    }

    #[test]
    fn a_rejection_goes_before_everything_and_hides_the_generation() {
        let mut rejecting = client("ztunnel", "n1", "10.0.0.1:5", ty(9, 0, 0, 0));
        rejecting["rejections"] = json!([{"text": "bad CIDR"}]);
        let progress = served(&[rejecting]).progress(&proxy("n1")).unwrap();
        assert_eq!(
            (progress.to_string().as_str(), progress.generation),
            ("rejects 1", None)
        );
    }
}
