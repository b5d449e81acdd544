//! A clock for loads at a rate: finer than the runtime's timers, which know milliseconds and would be most of what a fast
//! answer is said to have taken.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

/// Ticks that nobody took yet, of one receiver. One that is so far behind holds up the clock, and what is late stays late.
const WAITING_MAX: usize = 4_096;

/// The moments at which requests are due, for so many takers in turn: one every `every` for each, evenly spread, from
/// `first` until the last taker is gone.
///
/// A thread sleeps until each is due. What a taker adds to a tick before it acts on it counts as latency, as does a late
/// tick.
#[must_use]
pub fn ticks(takers: usize, first: Instant, every: Duration) -> Vec<mpsc::Receiver<Instant>> {
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..takers).map(|_| mpsc::channel(WAITING_MAX)).unzip();
    let step = every / u32::try_from(takers.max(1)).unwrap_or(u32::MAX);
    std::thread::Builder::new()
        .name("bench-clock".into())
        .spawn(move || tick(&senders, first, step))
        .expect("a thread can be started");
    receivers
}

fn tick(takers: &[mpsc::Sender<Instant>], first: Instant, step: Duration) {
    let mut due = first;
    for taker in takers.iter().cycle() {
        #[allow(clippy::disallowed_methods, reason = "this is the clock that others wait for")]
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if taker.blocking_send(due).is_err() && takers.iter().all(mpsc::Sender::is_closed) {
            return;
        }
        due += step;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_taker_has_its_turn_and_no_tick_is_early() {
        let (first, every) = (Instant::now(), Duration::from_millis(4));
        let mut takers = ticks(4, first, every);
        for round in 0..3 {
            for (taker, nth) in takers.iter_mut().zip(0..) {
                let due = taker.blocking_recv().unwrap();
                assert_eq!(due, first + every * round + every / 4 * nth);
                assert!(Instant::now() >= due);
            }
        }
    }

    #[test]
    fn who_leaves_does_not_stop_the_clock_of_others() {
        let mut takers = ticks(2, Instant::now(), Duration::from_millis(2));
        drop(takers.remove(0));
        for _ in 0..3 {
            assert!(takers[0].blocking_recv().is_some());
        }
    }
}
