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

use self::session::Session;
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

/// Follows the agent until the process drains; the fleet comes back to be drained.
pub async fn run(mut fleet: Fleet, socket: PathBuf, ready: BlockReady, drain: DrainWatcher) -> Fleet {
    let mut backoff = Backoff::new(RECONNECT_MIN, RECONNECT_MAX);
    let mut first_snapshot = Some(ready);
    let generation = format!("{:016x}", rand::random::<u64>());
    loop {
        if drain.is_draining() {
            return fleet;
        }
        match SeqPacket::connect(&socket) {
            Ok(connection) => {
                let mut session = Session::new(connection, &mut first_snapshot, &mut backoff);
                tokio::select! {
                    _ = drain.signaled() => return fleet,
                    Err(error) = session.serve(&mut fleet, &generation) => {
                        tracing::warn!(%error, "the connection to the agent ended; pods are served on");
                    }
                }
            }
            Err(error) => tracing::debug!(%error, socket = %socket.display(), "the agent is not there"),
        }
        let pause = tokio::time::sleep(backoff.next());
        if supervise_until(&mut fleet, pause, &drain).await {
            return fleet;
        }
    }
}

/// Keeps proxies alive while the agent is away. Returns whether the process drains.
async fn supervise_until(fleet: &mut Fleet, until: tokio::time::Sleep, drain: &DrainWatcher) -> bool {
    let mut until = std::pin::pin!(until);
    loop {
        tokio::select! {
            () = &mut until => return false,
            _ = drain.signaled() => return true,
            () = fleet.supervise() => {}
        }
    }
}
