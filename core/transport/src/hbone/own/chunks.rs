//! Bytes of one direction of a stream that wait, in order; small ones are joined.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// Chunks shorter than this are joined while they wait: each would keep a larger buffer alive and cost a place of its
/// own, so that tiny frames that nobody reads would cost us more than the bytes that were sent.
const JOINED_BELOW: usize = 512;

/// A joined chunk is closed at this length.
const JOINED_MAX: usize = 16 * 1024;

/// What waits.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Chunks {
    #[serde(with = "crate::plain::chunks")]
    chunks: VecDeque<Bytes>,
    /// Comes after all of them.
    #[serde(with = "crate::plain::bytes")]
    joined: BytesMut,
    length: usize,
}

impl Chunks {
    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Appends bytes.
    pub(super) fn push(&mut self, chunk: Bytes) {
        self.length += chunk.len();
        if chunk.len() < JOINED_BELOW && self.length > chunk.len() {
            self.joined.extend_from_slice(&chunk);
            if self.joined.len() >= JOINED_MAX {
                self.close_joined();
            }
        } else if !chunk.is_empty() {
            self.close_joined();
            self.chunks.push_back(chunk);
        }
    }

    /// Takes the first chunk.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        if self.chunks.is_empty() {
            self.close_joined();
        }
        let chunk = self.chunks.pop_front()?;
        self.length -= chunk.len();
        self.tidy();
        Some(chunk)
    }

    /// Takes bytes off the front, at most `most`, all from one chunk.
    pub(super) fn take(&mut self, most: usize) -> Option<Bytes> {
        if self.chunks.is_empty() {
            self.close_joined();
        }
        let first = self.chunks.front_mut()?;
        if first.len() <= most {
            return self.pop();
        }
        let part = first.split_to(most);
        self.length -= part.len();
        Some(part)
    }

    /// Drops all of it.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn close_joined(&mut self) {
        if !self.joined.is_empty() {
            self.chunks.push_back(std::mem::take(&mut self.joined).freeze());
        }
    }

    /// Who is idle keeps no list.
    fn tidy(&mut self) {
        if self.length == 0 {
            self.chunks = VecDeque::new();
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
            steps in proptest::collection::vec((0usize..1500, 0usize..2000), 1..60),
        ) {
            let (mut chunks, mut given, mut taken) = (Chunks::default(), Vec::<u8>::new(), Vec::<u8>::new());
            for (at, (length, most)) in steps.into_iter().enumerate() {
                let chunk = vec![u8::try_from(at).unwrap(); length];
                given.extend(&chunk);
                chunks.push(chunk.into());
                taken.extend(if most % 2 == 0 { chunks.take(most + 1) } else { chunks.pop() }.unwrap_or_default());
                prop_assert_eq!(chunks.len(), given.len() - taken.len());
            }
            while let Some(chunk) = chunks.pop() {
                prop_assert!(!chunk.is_empty());
                taken.extend(chunk);
            }
            prop_assert!(chunks.is_empty());
            prop_assert_eq!(given, taken);
        }
    }

    #[test]
    fn tiny_chunks_are_joined() {
        let mut chunks = Chunks::default();
        for _ in 0..1000 {
            chunks.push(Bytes::from_static(b"x"));
        }
        assert_eq!(chunks.pop().unwrap().len(), 1);
        assert_eq!(chunks.pop().unwrap().len(), 999);
    }
}
