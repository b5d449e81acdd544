//! The two kinds of ends a copy has, behind one set of poll functions.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::Instant;

use super::backlog::Backlog;
use super::buffers::{Buffer, Size};
use super::direction::Fault;
use super::pipe::Pipe;
use crate::hbone::{HboneReader, HboneStream, HboneWriter, ResetCode, StreamError};
use crate::socket::{Keepalive, classify, set_fin, set_rst, tighten_keepalive};

/// Chunks handed to the kernel in one call.
const SLICES_MAX: usize = 16;

/// One end of a copy. All functions are called from one task.
pub(super) trait Wire: Send {
    /// Whether to read on while what was read cannot be written yet. Only for ends whose peer is bounded by credit.
    fn reads_ahead(&self) -> bool;

    /// This end, if it is a socket.
    fn socket(&mut self) -> Option<&mut TcpWire> {
        None
    }

    /// Whether the next read may bring so much that there is to be [room](Self::room) for it first.
    fn brings_much(&self) -> bool {
        false
    }

    /// The bytes that this end would take now, as far as that is known. How an end has failed is told by the push.
    fn room(&self) -> usize {
        usize::MAX
    }

    /// The next chunk, `None` once the peer has finished. Where less is wanted than a socket is read in its usual steps, it
    /// is read in smaller ones.
    fn poll_pull(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<Option<Bytes>, Fault>>;

    /// Tells that `bytes` of what was pulled were taken by the other end.
    fn taken(&mut self, bytes: usize);

    /// Takes bytes, at least one, off a backlog that is not empty.
    fn poll_push(&mut self, cx: &mut Context<'_>, backlog: &mut Backlog) -> Poll<Result<usize, Fault>>;

    /// Passes on FIN.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>>;

    /// Once pulling said `None`: ready when the peer resets after all.
    fn poll_fault(&mut self, cx: &mut Context<'_>) -> Poll<Fault>;

    /// The connection is half-closed and stays so.
    fn half_closed(&mut self);

    /// Both directions have finished.
    fn close(&mut self);

    /// Ends both directions at once.
    fn reset(&mut self, code: ResetCode);
}

/// Size of the next read: it follows what was moved without a pause.
#[derive(Debug, Default)]
struct Step {
    moved: usize,
    idle_since: Option<Instant>,
}

impl Step {
    const SECOND_AFTER: usize = 128 * 1024;
    const THIRD_AFTER: usize = 10 * 1024 * 1024;
    const FORGET_AFTER: Duration = Duration::from_secs(1);

    fn size(&self) -> Size {
        match self.moved {
            0..Self::SECOND_AFTER => Size::Small,
            Self::SECOND_AFTER..Self::THIRD_AFTER => Size::Medium,
            _ => Size::Large,
        }
    }

    fn moved(&mut self, bytes: usize) {
        self.moved = self.moved.saturating_add(bytes);
    }

    fn idle(&mut self) {
        if self.moved >= Self::SECOND_AFTER && self.idle_since.is_none() {
            self.idle_since = Some(Instant::now());
        }
    }

    fn busy(&mut self) {
        if self
            .idle_since
            .take()
            .is_some_and(|since| since.elapsed() >= Self::FORGET_AFTER)
        {
            self.moved = 0;
        }
    }
}

/// A TCP socket.
pub(super) struct TcpWire {
    read: Reading,
    /// Gone once the end is closed; the half must not send a FIN of its own when dropped.
    write: Option<OwnedWriteHalf>,
    /// Held only while there is something to read.
    buffer: Option<Buffer>,
    step: Step,
    half_closed: Keepalive,
}

enum Reading {
    Open(OwnedReadHalf),
    /// The peer has finished; whoever waits here hears of its reset.
    Ended(Pin<Box<dyn Future<Output = io::Error> + Send>>),
    /// It was reset, or is about to be closed.
    Over,
}

impl TcpWire {
    /// From here to an orderly close the kernel answers for us: should the process die, the peer gets RST and not a
    /// FIN that looks like the end of what was to be said.
    pub(super) fn new(stream: TcpStream, half_closed: Keepalive) -> Self {
        // A socket that cannot be set is about to say so itself.
        let _ = set_rst(&stream);
        Self::resetting(stream, half_closed)
    }

    /// The same of a socket that was set before.
    pub(super) fn resetting(stream: TcpStream, half_closed: Keepalive) -> Self {
        let (read, write) = stream.into_split();
        Self {
            read: Reading::Open(read),
            write: Some(write),
            buffer: None,
            step: Step::default(),
            half_closed,
        }
    }

    /// Whether it has brought so much without a pause that the next bytes are worth a pipe.
    pub(super) fn brings_bulk(&self) -> bool {
        self.step.moved >= Step::SECOND_AFTER
    }

    /// The next bytes, into an empty pipe; 0 once the peer has finished.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Result<usize, Fault>> {
        self.buffer = None;
        let Reading::Open(half) = &self.read else {
            return Poll::Ready(Ok(0));
        };
        let socket = half.as_ref();
        let filled = loop {
            match socket.poll_read_ready(cx) {
                Poll::Ready(result) => result.map_err(|error| socket_fault(&error))?,
                Poll::Pending => {
                    self.step.idle();
                    return Poll::Pending;
                }
            }
            match socket.try_io(Interest::READABLE, || pipe.fill(socket)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => break result.map_err(|error| socket_fault(&error))?,
            }
        };
        self.step.busy();
        self.step.moved(filled);
        if filled == 0 {
            self.end_reading();
        }
        Poll::Ready(Ok(filled))
    }

    /// Takes bytes, at least one, out of a pipe that is not empty.
    pub(super) fn poll_empty(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Result<usize, Fault>> {
        let Some(write) = &self.write else {
            return Poll::Ready(Err(Fault::Finished));
        };
        let socket = write.as_ref();
        loop {
            ready!(socket.poll_write_ready(cx)).map_err(|error| socket_fault(&error))?;
            match socket.try_io(Interest::WRITABLE, || pipe.empty(socket)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result.map_err(|error| socket_fault(&error))),
            }
        }
    }

    /// What the kernel sends then is decided before.
    fn drop_halves(&mut self) {
        self.read = Reading::Over;
        if let Some(write) = self.write.take() {
            write.forget();
        }
    }

    fn end_reading(&mut self) {
        self.buffer = None;
        if let Reading::Open(half) = std::mem::replace(&mut self.read, Reading::Over) {
            self.read = Reading::Ended(Box::pin(reset_after_end(half)));
        }
    }
}

/// Waits for an error on a socket that is read to its end.
async fn reset_after_end(half: OwnedReadHalf) -> io::Error {
    loop {
        if let Err(error) = half.ready(Interest::ERROR).await {
            return error;
        }
        match half.as_ref().take_error() {
            Ok(Some(error)) | Err(error) => return error,
            // Not for us; wait for the next one.
            Ok(None) => {
                let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                let _ = half.as_ref().try_io(Interest::ERROR, nothing);
            }
        }
    }
}

fn socket_fault(error: &io::Error) -> Fault {
    Fault::Socket(classify(error))
}

impl Wire for TcpWire {
    fn socket(&mut self) -> Option<&mut TcpWire> {
        Some(self)
    }

    fn reads_ahead(&self) -> bool {
        false
    }

    fn brings_much(&self) -> bool {
        self.step.size() != Size::Small
    }

    fn poll_pull(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<Option<Bytes>, Fault>> {
        let Reading::Open(half) = &mut self.read else {
            return Poll::Ready(Ok(None));
        };
        // Without something to read no buffer is held.
        match half.as_ref().poll_read_ready(cx) {
            Poll::Ready(result) => result.map_err(|error| socket_fault(&error))?,
            Poll::Pending => {
                self.buffer = None;
                self.step.idle();
                return Poll::Pending;
            }
        }
        self.step.busy();
        let size = self.step.size().at_most(wanted);
        let held = self.buffer.take().filter(|buffer| buffer.size() == size);
        let mut buffer = held.unwrap_or_else(|| Buffer::lend(size));
        match buffer.poll_read_most(Pin::new(half), cx, wanted) {
            Poll::Ready(Ok(0)) => {
                self.end_reading();
                Poll::Ready(Ok(None))
            }
            Poll::Ready(Ok(bytes)) => {
                self.step.moved(bytes);
                let (chunk, buffer) = buffer.take();
                self.buffer = buffer;
                Poll::Ready(Ok(Some(chunk)))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(socket_fault(&error))),
            Poll::Pending => {
                self.step.idle();
                Poll::Pending
            }
        }
    }

    fn taken(&mut self, _: usize) {}

    fn poll_push(&mut self, cx: &mut Context<'_>, backlog: &mut Backlog) -> Poll<Result<usize, Fault>> {
        let Some(write) = &mut self.write else {
            return Poll::Ready(Err(Fault::Finished));
        };
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let count = backlog.slices(&mut slices);
        let written = ready!(Pin::new(write).poll_write_vectored(cx, &slices[..count]));
        let written = written.map_err(|error| socket_fault(&error))?;
        backlog.advance(written);
        Poll::Ready(Ok(written))
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let Some(write) = &mut self.write else {
            return Poll::Ready(Ok(()));
        };
        Pin::new(write)
            .poll_shutdown(cx)
            .map_err(|error| socket_fault(&error))
    }

    fn poll_fault(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        let Reading::Ended(reset) = &mut self.read else {
            return Poll::Pending;
        };
        let error = ready!(reset.as_mut().poll(cx));
        self.read = Reading::Over;
        Poll::Ready(socket_fault(&error))
    }

    fn half_closed(&mut self) {
        if let Some(write) = &self.write {
            // A socket that cannot be set is about to say so itself.
            let _ = tighten_keepalive(write.as_ref(), self.half_closed);
        }
    }

    fn close(&mut self) {
        if let Some(write) = &self.write {
            let _ = set_fin(write.as_ref());
        }
        self.drop_halves();
    }

    fn reset(&mut self, _: ResetCode) {
        if let Some(write) = &self.write {
            let _ = set_rst(write.as_ref());
        }
        self.drop_halves();
    }
}

/// A tunnel.
#[derive(Debug)]
pub(super) struct TunnelWire {
    reader: HboneReader,
    writer: HboneWriter,
    ended: bool,
}

impl TunnelWire {
    pub(super) fn new(stream: HboneStream) -> Self {
        let (reader, writer) = stream.split();
        Self {
            reader,
            writer,
            ended: false,
        }
    }

    fn fault(&self, error: StreamError) -> Fault {
        match error {
            StreamError::Reset(ResetCode::NoError) if self.ended => Fault::Finished,
            error => Fault::Tunnel(error),
        }
    }
}

impl Wire for TunnelWire {
    /// The peer is bounded by its window, which is given back only as bytes are taken. Reading on keeps small frames
    /// from piling up inside HTTP/2, where they count against all streams of the connection.
    fn reads_ahead(&self) -> bool {
        true
    }

    fn room(&self) -> usize {
        self.writer.room()
    }

    fn poll_pull(&mut self, cx: &mut Context<'_>, _: usize) -> Poll<Result<Option<Bytes>, Fault>> {
        match ready!(self.reader.poll_chunk(cx)) {
            Some(Ok(chunk)) => Poll::Ready(Ok(Some(chunk))),
            Some(Err(error)) => Poll::Ready(Err(self.fault(error))),
            None => {
                self.ended = true;
                Poll::Ready(Ok(None))
            }
        }
    }

    fn taken(&mut self, bytes: usize) {
        self.reader.release(bytes);
    }

    fn poll_push(&mut self, cx: &mut Context<'_>, backlog: &mut Backlog) -> Poll<Result<usize, Fault>> {
        let written = ready!(self.writer.poll_write(cx, backlog.front()));
        backlog.settle();
        Poll::Ready(written.map_err(|error| self.fault(error)))
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        Poll::Ready(self.writer.finish().map_err(|error| self.fault(error)))
    }

    fn poll_fault(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        self.writer.poll_reset(cx).map(|error| self.fault(error))
    }

    fn half_closed(&mut self) {}

    fn close(&mut self) {}

    fn reset(&mut self, code: ResetCode) {
        self.writer.reset(code);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn buffers_grow_with_the_bytes_moved_and_are_small_again_after_a_pause() {
        let mut step = Step::default();
        let move_bytes = |step: &mut Step, bytes| {
            step.busy();
            step.moved(bytes);
            step.size()
        };
        assert_eq!(step.size(), Size::Small);
        assert_eq!(move_bytes(&mut step, 128 * 1024 - 1), Size::Small);
        assert_eq!(move_bytes(&mut step, 1), Size::Medium);
        assert_eq!(move_bytes(&mut step, 10 * 1024 * 1024), Size::Large);
        step.idle();
        tokio::time::advance(Duration::from_millis(900)).await;
        assert_eq!(
            move_bytes(&mut step, 1),
            Size::Large,
            "a short pause changes nothing"
        );
        step.idle();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(move_bytes(&mut step, 1), Size::Small);
    }
}
