//! All pods of the node: one task per pod, started, steered and ended by what the control plane describes.

use std::collections::BTreeMap;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tulle_model::Str;
use tulle_runtime::tasks;
use tulle_xds_client::MeshState;

use crate::enroll::Goal;
use crate::enroll::task::{self, Shared, Wanted};
use crate::host::Host;
use crate::pods::{self, Pod};

/// Ends of tasks that may wait to be seen; a task waits for room.
const ENDED_MAX: usize = 1024;

/// The tasks of all pods.
#[derive(Debug)]
pub struct Fleet {
    shared: Shared,
    running: BTreeMap<Str, Running>,
    ended: (mpsc::Sender<Str>, mpsc::Receiver<Str>),
}

#[derive(Debug)]
struct Running {
    wanted: watch::Sender<Wanted>,
    task: JoinHandle<()>,
}

impl Fleet {
    /// No pods yet.
    #[must_use]
    pub fn new(shared: Shared) -> Self {
        Self {
            shared,
            running: BTreeMap::new(),
            ended: mpsc::channel(ENDED_MAX),
        }
    }

    /// The node's own tables.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.shared.host
    }

    /// Steers every pod to where its description says, and forgets those that are described no more.
    pub fn apply(&mut self, described: BTreeMap<Str, Pod>) {
        for (uid, running) in &self.running {
            if !described.contains_key(uid) {
                running.steer(|wanted| wanted.goal = Goal::Forgotten);
            }
        }
        for (uid, pod) in described {
            let goal = if pod.enrolled {
                Goal::Captured
            } else {
                Goal::Released
            };
            match self
                .running
                .get(&uid)
                .filter(|running| !running.task.is_finished())
            {
                Some(running) => running.steer(|wanted| (wanted.pod, wanted.goal) = (pod, goal)),
                None => self.start(Wanted {
                    pod,
                    goal,
                    at_once: false,
                    fresh: false,
                }),
            }
        }
    }

    fn start(&mut self, wanted: Wanted) {
        let uid = wanted.pod.uid.clone();
        // Before the task runs: a snapshot that is sent now must mention the pod, also one that may just be leaving.
        self.shared.hub.keep(&uid);
        // Before the task runs: readiness waits for pods that are shown and not settled.
        self.shared
            .board
            .show(&wanted.pod, crate::enroll::State::Locating);
        let (sender, receiver) = watch::channel(wanted);
        let work = task::run(self.shared.clone(), receiver);
        let (ended, name) = (self.ended.0.clone(), uid.clone());
        let task = tasks::spawn("pod", async move {
            let _ended = Ended { ended, uid: name };
            work.await;
        });
        self.running.insert(uid, Running { wanted: sender, task });
    }

    /// Waits for a pod's task to end. One that should still run (it panicked, or was wanted again just then) is
    /// started anew.
    pub async fn reap(&mut self) {
        let Some(uid) = self.ended.1.recv().await else {
            return;
        };
        let Some(running) = self.running.remove(&uid) else {
            return;
        };
        let wanted = running.wanted.borrow().clone();
        if wanted.goal != Goal::Forgotten {
            tracing::warn!(%uid, "a pod's task ended and is started anew");
            self.start(wanted);
        }
    }

    /// Lets every pod leave at once, and waits for them.
    pub async fn release_all(&mut self) {
        for running in self.running.values() {
            running.steer(|wanted| {
                wanted.at_once = true;
                wanted.goal = Goal::Released;
            });
        }
        let uids: Vec<_> = self.running.keys().cloned().collect();
        self.shared.board.until_out(&uids).await;
    }
}

impl Running {
    /// Changes what is wanted; its task only wakes when that is something else.
    fn steer(&self, change: impl FnOnce(&mut Wanted)) {
        self.wanted.send_if_modified(|wanted| {
            let before = wanted.clone();
            change(wanted);
            *wanted != before
        });
    }
}

/// Reports the end of a task on every path.
struct Ended {
    ended: mpsc::Sender<Str>,
    uid: Str,
}

impl Drop for Ended {
    fn drop(&mut self) {
        // Full: so many ends wait that whoever reads them looks at every pod anyway.
        let _ = self.ended.try_send(self.uid.clone());
    }
}

/// Follows the control plane for as long as it is polled. `first_look` is called once, after the first full
/// description was applied.
pub async fn follow(fleet: &mut Fleet, state: &MeshState, node: &str, first_look: impl FnOnce()) {
    let mut moved = state.subscribe();
    let mut first_look = Some(first_look);
    loop {
        moved.mark_unchanged();
        if state.synced() {
            fleet.apply(pods::of_node(&state.snapshot(), node));
            if let Some(first_look) = first_look.take() {
                first_look();
            }
        }
        tokio::select! {
            changed = moved.changed() => if changed.is_err() { return },
            () = fleet.reap() => {}
        }
    }
}
