//! Begins HTTP on a stream that was opened.

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tulle_runtime::tasks;
use tulle_transport::OpenError;

use crate::http::body::RequestBody;
use crate::upstream::breaker::Guard;
use crate::upstream::connect::Opened;

/// Bytes of the head of an answer.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Header fields of an answer.
const HEAD_FIELDS_MAX: usize = 100;
/// Flow control of one request of HTTP/2.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// Flow control of a connection of HTTP/2.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Largest frame of HTTP/2.
const FRAME_MAX: u32 = 16 * 1024;
/// Silence after which an endpoint is asked whether it lives.
const PING_AFTER: Duration = Duration::from_secs(30);
/// How long its answer may take.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Runs tasks of hyper under supervision.
#[derive(Debug, Clone, Copy)]
pub struct Tasks;

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        drop(tasks::spawn("http2", future));
    }
}

/// Begins HTTP/1.1; `held` lives as long as the connection.
pub(super) async fn http1_over(
    opened: Opened,
    held: Guard,
) -> Result<http1::SendRequest<RequestBody>, OpenError> {
    match opened {
        Opened::Tunnel(stream) => http1_on(stream, held).await,
        Opened::Plain(socket) => http1_on(socket, held).await,
    }
}

/// Begins HTTP/2; `held` lives as long as the connection.
pub(super) async fn http2_over(
    opened: Opened,
    held: Guard,
) -> Result<http2::SendRequest<RequestBody>, OpenError> {
    match opened {
        Opened::Tunnel(stream) => http2_on(stream, held).await,
        Opened::Plain(socket) => http2_on(socket, held).await,
    }
}

async fn http1_on<S>(stream: S, held: Guard) -> Result<http1::SendRequest<RequestBody>, OpenError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handshake = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEAD_FIELDS_MAX)
        .handshake(TokioIo::new(stream))
        .await;
    let (sender, connection) = handshake.map_err(broken)?;
    drop(tasks::spawn("upstream-http1", async move {
        let _held = held;
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to an endpoint ended");
        }
    }));
    Ok(sender)
}

async fn http2_on<S>(stream: S, held: Guard) -> Result<http2::SendRequest<RequestBody>, OpenError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handshake = http2::Builder::new(Tasks)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_MAX)
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_TIMEOUT)
        .handshake(TokioIo::new(stream))
        .await;
    let (sender, connection) = handshake.map_err(broken)?;
    drop(tasks::spawn("upstream-http2", async move {
        let _held = held;
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to an endpoint ended");
        }
    }));
    Ok(sender)
}

fn broken(error: hyper::Error) -> OpenError {
    OpenError::Http2 {
        detail: error.to_string().into(),
    }
}
