//! The one way to spawn: every task has a name, is counted, and its panic is logged and stays inside it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;
use futures_util::future::CatchUnwind;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

static COUNTERS: RwLock<BTreeMap<&'static str, Arc<Counter>>> = RwLock::new(BTreeMap::new());

#[derive(Debug, Default)]
struct Counter {
    started: AtomicU64,
    ended: AtomicU64,
    panicked: AtomicU64,
}

/// How the tasks of one name fared since the process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// The name given to [`spawn`].
    pub name: &'static str,
    /// Tasks alive now.
    pub running: u64,
    /// Tasks ever started.
    pub started: u64,
    /// Tasks that ended in a panic.
    pub panicked: u64,
}

/// Spawns `future` as a supervised task.
///
/// A panic is logged with the task's name and counted; the handle then yields it as a `JoinError`.
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    spawn_raw(supervised(name, (), future))
}

/// As [`spawn`]; `held` is dropped after the future, whichever way that ends.
///
/// An async block around the future would do the same and take twice its memory: what it captures keeps its place
/// beside the one it is awaited in.
pub fn spawn_holding<H, F>(name: &'static str, held: H, future: F) -> JoinHandle<F::Output>
where
    H: Send + 'static,
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    spawn_raw(supervised(name, held, future))
}

/// The counts of every name that was ever spawned, by name.
#[must_use]
pub fn counts() -> Vec<Count> {
    let counters = COUNTERS.read();
    counters
        .iter()
        .map(|(name, counter)| {
            let ended = counter.ended.load(Ordering::Relaxed);
            let started = counter.started.load(Ordering::Relaxed);
            let panicked = counter.panicked.load(Ordering::Relaxed);
            Count {
                name,
                running: started.saturating_sub(ended),
                started,
                panicked,
            }
        })
        .collect()
}

/// Tasks that belong together and end together. Clones share the scope.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    tracker: TaskTracker,
    cancelled: CancellationToken,
    /// The first vital task that ended by itself.
    lost: watch::Sender<Option<&'static str>>,
}

impl Scope {
    /// An open scope without tasks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Spawns a supervised task that ends when the scope is cancelled (its result is then `None`).
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let cancelled = self.cancelled.clone();
        let bounded = async move { cancelled.run_until_cancelled_owned(future).await };
        spawn_raw(self.tracker.track_future(supervised(name, (), bounded)))
    }

    /// Spawns a task without which the others go on as if nothing were amiss: [`Scope::lost`] tells its end, be it by
    /// itself or in a panic, unless the scope is cancelled.
    pub fn spawn_vital<F>(&self, name: &'static str, future: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let vital = Vital {
            name,
            cancelled: self.cancelled.clone(),
            lost: self.lost.clone(),
        };
        let cancelled = self.cancelled.clone();
        let bounded = async move { cancelled.run_until_cancelled_owned(future).await };
        spawn_raw(self.tracker.track_future(supervised(name, vital, bounded)))
    }

    /// Completes once a vital task has ended; the name of the first.
    pub async fn lost(&self) -> &'static str {
        let mut lost = self.lost.subscribe();
        let name = lost.wait_for(Option::is_some).await.map(|name| *name);
        match name {
            Ok(Some(name)) => name,
            // The scope itself holds the other end.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Says that no more tasks come; [`Scope::wait`] needs it to end.
    pub fn close(&self) {
        self.tracker.close();
    }

    /// Ends every task of the scope at its next await.
    pub fn cancel(&self) {
        self.cancelled.cancel();
    }

    /// Waits until the scope is closed and its last task ended.
    pub async fn wait(&self) {
        self.tracker.wait().await;
    }

    /// Tasks of the scope alive now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Whether no task of the scope is alive.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }
}

pin_project_lite::pin_project! {
    /// A future that is counted and whose panic is logged. Written out, because thousands of these are a large part of
    /// what a process holds: an async function would keep its argument twice.
    struct Supervised<H, F> {
        // In this order: the future ends before what it holds, and is counted last.
        #[pin]
        future: CatchUnwind<AssertUnwindSafe<F>>,
        held: H,
        ended: Ended,
        name: &'static str,
    }
}

fn supervised<H, F: Future>(name: &'static str, held: H, future: F) -> Supervised<H, F> {
    let counter = counter(name);
    counter.started.fetch_add(1, Ordering::Relaxed);
    Supervised {
        future: AssertUnwindSafe(future).catch_unwind(),
        held,
        ended: Ended(counter),
        name,
    }
}

impl<H, F: Future> Future for Supervised<H, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        match ready!(this.future.poll(context)) {
            Ok(output) => Poll::Ready(output),
            Err(panic) => {
                this.ended.0.panicked.fetch_add(1, Ordering::Relaxed);
                tracing::error!(task = this.name, panic = message(&*panic), "a task panicked");
                resume_unwind(panic)
            }
        }
    }
}

/// Tells the end of a vital task on every path: return, panic, abort.
struct Vital {
    name: &'static str,
    cancelled: CancellationToken,
    lost: watch::Sender<Option<&'static str>>,
}

impl Drop for Vital {
    fn drop(&mut self) {
        if self.cancelled.is_cancelled() {
            return;
        }
        self.lost.send_if_modified(|lost| {
            let is_first = lost.is_none();
            lost.get_or_insert(self.name);
            is_first
        });
    }
}

/// Counts the end of a task on every path: return, panic, abort.
struct Ended(Arc<Counter>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

fn counter(name: &'static str) -> Arc<Counter> {
    if let Some(counter) = COUNTERS.read().get(name) {
        return Arc::clone(counter);
    }
    Arc::clone(COUNTERS.write().entry(name).or_default())
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[allow(
    clippy::disallowed_methods,
    reason = "this is the supervised way to spawn that the lint asks for"
)]
fn spawn_raw<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(name: &str) -> Count {
        counts()
            .into_iter()
            .find(|count| count.name == name)
            .expect("the name was spawned")
    }

    #[tokio::test]
    async fn a_panic_stays_inside_its_task_and_is_counted() {
        let failed = spawn("panics", async { panic!("on purpose") });
        let other = spawn("lives", async { 7 });
        assert!(failed.await.unwrap_err().is_panic());
        assert_eq!(other.await.unwrap(), 7);
        assert_eq!(
            count("panics"),
            Count {
                name: "panics",
                running: 0,
                started: 1,
                panicked: 1
            }
        );
    }

    #[test]
    fn supervision_takes_little_memory_of_its_own() {
        let bytes = [0_u8; 4096];
        let future = async move {
            tokio::task::yield_now().await;
            std::hint::black_box(bytes);
        };
        let plain = size_of_val(&future);
        let supervised = size_of_val(&supervised("large", (), future));
        assert!(supervised <= plain + 64, "{supervised} for {plain}");
    }

    #[tokio::test]
    async fn what_is_held_outlives_the_future_and_no_more() {
        struct Says(&'static str, Arc<parking_lot::Mutex<Vec<&'static str>>>);
        impl Drop for Says {
            fn drop(&mut self) {
                self.1.lock().push(self.0);
            }
        }
        let said = Arc::default();
        let future = Says("future", Arc::clone(&said));
        let held = Says("held", Arc::clone(&said));
        let task = spawn_holding("holds", held, async move { drop(future) });
        task.await.unwrap();
        assert_eq!(*said.lock(), ["future", "held"]);
    }

    #[tokio::test]
    async fn an_aborted_task_no_longer_counts_as_running() {
        let task = spawn("aborted", std::future::pending::<()>());
        tokio::task::yield_now().await;
        assert_eq!(count("aborted").running, 1);
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert_eq!(count("aborted").running, 0);
    }

    #[tokio::test]
    async fn a_closed_scope_waits_for_its_last_task() {
        let scope = Scope::new();
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        scope.spawn("scoped", released);
        scope.close();
        assert_eq!(scope.len(), 1);
        release.send(()).unwrap();
        scope.wait().await;
        assert!(scope.is_empty());
    }

    #[tokio::test]
    async fn a_vital_task_that_panics_or_returns_is_missed_and_any_other_is_not() {
        for ends in [false, true] {
            let scope = Scope::new();
            scope.spawn("helper", async {}).await.unwrap();
            let vital = scope.spawn_vital("vital", async move { assert!(ends, "on purpose") });
            assert_eq!(scope.lost().await, "vital");
            assert_eq!(vital.await.is_ok(), ends);
        }
    }

    #[tokio::test]
    async fn a_vital_task_of_a_cancelled_scope_is_not_missed() {
        let scope = Scope::new();
        scope.spawn_vital("vital", std::future::pending::<()>());
        scope.close();
        scope.cancel();
        scope.wait().await;
        assert_eq!(scope.lost().now_or_never(), None);
    }

    #[tokio::test]
    async fn cancelling_a_scope_ends_tasks_that_would_wait_for_ever() {
        let scope = Scope::new();
        let task = scope.spawn("stuck", std::future::pending::<()>());
        scope.close();
        scope.cancel();
        scope.wait().await;
        assert_eq!(task.await.unwrap(), None);
    }
}
