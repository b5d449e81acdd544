//! How long a request and each of its tries may take.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tulle_model::route::Timeouts;

use crate::clock::Time;

/// What a caller of gRPC gives a call.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// When a request has to be over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// When; `None` is never.
    pub at: Option<Time>,
    /// The caller set it, or one that is earlier than the route's; it is told what is left of it.
    pub by_caller: bool,
}

impl Deadline {
    /// The deadline of a request whose head was read at `start`: the earlier of the route's and the caller's.
    #[must_use]
    pub fn new(timeouts: &Timeouts, grpc: Option<Duration>, start: Time) -> Self {
        let route = on(timeouts.request);
        let by_caller = match (route, grpc) {
            (Some(route), Some(grpc)) => grpc < route,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        let limit = route.into_iter().chain(grpc).min();
        Self {
            at: limit.map(|limit| start + limit),
            by_caller,
        }
    }

    /// What is left; `None` is without end.
    #[must_use]
    pub fn left(&self, now: Time) -> Option<Duration> {
        self.at.map(|at| at.since(now))
    }

    /// Whether it has passed.
    #[must_use]
    pub fn has_passed(&self, now: Time) -> bool {
        self.at.is_some_and(|at| at <= now)
    }
}

/// How long the next try may take: its own limit, within what is left of the request.
#[must_use]
pub fn of_try(timeouts: &Timeouts, deadline: &Deadline, now: Time) -> TryLimit {
    let own = on(timeouts.backend_request);
    match (own, deadline.left(now)) {
        (Some(own), Some(left)) if left <= own => TryLimit::Request(left),
        (Some(own), _) => TryLimit::Try(own),
        (None, Some(left)) => TryLimit::Request(left),
        (None, None) => TryLimit::None,
    }
}

/// How long a try may take, and what is over when it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryLimit {
    /// Without end.
    None,
    /// The try is over then.
    Try(Duration),
    /// The whole request is.
    Request(Duration),
}

impl TryLimit {
    /// How long.
    #[must_use]
    pub fn limit(self) -> Option<Duration> {
        match self {
            Self::None => None,
            Self::Try(limit) | Self::Request(limit) => Some(limit),
        }
    }
}

/// `0s` means off.
fn on(limit: Option<Duration>) -> Option<Duration> {
    limit.filter(|limit| !limit.is_zero())
}

/// What the caller of gRPC gives the call; `None` if it says nothing, or nothing that can be read.
#[must_use]
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    parse(headers.get(GRPC_TIMEOUT)?.to_str().ok()?)
}

/// Reads `grpc-timeout`: at most eight digits and a unit.
#[must_use]
pub fn parse(text: &str) -> Option<Duration> {
    let unit = text.chars().next_back()?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(count * 3_600),
        'M' => Duration::from_secs(count * 60),
        'S' => Duration::from_secs(count),
        'm' => Duration::from_millis(count),
        'u' => Duration::from_micros(count),
        'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

/// Writes `grpc-timeout` in the finest unit that eight digits can hold, never more than `left`.
#[must_use]
pub fn header(left: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let units = [
        (left.as_nanos(), 'n'),
        (left.as_micros(), 'u'),
        (left.as_millis(), 'm'),
        (u128::from(left.as_secs()), 'S'),
        (u128::from(left.as_secs() / 60), 'M'),
        (u128::from(left.as_secs() / 3_600), 'H'),
    ];
    let fits = units.into_iter().find(|(count, _)| *count <= MOST);
    let (count, unit) = fits.unwrap_or((MOST, 'H'));
    HeaderValue::try_from(format!("{count}{unit}")).expect("digits and a letter are a header value")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn timeouts(request: u32, backend: u32) -> Timeouts {
        Timeouts {
            request: Some(request * SECOND),
            backend_request: Some(backend * SECOND),
        }
    }

    fn at(seconds: u32) -> Time {
        Time::ZERO + seconds * SECOND
    }

    #[test]
    fn the_earlier_of_both_deadlines_holds() {
        let route = Deadline::new(&timeouts(5, 0), Some(9 * SECOND), at(1));
        assert_eq!((route.at, route.by_caller), (Some(at(6)), false));
        let caller = Deadline::new(&timeouts(5, 0), Some(3 * SECOND), at(1));
        assert_eq!((caller.at, caller.by_caller), (Some(at(4)), true));
        assert_eq!(caller.left(at(3)), Some(SECOND));
        assert!(caller.has_passed(at(4)));
    }

    #[test]
    fn zero_seconds_mean_off() {
        let deadline = Deadline::new(&timeouts(0, 0), None, at(1));
        assert_eq!(deadline.at, None);
        assert_eq!(of_try(&timeouts(0, 0), &deadline, at(1)), TryLimit::None);
    }

    #[test]
    fn a_try_ends_with_the_request_at_the_latest() {
        let deadline = Deadline::new(&timeouts(5, 2), None, at(0));
        assert_eq!(
            of_try(&timeouts(5, 2), &deadline, at(1)),
            TryLimit::Try(2 * SECOND)
        );
        assert_eq!(
            of_try(&timeouts(5, 2), &deadline, at(4)),
            TryLimit::Request(SECOND)
        );
        assert_eq!(
            of_try(&timeouts(5, 0), &deadline, at(4)),
            TryLimit::Request(SECOND)
        );
    }

    #[test]
    fn timeouts_of_grpc_are_read_and_written() {
        for (text, expected) in [
            ("5S", Some(5 * SECOND)),
            ("100m", Some(Duration::from_millis(100))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3_600))),
            ("0n", Some(Duration::ZERO)),
            ("123456789n", None),
            ("S", None),
            ("-1S", None),
            ("1s", None),
            ("1.5S", None),
            ("1µ", None),
            ("", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
        assert_eq!(header(Duration::from_millis(50)), "50000000n");
        assert_eq!(header(Duration::from_secs(5)), "5000000u");
        assert_eq!(header(Duration::MAX), "99999999H");
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read_as_no_more_and_hardly_less(nanos in 0u64..1 << 60) {
            let left = Duration::from_nanos(nanos);
            let read = parse(header(left).to_str().unwrap()).unwrap();
            // Eight digits hold 1.5 times 10^8 nanoseconds as 150,000 microseconds: six digits or five may be left.
            proptest::prop_assert!(read <= left && left - read <= left / 10_000);
        }
    }
}
