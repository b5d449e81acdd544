//! One tunnelled connection: chunks in, chunks out, half-close and reset, whoever implements them.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::error::StreamError;
use crate::room::room_for;

/// Bytes that are copied for one write. What a peer's window has no room for would be copied again.
const COPIED_MAX: usize = 64 * 1024;

/// Why a stream is ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResetCode {
    /// NO_ERROR: the rest is not needed; after END_STREAM this is a plain close.
    NoError,
    /// CONNECT_ERROR: the TCP connection behind the tunnel failed or was reset.
    Connect,
    /// CANCEL: this side lost interest, for example because policy changed.
    Cancel,
    /// REFUSED_STREAM: not processed at all, safe to send again.
    Refused,
    /// Any other code of RFC 9113.
    Other(u32),
}

/// The half of a stream that bytes come from. Implementations hand out what arrived and keep count of what was taken.
pub(super) trait ReadChunks: Send {
    /// The next chunk, never empty; `None` once the peer has finished.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>>;

    /// The next chunk if it is there. Nobody is woken when it comes later; how the stream ended is not told here.
    fn chunk_at_hand(&mut self) -> Option<Bytes> {
        None
    }

    /// Lets the peer send as many bytes again, now that they were taken.
    fn release(&mut self, bytes: usize);
}

/// The half of a stream that bytes go to.
pub(super) trait WriteChunks: Send {
    /// Sends as much of `chunk` as the peer's window allows, at least one byte, and cuts it off the front.
    fn poll_write(&mut self, cx: &mut Context<'_>, chunk: &mut Bytes) -> Poll<Result<usize, StreamError>>;

    /// How many bytes a write would take now, as far as that is known. An ended stream takes any number: the write says how
    /// it ended.
    fn room(&self) -> usize {
        usize::MAX
    }

    /// Ends this direction (FIN).
    fn finish(&mut self) -> Result<(), StreamError>;

    /// Ends both directions at once (RST). Does nothing on a stream that is already closed.
    fn reset(&mut self, code: ResetCode);

    /// Ready when the peer reset the stream or the connection was lost, whether or not anything is being sent.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError>;
}

/// An open tunnel: the bytes of one TCP connection, both ways.
///
/// [`Self::split`] gives the chunk interface that [`crate::copy`] uses; as `AsyncRead + AsyncWrite` it can carry
/// another protocol, such as the inner session of a double tunnel. Dropping it before both directions have ended
/// resets it.
#[derive(Debug)]
pub struct HboneStream {
    reader: HboneReader,
    writer: HboneWriter,
}

/// The receiving half of a tunnel.
pub struct HboneReader {
    chunks: Box<dyn ReadChunks>,
    /// What arrived and was looked at, or taken in part only; it comes before the next chunk.
    unread: Bytes,
    /// The peer has finished.
    ended: bool,
}

/// The sending half of a tunnel.
pub struct HboneWriter(Box<dyn WriteChunks>);

impl HboneStream {
    pub(super) fn new(reader: impl ReadChunks + 'static, writer: impl WriteChunks + 'static) -> Self {
        Self {
            reader: HboneReader {
                chunks: Box::new(reader),
                unread: Bytes::new(),
                ended: false,
            },
            writer: HboneWriter(Box::new(writer)),
        }
    }

    /// Both halves.
    #[must_use]
    pub fn split(self) -> (HboneReader, HboneWriter) {
        (self.reader, self.writer)
    }

    /// Looks at the first bytes without taking them: waits until there are more than `known`, or the peer has
    /// finished, and shows all that arrived. May be cancelled. The peer's window holds what is looked at, so callers
    /// bound how far they look.
    ///
    /// # Errors
    /// The stream was reset, or its connection lost.
    pub async fn peek(&mut self, known: usize) -> Result<&Bytes, StreamError> {
        poll_fn(|cx| self.reader.poll_peek(cx, known)).await?;
        Ok(&self.reader.unread)
    }

    /// Ready when the peer reset the stream or the connection was lost, whether or not anything is being sent.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.writer.poll_reset(cx)
    }

    /// Ends both directions at once.
    pub fn reset(mut self, code: ResetCode) {
        self.writer.reset(code);
    }
}

impl HboneReader {
    /// The next chunk, never empty; `None` once the peer has finished. Each chunk is to be [released](Self::release).
    pub async fn read_chunk(&mut self) -> Option<Result<Bytes, StreamError>> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// See [`Self::read_chunk`].
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
        if !self.unread.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.unread))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let chunk = ready!(self.chunks.poll_chunk(cx));
        self.ended = chunk.is_none();
        Poll::Ready(chunk)
    }

    /// Lets the peer send as many bytes again. To be called only once the bytes were taken by whom they are for.
    pub fn release(&mut self, bytes: usize) {
        self.chunks.release(bytes);
    }

    fn poll_peek(&mut self, cx: &mut Context<'_>, known: usize) -> Poll<Result<(), StreamError>> {
        while self.unread.len() <= known && !self.ended {
            let before = std::mem::take(&mut self.unread);
            let chunk = self.poll_chunk(cx);
            let more = match chunk {
                Poll::Ready(Some(Ok(more))) => more,
                other => {
                    self.unread = before;
                    match other {
                        Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                        Poll::Ready(_) => break,
                        Poll::Pending => return Poll::Pending,
                    }
                }
            };
            self.unread = if before.is_empty() {
                more
            } else {
                [before, more].concat().into()
            };
        }
        Poll::Ready(Ok(()))
    }
}

impl HboneWriter {
    /// Sends all of `chunk`.
    pub async fn write_chunk(&mut self, mut chunk: Bytes) -> Result<(), StreamError> {
        while !chunk.is_empty() {
            poll_fn(|cx| self.poll_write(cx, &mut chunk)).await?;
        }
        Ok(())
    }

    /// Sends a part of `chunk`, which must not be empty, and cuts it off the front.
    pub fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
    ) -> Poll<Result<usize, StreamError>> {
        self.0.poll_write(cx, chunk)
    }

    /// How many bytes may be written now, as far as that is known.
    pub(crate) fn room(&self) -> usize {
        self.0.room()
    }

    /// Ends this direction (FIN); the other stays open.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        self.0.finish()
    }

    /// Ends both directions at once (RST).
    pub fn reset(&mut self, code: ResetCode) {
        self.0.reset(code);
    }

    /// Ready when the peer reset the stream or the connection was lost, whether or not anything is being sent.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.0.poll_reset(cx)
    }
}

impl AsyncRead for HboneStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let reader = &mut self.reader;
        let Some(chunk) = ready!(reader.poll_chunk(cx)) else {
            return Poll::Ready(Ok(()));
        };
        let mut chunk = chunk?;
        let before = buffer.remaining();
        // All that is there, as far as there is room: whoever reads is spared a turn for each chunk.
        loop {
            let taken = chunk.len().min(buffer.remaining());
            buffer.put_slice(&chunk[..taken]);
            chunk.advance(taken);
            if !chunk.is_empty() || buffer.remaining() == 0 {
                break;
            }
            match reader.chunks.chunk_at_hand() {
                Some(next) => chunk = next,
                None => break,
            }
        }
        reader.unread = chunk;
        reader.release(before - buffer.remaining());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HboneStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    /// What is offered in pieces goes in one: a head and its body are one frame.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // The copy is the price of borrowed buffers; the chunk interface has none.
        let mut chunk = copied(slices);
        if chunk.is_empty() {
            return Poll::Ready(Ok(0));
        }
        Poll::Ready(Ok(ready!(self.writer.poll_write(cx, &mut chunk))?))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.writer.finish().map_err(Into::into))
    }
}

/// The first [`COPIED_MAX`] bytes.
fn copied(slices: &[IoSlice<'_>]) -> Bytes {
    let all: usize = slices.iter().map(|slice| slice.len()).sum();
    let mut chunk = Vec::with_capacity(room_for(all.min(COPIED_MAX)));
    for slice in slices {
        let room = COPIED_MAX - chunk.len();
        chunk.extend_from_slice(&slice[..slice.len().min(room)]);
    }
    chunk.into()
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match error {
            StreamError::Reset(_) | StreamError::Lost(_) | StreamError::Cut(_) => {
                io::ErrorKind::ConnectionReset
            }
            StreamError::Closed => io::ErrorKind::BrokenPipe,
        };
        Self::new(kind, error)
    }
}

impl fmt::Debug for HboneReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HboneReader")
    }
}

impl fmt::Debug for HboneWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HboneWriter")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::AsyncReadExt;

    use super::*;

    /// Chunks that are there, and how many bytes of them were taken.
    struct There(VecDeque<Bytes>, Arc<AtomicUsize>);

    impl ReadChunks for There {
        fn poll_chunk(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
            Poll::Ready(self.0.pop_front().map(Ok))
        }

        fn chunk_at_hand(&mut self) -> Option<Bytes> {
            self.0.pop_front()
        }

        fn release(&mut self, bytes: usize) {
            self.1.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Takes what it is given.
    struct Sink;

    impl WriteChunks for Sink {
        fn poll_write(&mut self, _: &mut Context<'_>, chunk: &mut Bytes) -> Poll<Result<usize, StreamError>> {
            Poll::Ready(Ok(std::mem::take(chunk).len()))
        }

        fn finish(&mut self) -> Result<(), StreamError> {
            Ok(())
        }

        fn reset(&mut self, _: ResetCode) {}

        fn poll_reset(&mut self, _: &mut Context<'_>) -> Poll<StreamError> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn one_read_takes_all_that_is_there_and_no_more_than_there_is_room_for() {
        let chunks: VecDeque<_> = ["one", "two", "three"].map(Bytes::from).into();
        let released = Arc::default();
        let mut stream = HboneStream::new(There(chunks, Arc::clone(&released)), Sink);
        stream.peek(0).await.unwrap();
        let mut read = [0; 8];
        for expected in ["onetwoth", "ree", ""] {
            let length = stream.read(&mut read).await.unwrap();
            assert_eq!(&read[..length], expected.as_bytes());
        }
        assert_eq!(released.load(Ordering::Relaxed), 11);
    }

    #[test]
    fn pieces_go_in_one_and_no_more_than_may_be_copied() {
        let [one, two] = [b"head ".as_slice(), b"body".as_slice()].map(IoSlice::new);
        assert_eq!(copied(&[one, IoSlice::new(b""), two]), "head body");
        assert!(copied(&[]).is_empty());
        let large = vec![b'x'; COPIED_MAX - 1];
        let both = copied(&[IoSlice::new(&large), IoSlice::new(b"yz"), IoSlice::new(b"z")]);
        assert_eq!((both.len(), both[COPIED_MAX - 1]), (COPIED_MAX, b'y'));
    }
}
