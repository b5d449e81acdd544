//! How connections of HTTP/1 end when the waypoint drains: with their next answer, which says so. To close one that is idle
//! at that moment would fail a request that its client has just sent.

use std::time::Duration;

use http::header::CONNECTION;
use http::{HeaderValue, Response, StatusCode};
use tulle_runtime::drain::DrainWatcher;

/// One that stays idle for this long is closed without an answer to say it in.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Says with an answer that it is the last one, if it is to be. Streams of bytes have no next request.
pub(super) fn mark<B>(is_draining: bool, mut answer: Response<B>) -> Response<B> {
    if is_draining && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        answer
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

/// Waits until a connection is to be closed that no answer has ended.
pub(crate) async fn due(drain: &DrainWatcher) {
    drain.signaled().await;
    tokio::time::sleep(IDLE_MAX).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tulle_runtime::drain::{self, DrainMode};

    #[test]
    fn answers_say_goodbye_and_streams_do_not() {
        let said = |draining, status: u16| {
            let answer = Response::builder().status(status).body(()).unwrap();
            mark(draining, answer).headers().contains_key(CONNECTION)
        };
        assert!(said(true, 200) && said(true, 503));
        assert!(!said(false, 200) && !said(true, 101));
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_given_time() {
        let (trigger, watcher) = drain::new();
        let begun = tokio::time::Instant::now();
        trigger.start(DrainMode::Graceful);
        due(&watcher).await;
        assert_eq!(begun.elapsed(), IDLE_MAX);
    }
}
