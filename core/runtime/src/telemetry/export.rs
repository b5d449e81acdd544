//! Records on their way to a collector: a bounded queue, batches, and delivery that is tried again.
//!
//! What the collector does not take in time is dropped and counted; nothing waits for it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::backoff::Backoff;
use crate::tasks;

/// How long one delivery may take.
const DELIVERY_TIME_MAX: Duration = Duration::from_secs(10);

/// Waits between attempts to deliver the same records.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Why records were not taken.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// It may take them later.
    #[error("the collector cannot be reached: {0}")]
    Unreachable(String),
    /// It will never take them.
    #[error("the collector refuses the records: {0}")]
    Refused(String),
}

/// A delivery that is under way.
pub type Delivering = Pin<Box<dyn Future<Output = Result<(), DeliveryError>> + Send>>;

/// Where and how records are delivered.
pub trait Collector<T>: Send + Sync + 'static {
    /// One message with all of these.
    fn encode(&self, records: Vec<T>) -> Bytes;

    /// Delivers a message. The exporter bounds the time.
    fn post(&self, message: Bytes) -> Delivering;
}

/// Bounds of an exporter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Records that wait.
    pub records: usize,
    /// Records of one message.
    pub batch: usize,
}

/// Takes records for a collector. Clones share it.
pub struct Exporter<T> {
    queue: mpsc::Sender<T>,
    dropped: Counter,
}

impl<T> Clone for Exporter<T> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            dropped: self.dropped.clone(),
        }
    }
}

impl<T> fmt::Debug for Exporter<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").finish_non_exhaustive()
    }
}

impl<T: Send + 'static> Exporter<T> {
    /// Starts to export, as the task `name`; it ends with the last clone. What is lost counts in `dropped`.
    #[must_use]
    pub fn start(name: &'static str, bounds: Bounds, collector: impl Collector<T>, dropped: Counter) -> Self {
        let (queue, records) = mpsc::channel(bounds.records);
        let counter = dropped.clone();
        tasks::spawn(name, deliver_all(records, bounds.batch, collector, counter));
        Self { queue, dropped }
    }

    /// Takes the record that `make` makes, or drops and counts it without making it.
    pub fn offer(&self, make: impl FnOnce() -> T) {
        match self.queue.try_reserve() {
            Ok(place) => place.send(make()),
            Err(_) => {
                self.dropped.inc();
            }
        }
    }
}

async fn deliver_all<T>(
    mut records: mpsc::Receiver<T>,
    batch_max: usize,
    collector: impl Collector<T>,
    dropped: Counter,
) {
    let mut batch = Vec::with_capacity(batch_max);
    while records.recv_many(&mut batch, batch_max).await > 0 {
        let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let message = collector.encode(std::mem::take(&mut batch));
        if let Err(error) = deliver(&collector, message).await {
            tracing::warn!(%error, records = count, "dropped");
            dropped.inc_by(count);
        }
    }
}

/// Tries until the collector takes the message, or says that it never will.
async fn deliver<T>(collector: &impl Collector<T>, message: Bytes) -> Result<(), DeliveryError> {
    let mut waits = Backoff::new(RETRY_MIN, RETRY_MAX);
    loop {
        let posted = timeout(DELIVERY_TIME_MAX, collector.post(message.clone())).await;
        match posted {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(refused @ DeliveryError::Refused(_))) => return Err(refused),
            Ok(Err(error)) => tracing::debug!(%error, "records wait"),
            Err(late) => tracing::debug!(error = %late, "records wait"),
        }
        tokio::time::sleep(waits.next()).await;
    }
}
