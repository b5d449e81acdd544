//! What happens to connections, told to whoever watches: a line of JSON for each open, close and refusal.
//!
//! Nothing waits for a watcher: one that reads too slowly loses events, and is told how many.

use std::convert::Infallible;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Events that may wait for the slowest watcher.
const WAITING_MAX: usize = 1024;

/// Watchers at once.
pub const WATCHERS_MAX: usize = 16;

/// Tells events to watchers. Clones share them.
#[derive(Debug, Clone)]
pub struct Events {
    lines: broadcast::Sender<Bytes>,
    /// `tulle_events_lost_total`
    pub lost: Counter,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            lines: broadcast::Sender::new(WAITING_MAX),
            lost: Counter::default(),
        }
    }
}

/// One event.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// `opened`, `closed`, `failed` (of a connection that had a next hop) or `refused`.
    pub event: &'static str,
    /// Name of the connection, as in the access log.
    pub id: String,
    /// `inbound` or `outbound`.
    pub direction: &'static str,
    /// The client's address.
    pub src: String,
    /// Where the bytes go.
    pub dst: String,
    /// What the tunnel asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// The client.
    pub source_workload: Option<String>,
    /// Its namespace.
    pub source_namespace: Option<String>,
    /// The server.
    pub destination_workload: Option<String>,
    /// Its namespace.
    pub destination_namespace: Option<String>,
    /// The service the client named.
    pub service: Option<String>,
    /// Whether both ends were proven.
    pub mutual_tls: bool,
    /// Seen from the local pod.
    pub bytes_sent: u64,
    /// Seen from the local pod.
    pub bytes_recv: u64,
    /// Since it was accepted.
    pub duration_ms: u64,
    /// What went wrong, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Code and token of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The policy that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
}

/// An event with its time, as it is written.
#[derive(Serialize)]
struct Line {
    #[serde(rename = "timeMs")]
    time_ms: u128,
    #[serde(flatten)]
    event: Event,
}

/// In place of events that are gone.
#[derive(Serialize)]
struct Lost {
    event: &'static str,
    count: u64,
}

impl Events {
    /// Whether anybody watches.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.lines.receiver_count() > 0
    }

    /// Tells an event; it is made only if somebody watches.
    pub fn tell(&self, event: impl FnOnce() -> Event) {
        if !self.is_watched() {
            return;
        }
        let time_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis());
        // The last watcher may have left meanwhile.
        let _ = self.lines.send(line(&Line {
            time_ms,
            event: event(),
        }));
    }

    /// Every event from now on; `None` when there are enough watchers.
    #[must_use]
    pub fn watch(&self) -> Option<impl Stream<Item = Result<Bytes, Infallible>> + Send + use<>> {
        if self.lines.receiver_count() >= WATCHERS_MAX {
            return None;
        }
        let watcher = (self.lines.subscribe(), self.lost.clone());
        Some(stream::unfold(watcher, |(mut lines, lost)| async move {
            let next = match lines.recv().await {
                Ok(line) => line,
                Err(RecvError::Lagged(count)) => {
                    lost.inc_by(count);
                    line(&Lost { event: "lost", count })
                }
                Err(RecvError::Closed) => return None,
            };
            Some((Ok(next), (lines, lost)))
        }))
    }
}

fn line(event: &impl Serialize) -> Bytes {
    let mut text = serde_json::to_vec(event).expect("texts and numbers can be written as JSON");
    text.push(b'\n');
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;

    fn opened(id: usize) -> Event {
        Event {
            event: "opened",
            id: id.to_string(),
            ..Event::default()
        }
    }

    #[tokio::test]
    async fn a_slow_watcher_loses_the_oldest_and_is_told() {
        let events = Events::default();
        let mut watcher = Box::pin(events.watch().unwrap());
        for id in 0..WAITING_MAX + 3 {
            events.tell(|| opened(id));
        }
        let Ok(lost) = watcher.next().await.unwrap();
        assert_eq!(lost, "{\"event\":\"lost\",\"count\":3}\n");
        assert_eq!(events.lost.get(), 3);
        let Ok(next) = watcher.next().await.unwrap();
        let next: serde_json::Value = serde_json::from_slice(&next).unwrap();
        assert_eq!(next["id"], "3");
    }

    #[test]
    fn nothing_is_made_for_nobody_and_watchers_are_bounded() {
        let events = Events::default();
        events.tell(|| unreachable!("nobody watches"));
        let watchers: Vec<_> = (0..WATCHERS_MAX).filter_map(|_| events.watch()).collect();
        assert_eq!(watchers.len(), WATCHERS_MAX);
        assert!(events.watch().is_none());
        drop(watchers);
        assert!(events.watch().is_some());
    }
}
