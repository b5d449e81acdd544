//! The client's end.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
use tulle_identity::tls::Handover;

use super::conn::{Conn, not_opened};
use super::core::Role;
use super::driver::{Driver, Question};
use super::head;
use super::link::{Link, Plain};
use super::sealed::Sealed;
use super::stream::{Handle, join};
use super::wire::code;
use crate::hbone::connect::ConnectRequest;
use crate::hbone::error::OpenError;
use crate::hbone::liveness::{Slot, Vitals};
use crate::hbone::seam::{ClientFrames, Connection, Opened, Ping};
use crate::hbone::settings::Settings;
use crate::hbone::watch::Watch;
use crate::hbone::watched::Watched;
use crate::records::Fault;

/// Opens streams. The connection ends with the last one once this is dropped.
#[derive(Debug)]
pub(in crate::hbone) struct Opener {
    conn: Arc<Conn>,
}

impl Drop for Opener {
    fn drop(&mut self) {
        self.conn.with(super::core::Core::retire);
    }
}

/// Begins HTTP/2 on a stream.
pub(in crate::hbone) fn handshake<S>(
    stream: S,
    settings: &Settings,
    vitals: &Arc<Vitals>,
) -> (Arc<Opener>, Box<dyn ClientFrames>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream = Watched::client(stream, Arc::clone(vitals));
    begin(Plain::new(stream), settings, vitals)
}

/// Begins HTTP/2 on a stream whose records are sealed here.
pub(in crate::hbone) fn over_records<S>(
    handover: Handover<S>,
    settings: &Settings,
    vitals: &Arc<Vitals>,
) -> Result<(Arc<Opener>, Box<dyn ClientFrames>), Fault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let link = Sealed::take_over(handover, Watch::client(Arc::clone(vitals)))?;
    Ok(begin(link, settings, vitals))
}

fn begin<L: Link + 'static>(
    link: L,
    settings: &Settings,
    vitals: &Arc<Vitals>,
) -> (Arc<Opener>, Box<dyn ClientFrames>) {
    let conn = Conn::new(Role::Client, settings, vitals);
    let driver = Driver::new(link, Arc::clone(&conn), settings);
    (Arc::new(Opener { conn }), Box::new(driver))
}

impl<L: Link> Connection for Driver<L> {
    fn ping(&mut self) -> Box<dyn Ping> {
        Box::new(Question::new(self.conn()))
    }

    /// What streams hold is counted inside.
    fn set_window(&mut self, _: u32) {}
}

impl<L: Link> ClientFrames for Driver<L> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        self.poll_frames(cx)
    }
}

impl Opener {
    pub(in crate::hbone) async fn open(&self, slot: Slot, request: &ConnectRequest) -> Opened {
        let vitals = self.conn.vitals();
        let block = head::encode_request(request).map_err(|error| OpenError::Request {
            detail: error.to_string().into(),
        })?;
        let id = poll_fn(|cx| self.conn.with(|core| core.open(&block, cx))).await;
        let handle = Handle::new(&self.conn, id.map_err(|gone| not_opened(vitals, gone))?);
        let answer = poll_fn(|cx| self.conn.with(|core| core.poll_answer(handle.id(), cx))).await;
        match answer.map_err(|gone| not_opened(vitals, gone))? {
            Ok(response) => Ok((join(handle, slot), response)),
            Err(refusal) => {
                self.conn
                    .with(|core| core.reset_here(handle.id(), code::NO_ERROR));
                Err(OpenError::Refused(refusal))
            }
        }
    }
}
