//! Begins HTTP on a stream that was opened.

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tulle_runtime::tasks;
use tulle_transport::OpenError;

use super::data::Data;
use super::lines::{Answers, Lines};
use crate::buffers::{self, Carried, Http2 as Sizes};
use crate::http::body::RequestBody;
use crate::upstream::breaker::Guard;
use crate::upstream::connect::Opened;
use crate::watched::Watched;

/// Bytes of the head of an answer.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Header fields of an answer.
const HEAD_FIELDS_MAX: usize = 100;
/// Silence after which an endpoint is asked whether it lives.
const PING_AFTER: Duration = Duration::from_secs(30);
/// How long its answer may take.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a new connection of HTTP/2 is waited for to say that it takes extended CONNECT.
const SETTINGS_MAX: Duration = Duration::from_secs(1);
/// How often it is looked whether it has.
const SETTINGS_PAUSE: Duration = Duration::from_millis(2);

/// Whether an endpoint has said that it takes extended CONNECT. Only the task of the connection can look, and it is told
/// of nothing: it looks when it is asked.
#[derive(Debug, Default)]
pub(super) struct Extended {
    ask: tokio::sync::Notify,
    said: AtomicBool,
}

impl Extended {
    /// Asks until it has been said, and not for ever.
    pub(super) async fn is_said(&self) -> bool {
        let asking = async {
            while !self.said.load(Ordering::Relaxed) {
                self.ask.notify_one();
                tokio::time::sleep(SETTINGS_PAUSE).await;
            }
        };
        tokio::time::timeout(SETTINGS_MAX, asking).await.is_ok()
    }
}

/// Where requests are sent, and what is seen of their answers.
type Http1 = (http1::SendRequest<RequestBody>, Arc<Answers>);
/// Where requests are sent, and whether extended CONNECT may be.
type Http2 = (http2::SendRequest<RequestBody>, Arc<Extended>);

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
    held: Arc<Guard>,
    carried: &Arc<Carried>,
) -> Result<Http1, OpenError> {
    match opened {
        Opened::Tunnel(stream) => http1_on(stream, held, carried).await,
        Opened::Plain(socket) => http1_on(socket, held, carried).await,
        Opened::Secured(stream) => http1_on(stream, held, carried).await,
    }
}

/// Begins HTTP/2; `held` lives as long as the connection.
pub(super) async fn http2_over(
    opened: Opened,
    held: Arc<Guard>,
    carried: &Arc<Carried>,
    sizes: Sizes,
) -> Result<Http2, OpenError> {
    match opened {
        Opened::Tunnel(stream) => http2_on(stream, held, carried, sizes).await,
        Opened::Plain(socket) => http2_on(socket, held, carried, sizes).await,
        Opened::Secured(stream) => http2_on(stream, held, carried, sizes).await,
    }
}

async fn http1_on<S>(stream: S, held: Arc<Guard>, carried: &Arc<Carried>) -> Result<Http1, OpenError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let answers = Arc::default();
    let look = Lines {
        answers: Arc::clone(&answers),
        carried: Arc::clone(carried),
    };
    let handshake = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEAD_FIELDS_MAX)
        .handshake(TokioIo::new(Watched { stream, look }))
        .await;
    let (sender, connection) = handshake.map_err(broken)?;
    drop(tasks::spawn("upstream-http1", async move {
        let _held = held;
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to an endpoint ended");
        }
    }));
    Ok((sender, answers))
}

async fn http2_on<S>(
    stream: S,
    held: Arc<Guard>,
    carried: &Arc<Carried>,
    sizes: Sizes,
) -> Result<Http2, OpenError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let look = Data::new(carried);
    let handshake = http2::Builder::new(Tasks)
        .timer(TokioTimer::new())
        .initial_stream_window_size(sizes.stream_window)
        .initial_connection_window_size(buffers::window(sizes.connection_window))
        .max_frame_size(sizes.frame_size)
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_TIMEOUT)
        .handshake(TokioIo::new(Watched { stream, look }))
        .await;
    let (sender, mut connection) = handshake.map_err(broken)?;
    let extended = Arc::new(Extended::default());
    let asked = Arc::clone(&extended);
    drop(tasks::spawn("upstream-http2", async move {
        let _held = held;
        loop {
            tokio::select! {
                ended = &mut connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection to an endpoint ended");
                    }
                    return;
                }
                () = asked.ask.notified() => {
                    let said = connection.is_extended_connect_protocol_enabled();
                    asked.said.store(said, Ordering::Relaxed);
                }
            }
        }
    }));
    Ok((sender, extended))
}

fn broken(error: hyper::Error) -> OpenError {
    OpenError::Http2 {
        detail: error.to_string().into(),
    }
}
