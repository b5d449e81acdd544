//! Bytes that were read and not yet written, in order.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

/// Chunks shorter than this are joined while they wait: each would keep a larger buffer alive, and a peer that sends
/// tiny frames to a slow reader would cost us more than the bytes it sent.
const JOINED_BELOW: usize = 512;

/// A joined chunk is closed at this length. An allocator keeps blocks of one size side by side, and gives nothing back of
/// where one is left. What waits here may stay for hours, so it is of a size that no read has, which come and go: else what
/// many reads had together at their peak stays resident for it, half a mebibyte for each block.
const JOINED_MAX: usize = 32 * 1024;

/// Behind so much, longer chunks are copied, too, and all that waits before them: each is a part of whatever it was read
/// into, and keeps all of that. A reader that is so far behind is slow, so its bytes wait anyway. Four reads of the
/// largest size: less is behind a quick reader as well, and each copy is into pages that have to be made first.
const COPIED_BEHIND: usize = 1024 * 1024;

/// What one direction holds. Its size is bounded by the source: one chunk of a socket, the window of a tunnel.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// Empty only if everything is.
    front: Bytes,
    rest: VecDeque<Bytes>,
    joined: BytesMut,
    /// Bytes that are not in front.
    behind: usize,
    /// So many chunks of the rest, from its front, are copies.
    copied: usize,
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.front.is_empty()
    }

    /// Appends a chunk that is not empty.
    pub(super) fn push(&mut self, chunk: Bytes) {
        if self.front.is_empty() {
            self.front = chunk;
            return;
        }
        let far_behind = self.behind >= COPIED_BEHIND;
        self.behind += chunk.len();
        if far_behind {
            self.copy_what_waits();
            self.copy(&chunk);
        } else if chunk.len() < JOINED_BELOW {
            self.joined.extend_from_slice(&chunk);
            if self.joined.len() >= JOINED_MAX {
                self.close_joined();
            }
        } else {
            self.close_joined();
            self.rest.push_back(chunk);
        }
    }

    /// Copies whatever is still a part of something larger.
    fn copy_what_waits(&mut self) {
        if self.copied == self.rest.len() {
            return;
        }
        // Behind the last of these there is nothing yet that was copied.
        self.close_joined();
        let waiting = self.rest.split_off(self.copied);
        if self.copied == 0 {
            let front = std::mem::take(&mut self.front);
            self.behind += front.len();
            self.copy(&front);
        }
        for chunk in waiting {
            self.copy(&chunk);
        }
        self.copied = self.rest.len();
        self.settle();
    }

    /// Copies a chunk into room that is full before there is more of it.
    fn copy(&mut self, mut chunk: &[u8]) {
        while !chunk.is_empty() {
            if self.joined.is_empty() {
                self.joined = BytesMut::with_capacity(JOINED_MAX);
            }
            let room = JOINED_MAX.saturating_sub(self.joined.len());
            let (part, left) = chunk.split_at(room.min(chunk.len()));
            self.joined.extend_from_slice(part);
            chunk = left;
            if self.joined.len() >= JOINED_MAX {
                self.close_joined();
                self.copied = self.rest.len();
            }
        }
    }

    /// The chunk in front, to be cut by whoever takes bytes; then call [`Self::settle`].
    pub(super) fn front(&mut self) -> &mut Bytes {
        &mut self.front
    }

    /// The chunks in order, as many as fit; says how many.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let chunks = std::iter::once(&self.front[..]).chain(self.rest.iter().map(|chunk| &chunk[..]));
        let all = chunks
            .chain(std::iter::once(&self.joined[..]))
            .filter(|chunk| !chunk.is_empty());
        let mut count = 0;
        for (slot, chunk) in slices.iter_mut().zip(all) {
            *slot = IoSlice::new(chunk);
            count += 1;
        }
        count
    }

    /// Drops the first `bytes`, which were written.
    pub(super) fn advance(&mut self, mut bytes: usize) {
        while bytes > 0 {
            let part = bytes.min(self.front.len());
            self.front.advance(part);
            bytes -= part;
            self.settle();
            debug_assert!(
                bytes == 0 || !self.is_empty(),
                "no more is written than there was"
            );
            if self.is_empty() {
                return;
            }
        }
    }

    /// Moves the next chunk to the front if the one there is used up.
    pub(super) fn settle(&mut self) {
        if !self.front.is_empty() {
            return;
        }
        self.front = match self.rest.pop_front() {
            Some(chunk) => {
                self.copied = self.copied.saturating_sub(1);
                chunk
            }
            None => {
                // An idle connection keeps neither the joined bytes nor the list.
                self.rest = VecDeque::new();
                std::mem::take(&mut self.joined).freeze()
            }
        };
        self.behind -= self.front.len();
    }

    fn close_joined(&mut self) {
        if !self.joined.is_empty() {
            self.rest.push_back(std::mem::take(&mut self.joined).freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_leave_in_the_order_they_came(
            chunks in proptest::collection::vec(prop_oneof![1usize..2000, 60_000usize..140_000], 1..24),
            mut writes in proptest::collection::vec(prop_oneof![1usize..5000, 1usize..200_000], 1..80),
        ) {
            let mut backlog = Backlog::default();
            let (mut given, mut taken) = (Vec::<u8>::new(), Vec::new());
            for (at, length) in chunks.into_iter().enumerate() {
                let chunk = vec![u8::try_from(at).unwrap(); length];
                given.extend(&chunk);
                backlog.push(chunk.into());
                if let Some(bytes) = writes.pop() {
                    take(&mut backlog, bytes, &mut taken);
                }
            }
            while !backlog.is_empty() {
                take(&mut backlog, 17_777, &mut taken);
            }
            prop_assert!(given == taken, "{} bytes given, {} taken", given.len(), taken.len());
            prop_assert_eq!(backlog.behind, 0);
        }
    }

    fn take(backlog: &mut Backlog, most: usize, taken: &mut Vec<u8>) {
        let mut slices = [IoSlice::new(&[]); 4];
        let count = backlog.slices(&mut slices);
        let flat: Vec<u8> = slices[..count]
            .iter()
            .flat_map(|slice| slice.iter().copied())
            .take(most)
            .collect();
        backlog.advance(flat.len());
        taken.extend(flat);
    }

    #[test]
    fn tiny_chunks_are_joined_while_they_wait() {
        let mut backlog = Backlog::default();
        for _ in 0..5_000 {
            backlog.push(Bytes::from_static(b"x"));
        }
        assert!(backlog.rest.is_empty());
        assert_eq!(backlog.joined.len(), 4_999);
    }

    #[test]
    fn f13_what_waits_far_behind_keeps_nothing_but_itself() {
        let mut backlog = Backlog::default();
        let read_into = Bytes::from(vec![7; 16 * 1024]);
        let part = || read_into.slice(..1000);
        backlog.push(part());
        for _ in 0..=COPIED_BEHIND / 1000 {
            backlog.push(part());
        }
        assert!(
            backlog.rest.iter().all(|chunk| chunk.len() == 1000),
            "handed on as they are"
        );
        let large = Bytes::from(vec![7; 3 * JOINED_MAX]);
        backlog.push(large.clone());
        assert!(
            read_into.is_unique(),
            "what waits holds none of what it was read into"
        );
        assert!(large.is_unique(), "it was copied as well");
        let blocks = std::iter::once(&backlog.front).chain(&backlog.rest);
        let full = blocks.into_iter().all(|chunk| chunk.len() == JOINED_MAX);
        assert!(
            full && backlog.joined.len() < JOINED_MAX,
            "no room is left between"
        );

        // Who reads on for a moment, and is far behind again, has nothing copied twice.
        while backlog.behind >= COPIED_BEHIND {
            backlog.advance(1000);
        }
        let first = backlog.rest.front().map(|chunk| chunk.as_ptr());
        backlog.push(Bytes::from(vec![7; COPIED_BEHIND]));
        backlog.push(part());
        assert!(read_into.is_unique());
        assert_eq!(backlog.rest.front().map(|chunk| chunk.as_ptr()), first);
    }
}
