//! May this connection pass? Asked of the model, with the policy barrier around it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tulle_model::authz::{AllowBecause, Connection, DenyBecause};
use tulle_model::{Identity, NamespacedName, Snapshot, Verdict, Workload};

use crate::connections::Judged;
use crate::error::Error;
use crate::metrics::labels::Direction;
use crate::pod::Pod;

/// A connection that may pass.
#[derive(Debug)]
pub struct Permitted {
    /// What it was judged on, for when policy changes.
    pub judged: Judged,
    /// The policy that let it pass, if one did.
    pub policy: Option<NamespacedName>,
}

/// One look at one snapshot.
struct Look {
    workload: Arc<Workload>,
    verdict: Verdict,
    generation: u64,
    dry_run: Vec<(NamespacedName, Verdict)>,
}

impl Look {
    fn is_pending(&self) -> bool {
        matches!(
            self.verdict,
            Verdict::Deny {
                because: DenyBecause::PolicyPending { .. }
            }
        )
    }
}

/// Judges a connection to `pod`. It is held while a policy that the workload names has not arrived, or nothing has
/// arrived at all, for at most the configured wait.
///
/// # Errors
/// The refusal.
pub async fn authorize(pod: &Pod, connection: Connection) -> Result<Permitted, Error> {
    let mesh = &pod.node.mesh;
    let look = |snapshot: &Snapshot| mesh.synced().then(|| look(pod, snapshot, &connection)).flatten();
    let settled = |snapshot: &Snapshot| look(snapshot).filter(|look| !look.is_pending());
    let found = mesh.wait_for(pod.node.config.policy_wait, settled).await;
    let Some(found) = found.or_else(|| look(&mesh.snapshot())) else {
        return Err(if mesh.synced() {
            pod.unknown()
        } else {
            Error::NotSynced
        });
    };
    report_dry_run(pod, &found);
    match found.verdict {
        Verdict::Deny { because } => {
            report_denial(pod, &because, &connection);
            Err(Error::Denied(because))
        }
        Verdict::Allow { because } => Ok(Permitted {
            policy: match because {
                AllowBecause::NoAllowPolicy => None,
                AllowBecause::Policy { policy, .. } => Some(policy),
            },
            judged: Judged {
                workload: found.workload,
                connection,
                generation: found.generation,
            },
        }),
    }
}

fn look(pod: &Pod, snapshot: &Snapshot, connection: &Connection) -> Option<Look> {
    let workload = pod.find(snapshot)?;
    let policies = snapshot.policies_for(&workload);
    Some(Look {
        verdict: policies.check(connection),
        dry_run: policies.check_dry_run(connection),
        generation: snapshot.generation(),
        workload,
    })
}

fn report_dry_run(pod: &Pod, look: &Look) {
    for (policy, verdict) in &look.dry_run {
        if let Verdict::Deny { because } = verdict {
            pod.node
                .metrics
                .count_would_deny(because.reason(), Direction::Inbound);
            tracing::info!(%policy, workload = %pod.name, "a dry-run policy would deny");
        }
    }
}

fn report_denial(pod: &Pod, because: &DenyBecause, connection: &Connection) {
    let Connection {
        source_ip,
        destination,
        ..
    } = connection;
    let peer = connection
        .peer
        .as_ref()
        .map(Identity::to_string)
        .unwrap_or_default();
    if pod.node.config.authz_info_logging {
        tracing::info!(?because, %source_ip, %destination, peer, "denied");
    } else {
        tracing::debug!(?because, %source_ip, %destination, peer, "denied");
    }
}

/// The facts of a connection without a proven identity.
#[must_use]
pub fn plaintext(source_ip: IpAddr, destination: SocketAddr) -> Connection {
    Connection {
        peer: None,
        original_source: None,
        source_ip,
        destination,
    }
}
