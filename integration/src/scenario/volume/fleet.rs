//! Thousands of streams on one control plane, and how long changes take to reach them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use tulle_identity::ChannelConfig;
use tulle_proto::ADDRESS_TYPE;

use super::plane::{CHANGING, Plane, node};
use super::writer::{Series, Writer, Written};
use crate::ads::{Raw, Stream, Table, first};
use crate::traffic::spawn;

/// Streams that are opened at once.
const AT_ONCE: usize = 64;
/// Streams that keep and compare every name and version.
const COMPARED: usize = 4;
/// Responses up to this size are read whole by every stream; a change is far smaller, a part of a table far larger.
const CHANGE_BYTES_MAX: usize = 64 << 10;
/// How long the last change may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What all streams tell.
#[derive(Debug, Default)]
struct Heard {
    /// The changes that are heard of. It is set between two series and known to no writer.
    series: RwLock<Option<Series>>,
    /// Microseconds from due to heard, of every change at every stream.
    lags: Mutex<Vec<u32>>,
    /// Streams that broke, and how one did.
    broken: Mutex<Vec<String>>,
    bytes: AtomicU64,
    responses: AtomicU64,
}

/// The streams. They end with the value.
#[derive(Debug)]
pub(super) struct Fleet {
    heard: Arc<Heard>,
    streams: usize,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    compared: Vec<Arc<Mutex<Table>>>,
    /// Time until every stream held the whole table.
    pub consistent: Duration,
    /// Bytes that all of them took for that.
    pub table_bytes: u64,
}

impl Fleet {
    /// Opens the streams and waits until each was told everything.
    pub(super) async fn connect(plane: &Plane, streams: usize) -> Self {
        let heard = Arc::new(Heard::default());
        let configs: Vec<_> = (0..streams).map(|index| plane.config_of(&node(index))).collect();
        let begun = Instant::now();
        // One reads everything, so that the others know how much there is.
        let (first_stream, table, responses) = whole(plane, &configs[0]).await;
        let mut fleet = Self {
            heard,
            streams,
            tasks: Vec::new(),
            compared: Vec::new(),
            consistent: Duration::ZERO,
            table_bytes: first_stream.bytes(),
        };
        fleet.follow(first_stream, Some(table));
        let room = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
        let mut opening = Vec::new();
        for (index, config) in configs.into_iter().enumerate().skip(1) {
            let room = Arc::clone(&room);
            opening.push(spawn(async move {
                let _turn = room.acquire_owned().await.expect("it is never closed");
                counted(&node(index), &config, responses, index < COMPARED).await
            }));
        }
        for opened in opening {
            let (stream, table) = opened
                .await
                .unwrap()
                .unwrap_or_else(|error| panic!("{error}\n{}", plane.log()));
            fleet.table_bytes += stream.bytes();
            fleet.follow(stream, table);
        }
        fleet.consistent = begun.elapsed();
        fleet
    }

    fn follow(&mut self, stream: Stream, table: Option<Table>) {
        let table = table.map(|table| Arc::new(Mutex::new(table)));
        self.compared.extend(table.clone());
        let heard = Arc::clone(&self.heard);
        self.tasks.push(spawn(async move {
            let error = follow(stream, table, &heard).await;
            heard.broken.lock().push(error);
        }));
    }

    /// Changes pods at a rate for some time, and waits until every stream has heard the last of it.
    pub(super) async fn changes(&self, plane: &Plane, per_second: usize, time: Duration) -> Pushed {
        let (before, bytes) = (plane.cpu(), self.heard.bytes.load(Ordering::Relaxed));
        let responses = self.heard.responses.load(Ordering::Relaxed);
        let changes = per_second * usize::try_from(time.as_secs()).expect("some seconds");
        let (series, begun) = (Series::new(plane.era(), per_second), Instant::now());
        *self.heard.series.write() = Some(series);
        self.heard.lags.lock().clear();
        let written = Writer::start(plane.manifests(), series, changes).written().await;
        let (all, last) = (changes * self.streams, Instant::now());
        while self.heard.lags.lock().len() < all && last.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let settled = last.elapsed();
        let mut lags = std::mem::take(&mut *self.heard.lags.lock());
        lags.sort_unstable();
        let at = |part: usize| {
            let micros = lags
                .get(lags.len().saturating_sub(1) * part / 1000)
                .copied()
                .unwrap_or(u32::MAX);
            Duration::from_micros(micros.into())
        };
        Pushed {
            p50: at(500),
            p99: at(990),
            max: at(1000),
            missed: (all - lags.len().min(all)) as u64,
            settled,
            rate: changes as f64 / written.took.as_secs_f64(),
            written,
            cpu: (plane.cpu() - before).as_secs_f64() / begun.elapsed().as_secs_f64(),
            responses: self.heard.responses.load(Ordering::Relaxed) - responses,
            bytes: self.heard.bytes.load(Ordering::Relaxed) - bytes,
        }
    }

    /// Streams that ended, and how the first of them did.
    pub(super) fn broken(&self) -> (usize, Option<String>) {
        let broken = self.heard.broken.lock();
        (broken.len(), broken.first().cloned())
    }

    /// Compared streams that hold something else than a client that comes now.
    pub(super) async fn differing(&self, plane: &Plane) -> usize {
        let (_, now, _) = whole(plane, &plane.config_of(&node(0))).await;
        self.compared.iter().filter(|table| *table.lock() != now).count()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// How changes at one rate went.
#[derive(Debug)]
pub(super) struct Pushed {
    pub p50: Duration,
    pub p99: Duration,
    pub max: Duration,
    /// Changes times streams that were never heard of, nor a newer one of the same pod.
    pub missed: u64,
    /// Time from the last change until everybody had it.
    pub settled: Duration,
    /// How late the writer of the folder was.
    pub written: Written,
    /// Changes per second that were written in fact.
    pub rate: f64,
    /// Share of a processor that the control plane used.
    pub cpu: f64,
    /// Responses of all streams.
    pub responses: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Reads a whole table, name by name; gives the stream, the table and the number of responses.
async fn whole(plane: &Plane, config: &ChannelConfig) -> (Stream, Table, usize) {
    let mut stream = Stream::open(config, &first(&node(0), ADDRESS_TYPE))
        .await
        .unwrap();
    let (mut table, mut responses) = (Table::default(), 0);
    while table.held.len() < plane.size.addresses() {
        let raw = next(&mut stream, usize::MAX).await.unwrap();
        table.take(&raw.decode());
        responses += 1;
    }
    (stream, table, responses)
}

/// Takes so many responses.
async fn counted(
    node: &str,
    config: &ChannelConfig,
    responses: usize,
    compared: bool,
) -> Result<(Stream, Option<Table>), String> {
    let mut stream = Stream::open(config, &first(node, ADDRESS_TYPE)).await?;
    let mut table = compared.then(Table::default);
    for _ in 0..responses {
        let raw = next(&mut stream, if compared { usize::MAX } else { 0 }).await?;
        if let Some(table) = &mut table {
            table.take(&raw.decode());
        }
    }
    Ok((stream, table))
}

/// The next response, accepted.
async fn next(stream: &mut Stream, largest: usize) -> Result<Raw, String> {
    let raw = stream.next(largest).await?;
    stream.accept(raw.head()).await?;
    Ok(raw)
}

/// Hears until the stream ends; says how it did.
async fn follow(mut stream: Stream, table: Option<Arc<Mutex<Table>>>, heard: &Heard) -> String {
    let mut hearing = Hearing::default();
    loop {
        let raw = match next(&mut stream, CHANGE_BYTES_MAX).await {
            Ok(raw) => raw,
            Err(error) => return error,
        };
        let now = std::time::Instant::now();
        heard.bytes.fetch_add(raw.length as u64, Ordering::Relaxed);
        heard.responses.fetch_add(1, Ordering::Relaxed);
        if raw.length > CHANGE_BYTES_MAX {
            continue;
        }
        if let Some(table) = &table {
            table.lock().take(&raw.decode());
        }
        let Some(series) = *heard.series.read() else {
            continue;
        };
        let lags = hearing.lags(series, &raw.aliases(), now);
        heard.lags.lock().extend(lags);
    }
}

/// How far one stream is with a series of changes.
#[derive(Debug, Default)]
struct Hearing {
    era: u8,
    /// Versions of each pod that it was told of, or that one it was told of passed over.
    versions: Vec<usize>,
}

impl Hearing {
    /// How late, in microseconds, each change is that a response tells, those that it passes over included.
    fn lags(&mut self, series: Series, aliases: &[String], now: std::time::Instant) -> Vec<u32> {
        if self.era != series.era() {
            (self.era, self.versions) = (series.era(), vec![0; CHANGING]);
        }
        let mut lags = Vec::new();
        for number in aliases.iter().filter_map(|alias| series.number_of(alias)) {
            let (index, version) = (number % CHANGING, number / CHANGING + 1);
            let before = self.versions[index];
            for passed in before..version {
                let lag = now.saturating_duration_since(series.due(passed * CHANGING + index));
                lags.push(u32::try_from(lag.as_micros()).unwrap_or(u32::MAX));
            }
            self.versions[index] = version.max(before);
        }
        lags
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_was_passed_over_counts_from_when_it_was_due_and_each_counts_once() {
        let (series, mut hearing) = (Series::new(11, 1_000), Hearing::default());
        let now = series.due(1_000);
        let mut heard = |alias: &str| hearing.lags(series, &[alias.to_owned()], now);
        // Versions 1, 2 and 3 of pod 7 are changes 7, 107 and 207.
        assert_eq!(heard("/11.0.0.107"), [993_000, 893_000]);
        assert_eq!(heard("/11.0.0.207"), [793_000]);
        assert_eq!(heard("/11.0.0.7"), [0; 0], "an older one says nothing");
        assert_eq!(heard("/12.0.1.57"), [0; 0], "of another series");
    }
}
