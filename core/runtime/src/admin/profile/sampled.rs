//! Takes samples by a timer of the processor's time, one profile at once.
//!
//! Stacks are followed by frame pointers: a build with `-C force-frame-pointers=yes` shows callers, too, others show
//! where time is spent but often not who asked for it.

use std::time::{SystemTime, UNIX_EPOCH};

use pprof::{ProfilerGuard, ProfilerGuardBuilder};
use tokio::sync::Mutex;

use super::format::{Frame, Stack, Taken};
use super::{ProfileError, Window};

/// Held while samples are taken: the process has one timer for them.
static TAKING: Mutex<()> = Mutex::const_new(());

/// Samples of all threads, as a profile.
pub(super) async fn sample(window: Window) -> Result<Vec<u8>, ProfileError> {
    let _one = TAKING.try_lock().map_err(|_| ProfileError::Busy)?;
    let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let sampler = ProfilerGuardBuilder::default()
        .frequency(window.frequency)
        .build()
        .map_err(failed)?;
    tokio::time::sleep(window.length).await;
    // To name functions takes a while, and other pages are served on this thread.
    let naming = tokio::task::spawn_blocking(move || stacks(&sampler));
    let stacks = naming.await.map_err(failed)??;
    let taken = Taken {
        begun,
        length: window.length,
        frequency: window.frequency,
    };
    Ok(taken.encode(&stacks))
}

fn failed(error: impl ToString) -> ProfileError {
    ProfileError::Sampler(error.to_string())
}

fn stacks(sampler: &ProfilerGuard<'_>) -> Result<Vec<Stack>, ProfileError> {
    let report = sampler.report().build().map_err(failed)?;
    let stack = |(frames, count): (&pprof::Frames, &isize)| Stack {
        thread: frames.thread_name_or_id(),
        places: frames
            .frames
            .iter()
            .map(|place| place.iter().map(frame).collect())
            .collect(),
        samples: i64::try_from(*count).unwrap_or(i64::MAX),
    };
    Ok(report.data.iter().map(stack).collect())
}

fn frame(symbol: &pprof::Symbol) -> Frame {
    Frame {
        function: symbol.name(),
        file: symbol.filename().into_owned(),
        line: i64::from(symbol.lineno()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn what_keeps_the_processor_busy_is_found() {
        let sampler = ProfilerGuardBuilder::default().frequency(1000).build().unwrap();
        let begun = Instant::now();
        let mut found = Vec::new();
        // Until the timer of the processor's time has fired, however busy the machine is.
        while found.is_empty() && begun.elapsed() < Duration::from_secs(10) {
            (0..1_000_000_u64).for_each(|n| drop(std::hint::black_box(n.to_string())));
            found = stacks(&sampler).unwrap();
        }
        assert!(
            found
                .iter()
                .all(|stack| stack.samples > 0 && !stack.thread.is_empty())
        );
        assert!(found.iter().any(|stack| !stack.places.is_empty()), "{found:?}");
    }
}
