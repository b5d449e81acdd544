//! Buffers that records are read into and sealed into: lent while bytes are on their way, then taken back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::format::RECORD_MAX;
use crate::shelf::Shelf;

/// 8.8 MiB are kept at most, and only while they are needed: each that is allocated anew under bulk is a page fault for
/// every 4 KiB of it.
static SHELVES: [Shelf; 2] = [Shelf::new(18 * 1024, 32), Shelf::new(264 * 1024, KEPT_LARGE)];

/// Large buffers that are kept.
const KEPT_LARGE: usize = 32;

static LENT: AtomicUsize = AtomicUsize::new(0);

/// Bytes of all buffers that are lent now, in this process.
pub(crate) fn lent() -> usize {
    LENT.load(Ordering::Relaxed)
}

/// Frees what was not needed since the last call.
pub(crate) fn trim() {
    SHELVES.iter().for_each(Shelf::trim);
}

/// A step of buffer sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// One record, whatever its length.
    One = 0,
    /// 256 KiB of payload, with all that belongs to it.
    Many = 1,
}

impl Size {
    fn shelf(self) -> &'static Shelf {
        &SHELVES[self as usize]
    }

    pub(crate) fn bytes(self) -> usize {
        self.shelf().size
    }
}

const _: () = assert!(RECORD_MAX <= 18 * 1024, "a buffer holds any record");

/// A lent buffer. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    pub(crate) bytes: Box<[u8]>,
    size: Size,
    /// Who counts it while it is shared.
    pinned: Option<Pinned>,
}

/// Bytes of the buffers of one connection that are shared, however little of each is still needed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pinned(Arc<AtomicUsize>);

impl Pinned {
    pub(crate) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Buffer {
    pub(crate) fn lend(size: Size) -> Self {
        let shelf = size.shelf();
        LENT.fetch_add(shelf.size, Ordering::Relaxed);
        Self {
            bytes: shelf.take(),
            size,
            pinned: None,
        }
    }

    pub(crate) fn size(&self) -> Size {
        self.size
    }

    /// The bytes as they are now, to be shared in slices; the buffer comes back with the last of these.
    pub(crate) fn share(mut self, pinned: &Pinned) -> Bytes {
        pinned.0.fetch_add(self.size.bytes(), Ordering::Relaxed);
        self.pinned = Some(pinned.clone());
        Bytes::from_owner(self)
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
        if let Some(pinned) = &self.pinned {
            pinned.0.fetch_sub(shelf.size, Ordering::Relaxed);
        }
        shelf.give(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_with_the_last_slice_of_it() {
        let mut buffer = Buffer::lend(Size::Many);
        buffer.bytes[1000] = 7;
        let address = buffer.bytes.as_ptr();
        let pinned = Pinned::default();
        let slice = buffer.share(&pinned).slice(1000..1001);
        assert_eq!(pinned.bytes(), Size::Many.bytes(), "all of it, for a byte");
        assert_eq!(slice.as_ptr(), address.wrapping_add(1000), "nothing was copied");
        assert_eq!(slice[0], 7);
        drop(slice);
        assert_eq!(pinned.bytes(), 0);
        Size::Many.shelf().kept(|kept| {
            assert!(kept.iter().any(|bytes| bytes.as_ptr() == address) || kept.len() == KEPT_LARGE);
            assert!(kept.iter().all(|bytes| bytes.len() == Size::Many.bytes()));
        });
    }
}
