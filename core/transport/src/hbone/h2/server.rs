//! The server's end of an `h2` connection.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use tokio::io::{AsyncRead, AsyncWrite};

use super::SEND_BUFFER_MAX;
use super::stream::{explain, join};
use crate::hbone::connect::{ConnectRequest, ConnectResponse, Refusal};
use crate::hbone::error::{AcceptError, StreamError};
use crate::hbone::liveness::{Slot, Vitals};
use crate::hbone::load::Outgoing;
use crate::hbone::seam::{self, Answer, Asked, Ping, ServerFrames};
use crate::hbone::settings::Settings;
use crate::hbone::stream::HboneStream;
use crate::hbone::watched::Watched;

/// Streams that a peer may reset before we accepted them, per connection, before it is sent away.
const EARLY_RESETS_MAX: usize = 20;

/// Streams that a peer may make us reset, per connection, before it is sent away.
const FORCED_RESETS_MAX: usize = 1024;

/// Waits for the client's preface on a stream.
pub(in crate::hbone) async fn handshake<S>(
    stream: S,
    settings: &Settings,
    vitals: &Arc<Vitals>,
) -> Result<Box<dyn ServerFrames>, AcceptError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream: Box<dyn Stream> = Box::new(Watched::server(stream, Arc::clone(vitals)));
    let handshake = builder(settings).handshake::<_, Outgoing>(stream).await;
    let connection = handshake.map_err(|error| AcceptError::Http2(error.to_string().into()))?;
    Ok(Box::new(connection))
}

fn builder(settings: &Settings) -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_frame_size(settings.frame_size)
        .max_header_list_size(settings.server_header_list)
        .max_concurrent_streams(settings.streams_max)
        .max_pending_accept_reset_streams(EARLY_RESETS_MAX)
        .max_local_error_reset_streams(Some(FORCED_RESETS_MAX))
        .max_send_buffer_size(SEND_BUFFER_MAX)
        .data_frame_budget(settings.small_frame_budget());
    builder
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl seam::Connection for Connection<Box<dyn Stream>, Outgoing> {
    fn ping(&mut self) -> Box<dyn Ping> {
        Box::new(self.ping_pong().expect("taken once"))
    }

    fn set_window(&mut self, bytes: u32) {
        self.set_target_window_size(bytes);
    }
}

impl ServerFrames for Connection<Box<dyn Stream>, Outgoing> {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Asked, String>>> {
        let next = ready!(Self::poll_accept(self, cx));
        let asked = |(request, respond): (http::Request<RecvStream>, SendResponse<Outgoing>)| {
            let extended = request.extensions().get::<h2::ext::Protocol>().is_some();
            Asked {
                request: ConnectRequest::from_http(&request, extended),
                answer: Box::new(H2Answer {
                    respond,
                    body: request.into_body(),
                }),
            }
        };
        Poll::Ready(next.map(|next| next.map(asked).map_err(|error| error.to_string())))
    }

    fn drain(&mut self) {
        self.graceful_shutdown();
    }

    fn close(&mut self) {
        self.abrupt_shutdown(Reason::NO_ERROR);
    }
}

struct H2Answer {
    respond: SendResponse<Outgoing>,
    body: RecvStream,
}

impl Answer for H2Answer {
    fn stream(&self) -> u32 {
        self.body.stream_id().into()
    }

    fn accept(
        mut self: Box<Self>,
        response: &ConnectResponse,
        slot: Slot,
    ) -> Result<HboneStream, StreamError> {
        match self.respond.send_response(response.to_http(), false) {
            Ok(send) => Ok(join(send, self.body, slot)),
            Err(error) => Err(explain(&slot, &error)),
        }
    }

    fn reject(mut self: Box<Self>, refusal: &Refusal) -> Result<(), String> {
        let sent = self.respond.send_response(refusal.to_http(), true);
        sent.map(|_| ()).map_err(|error| error.to_string())
    }

    fn poll_cancelled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.respond.poll_reset(cx).map(|_| ())
    }
}
