//! Counts the messages of a gRPC stream as its bytes pass: a flag, a length, and so many bytes.

/// Where in the stream of messages the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Messages {
    count: u64,
    /// Bytes of the prefix that were read.
    prefix: u8,
    length: u32,
    /// Bytes of the message that are still to come.
    left: u32,
}

/// A flag and four bytes of length.
const PREFIX_BYTES: u8 = 5;

impl Messages {
    /// Reads on.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let step = bytes.len().min(self.left as usize);
                self.left -= u32::try_from(step).unwrap_or(self.left);
                bytes = &bytes[step..];
                continue;
            }
            if self.prefix > 0 {
                self.length = self.length << 8 | u32::from(*first);
            }
            self.prefix += 1;
            bytes = rest;
            if self.prefix == PREFIX_BYTES {
                self.count += 1;
                *self = Self {
                    count: self.count,
                    left: self.length,
                    ..Self::default()
                };
            }
        }
    }

    /// Messages that began.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
        bytes.extend(std::iter::repeat_n(7, length));
        bytes
    }

    #[test]
    fn an_empty_message_counts() {
        let mut messages = Messages::default();
        messages.feed(&message(0));
        messages.feed(&message(0));
        assert_eq!(messages.count(), 2);
    }

    proptest::proptest! {
        #[test]
        fn messages_are_counted_however_they_are_cut(
            lengths in proptest::collection::vec(0usize..40, 0..20), cut in 1usize..50,
        ) {
            let bytes: Vec<_> = lengths.iter().flat_map(|length| message(*length)).collect();
            let mut messages = Messages::default();
            bytes.chunks(cut).for_each(|chunk| messages.feed(chunk));
            proptest::prop_assert_eq!(messages.count(), lengths.len() as u64);
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            Messages::default().feed(&bytes);
        }
    }
}
