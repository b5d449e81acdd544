//! Buffers that bytes are read into: lent for as long as the bytes are on their way, then taken back.
//!
//! A chunk keeps its buffer until the last byte of it was written, wherever it went; then the buffer waits for the
//! next reader. Few are kept, so that memory follows use.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::shelf::Shelf;
use bytes::{BufMut, Bytes};

/// Reads of at most this many bytes are copied out, so that a short message does not keep a large buffer.
const COPIED_MAX: usize = 1024;

/// 2.6 MiB are kept at most.
static SHELVES: [Shelf<Vec<u8>>; 3] = [
    Shelf::new(1024, 64),
    Shelf::new(16 * 1024, 32),
    Shelf::new(256 * 1024, 8),
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
    fn shelf(self) -> &'static Shelf<Vec<u8>> {
        &SHELVES[self as usize]
    }
}

/// A lent buffer, empty or with one read in it. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    size: Size,
}

impl Buffer {
    /// An empty buffer.
    pub(crate) fn lend(size: Size) -> Self {
        let shelf = size.shelf();
        let kept = shelf.take();
        LENT.fetch_add(shelf.size, Ordering::Relaxed);
        Self {
            bytes: kept.unwrap_or_else(|| Vec::with_capacity(shelf.size)),
            size,
        }
    }

    pub(super) fn size(&self) -> Size {
        self.size
    }

    /// Where to read to.
    pub(crate) fn room(&mut self) -> impl BufMut {
        let left = self.size.shelf().size - self.bytes.len();
        (&mut self.bytes).limit(left)
    }

    /// What was read; and the buffer again, if it is not needed for that.
    pub(crate) fn take(mut self) -> (Bytes, Option<Self>) {
        if self.bytes.len() > COPIED_MAX || self.size == Size::Small {
            return (Bytes::from_owner(self), None);
        }
        let copied = Bytes::copy_from_slice(&self.bytes);
        self.bytes.clear();
        (copied, Some(self))
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let shelf = self.size.shelf();
        LENT.fetch_sub(shelf.size, Ordering::Relaxed);
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        shelf.give(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_the_last_byte_of_it_is_gone() {
        let mut buffer = Buffer::lend(Size::Large);
        buffer.room().put_bytes(7, 5000);
        let address = buffer.bytes.as_ptr();
        let (chunk, rest) = buffer.take();
        assert!(rest.is_none());
        let part = chunk.slice(10..20);
        drop(chunk);
        assert_eq!(part.as_ptr(), address.wrapping_add(10), "nothing was copied");
        drop(part);
        SHELVES[2].kept(|kept| {
            assert!(kept.iter().any(|bytes| bytes.as_ptr() == address) || kept.len() == 8);
            assert!(
                kept.iter()
                    .all(|bytes| bytes.is_empty() && bytes.capacity() == 256 * 1024)
            );
        });
    }

    #[test]
    fn a_short_message_keeps_no_large_buffer() {
        let mut buffer = Buffer::lend(Size::Medium);
        buffer.room().put_slice(b"short");
        let (chunk, rest) = buffer.take();
        assert_eq!(chunk, &b"short"[..]);
        assert!(rest.is_some_and(|buffer| buffer.bytes.is_empty()));
    }

    #[test]
    fn a_buffer_never_grows() {
        let mut buffer = Buffer::lend(Size::Small);
        assert_eq!(buffer.room().remaining_mut(), 1024);
        buffer.room().put_bytes(7, 1024);
        assert_eq!(buffer.room().remaining_mut(), 0);
        assert_eq!(buffer.bytes.capacity(), 1024);
    }
}
