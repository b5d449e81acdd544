//! A link over records that are sealed and opened in our own buffers.
//!
//! ```text
//!   batch ─▶ seal ─▶ one buffer ─▶ one write        one read ─▶ one buffer ─▶ open where it lies ─▶ slices of it
//! ```

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tulle_identity::tls::Handover;

use super::core::Outbox;
use super::link::Link;
use crate::hbone::held;
use crate::hbone::watch::Watch;
use crate::plain;
use crate::records::buffer::{Buffer, Pinned, Size};
use crate::records::{Fault, Session};
use crate::room::room_for;

/// Batches of up to this length go out in a buffer for one record.
const SHORT: usize = 8 * 1024;

/// A read of a large buffer that brings less than this was too large.
const LITTLE: usize = 32 * 1024;

/// Reads in a row that bring little before buffers are small again.
const LITTLE_MAX: u8 = 4;

/// Bytes of shared buffers that a connection may have, however little of them is still needed. Beyond, they are at most
/// twice what is needed.
const PINNED_FREELY: usize = 1024 * 1024;

/// Records on their way out.
#[derive(Debug)]
struct Outgoing {
    buffer: Buffer,
    at: usize,
    end: usize,
}

/// Bytes at the front of a buffer that came and are not opened: as a rule the start of a record.
#[derive(Debug)]
struct Incoming {
    buffer: Buffer,
    filled: usize,
}

impl Incoming {
    /// Copies what waits for its rest; nothing is held for nothing.
    fn keep(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return None;
        }
        let size = if bytes.len() <= Size::One.bytes() {
            Size::One
        } else {
            Size::Many
        };
        let mut buffer = Buffer::lend(size);
        buffer.bytes[..bytes.len()].copy_from_slice(bytes);
        Some(Self {
            buffer,
            filled: bytes.len(),
        })
    }
}

/// Only what still waits is written down.
impl Serialize for Outgoing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        plain::bytes::serialize(&&self.buffer.bytes[self.at..self.end], serializer)
    }
}

impl<'de> Deserialize<'de> for Outgoing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Incoming { buffer, filled } = Incoming::deserialize(deserializer)?;
        Ok(Self {
            buffer,
            at: 0,
            end: filled,
        })
    }
}

impl Serialize for Incoming {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        plain::bytes::serialize(&&self.buffer.bytes[..self.filled], serializer)
    }
}

impl<'de> Deserialize<'de> for Incoming {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes: Vec<u8> = plain::bytes::deserialize(deserializer)?;
        let fits = bytes.len() <= Size::Many.bytes();
        let kept = fits.then(|| Self::keep(&bytes)).flatten();
        kept.ok_or_else(|| D::Error::custom("nothing waits, or more than a buffer holds"))
    }
}

/// How much to read at once: a record while it is quiet, many while data keeps coming.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Step {
    many: bool,
    little: u8,
}

impl Step {
    fn size(&self) -> Size {
        if self.many && !held::is_tight() {
            Size::Many
        } else {
            Size::One
        }
    }

    fn read(&mut self, bytes: usize, room: usize) {
        if !self.many {
            self.many = bytes == room;
            self.little = 0;
        } else if bytes < LITTLE {
            self.little += 1;
            self.many = self.little < LITTLE_MAX;
        } else {
            self.little = 0;
        }
    }
}

/// What belongs to a link beside its socket. Plain data, as [`Session`] is: with the socket handed over, it goes on in
/// another process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    session: Session,
    outgoing: Option<Outgoing>,
    unflushed: bool,
    rest: Option<Incoming>,
    /// What a handshake left was not looked at yet.
    left: bool,
    step: Step,
    #[serde(skip)]
    pinned: Pinned,
}

/// A byte stream whose records are ours to seal and open.
#[derive(Debug)]
pub(super) struct Sealed<S> {
    stream: S,
    watch: Watch,
    state: State,
}

impl<S> Sealed<S>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    /// Goes on where a handshake has ended.
    pub(super) fn take_over(handover: Handover<S>, watch: Watch) -> Result<Self, Fault> {
        let received = handover.received;
        let state = State {
            session: Session::new(&handover.secrets, &handover.traffic, Instant::now())?,
            outgoing: None,
            unflushed: false,
            rest: Incoming::keep(&received),
            left: !received.is_empty(),
            step: Step::default(),
            pinned: Pinned::default(),
        };
        Ok(Self {
            stream: handover.stream,
            watch,
            state,
        })
    }

    /// The same link around what `change` makes of its state.
    #[cfg(test)]
    pub(super) fn elsewhere(self, change: impl FnOnce(&State) -> State) -> Self {
        let state = change(&self.state);
        Self { state, ..self }
    }

    /// Seals what is owed and what the batch holds, until all of it is written and flushed.
    fn poll_send(&mut self, cx: &mut Context<'_>, out: &mut Outbox) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_outgoing(cx))?;
            if out.is_empty() && !self.state.session.owes() {
                break;
            }
            if self.state.session.is_closed() {
                // The last word was said.
                out.advance(out.len());
                break;
            }
            let size = if out.len() <= SHORT || held::is_tight() {
                Size::One
            } else {
                Size::Many
            };
            let mut buffer = Buffer::lend(size);
            let sealed = self.state.session.seal(out.parts(), &mut buffer.bytes)?;
            out.advance(sealed.taken);
            self.state.outgoing = Some(Outgoing {
                buffer,
                at: 0,
                end: sealed.length,
            });
        }
        if self.state.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.state.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(Outgoing { buffer, at, end }) = &mut self.state.outgoing {
            if at == end {
                self.state.outgoing = None;
                break;
            }
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &buffer.bytes[*at..*end]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *at += written;
            self.state.unflushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// A buffer with all that waits to be opened, and how much of it has come just now.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Incoming, usize)>> {
        if std::mem::take(&mut self.state.left)
            && let Some(rest) = self.state.rest.take()
        {
            let came = rest.filled;
            return Poll::Ready(Ok((rest, came)));
        }
        let size = self.state.step.size();
        let kept = self.state.rest.as_ref().map_or(0, |rest| rest.filled);
        // A buffer of the right size is read into as it is; else what is kept goes in front once more has come.
        let mut buffer = match self.state.rest.take_if(|rest| rest.buffer.size() == size) {
            Some(rest) => rest.buffer,
            None => Buffer::lend(size),
        };
        let mut room = ReadBuf::new(&mut buffer.bytes[kept..]);
        let result = Pin::new(&mut self.stream).poll_read(cx, &mut room);
        let (read, capacity) = (room.filled().len(), room.capacity());
        if result.is_pending() {
            if kept > 0 && self.state.rest.is_none() {
                self.state.rest = Some(Incoming { buffer, filled: kept });
            }
            return Poll::Pending;
        }
        ready!(result)?;
        self.state.step.read(read, capacity);
        if let Some(rest) = self.state.rest.take() {
            buffer.bytes[..kept].copy_from_slice(&rest.buffer.bytes[..kept]);
        }
        let filled = kept + read;
        Poll::Ready(Ok((Incoming { buffer, filled }, read)))
    }

    /// Opens what is whole, keeps the rest, and hands on what was found.
    fn open(&mut self, incoming: Incoming, held: usize, chunks: &mut Vec<Bytes>) -> io::Result<()> {
        let Incoming { mut buffer, filled } = incoming;
        let (now, mut found) = (Instant::now(), Vec::new());
        let opened = self
            .state
            .session
            .open(&mut buffer.bytes[..filled], now, |range| found.push(range));
        if self.state.session.end().is_none() {
            if opened == 0 && buffer.size() == Size::One {
                // Not even one record is whole: its buffer stays.
                self.state.rest = Some(Incoming { buffer, filled });
                return Ok(());
            }
            self.state.rest = Incoming::keep(&buffer.bytes[opened..filled]);
        }
        let first = chunks.len();
        let pinned = self.state.pinned.bytes();
        let frugal = held::is_tight() || pinned > PINNED_FREELY && pinned / 2 > held;
        share(buffer, &found, (!frugal).then_some(&self.state.pinned), chunks);
        chunks[first..]
            .iter()
            .try_for_each(|chunk| self.watch.arrived(chunk, now))
    }

    /// How reading has ended.
    fn ended(&mut self, cx: &mut Context<'_>) -> Option<io::Result<usize>> {
        let Err(fault) = self.state.session.end()? else {
            return Some(Ok(0));
        };
        let error = fault.clone().into();
        self.watch.failed(&error);
        // The peer is told if that can be done at once; it has no claim to more.
        let _ = self.poll_send(cx, &mut Outbox::default());
        Some(Err(error))
    }
}

/// Slices of the buffer. Little data is copied out, so that it does not keep all of it; and all data, each record's by
/// itself, if nothing more is to be pinned.
fn share(buffer: Buffer, found: &[Range<usize>], pinned: Option<&Pinned>, chunks: &mut Vec<Bytes>) {
    let data: usize = found.iter().map(Range::len).sum();
    if data <= buffer.size().bytes() / 16 {
        let mut copied = Vec::with_capacity(room_for(data));
        found
            .iter()
            .for_each(|range| copied.extend_from_slice(&buffer.bytes[range.clone()]));
        if data > 0 {
            chunks.push(copied.into());
        }
    } else if let Some(pinned) = pinned {
        let shared = buffer.share(pinned);
        chunks.extend(found.iter().map(|range| shared.slice(range.clone())));
    } else {
        let copy = |range: &Range<usize>| {
            let mut copied = Vec::with_capacity(room_for(range.len()));
            copied.extend_from_slice(&buffer.bytes[range.clone()]);
            Bytes::from(copied)
        };
        chunks.extend(found.iter().map(copy));
    }
}

impl<S> Link for Sealed<S>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    fn poll_write(&mut self, cx: &mut Context<'_>, out: &mut Outbox) -> Poll<io::Result<()>> {
        let result = self.poll_send(cx, out);
        self.watch.blocked(result.is_pending());
        result
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        held: usize,
        chunks: &mut Vec<Bytes>,
    ) -> Poll<io::Result<usize>> {
        if let Some(end) = self.ended(cx) {
            return Poll::Ready(end);
        }
        if self.watch.rests() {
            // Whoever reads the streams was woken, and waits for this task to let go.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let (incoming, came) = match ready!(self.poll_fill(cx)) {
            Ok(filled) => filled,
            Err(error) => {
                self.watch.failed(&error);
                return Poll::Ready(Err(error));
            }
        };
        if came == 0 {
            self.state.session.cut();
            return Poll::Ready(self.ended(cx).unwrap_or(Ok(0)));
        }
        self.open(incoming, held, chunks)?;
        match self.ended(cx) {
            Some(end) if chunks.is_empty() => Poll::Ready(end),
            _ => Poll::Ready(Ok(came)),
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.state.session.is_closed() {
            self.state.session.close();
        }
        ready!(self.poll_send(cx, &mut Outbox::default()))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
