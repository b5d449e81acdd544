//! `/debug/pprof/`: where the processor's time goes and who holds memory, in the format that `go tool pprof` and others
//! read. What this build cannot tell is answered with 501 and the reason.

#[cfg(feature = "pprof")]
mod format;
#[cfg(feature = "heap-profile")]
mod heap;
#[cfg(feature = "pprof")]
mod sampled;

use std::time::Duration;

use axum::Router;
use axum::extract::Query;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
#[cfg(not(feature = "heap-profile"))]
use axum::routing::any;
use axum::routing::get;
use serde::Deserialize;

/// Longest profile.
const SECONDS_MAX: u64 = 300;

/// Most samples in a second.
const FREQUENCY_MAX: i32 = 1000;

/// What is meant when nothing else is asked for: samples for ten seconds, rarely enough to cost nothing that shows.
const USUAL: Window = Window {
    length: Duration::from_secs(10),
    frequency: 100,
};

/// The pages. `known` is what the process itself can say of its memory, in lines, where there is no profile of it.
pub fn pages(known: fn() -> String) -> Router {
    Router::new()
        .route("/debug/pprof/profile", get(processor))
        .merge(heap_pages(known))
}

#[cfg(feature = "heap-profile")]
fn heap_pages(_: fn() -> String) -> Router {
    heap::pages()
}

#[cfg(not(feature = "heap-profile"))]
fn heap_pages(known: fn() -> String) -> Router {
    let heap = move || async move { no_heap(&known()) };
    Router::new()
        .route("/debug/pprof/heap", get(heap))
        .route("/debug/pprof/heap/profiling", any(heap))
}

#[derive(Debug, Default, Deserialize)]
struct Asked {
    seconds: Option<u64>,
    frequency: Option<i32>,
}

/// When and how often the processor is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    length: Duration,
    /// Samples in a second of the processor's time.
    frequency: i32,
}

impl Window {
    fn of(asked: &Asked) -> Result<Self, String> {
        let seconds = asked.seconds.unwrap_or(USUAL.length.as_secs());
        let frequency = asked.frequency.unwrap_or(USUAL.frequency);
        if !(1..=SECONDS_MAX).contains(&seconds) {
            return Err(format!("seconds={seconds}: must be 1 to {SECONDS_MAX}\n"));
        }
        if !(1..=FREQUENCY_MAX).contains(&frequency) {
            return Err(format!("frequency={frequency}: must be 1 to {FREQUENCY_MAX}\n"));
        }
        Ok(Self {
            length: Duration::from_secs(seconds),
            frequency,
        })
    }
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
#[allow(dead_code, reason = "which of them there are depends on the build")]
enum ProfileError {
    /// The build has none.
    #[error("profiles of the processor are not part of this build: build with the feature `pprof`")]
    NotBuilt,
    /// One is enough.
    #[error("another profile is being taken; ask again when it is done")]
    Busy,
    /// The sampler says no.
    #[error("the processor cannot be sampled: {0}")]
    Sampler(String),
}

impl IntoResponse for ProfileError {
    fn into_response(self) -> Response {
        let status = match self {
            Self::NotBuilt => StatusCode::NOT_IMPLEMENTED,
            Self::Busy => StatusCode::CONFLICT,
            Self::Sampler(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, format!("{self}\n")).into_response()
    }
}

async fn processor(Query(asked): Query<Asked>) -> Response {
    let window = match Window::of(&asked) {
        Ok(window) => window,
        Err(problem) => return (StatusCode::BAD_REQUEST, problem).into_response(),
    };
    match sample(window).await {
        Ok(profile) => ([(header::CONTENT_TYPE, "application/octet-stream")], profile).into_response(),
        Err(error) => error.into_response(),
    }
}

#[cfg(feature = "pprof")]
use sampled::sample;

#[cfg(not(feature = "pprof"))]
async fn sample(_: Window) -> Result<Vec<u8>, ProfileError> {
    Err(ProfileError::NotBuilt)
}

/// The usual allocator records nobody's allocations.
#[cfg(not(feature = "heap-profile"))]
fn no_heap(known: &str) -> Response {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find(|line| line.starts_with("VmRSS"));
    let text = format!(
        "profiles of the heap are not part of this build, whose allocator records no allocations: build with the feature \
         `heap-profile`\nwhat is known without:\n{}\n{known}",
        resident.unwrap_or_default(),
    );
    (StatusCode::NOT_IMPLEMENTED, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(seconds: Option<u64>, frequency: Option<i32>) -> Result<Window, String> {
        Window::of(&Asked { seconds, frequency })
    }

    #[test]
    fn a_profile_is_bounded_in_length_and_frequency() {
        assert_eq!(window(None, None), Ok(USUAL));
        let longest = window(Some(300), Some(1000)).unwrap();
        assert_eq!((longest.length.as_secs(), longest.frequency), (300, 1000));
        for (seconds, frequency) in [(0, 1), (301, 1), (1, 0), (1, -1), (1, 1001)] {
            let refused = window(Some(seconds), Some(frequency)).unwrap_err();
            assert!(refused.contains("must be 1 to"), "{refused}");
        }
    }

    #[cfg(not(feature = "heap-profile"))]
    #[tokio::test]
    async fn what_the_allocator_cannot_tell_is_said() {
        let answer = no_heap("tables: 7 bytes\n");
        assert_eq!(answer.status(), StatusCode::NOT_IMPLEMENTED);
        let text = axum::body::to_bytes(answer.into_body(), 4096).await.unwrap();
        let text = String::from_utf8(text.to_vec()).unwrap();
        assert!(
            text.contains("build with the feature `heap-profile`")
                && text.contains("VmRSS")
                && text.ends_with("tables: 7 bytes\n"),
            "{text}"
        );
    }

    #[cfg(not(feature = "pprof"))]
    #[tokio::test]
    async fn a_build_without_profiles_says_so() {
        let answer = processor(Query(Asked::default())).await;
        assert_eq!(answer.status(), StatusCode::NOT_IMPLEMENTED);
        let text = axum::body::to_bytes(answer.into_body(), 4096).await.unwrap();
        assert!(text.ends_with(b"build with the feature `pprof`\n"));
    }
}
