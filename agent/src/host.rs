//! The node's own tables, kept as wanted: captured pods are reached by the node's probes, and pods that should be
//! captured and are not yet stay mute.
//!
//! Pods' tasks say what they want of the tables ([`wanted`], pure); whoever waits for it applies all of it, in one
//! transaction per table, so that a set is never seen empty and many pods cost one change.

pub mod boot;
pub mod hooks;
mod wanted;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tulle_linux::NetNs;
use tulle_model::Str;
use tulle_model::reason::Reason;
use tulle_runtime::backoff;

use crate::board::{Board, Note};
use crate::error::CaptureError;
use crate::metrics::{Metrics, RepairLabels};
use crate::repair::Check;
use crate::rules::host::{
    GUARD_TABLE, PROBE_SET4, PROBE_SET6, PROBE_TABLE, WAIT_SET4, WAIT_SET6, guard, probes,
};
use crate::rules::plan::Table;
use crate::rules::ranges::Range;
use crate::rules::{Comparison, Rules};
use boot::BootGuard;
use wanted::Wanted;

/// How often the tables are looked at, ±20 %.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);

/// At the agent's start: guards what must be guarded since the boot, and notes what an operator should know.
pub async fn look_at_node(host: &Host, board: &Board, state: &Path, ranges: &[String]) {
    match boot::start(host, state, ranges).await {
        Ok(BootGuard::Late) => board.note(Note {
            token: "boot_guard_late",
            message: "pods were not kept mute since the boot, only since the agent's start".to_owned(),
            fix: "run `tulle agent guard --boot` before the container runtime starts, as the unit tulle-guard.service does",
        }),
        Ok(BootGuard::NoRanges | BootGuard::Standing) => {}
        Err(error) => board.note(Note {
            token: "boot_guard_failed",
            message: format!("the next boot will not keep pods mute until they are captured: {error}"),
            fix: "see that --state-dir can be written",
        }),
    }
    match hooks::are_bypassed(&host.netns).await {
        Ok(true) => board.note(Note {
            token: Reason::HostHooksBypassed.token(),
            message: "packets between pods of a bridge do not pass the node's rules: a pod may forge the address of \
                      probes, and speak before it is captured"
                .to_owned(),
            fix: "sysctl -w net.bridge.bridge-nf-call-iptables=1 (module br_netfilter)",
        }),
        Ok(false) => {}
        Err(error) => tracing::warn!(%error, "cannot list the node's interfaces"),
    }
}

/// Looks at the node's own tables from time to time, and puts right what is not as it should be.
pub async fn watch(host: Host, metrics: Metrics) {
    loop {
        tokio::time::sleep(backoff::jittered(LOOK_INTERVAL)).await;
        if let Err(error) = host.verify(&metrics).await {
            tracing::warn!(%error, "the node's own tables cannot be looked at");
        }
    }
}

/// The node's own tables. Clones share them.
#[derive(Debug, Clone)]
pub struct Host {
    rules: Arc<dyn Rules>,
    netns: NetNs,
    wanted: Arc<Mutex<Wanted>>,
    /// What was applied last; held while applying.
    applied: Arc<tokio::sync::Mutex<Applied>>,
}

/// The tables that were applied last.
#[derive(Debug, Default)]
struct Applied {
    probes: Option<Table>,
    guard: Option<Table>,
}

impl Host {
    /// The tables of the namespace of a node, and what an earlier run left in them: it stays until
    /// [`Self::first_look_is_done`].
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn take_over(rules: Arc<dyn Rules>, netns: NetNs) -> Result<Self, CaptureError> {
        let mut captured = Vec::new();
        for set in [PROBE_SET4, PROBE_SET6] {
            captured.extend(rules.held(&netns, PROBE_TABLE, set, false).await?);
        }
        let mut waiting = Vec::new();
        for set in [WAIT_SET4, WAIT_SET6] {
            waiting.extend(rules.held(&netns, GUARD_TABLE, set, true).await?);
        }
        Ok(Self {
            rules,
            netns,
            wanted: Arc::new(Mutex::new(Wanted::after(captured, waiting))),
            applied: Arc::default(),
        })
    }

    /// Guards these ranges until the first look around is done, as at boot.
    pub fn guard_ranges(&self, ranges: Vec<Range>) {
        self.wanted.lock().guard_ranges(ranges);
    }

    /// Whether ranges are guarded, because pods may run that nobody has looked at yet.
    #[must_use]
    pub fn guards_ranges(&self) -> bool {
        self.wanted.lock().guards_ranges()
    }

    /// A pod that is new and should be captured: mute until [`Self::pass`].
    pub fn wait(&self, uid: &Str, addresses: &[IpAddr]) {
        self.wanted.lock().wait(uid, addresses);
    }

    /// A pod that is captured, or is not to be captured: it may speak.
    pub fn pass(&self, uid: &Str, addresses: &[IpAddr]) {
        self.wanted.lock().pass(uid, addresses);
    }

    /// A pod from its announcement to the end of its leaving: probes reach it.
    pub fn claim(&self, uid: &Str, addresses: &[IpAddr]) {
        self.wanted.lock().claim(uid, addresses);
    }

    /// A pod that has left: what the node sends to it is as it was.
    pub fn release(&self, uid: &Str) {
        self.wanted.lock().release(uid);
    }

    /// A pod that ended: nothing is held for it any more.
    pub fn forget(&self, uid: &Str) {
        self.wanted.lock().forget(uid);
    }

    /// Every pod has come somewhere: what an earlier run left goes, and of guarded ranges only those pods stay mute
    /// that wait.
    pub fn first_look_is_done(&self) {
        self.wanted.lock().first_look_is_done();
    }

    /// Makes the tables as wanted now. Cheap if they are.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn settle(&self) -> Result<(), CaptureError> {
        let mut applied = self.applied.lock().await;
        // Read under the lock: whoever waited for it finds its wish carried out already.
        let (probes, guard) = self.tables();
        if applied.probes.as_ref() != Some(&probes) {
            self.rules.apply(&self.netns, &probes).await?;
            applied.probes = Some(probes);
        }
        if let Some(guard) = guard
            && applied.guard.as_ref() != Some(&guard)
        {
            self.rules.apply(&self.netns, &guard).await?;
            applied.guard = Some(guard);
        }
        Ok(())
    }

    /// Compares the tables with what is wanted and puts right what is not so. Returns what was not.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn verify(&self, metrics: &Metrics) -> Result<Vec<Check>, CaptureError> {
        self.settle().await?;
        let mut applied = self.applied.lock().await;
        let mut found = Vec::new();
        let tables = [
            (Check::probes, applied.probes.clone()),
            (Check::guard, applied.guard.clone()),
        ];
        for (check, table) in tables {
            let Some(table) = table else { continue };
            match self.rules.compare(&self.netns, &table).await? {
                Comparison::Equal => continue,
                Comparison::Missing => tracing::warn!(%check, "a table of the node is gone; repairing"),
                Comparison::Different { diff } => {
                    tracing::warn!(%check, ?diff, "a table of the node is not as planned; repairing");
                }
            }
            metrics.repairs.get_or_create(&RepairLabels { check }).inc();
            found.push(check);
        }
        if !found.is_empty() {
            *applied = Applied::default();
            drop(applied);
            self.settle().await?;
        }
        Ok(found)
    }

    /// Removes the tables.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove(&self) -> Result<(), CaptureError> {
        let mut applied = self.applied.lock().await;
        *applied = Applied::default();
        self.rules.remove(&self.netns, GUARD_TABLE).await?;
        self.rules.remove(&self.netns, PROBE_TABLE).await
    }

    fn tables(&self) -> (Table, Option<Table>) {
        let wanted = self.wanted.lock();
        let guarded = wanted
            .guarded()
            .map(|(waiting, passing)| guard(&waiting, &passing));
        (probes(&wanted.captured()), guarded)
    }
}
