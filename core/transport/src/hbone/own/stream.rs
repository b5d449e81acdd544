//! Both halves of a stream, behind the seam.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::conn::{Conn, explain};
use super::wire::code;
use crate::hbone::error::StreamError;
use crate::hbone::liveness::Slot;
use crate::hbone::stream::{HboneStream, ReadChunks, ResetCode, WriteChunks};

/// A stream that is held. Dropping it ends what has not ended.
#[derive(Debug)]
pub(super) struct Handle {
    conn: Arc<Conn>,
    id: u32,
}

impl Handle {
    pub(super) fn new(conn: &Arc<Conn>, id: u32) -> Self {
        Self {
            conn: Arc::clone(conn),
            id,
        }
    }

    pub(super) fn conn(&self) -> &Conn {
        &self.conn
    }

    pub(super) fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.conn.with(|core| core.forget(self.id));
    }
}

/// What both halves share: the last one gives the place of the stream back.
#[derive(Debug)]
struct Shared {
    handle: Handle,
    slot: Slot,
}

impl Shared {
    fn explain(&self, gone: super::core::Gone) -> StreamError {
        explain(&self.slot, gone)
    }
}

/// Joins both halves.
pub(super) fn join(handle: Handle, slot: Slot) -> HboneStream {
    let shared = Arc::new(Shared { handle, slot });
    let writer = Writer {
        shared: Arc::clone(&shared),
        finished: false,
    };
    HboneStream::new(Reader { shared }, writer)
}

struct Reader {
    shared: Arc<Shared>,
}

impl ReadChunks for Reader {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
        let Handle { conn, id } = &self.shared.handle;
        let read = ready!(conn.with(|core| core.read(*id, cx)));
        if let Some(Ok(chunk)) = &read {
            self.shared.slot.moved(chunk.len());
        }
        Poll::Ready(read.map(|read| read.map_err(|gone| self.shared.explain(gone))))
    }

    fn chunk_at_hand(&mut self) -> Option<Bytes> {
        let Handle { conn, id } = &self.shared.handle;
        let chunk = conn.with(|core| core.take_received(*id))?;
        self.shared.slot.moved(chunk.len());
        Some(chunk)
    }

    fn release(&mut self, bytes: usize) {
        let Handle { conn, id } = &self.shared.handle;
        conn.with(|core| core.release(*id, bytes));
    }
}

struct Writer {
    shared: Arc<Shared>,
    finished: bool,
}

impl WriteChunks for Writer {
    fn poll_write(&mut self, cx: &mut Context<'_>, chunk: &mut Bytes) -> Poll<Result<usize, StreamError>> {
        let Handle { conn, id } = &self.shared.handle;
        let written = ready!(conn.with(|core| core.write(*id, chunk, cx)));
        if let Ok(bytes) = written {
            self.shared.slot.moved(bytes);
        }
        Poll::Ready(written.map_err(|gone| self.shared.explain(gone)))
    }

    fn room(&self) -> usize {
        let Handle { conn, id } = &self.shared.handle;
        conn.look(|core| core.room(*id))
    }

    fn finish(&mut self) -> Result<(), StreamError> {
        if std::mem::replace(&mut self.finished, true) {
            return Ok(());
        }
        let Handle { conn, id } = &self.shared.handle;
        conn.with(|core| core.finish(*id))
            .map_err(|gone| self.shared.explain(gone))
    }

    fn reset(&mut self, code: ResetCode) {
        self.finished = true;
        let Handle { conn, id } = &self.shared.handle;
        conn.with(|core| core.reset_here(*id, code.into()));
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let Handle { conn, id } = &self.shared.handle;
        conn.with(|core| core.poll_reset(*id, cx))
            .map(|gone| self.shared.explain(gone))
    }
}

impl Drop for Writer {
    /// A direction that did not end must not look as if it had.
    fn drop(&mut self) {
        if !self.finished {
            self.reset(ResetCode::Cancel);
        }
    }
}

impl From<u32> for ResetCode {
    fn from(code: u32) -> Self {
        match code {
            code::NO_ERROR => Self::NoError,
            code::CONNECT_ERROR => Self::Connect,
            code::CANCEL => Self::Cancel,
            code::REFUSED_STREAM => Self::Refused,
            other => Self::Other(other),
        }
    }
}

impl From<ResetCode> for u32 {
    fn from(code: ResetCode) -> Self {
        match code {
            ResetCode::NoError => code::NO_ERROR,
            ResetCode::Connect => code::CONNECT_ERROR,
            ResetCode::Cancel => code::CANCEL,
            ResetCode::Refused => code::REFUSED_STREAM,
            ResetCode::Other(code) => code,
        }
    }
}
