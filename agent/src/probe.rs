//! Asking a pod's task whether everything is as planned: it alone touches the pod's namespace.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tulle_model::Str;

use crate::error::CaptureError;
use crate::repair::Check;

/// Questions that may wait for one pod.
const QUESTIONS_MAX: usize = 4;

/// The first deviation from the plan, if there is one.
pub type Finding = Result<Option<Check>, CaptureError>;

/// A question, by where its answer goes.
pub(crate) type Question = oneshot::Sender<Finding>;

/// Whom to ask, by pod. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Probes {
    tasks: Arc<Mutex<BTreeMap<Str, mpsc::Sender<Question>>>>,
}

impl Probes {
    /// A pod's task answers from now on what is received here.
    pub(crate) fn register(&self, uid: &Str) -> mpsc::Receiver<Question> {
        let (sender, receiver) = mpsc::channel(QUESTIONS_MAX);
        self.tasks.lock().insert(uid.clone(), sender);
        receiver
    }

    /// Forgets pods whose tasks have ended.
    pub(crate) fn forget(&self) {
        self.tasks.lock().retain(|_, task| !task.is_closed());
    }

    /// Has a captured pod looked at; nothing if it is not captured.
    pub async fn ask(&self, uid: &Str) -> Option<Finding> {
        let task = self.tasks.lock().get(uid)?.clone();
        let (answer, answered) = oneshot::channel();
        task.try_send(answer).ok()?;
        tokio::time::timeout(ANSWER_WAIT, answered).await.ok()?.ok()
    }
}

/// How long a look may take; a pod that is on its way in or out does not answer.
const ANSWER_WAIT: std::time::Duration = std::time::Duration::from_secs(5);
