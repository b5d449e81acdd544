//! In-pod mode: the agent says which pods to serve, this proxy serves them where they live.

pub mod netns;
mod session;
pub mod zds;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tulle_linux::seqpacket::SeqPacket;
use tulle_model::Str;
use tulle_runtime::backoff::Backoff;
use tulle_runtime::drain::DrainWatcher;
use tulle_runtime::ready::BlockReady;

use self::session::{Session, Terms};
use crate::fleet::Fleet;

/// The agent's name for a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(pub Str);

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

const RECONNECT_MIN: Duration = Duration::from_millis(10);
const RECONNECT_MAX: Duration = Duration::from_secs(15);

/// What this process calls itself towards the agent. Of two processes of a node the one that started later sorts after
/// the other: after `t` comes the time since boot.
#[must_use]
pub fn generation() -> String {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let digits = uptime
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .replace('.', "");
    let hundredths: u64 = digits.parse().unwrap_or_default();
    format!("t{hundredths:012x}-{:04x}", rand::random::<u16>())
}

/// Follows the agent for as long as the process lives.
#[derive(Debug)]
pub struct Follower {
    socket: PathBuf,
    generation: String,
    /// The agent has said that it knows what a lingering proxy is.
    knows_lingering: bool,
}

impl Follower {
    /// Follows the agent at this socket.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            generation: generation(),
            knows_lingering: false,
        }
    }

    /// Serves the pods the agent names until the process drains; `ready` ends with the first whole snapshot.
    pub async fn follow(&mut self, fleet: &mut Fleet, ready: BlockReady, drain: &DrainWatcher) {
        let mut terms = Terms::serving(ready);
        let serving = async {
            // The agent takes whoever dials last for the one that serves: until then an earlier generation does.
            fleet.prepare_all().await;
            self.keep_connected(fleet, &mut terms).await;
        };
        tokio::select! {
            _ = drain.signaled() => {}
            () = serving => {}
        }
        self.knows_lingering = terms.knows_lingering;
    }

    /// Drains: takes no pods any more, waits until the last connection has ended, at most until the deadline or until
    /// the process's drain is urgent, and resets the rest. The end of a pod is still heard of, where the agent tells a lingering proxy. Returns how many
    /// connections were reset.
    pub async fn linger(self, mut fleet: Fleet, deadline: Duration, drain: &DrainWatcher) -> usize {
        fleet.start_drain();
        let idle = fleet.idle();
        let told = async {
            if self.knows_lingering {
                self.keep_connected(&mut fleet, &mut Terms::lingering()).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = idle => {}
            () = tokio::time::sleep(deadline) => {}
            () = drain.urgent() => {}
            () = told => {}
        }
        fleet.drain(Duration::ZERO).await
    }

    /// Connects again and again; never returns.
    async fn keep_connected(&self, fleet: &mut Fleet, terms: &mut Terms) {
        let mut backoff = Backoff::new(RECONNECT_MIN, RECONNECT_MAX);
        loop {
            match SeqPacket::connect(&self.socket) {
                Ok(connection) => {
                    let mut session = Session::new(connection, terms, &mut backoff);
                    let Err(error) = session.serve(fleet, &self.generation).await;
                    tracing::warn!(%error, "the connection to the agent ended; pods are served on");
                }
                Err(error) => {
                    tracing::debug!(%error, socket = %self.socket.display(), "the agent is not there");
                }
            }
            let mut pause = std::pin::pin!(tokio::time::sleep(backoff.next()));
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    () = fleet.supervise() => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_generation_sorts_after_an_earlier_one() {
        let earlier = generation();
        assert!(earlier.starts_with('t') && earlier.len() == 18, "{earlier}");
        assert!("t0000000000ff-ffff" < earlier.as_str());
    }
}
