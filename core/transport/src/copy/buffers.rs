//! Buffers that bytes are read into: lent for as long as the bytes are on their way, then taken back.
//!
//! A chunk keeps its buffer until the last byte of it was written, wherever it went; then the buffer waits for the
//! next reader. Few are kept, so that memory follows use.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};

use crate::shelf::Shelf;

/// Reads of at most this many bytes are copied out, so that a short message does not keep a large buffer.
const COPIED_MAX: usize = 1024;

/// Large buffers that are kept.
const KEPT_LARGE: usize = 32;

/// 8.6 MiB are kept at most, and only while they are needed.
static SHELVES: [Shelf; 3] = [
    Shelf::new(1024, 64),
    Shelf::new(16 * 1024, 32),
    Shelf::new(256 * 1024, KEPT_LARGE),
];

static LENT: AtomicUsize = AtomicUsize::new(0);

/// Bytes of all buffers that are lent now, in this process.
pub(super) fn lent() -> usize {
    LENT.load(Ordering::Relaxed)
}

/// Frees what was not needed since the last call.
pub(super) fn trim() {
    SHELVES.iter().for_each(Shelf::trim);
}

/// A step of buffer sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// 1 KiB.
    Small = 0,
    /// 16 KiB.
    Medium = 1,
    /// 256 KiB.
    Large = 2,
}

impl Size {
    /// The largest step of at most this one that is worth lending for `bytes`, as they fill a quarter of it; else the smallest.
    pub(super) fn at_most(self, bytes: usize) -> Self {
        let fits = |size: &Self| size.shelf().size / 4 <= bytes;
        [Self::Large, Self::Medium]
            .into_iter()
            .filter(|size| *size as usize <= self as usize)
            .find(fits)
            .unwrap_or(Self::Small)
    }

    fn shelf(self) -> &'static Shelf {
        &SHELVES[self as usize]
    }
}

/// A lent buffer, empty or with one read in it. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
    filled: usize,
    size: Size,
}

impl Buffer {
    /// An empty buffer.
    pub(crate) fn lend(size: Size) -> Self {
        let shelf = size.shelf();
        LENT.fetch_add(shelf.size, Ordering::Relaxed);
        Self {
            bytes: shelf.take(),
            filled: 0,
            size,
        }
    }

    pub(super) fn size(&self) -> Size {
        self.size
    }

    /// Reads once into an empty buffer; 0 at the end.
    pub(crate) fn poll_read(
        &mut self,
        from: Pin<&mut impl AsyncRead>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.poll_read_most(from, cx, usize::MAX)
    }

    /// The same, and no more than `most` bytes, but as many as the smallest buffer holds.
    pub(super) fn poll_read_most(
        &mut self,
        from: Pin<&mut impl AsyncRead>,
        cx: &mut Context<'_>,
        most: usize,
    ) -> Poll<io::Result<usize>> {
        let most = most.max(Size::Small.shelf().size).min(self.bytes.len());
        let mut room = ReadBuf::new(&mut self.bytes[..most]);
        ready!(from.poll_read(cx, &mut room))?;
        self.filled = room.filled().len();
        Poll::Ready(Ok(self.filled))
    }

    /// What was read; and the buffer again, if it is not needed for that.
    pub(crate) fn take(mut self) -> (Bytes, Option<Self>) {
        if self.filled > COPIED_MAX || self.size == Size::Small {
            return (Bytes::from_owner(self), None);
        }
        let copied = Bytes::copy_from_slice(self.as_ref());
        self.filled = 0;
        (copied, Some(self))
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let shelf = self.size.shelf();
        LENT.fetch_sub(shelf.size, Ordering::Relaxed);
        shelf.give(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A buffer that was read into.
    async fn read(size: Size, source: &[u8]) -> Buffer {
        let (mut source, mut buffer) = (source, Buffer::lend(size));
        let read = std::future::poll_fn(|cx| buffer.poll_read(Pin::new(&mut source), cx)).await;
        assert_eq!(read.unwrap(), buffer.as_ref().len());
        buffer
    }

    #[tokio::test]
    async fn a_buffer_comes_back_when_the_last_byte_of_it_is_gone() {
        let buffer = read(Size::Large, &[7; 5000]).await;
        let address = buffer.bytes.as_ptr();
        let (chunk, rest) = buffer.take();
        assert!(rest.is_none());
        let part = chunk.slice(10..20);
        drop(chunk);
        assert_eq!(part.as_ptr(), address.wrapping_add(10), "nothing was copied");
        assert_eq!(part, [7; 10][..]);
        drop(part);
        SHELVES[2].kept(|kept| {
            assert!(kept.iter().any(|bytes| bytes.as_ptr() == address) || kept.len() == KEPT_LARGE);
            assert!(kept.iter().all(|bytes| bytes.len() == 256 * 1024));
        });
    }

    #[tokio::test]
    async fn a_short_message_keeps_no_large_buffer() {
        let (chunk, rest) = read(Size::Medium, b"short").await.take();
        assert_eq!(chunk, &b"short"[..]);
        assert!(rest.is_some_and(|buffer| buffer.as_ref().is_empty()));
    }

    #[tokio::test]
    async fn a_read_takes_what_there_is_room_for() {
        let buffer = read(Size::Small, &[7; 2000]).await;
        assert_eq!(buffer.as_ref(), [7; 1024]);
    }
}
