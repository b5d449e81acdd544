//! When an endpoint wants to be asked again: `Retry-After` and `grpc-retry-pushback-ms`.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName};

use crate::upstream::outcome::Hint;

/// What a server of gRPC says.
pub const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// The hint in the head of an answer (or its trailers): of gRPC first; `Retry-After` counts on 429 and 503 only.
#[must_use]
pub fn hint(status: u16, headers: &HeaderMap, now: SystemTime) -> Option<Hint> {
    if let Some(value) = headers.get(PUSHBACK) {
        return Some(pushback(value.to_str().unwrap_or_default()));
    }
    let value = headers.get(http::header::RETRY_AFTER)?;
    let asked = matches!(status, 429 | 503);
    let after = value
        .to_str()
        .ok()
        .filter(|_| asked)
        .and_then(|text| parse(text, now));
    after.map(Hint::After)
}

/// Reads milliseconds. A negative number, or something else, means: not at all.
#[must_use]
pub fn pushback(text: &str) -> Hint {
    match text.trim().parse::<u32>() {
        Ok(millis) => Hint::After(Duration::from_millis(millis.into())),
        Err(_) => Hint::Never,
    }
}

/// Reads seconds or a date of HTTP, as the time from `now` on. A date that has passed is no wait.
#[must_use]
pub fn parse(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than any wait has are a very long wait.
        return Some(Duration::from_secs(
            text.parse::<u32>().unwrap_or(u32::MAX).into(),
        ));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_445_412_480; // Wed, 21 Oct 2015 07:28:00 GMT

    fn read(text: &str) -> Option<Duration> {
        parse(text, SystemTime::UNIX_EPOCH + Duration::from_secs(NOW))
    }

    #[test]
    fn seconds_and_dates_are_read() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(read("120"), seconds(120));
        assert_eq!(read(" 0 "), seconds(0));
        assert_eq!(read("Wed, 21 Oct 2015 07:28:30 GMT"), seconds(30));
        assert_eq!(read("Wednesday, 21-Oct-15 07:28:30 GMT"), seconds(30));
        assert_eq!(read("Wed Oct 21 07:28:30 2015"), seconds(30));
        assert_eq!(read("Wed, 21 Oct 2015 07:00:00 GMT"), seconds(0), "it has passed");
        assert_eq!(read("99999999999999999999"), seconds(u32::MAX.into()));
        for text in ["", "-1", "1.5", "soon", "2015-10-21T07:28:00Z"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn a_negative_pushback_forbids_another_try() {
        assert_eq!(pushback("50"), Hint::After(Duration::from_millis(50)));
        assert_eq!(pushback("-1"), Hint::Never);
        assert_eq!(pushback("later"), Hint::Never);
    }

    #[test]
    fn only_429_and_503_may_say_when() {
        let headers = HeaderMap::from_iter([(http::header::RETRY_AFTER, "3".parse().unwrap())]);
        let now = SystemTime::UNIX_EPOCH;
        assert_eq!(
            hint(503, &headers, now),
            Some(Hint::After(Duration::from_secs(3)))
        );
        assert_eq!(
            hint(429, &headers, now),
            Some(Hint::After(Duration::from_secs(3)))
        );
        assert_eq!(hint(302, &headers, now), None);
    }
}
