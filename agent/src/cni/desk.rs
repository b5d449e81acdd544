//! What the agent answers to plugins.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use tokio::time::{Instant, timeout, timeout_at};
use tulle_model::Str;
use tulle_model::reason::Reason;
use tulle_xds_client::MeshState;

use super::notes;
use super::protocol::{Answer, Failure, Question, Sandbox};
use crate::board::{Entry, EntryError};
use crate::enroll::task::{PROXY_GRACE, Shared};
use crate::error::CaptureError;
use crate::pods::{self, Pod};
use crate::records::{PodId, Record};

/// How long a new pod may take to be captured; the plugin waits for a second more.
const ADD_WAIT: Duration = Duration::from_secs(9);
/// How long the description of a new pod may be behind the pod.
const DESCRIPTION_WAIT: Duration = Duration::from_secs(2);
/// How long proxies may take to let go of a pod that ends.
const DEL_WAIT: Duration = Duration::from_secs(2);
/// How often notes of pods that ended without us are looked for.
const NOTES_INTERVAL: Duration = Duration::from_secs(30);

/// What becomes of new pods that the control plane does not describe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Undescribed {
    /// They do not start: they might be enrolled
    Refuse,
    /// They start outside of the mesh: whoever describes pods describes every one that is enrolled
    LeaveAlone,
}

/// Answers plugins. Clones are the same desk.
#[derive(Debug, Clone)]
pub struct Desk {
    /// What every pod's task shares.
    pub shared: Shared,
    /// What the control plane describes.
    pub state: MeshState,
    /// Id of the node.
    pub node: Str,
    /// Folder of what must outlast both agent and plugin.
    pub state_dir: PathBuf,
    /// What becomes of pods that are not described.
    pub undescribed: Undescribed,
}

/// Why it is not known whether a pod is enrolled.
enum Unknown {
    /// The control plane has not described anything yet.
    NothingDescribed,
    /// It describes others, and not this one.
    NotDescribed,
}

impl Desk {
    /// Answers a question.
    pub async fn answer(&self, question: Question) -> Answer {
        let outcome = match question {
            Question::Add(sandbox) => self.add(sandbox).await,
            Question::Del(sandbox) => {
                self.del(&sandbox).await;
                Ok(Answer::Done)
            }
            Question::Check(sandbox) => self.check(&sandbox).await,
            Question::Status => self.status(),
            Question::Gc { keep } => {
                self.keep_only(&keep);
                Ok(Answer::Done)
            }
        };
        outcome.unwrap_or_else(|failure| {
            tracing::warn!(
                code = failure.code,
                cause = failure.cause,
                "a CNI plugin is refused"
            );
            Answer::Refused(failure)
        })
    }

    /// Returns once the pod is captured, or known not to be enrolled.
    async fn add(&self, sandbox: Sandbox) -> Result<Answer, Failure> {
        let deadline = Instant::now() + ADD_WAIT;
        let pod = match self.describe(&sandbox.pod, deadline).await {
            Ok(pod) => Some(pod),
            Err(Unknown::NotDescribed) if self.undescribed == Undescribed::LeaveAlone => None,
            Err(unknown) => return Err(self.undecided(&sandbox.pod, &unknown)),
        };
        let enrolled = pod.filter(|pod| pod.enrolled);
        let refused = |error: &CaptureError| self.refused(&sandbox.pod, error);
        let path = sandbox
            .netns
            .clone()
            .ok_or_else(|| refused(&CaptureError::NetnsUnknown))?;
        let netns = self.shared.locator.open(&path).map_err(|error| refused(&error))?;
        let record = Record {
            pod: sandbox.pod.clone(),
            container_id: sandbox.container_id.clone(),
            netns: path,
            inode: netns.inode(),
            addresses: sandbox.addresses.clone(),
            process: None,
            resolver: sandbox.resolver.clone(),
        };
        let failures = enrolled.as_ref().map_or(0, |pod| self.failures(&pod.uid));
        let records = self.shared.locator.records();
        records.put(record, enrolled.is_some()).map_err(|source| {
            let step = "write the record of the pod";
            refused(&CaptureError::Kernel { step, source })
        })?;
        let Some(pod) = enrolled else {
            return Ok(Answer::LeftAlone);
        };
        let captured = self.until_captured(&pod, netns.inode(), failures, deadline).await;
        records.started(&sandbox.container_id);
        if captured.is_err() {
            // Its runtime takes the sandbox down now; nothing is to be captured any more.
            records.remove(&sandbox.container_id, None);
        }
        captured.map(|()| Answer::Captured)
    }

    /// The description of a pod. It may be on its way while the pod starts already.
    async fn describe(&self, pod: &PodId, deadline: Instant) -> Result<Pod, Unknown> {
        let mut moved = self.state.subscribe();
        let mut patience = deadline;
        loop {
            moved.mark_unchanged();
            if self.state.synced() {
                if let Some(pod) = pods::of_sandbox(&self.state.snapshot(), &self.node, pod) {
                    return Ok(pod);
                }
                patience = patience.min(Instant::now() + DESCRIPTION_WAIT);
            }
            if !matches!(timeout_at(patience, moved.changed()).await, Ok(Ok(()))) {
                return Err(if self.state.synced() {
                    Unknown::NotDescribed
                } else {
                    Unknown::NothingDescribed
                });
            }
        }
    }

    fn failures(&self, uid: &Str) -> u64 {
        let entries = self.shared.board.entries();
        let entry = entries.iter().find(|entry| entry.uid == *uid);
        entry.map_or(0, |entry| entry.failures)
    }

    /// Waits until the pod's task has captured this namespace, or failed to.
    async fn until_captured(
        &self,
        pod: &Pod,
        inode: u64,
        failures: u64,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let verdict = self.shared.board.until_some(|entries| {
            let entry = entries.get(&pod.uid)?;
            match verdict(entry, inode, failures)? {
                Err(error) if self.may_pass(&error) => None,
                verdict => Some(verdict),
            }
        });
        let id = format!("{}/{}", pod.namespace, pod.name);
        match timeout_at(deadline, verdict).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.failed(&id, &error)),
            Err(_) => Err(self.late(&id, &pod.uid)),
        }
    }

    /// Whether a failure is one that waiting may cure: the first proxy since the agent's start has not come yet.
    fn may_pass(&self, error: &EntryError) -> bool {
        let proxies = self.shared.hub.watch();
        let proxies = proxies.borrow();
        error.token == Reason::ProxyNotConnected.token() && self.shared.grace.awaits_first(&proxies)
    }

    fn failed(&self, pod: &str, error: &EntryError) -> Failure {
        let mut failure = Failure {
            code: error.code.to_owned(),
            token: error.token.to_owned(),
            cause: format!("pod {pod} is enrolled, but {}", error.message),
            cure: error.fix.to_owned(),
        };
        if error.token == Reason::ProxyNotConnected.token() {
            failure.cause = format!("pod {pod} is enrolled, but {}", self.without_proxy());
            failure.cure = "see `tulle status`".to_owned();
        }
        failure
    }

    fn without_proxy(&self) -> String {
        let alone_since = self.shared.hub.watch().borrow().alone_since;
        let seconds = alone_since.elapsed().as_secs();
        format!("no node proxy is connected on node {} for {seconds} s", self.node)
    }

    fn late(&self, pod: &str, uid: &Str) -> Failure {
        let entries = self.shared.board.entries();
        let entry = entries.iter().find(|entry| entry.uid == *uid);
        if let Some(error) = entry.and_then(|entry| entry.error.as_ref()) {
            return self.failed(pod, error);
        }
        let state = entry.map_or("unknown", |entry| entry.state);
        Failure::new(
            Reason::RulesRefused,
            format!(
                "pod {pod} is enrolled, but was not captured within {} s (its state is {state})",
                ADD_WAIT.as_secs()
            ),
            "see `tulle status`, and the agent's log for what takes so long",
        )
    }

    fn refused(&self, pod: &PodId, error: &CaptureError) -> Failure {
        Failure::new(
            error.reason(),
            format!("pod {pod} cannot start: {error}"),
            error.fix(),
        )
    }

    fn undecided(&self, pod: &PodId, unknown: &Unknown) -> Failure {
        let node = &self.node;
        let (because, cure) = match unknown {
            Unknown::NothingDescribed => (
                "the agent has no configuration from the control plane yet".to_owned(),
                "see that the control plane runs and can be reached, with `tulle status`",
            ),
            Unknown::NotDescribed => (
                format!("the control plane describes no such pod on node {node}"),
                "describe it as a Pod or WorkloadEntry, exclude its namespace from the mesh in the CNI configuration, or start the agent with --undescribed-pods leave-alone",
            ),
        };
        Failure::new(
            Reason::EnrolmentUnknown,
            format!("whether pod {pod} is enrolled cannot be told: {because}"),
            cure,
        )
    }

    /// Returns once nothing is held for the sandbox any more, or after some time.
    async fn del(&self, sandbox: &Sandbox) {
        let records = self.shared.locator.records();
        let Some(record) = records.remove(&sandbox.container_id, Some(&sandbox.pod)) else {
            return;
        };
        let released = self.shared.board.until_some(|entries| {
            let held = entries.values().any(|entry| entry.netns == Some(record.inode));
            (!held).then_some(())
        });
        if timeout(DEL_WAIT, released).await.is_err() {
            tracing::warn!(pod = %sandbox.pod, "proxies have not let go of a pod that ends yet");
        }
    }

    /// The first thing that is not as it should be.
    async fn check(&self, sandbox: &Sandbox) -> Result<Answer, Failure> {
        let records = self.shared.locator.records();
        let unknown = || self.refused(&sandbox.pod, &CaptureError::NetnsUnknown);
        let record = records.of(&sandbox.pod.namespace, &sandbox.pod.name);
        let record = record.filter(|record| record.container_id == sandbox.container_id);
        let record = record.ok_or_else(unknown)?;
        let netns = self.shared.locator.open(&record.netns);
        let netns = netns.map_err(|error| self.refused(&sandbox.pod, &error))?;
        if netns.inode() != record.inode {
            let path = record.netns;
            return Err(self.refused(&sandbox.pod, &CaptureError::NetnsReplaced { path }));
        }
        let described = pods::of_sandbox(&self.state.snapshot(), &self.node, &sandbox.pod);
        let Some(pod) = described.filter(|pod| pod.enrolled) else {
            return Ok(Answer::Done);
        };
        let id = sandbox.pod.to_string();
        match self.shared.probes.ask(&pod.uid).await {
            Some(Ok(None)) => Ok(Answer::Done),
            Some(Ok(Some(deviation))) => Err(Failure::new(
                deviation.reason(),
                format!("pod {id} is captured, but its {deviation} are not as planned"),
                "the agent repairs it within 36 s; if it comes back, something in the pod changes it",
            )),
            Some(Err(error)) => Err(self.refused(&sandbox.pod, &error)),
            None => Err(self.late(&id, &pod.uid)),
        }
    }

    /// Refuses if an ADD would be.
    fn status(&self) -> Result<Answer, Failure> {
        if !self.state.synced() {
            return Err(Failure::new(
                Reason::EnrolmentUnknown,
                "the agent has no configuration from the control plane yet",
                "see that the control plane runs and can be reached, with `tulle status`",
            ));
        }
        let proxies = self.shared.hub.watch();
        let proxies = proxies.borrow();
        let lately = proxies.alone_since + PROXY_GRACE > Instant::now();
        if proxies.connected.is_empty() && !lately {
            drop(proxies);
            return Err(Failure::new(
                Reason::ProxyNotConnected,
                self.without_proxy(),
                "see `tulle status`",
            ));
        }
        Ok(Answer::Done)
    }

    fn keep_only(&self, keep: &[Str]) {
        let keep: BTreeSet<&str> = keep.iter().map(AsRef::as_ref).collect();
        for record in self.shared.locator.records().retain(&keep) {
            tracing::info!(pod = %record.pod, "its runtime knows a sandbox no more; it is forgotten");
        }
    }

    /// Takes up notes of pods that ended while nobody listened, now and from time to time.
    pub async fn take_up_notes(self) {
        loop {
            let records = self.shared.locator.records();
            let taken = notes::take_up(&self.state_dir, |sandbox| {
                if records
                    .remove(&sandbox.container_id, Some(&sandbox.pod))
                    .is_some()
                {
                    tracing::info!(pod = %sandbox.pod, "a pod ended while the agent was away");
                }
            });
            if let Err(error) = taken {
                tracing::warn!(%error, "notes of ended pods cannot be read");
            }
            tokio::time::sleep(NOTES_INTERVAL).await;
        }
    }
}

/// What a pod's entry says of the capture of this namespace, after `failures` earlier failures; nothing yet if it is
/// still under way.
fn verdict(entry: &Entry, inode: u64, failures: u64) -> Option<Result<(), EntryError>> {
    if matches!(entry.state, "In" | "Degraded") && entry.netns == Some(inode) {
        return Some(Ok(()));
    }
    let error = entry
        .error
        .as_ref()
        .filter(|_| entry.state == "Retry" && entry.failures > failures)?;
    // An attempt that began before the sandbox was known may just have ended.
    let outdated = error.token == Reason::NetnsNotFound.token();
    (!outdated).then(|| Err(error.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(state: &'static str, netns: Option<u64>, failure: Option<Reason>) -> Entry {
        Entry {
            uid: "u".into(),
            name: "web".into(),
            namespace: "shop".into(),
            service_account: "web".into(),
            enrolled: true,
            state,
            detail: None,
            since: String::new(),
            netns,
            listeners: None,
            error: failure.map(|reason| EntryError {
                code: reason.code(),
                token: reason.token(),
                message: "no".to_owned(),
                fix: "do",
                at: String::new(),
            }),
            failures: 3,
        }
    }

    #[test]
    fn a_pod_is_started_once_this_namespace_is_captured() {
        assert_eq!(verdict(&entry("In", Some(7), None), 7, 3), Some(Ok(())));
        assert_eq!(
            verdict(&entry("In", Some(6), None), 7, 3),
            None,
            "its sandbox before"
        );
        assert_eq!(verdict(&entry("Capturing", Some(7), None), 7, 3), None);
    }

    #[test]
    fn only_a_failure_of_now_counts() {
        let taken = entry("Retry", None, Some(Reason::PortTaken));
        assert!(matches!(verdict(&taken, 7, 2), Some(Err(_))));
        assert_eq!(verdict(&taken, 7, 3), None, "it failed before this start");
        let not_found = entry("Retry", None, Some(Reason::NetnsNotFound));
        assert_eq!(verdict(&not_found, 7, 2), None);
    }
}
