//! What a client still sends of a request that was answered before its end: read for a while, so that the connection can
//! carry the next request, and never taken for one.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::runtime::Handle;
use tokio::time::timeout;

/// Bytes that are read and thrown away. A client that sends more has its connection closed.
pub(super) const DRAIN_BYTES_MAX: usize = 64 * 1024;
/// How long that may take.
pub(super) const DRAIN_MAX: Duration = Duration::from_secs(1);

/// Reads the rest of a body. If it does not end in time the library closes the connection, because the end of the
/// request was not seen.
pub(super) fn drain(mut rest: Incoming) {
    // Dropped outside of the runtime, it is the end of everything.
    if rest.is_end_stream() || Handle::try_current().is_err() {
        return;
    }
    let reading = async move {
        let mut left = DRAIN_BYTES_MAX;
        while let Some(Ok(frame)) = rest.frame().await {
            let length = frame.data_ref().map_or(0, bytes::Bytes::len);
            if length > left {
                return;
            }
            left -= length;
        }
    };
    drop(tulle_runtime::tasks::spawn("leftover", async move {
        // Whoever is too slow is closed like one who sends too much.
        let _ = timeout(DRAIN_MAX, reading).await;
    }));
}
