//! What is written down together: who comes while the disk is busy waits for the next write, and shares it with all who came
//! meanwhile.

use std::io;
use std::mem::{replace, take};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Entry, Issued};

/// Those who wait for the next write: requests under way, whose number the limits of each node bound (`ca/limit.rs`).
#[derive(Debug, Default)]
pub(super) struct Queue(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    entries: Vec<Entry>,
    told: Vec<oneshot::Sender<Written>>,
    now: i64,
    /// A thread writes, and looks here when it is done.
    is_writing: bool,
}

/// Whether it is on the disk. An error is everybody's who waited for that write.
type Written = Result<(), Arc<io::Error>>;

impl Issued {
    /// Notes certificates, before they are handed out, off the threads that serve.
    ///
    /// # Errors
    /// They could not be written down; then none of them must be handed out.
    pub async fn commit(self: &Arc<Self>, entries: Vec<Entry>, now: i64) -> Written {
        let (told, written) = oneshot::channel();
        let begins = {
            let mut waiting = self.queue.0.lock();
            waiting.entries.extend(entries);
            waiting.told.push(told);
            waiting.now = now;
            !replace(&mut waiting.is_writing, true)
        };
        if begins {
            let issued = self.clone();
            tokio::task::spawn_blocking(move || issued.write_waiting());
        }
        let lost = |_| Err(Arc::new(io::Error::other("the thread that writes has failed")));
        written.await.unwrap_or_else(lost)
    }

    /// Writes until nobody waits any more.
    fn write_waiting(&self) {
        let _writing = Writing(&self.queue);
        while let Some((entries, told, now)) = self.queue.next() {
            let written = self.note(&entries, now).map_err(Arc::new);
            for one in told {
                // Who asked may have left; then nothing is handed out.
                let _ = one.send(written.clone());
            }
        }
    }
}

impl Queue {
    fn next(&self) -> Option<(Vec<Entry>, Vec<oneshot::Sender<Written>>, i64)> {
        let mut waiting = self.0.lock();
        if waiting.told.is_empty() {
            waiting.is_writing = false;
            return None;
        }
        Some((take(&mut waiting.entries), take(&mut waiting.told), waiting.now))
    }
}

/// After a panic the next one begins anew, and those who wait are told.
struct Writing<'a>(&'a Queue);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            *self.0.0.lock() = Waiting::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use futures_util::future::join_all;
    use tulle_model::Identity;

    use super::*;

    fn entry(number: usize) -> Entry {
        Entry {
            serial: format!("{number:x}"),
            identity: Identity::new("cluster.local", "shop", "web"),
            node: "n1".into(),
            not_after: 100,
        }
    }

    #[tokio::test]
    async fn who_comes_while_the_disk_is_busy_shares_the_next_write() {
        let state = tempfile::tempdir().unwrap();
        let issued = Arc::new(Issued::open(state.path(), 0).unwrap());
        // A thread is at the disk with what came first.
        issued.queue.0.lock().is_writing = true;
        let commits = (1..=500).map(|number| issued.commit(vec![entry(number)], 0));
        let mut all = Box::pin(join_all(commits));
        assert!(all.as_mut().now_or_never().is_none());
        assert_eq!(
            issued.queue.0.lock().told.len(),
            500,
            "nobody begins another write"
        );
        // It is back, and looks who waits.
        issued.write_waiting();
        assert!(all.await.iter().all(Result::is_ok));
        assert!(!issued.queue.0.lock().is_writing);
        drop(issued);
        let issued = Issued::open(state.path(), 0).unwrap();
        let nowhere = crate::snapshot::Placement::default();
        assert_eq!(issued.misplaced(&nowhere, 0, 1_000).len(), 500);
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_an_error_of_all_who_waited_for_it() {
        let state = tempfile::tempdir().unwrap();
        let issued = Arc::new(Issued::open(state.path(), 0).unwrap());
        issued.log.lock().file = None;
        // Nothing can be made in its place.
        std::fs::create_dir(state.path().join("issued.log.new")).unwrap();
        let all = join_all((1..=5).map(|number| issued.commit(vec![entry(number)], 0))).await;
        assert!(all.iter().all(Result::is_err));
        std::fs::remove_dir(state.path().join("issued.log.new")).unwrap();
        assert!(issued.commit(vec![entry(6)], 0).await.is_ok());
        let nowhere = crate::snapshot::Placement::default();
        assert_eq!(issued.misplaced(&nowhere, 0, 10).len(), 1);
    }
}
