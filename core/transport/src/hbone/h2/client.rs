//! The client's end of an `h2` connection.

use std::sync::Arc;
use std::task::{Context, Poll};

use h2::client::{Builder, Connection, SendRequest};
use tokio::io::{AsyncRead, AsyncWrite};

use super::SEND_BUFFER_MAX;
use super::stream::join;
use crate::hbone::connect::{ConnectRequest, ConnectResponse};
use crate::hbone::error::OpenError;
use crate::hbone::liveness::{Slot, Vitals};
use crate::hbone::load::Outgoing;
use crate::hbone::seam::{self, ClientFrames, Opened, Ping};
use crate::hbone::settings::Settings;
use crate::hbone::stream::ResetCode;
use crate::hbone::watched::Watched;

/// Opens streams.
#[derive(Clone)]
pub(in crate::hbone) struct Opener {
    sender: SendRequest<Outgoing>,
    streams_max: u32,
}

/// Begins HTTP/2 on a stream.
pub(in crate::hbone) async fn handshake<S>(
    stream: S,
    settings: &Settings,
    vitals: &Arc<Vitals>,
) -> Result<(Opener, Box<dyn ClientFrames>), OpenError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream = Watched::client(stream, Arc::clone(vitals));
    let handshake = builder(settings).handshake::<_, Outgoing>(stream).await;
    let (sender, connection) = handshake.map_err(|error| OpenError::Http2 {
        detail: error.to_string().into(),
    })?;
    let streams_max = settings.streams_max;
    Ok((Opener { sender, streams_max }, Box::new(connection)))
}

fn builder(settings: &Settings) -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_frame_size(settings.frame_size)
        .max_header_list_size(settings.client_header_list)
        .max_send_buffer_size(SEND_BUFFER_MAX)
        .data_frame_budget(settings.small_frame_budget())
        .enable_push(false);
    builder
}

impl<S> seam::Connection for Connection<S, Outgoing>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    fn ping(&mut self) -> Box<dyn Ping> {
        Box::new(self.ping_pong().expect("taken once"))
    }

    fn set_window(&mut self, bytes: u32) {
        self.set_target_window_size(bytes);
    }
}

impl<S> ClientFrames for Connection<S, Outgoing>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        Future::poll(std::pin::Pin::new(self), cx).map_err(|error| error.to_string())
    }
}

impl Opener {
    pub(in crate::hbone) async fn open(&self, slot: Slot, request: &ConnectRequest) -> Opened {
        let vitals = Arc::clone(slot.vitals());
        let head = request.to_http().map_err(|error| OpenError::Request {
            detail: error.to_string().into(),
        })?;
        let sender = self.sender.clone();
        let mut sender = sender.ready().await.map_err(|error| explain(&vitals, &error))?;
        let (response, mut send) = sender
            .send_request(head, false)
            .map_err(|error| explain(&vitals, &error))?;
        let peer_max = u32::try_from(sender.current_max_send_streams()).unwrap_or(u32::MAX);
        vitals.set_limit(self.streams_max.min(peer_max));
        drop(sender);
        slot.opens(response.stream_id().into());
        let response = response.await.map_err(|error| explain(&vitals, &error))?;
        match ConnectResponse::from_http(&response) {
            Ok(answer) => Ok((join(send, response.into_body(), slot), answer)),
            Err(refusal) => {
                send.send_reset(ResetCode::NoError.into());
                Err(OpenError::Refused(refusal))
            }
        }
    }
}

/// Says why a stream was not opened.
fn explain(vitals: &Vitals, error: &h2::Error) -> OpenError {
    if let Some(source) = vitals.refused() {
        return OpenError::Tls {
            source: Arc::clone(source),
        };
    }
    match error.reason() {
        Some(reason) if error.is_reset() => OpenError::Reset(reason.into()),
        Some(_) if error.is_go_away() && error.is_remote() => {
            vitals.retire();
            OpenError::GoingAway
        }
        Some(_) => OpenError::Http2 {
            detail: error.to_string().into(),
        },
        None => OpenError::PeerLost {
            detail: vitals.lost().cloned().unwrap_or_else(|| error.to_string().into()),
        },
    }
}
