//! The server's end.

use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
use tulle_identity::tls::Handover;

use super::conn::{Conn, explain};
use super::core::{Core, Role};
use super::driver::Driver;
use super::head;
use super::link::{Link, Plain};
use super::sealed::Sealed;
use super::stream::{Handle, join};
use crate::hbone::connect::{ConnectResponse, Refusal};
use crate::hbone::error::{AcceptError, StreamError};
use crate::hbone::liveness::{Slot, Vitals};
use crate::hbone::seam::{Answer, Asked, ServerFrames};
use crate::hbone::settings::Settings;
use crate::hbone::stream::HboneStream;
use crate::hbone::watch::Watch;
use crate::hbone::watched::Watched;

/// Waits for the client's preface on a stream.
pub(in crate::hbone) async fn handshake<S>(
    stream: S,
    settings: &Settings,
    vitals: &Arc<Vitals>,
) -> Result<Box<dyn ServerFrames>, AcceptError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream = Watched::server(stream, Arc::clone(vitals));
    begin(Plain::new(stream), settings, vitals).await
}

/// The same on a stream whose records are sealed here.
pub(in crate::hbone) async fn over_records<S>(
    handover: Handover<S>,
    settings: &Settings,
    vitals: &Arc<Vitals>,
) -> Result<Box<dyn ServerFrames>, AcceptError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let link = Sealed::take_over(handover, Watch::server(Arc::clone(vitals)))
        .map_err(|fault| AcceptError::Http2(fault.to_string().into()))?;
    begin(link, settings, vitals).await
}

async fn begin<L: Link + 'static>(
    link: L,
    settings: &Settings,
    vitals: &Arc<Vitals>,
) -> Result<Box<dyn ServerFrames>, AcceptError> {
    let conn = Conn::new(Role::Server, settings, vitals);
    let mut driver = Driver::new(link, conn, settings);
    let failed = |error: std::io::Error| AcceptError::Http2(error.to_string().into());
    // A client may wait for our SETTINGS before it says more.
    driver.introduce().await.map_err(failed)?;
    if !driver.read_preface().await.map_err(failed)? {
        return Err(AcceptError::Http2("it does not begin as HTTP/2 does".into()));
    }
    Ok(Box::new(driver))
}

impl<L: Link> ServerFrames for Driver<L> {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Asked, String>>> {
        let over = self.poll_frames(cx);
        if let Some((id, request)) = self.conn().drive(Core::accept) {
            if over.is_ready() {
                // The end is to be heard of after what came before it.
                cx.waker().wake_by_ref();
            }
            let answer = Box::new(OwnAnswer {
                handle: Handle::new(self.conn(), id),
            });
            return Poll::Ready(Some(Ok(Asked { request, answer })));
        }
        over.map(|result| result.err().map(Err))
    }

    fn drain(&mut self) {
        self.conn().drive(Core::drain);
    }

    fn close(&mut self) {
        self.conn().drive(Core::close);
    }
}

struct OwnAnswer {
    handle: Handle,
}

impl Answer for OwnAnswer {
    fn accept(self: Box<Self>, response: &ConnectResponse, slot: Slot) -> Result<HboneStream, StreamError> {
        let (id, block) = (self.handle.id(), head::encode_response(response));
        let sent = self.handle.conn().with(|core| core.respond(id, &block, false));
        match sent {
            Ok(()) => Ok(join(self.handle, slot)),
            Err(gone) => Err(explain(&slot, gone)),
        }
    }

    fn reject(self: Box<Self>, refusal: &Refusal) -> Result<(), String> {
        let (id, block) = (self.handle.id(), head::encode_refusal(refusal));
        let sent = self.handle.conn().with(|core| core.respond(id, &block, true));
        sent.map_err(|gone| format!("{gone:?}"))
    }

    fn poll_cancelled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let id = self.handle.id();
        self.handle
            .conn()
            .with(|core| core.poll_reset(id, cx))
            .map(|_| ())
    }
}
