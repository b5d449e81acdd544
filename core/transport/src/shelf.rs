//! Buffers of one size that nobody uses now, kept for whoever needs the next one: few, and none that was not needed for
//! a while.
//!
//! What nobody needs is freed soon: an allocator has large blocks side by side in pieces of megabytes, each of which stays
//! resident for any one block that is left in it. What is kept stays written from end to end, so that lending it costs
//! nothing however large it is.

use parking_lot::Mutex;

/// A place for buffers of one size.
pub(crate) struct Shelf {
    /// Bytes of each.
    pub(crate) size: usize,
    kept_max: usize,
    kept: Mutex<Kept>,
}

struct Kept {
    buffers: Vec<Box<[u8]>>,
    /// The fewest there have been since they were last [trimmed](Shelf::trim): so many were not needed.
    spare: usize,
}

impl Shelf {
    pub(crate) const fn new(size: usize, kept_max: usize) -> Self {
        Self {
            size,
            kept_max,
            kept: Mutex::new(Kept {
                buffers: Vec::new(),
                spare: 0,
            }),
        }
    }

    /// A buffer, with whatever was in it last.
    pub(crate) fn take(&self) -> Box<[u8]> {
        let mut kept = self.kept.lock();
        let buffer = kept.buffers.pop();
        kept.spare = kept.spare.min(kept.buffers.len());
        drop(kept);
        buffer.unwrap_or_else(|| vec![0; self.size].into())
    }

    /// Keeps a buffer, unless there are enough of them.
    pub(crate) fn give(&self, buffer: Box<[u8]>) {
        let mut kept = self.kept.lock();
        if kept.buffers.len() < self.kept_max {
            kept.buffers.push(buffer);
        }
    }

    /// Frees what was not needed since the last call.
    pub(crate) fn trim(&self) {
        let mut kept = self.kept.lock();
        let spare = kept.spare.min(kept.buffers.len());
        let freed: Vec<Box<[u8]>> = kept.buffers.drain(..spare).collect();
        kept.spare = kept.buffers.len();
        if kept.buffers.is_empty() {
            kept.buffers = Vec::new();
        }
        drop(kept);
        drop(freed);
    }

    /// Buffers that are kept now.
    #[cfg(test)]
    pub(crate) fn kept<T>(&self, look: impl FnOnce(&[Box<[u8]>]) -> T) -> T {
        look(&self.kept.lock().buffers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_needed_between_two_trims_is_freed() {
        let shelf = Shelf::new(1, 4);
        for buffer in [(); 5].map(|()| shelf.take()) {
            shelf.give(buffer);
        }
        assert_eq!(shelf.kept(<[_]>::len), 4, "no more are kept");
        shelf.trim();
        assert_eq!(shelf.kept(<[_]>::len), 4, "they came after the last look");
        let lent = shelf.take();
        shelf.give(lent);
        shelf.trim();
        assert_eq!(shelf.kept(<[_]>::len), 1, "one was needed");
        shelf.trim();
        assert_eq!(shelf.kept(<[_]>::len), 0);
    }
}
