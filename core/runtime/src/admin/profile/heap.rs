//! `/debug/pprof/heap`: who holds memory, as far as it was allocated while recording was on. Needs jemalloc as the
//! allocator of the process, built to record; recording begins and ends at `/debug/pprof/heap/profiling?activate=`.

use std::sync::Arc;

use axum::Router;
use axum::extract::Query;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use jemalloc_pprof::{JemallocProfCtl, PROF_CTL};
use serde::Deserialize;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// The pages.
pub(super) fn pages() -> Router {
    Router::new()
        .route("/debug/pprof/heap", get(profile))
        .route("/debug/pprof/heap/profiling", any(switch))
}

/// Why there is no profile of the heap.
#[derive(Debug, thiserror::Error)]
enum HeapError {
    /// The allocator was told not to record.
    #[error(
        "the allocator of this process cannot record: it was started with `prof:false` in _RJEM_MALLOC_CONF, or built \
         outside of this project's folder, where JEMALLOC_SYS_WITH_MALLOC_CONF is set"
    )]
    CannotRecord,
    /// Nothing is recorded now.
    #[error(
        "nothing is recorded; begin with /debug/pprof/heap/profiling?activate=true and ask again after a while"
    )]
    NotRecording,
    /// Neither on nor off.
    #[error("activate={0}: must be true or false")]
    Unclear(String),
    /// The allocator refuses, or what it wrote cannot be read.
    #[error("the heap cannot be recorded: {0}")]
    Failed(String),
}

impl IntoResponse for HeapError {
    fn into_response(self) -> Response {
        let status = match self {
            Self::CannotRecord => StatusCode::NOT_IMPLEMENTED,
            Self::NotRecording => StatusCode::CONFLICT,
            Self::Unclear(_) => StatusCode::BAD_REQUEST,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, format!("{self}\n")).into_response()
    }
}

/// The one recorder; whoever asks meanwhile waits.
async fn recorder() -> Result<OwnedMutexGuard<JemallocProfCtl>, HeapError> {
    let recorder: Option<&Arc<Mutex<_>>> = PROF_CTL.as_ref();
    let recorder = recorder.ok_or(HeapError::CannotRecord)?;
    Ok(Arc::clone(recorder).lock_owned().await)
}

async fn profile() -> Result<Response, HeapError> {
    let mut recorder = recorder().await?;
    if !recorder.activated() {
        return Err(HeapError::NotRecording);
    }
    // It goes through a file, and each place in the program has to be named.
    let written = tokio::task::spawn_blocking(move || recorder.dump_pprof());
    let profile = written
        .await
        .map_err(|error| HeapError::Failed(error.to_string()))?
        .map_err(|error| HeapError::Failed(format!("{error:#}")))?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], profile).into_response())
}

#[derive(Debug, Default, Deserialize)]
struct Asked {
    activate: Option<String>,
}

/// Begins or ends recording; without a parameter says only whether it is on. What was recorded ends with it.
async fn switch(Query(asked): Query<Asked>) -> Result<String, HeapError> {
    let mut recorder = recorder().await?;
    let done = match asked.activate.as_deref() {
        None => Ok(()),
        Some("true") => recorder.activate(),
        Some("false") => recorder.deactivate(),
        Some(other) => return Err(HeapError::Unclear(other.to_owned())),
    };
    done.map_err(|error| HeapError::Failed(error.to_string()))?;
    Ok(format!("heap profiling active: {}\n", recorder.activated()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in the process: nothing else records.
    #[global_allocator]
    static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

    async fn asked(activate: Option<&str>) -> Result<String, HeapError> {
        let activate = activate.map(str::to_owned);
        switch(Query(Asked { activate })).await
    }

    /// Large enough to be among the samples.
    #[inline(never)]
    fn hold_much() -> Vec<Vec<u8>> {
        (0..64).map(|_| vec![1; 1024 * 1024]).collect()
    }

    #[tokio::test]
    async fn what_is_held_since_recording_began_is_in_the_profile() {
        assert_eq!(asked(None).await.unwrap(), "heap profiling active: false\n");
        let early = profile().await.unwrap_err();
        assert!(matches!(early, HeapError::NotRecording), "{early}");
        let unclear = asked(Some("maybe")).await.unwrap_err();
        assert!(matches!(unclear, HeapError::Unclear(_)), "{unclear}");

        assert_eq!(
            asked(Some("true")).await.unwrap(),
            "heap profiling active: true\n"
        );
        let held = hold_much();
        let answer = profile().await.unwrap();
        let bytes = axum::body::to_bytes(answer.into_body(), 64 << 20).await.unwrap();
        assert_eq!(bytes[..2], [0x1f, 0x8b], "packed, as profiles of pprof are");
        let mut packed = flate2::read::GzDecoder::new(&bytes[..]);
        let mut unpacked = Vec::new();
        std::io::Read::read_to_end(&mut packed, &mut unpacked).unwrap();
        let names = |text: &str| memchr::memmem::find(&unpacked, text.as_bytes()).is_some();
        assert!(names("inuse_space"), "the kind of the profile");
        assert!(names("hold_much"), "who holds it");
        drop(held);

        assert_eq!(
            asked(Some("false")).await.unwrap(),
            "heap profiling active: false\n"
        );
        let late = profile().await.unwrap_err();
        assert!(matches!(late, HeapError::NotRecording), "{late}");
    }
}
