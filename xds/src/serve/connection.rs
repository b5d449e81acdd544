//! One connection of a client, from its handshake to its end: it ends by itself, or it is old enough, what the client has shown
//! has ended, or the process ends. Then the client is told to open another (GOAWAY), its streams end, and what else is under way
//! has [`CLOSE_MAX`].

use std::time::Duration;

use http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::sync::watch;
use tokio::time::timeout;
use tower::ServiceExt as _;
use tulle_identity::ServerStream;

/// Silence after which a client is asked whether it is alive.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long its answer may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams that one connection may open.
const STREAMS_PER_CONNECTION_MAX: u32 = 1000;
/// Bytes in flight per stream and per connection.
const WINDOW: u32 = 1 << 20;
/// How long what is under way may take once the client was told to open another connection.
const CLOSE_MAX: Duration = Duration::from_secs(30);

/// Tells the streams of a connection that it is ending; found in the extensions of each request.
#[derive(Debug, Clone)]
pub(super) struct Closing(watch::Receiver<bool>);

impl Closing {
    /// Waits until the client was told to open another connection.
    pub(super) async fn begun(mut self) {
        if self.0.wait_for(|begun| *begun).await.is_err() {
            // The connection is gone; whoever writes to it finds out.
            std::future::pending().await
        }
    }
}

/// Serves one client until its connection has ended, which it is told once `over` completes.
///
/// No async function: that would keep the stream a second time, beside the connection it went into.
pub(super) fn serve<O>(
    stream: ServerStream,
    routes: axum::Router,
    over: O,
) -> impl Future<Output = ()> + Send + use<O>
where
    O: Future<Output = ()> + Send,
{
    let peer = stream.peer().clone();
    let remote = peer.remote;
    let (closing, told) = watch::channel(false);
    let service = routes.map_request(move |mut request: Request<_>| {
        request.extensions_mut().insert(peer.clone());
        request.extensions_mut().insert(Closing(told.clone()));
        request.map(axum::body::Body::new)
    });
    let builder = builder();
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut connection = Box::pin(connection.into_owned());
    async move {
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(client = ?remote, %error, "a connection broke");
                }
                return;
            }
            () = over => {}
        }
        connection.as_mut().graceful_shutdown();
        closing.send_replace(true);
        match timeout(CLOSE_MAX, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(client = ?remote, %error, "a connection broke at its end"),
            Err(_) => tracing::info!(client = ?remote, "a connection was cut off: its client did not leave"),
        }
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new()).http2_only();
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    builder
}

/// The bound varied by a quarter either way, so that those who came together do not leave together; a connection without one
/// lives as long as the process may.
pub(super) fn age(max: Option<Duration>) -> Duration {
    const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
    max.map_or(FOR_EVER, |max| max.mul_f64(rand::random_range(0.75..1.25)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_spread_by_a_quarter_and_without_a_bound_nobody_is_old() {
        let max = Duration::from_secs(1000);
        let ages: Vec<Duration> = (0..1000).map(|_| age(Some(max))).collect();
        let (least, most) = (ages.iter().min().unwrap(), ages.iter().max().unwrap());
        assert!((Duration::from_secs(750)..Duration::from_secs(800)).contains(least));
        assert!((Duration::from_secs(1200)..Duration::from_secs(1250)).contains(most));
        assert!(age(None) > Duration::from_secs(365 * 24 * 3600));
    }
}
