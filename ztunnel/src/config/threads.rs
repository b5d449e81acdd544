//! How many threads carry traffic.

use std::thread::available_parallelism;

use tulle_runtime::config::Collector;

/// Fewest threads when nothing is set, and what may always be asked for.
const THREADS_MIN: usize = 2;

/// `ZTUNNEL_WORKER_THREADS`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Asked {
    Threads(usize),
    Percent(f64),
}

/// What the decision is made on.
#[derive(Debug, Clone, Copy, Default)]
struct Given {
    asked: Option<Asked>,
    concurrency: Option<usize>,
    limit: Option<usize>,
    request: Option<usize>,
    /// Whole cores that this process may use.
    cores: usize,
    /// Cores that its threads can run on at once. More threads would take turns on them, and one that is put aside keeps the
    /// task that it is about to run: a single stream loses a third (docs/scaling.md).
    machine: usize,
}

pub(super) fn read(read: &mut Collector<'_>, concurrency: Option<usize>) -> usize {
    let limit = read.optional("ZTUNNEL_RESOURCE_CPU_LIMIT", parse_quantity);
    let cores = read.optional("ZTUNNEL_CPU_LIMIT", parse_quantity);
    let machine = available_parallelism().map_or(1, usize::from);
    decide(Given {
        asked: read.optional("ZTUNNEL_WORKER_THREADS", parse_asked),
        concurrency,
        limit,
        request: read.optional("ZTUNNEL_RESOURCE_CPU_REQUEST", parse_quantity),
        cores: limit.or(cores).unwrap_or(machine),
        machine,
    })
}

fn decide(given: Given) -> usize {
    match (given.asked, given.concurrency) {
        (Some(Asked::Percent(percent)), _) => share(given.cores, percent / 100.0),
        (Some(Asked::Threads(0)), _) | (None, Some(0)) => given.cores,
        (Some(Asked::Threads(threads)), _) | (None, Some(threads)) => threads,
        (None, None) => default_threads(given),
    }
    .clamp(1, given.machine.max(THREADS_MIN))
}

fn default_threads(given: Given) -> usize {
    let request = given.request.unwrap_or(0);
    match given.limit {
        Some(limit) => limit.max(request),
        None => share(given.cores, 0.25).max(request).max(THREADS_MIN),
    }
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of cores are small and positive"
)]
fn share(cores: usize, fraction: f64) -> usize {
    (cores as f64 * fraction).ceil() as usize
}

fn parse_asked(text: &str) -> Result<Asked, &'static str> {
    const EXPECTED: &str = "must be a number of threads, or a percentage of the cores such as 50%";
    match text.strip_suffix('%') {
        None => text.parse().map(Asked::Threads).map_err(|_| EXPECTED),
        Some(percent) => match percent.trim().parse::<f64>() {
            Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(Asked::Percent(percent)),
            _ => Err(EXPECTED),
        },
    }
}

/// A quantity of CPU as Kubernetes writes it, rounded up to whole cores.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the range was checked just before"
)]
fn parse_quantity(text: &str) -> Result<usize, &'static str> {
    const EXPECTED: &str = "must be a CPU quantity such as 2, 1.5 or 500m";
    let (number, scale) = match text.strip_suffix('m') {
        Some(number) => (number, 1000.0),
        None => (text, 1.0),
    };
    let cores = number.parse::<f64>().map_err(|_| EXPECTED)? / scale;
    if cores > 0.0 && cores <= 4096.0 {
        return Ok(cores.ceil() as usize);
    }
    Err(EXPECTED)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: Given = Given {
        asked: None,
        concurrency: None,
        limit: None,
        request: None,
        cores: 16,
        machine: 16,
    };

    #[test]
    fn the_first_that_is_set_decides() {
        let asked = Some(Asked::Threads(3));
        let concurrency = Some(5);
        let limit = Some(7);
        assert_eq!(
            decide(Given {
                asked,
                concurrency,
                limit,
                ..GIVEN
            }),
            3
        );
        assert_eq!(
            decide(Given {
                concurrency,
                limit,
                ..GIVEN
            }),
            5
        );
        assert_eq!(decide(Given { limit, ..GIVEN }), 7);
        assert_eq!(decide(GIVEN), 4, "a quarter of the cores");
    }

    #[test]
    fn the_request_raises_and_two_is_the_least() {
        assert_eq!(
            decide(Given {
                limit: Some(2),
                request: Some(6),
                ..GIVEN
            }),
            6
        );
        assert_eq!(decide(Given { cores: 2, ..GIVEN }), 2);
        assert_eq!(
            decide(Given {
                request: Some(9),
                ..GIVEN
            }),
            9
        );
    }

    #[test]
    fn no_more_threads_than_cores_are_started() {
        let asked = |threads, machine| {
            decide(Given {
                asked: Some(Asked::Threads(threads)),
                machine,
                ..GIVEN
            })
        };
        assert_eq!(asked(16, 4), 4);
        assert_eq!(asked(3, 4), 3);
        assert_eq!(asked(16, 1), 2, "two may always be asked for");
        assert_eq!(asked(1, 4), 1);
    }

    #[test]
    fn zero_and_percentages_are_of_the_cores() {
        assert_eq!(
            decide(Given {
                asked: Some(Asked::Threads(0)),
                ..GIVEN
            }),
            16
        );
        assert_eq!(
            decide(Given {
                asked: Some(Asked::Percent(10.0)),
                ..GIVEN
            }),
            2
        );
    }

    #[test]
    fn quantities_are_rounded_up() {
        assert_eq!(parse_quantity("500m"), Ok(1));
        assert_eq!(parse_quantity("1.5"), Ok(2));
        assert!(parse_quantity("-1").is_err());
        assert!(parse_quantity("NaN").is_err());
    }
}
