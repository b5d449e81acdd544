//! The numbers of RFC 9113: frame types, flags, settings, error codes, and the nine bytes before each payload.

use serde::{Deserialize, Serialize};

/// Bytes before each payload.
pub(super) const HEADER_LENGTH: usize = 9;

/// What a client begins with.
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 0x1;
pub(super) const ACK: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const PADDED: u8 = 0x8;
pub(super) const WITH_PRIORITY: u8 = 0x20;

pub(super) const ENABLE_PUSH: u16 = 2;
pub(super) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(super) const MAX_FRAME_SIZE: u16 = 5;
pub(super) const MAX_HEADER_LIST_SIZE: u16 = 6;

/// The window of a stream, and of a connection, before anything was said about it.
pub(super) const DEFAULT_WINDOW: u32 = 65_535;

/// The longest frame that a peer takes before it has said otherwise.
pub(super) const DEFAULT_FRAME_SIZE: usize = 16_384;

/// The longest frame that a peer may allow.
pub(super) const LARGEST_FRAME_SIZE: u32 = (1 << 24) - 1;

/// The largest window, and the highest stream.
pub(super) const LARGEST: u32 = (1 << 31) - 1;

/// Error codes.
pub(super) mod code {
    pub(in crate::hbone::own) const NO_ERROR: u32 = 0;
    pub(in crate::hbone::own) const PROTOCOL_ERROR: u32 = 1;
    pub(in crate::hbone::own) const FLOW_CONTROL_ERROR: u32 = 3;
    pub(in crate::hbone::own) const STREAM_CLOSED: u32 = 5;
    pub(in crate::hbone::own) const FRAME_SIZE_ERROR: u32 = 6;
    pub(in crate::hbone::own) const REFUSED_STREAM: u32 = 7;
    pub(in crate::hbone::own) const CANCEL: u32 = 8;
    pub(in crate::hbone::own) const COMPRESSION_ERROR: u32 = 9;
    pub(in crate::hbone::own) const CONNECT_ERROR: u32 = 10;
    pub(in crate::hbone::own) const ENHANCE_YOUR_CALM: u32 = 11;
}

/// What a frame says before its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FrameHead {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl FrameHead {
    pub(super) fn decode(bytes: [u8; HEADER_LENGTH]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = bytes;
        Self {
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            // The highest bit is reserved, and to be ignored.
            stream: u32::from_be_bytes(stream) & LARGEST,
        }
    }

    pub(super) fn encode(self) -> [u8; HEADER_LENGTH] {
        debug_assert!(self.length <= LARGEST_FRAME_SIZE as usize);
        let [_, a, b, c] = u32::try_from(self.length)
            .unwrap_or(LARGEST_FRAME_SIZE)
            .to_be_bytes();
        let [d, e, f, g] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, d, e, f, g]
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Appends a whole frame.
pub(super) fn put(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let head = FrameHead {
        length: payload.len(),
        kind,
        flags,
        stream,
    };
    out.extend_from_slice(&head.encode());
    out.extend_from_slice(payload);
}

/// Appends a head, in as many frames as it takes.
pub(super) fn put_head(out: &mut Vec<u8>, stream: u32, flags: u8, block: &[u8], frame_max: usize) {
    let mut parts = block.chunks(frame_max).peekable();
    let mut kind = HEADERS;
    loop {
        let part = parts.next().unwrap_or_default();
        let last = if parts.peek().is_none() { END_HEADERS } else { 0 };
        let flags = if kind == HEADERS { flags } else { 0 };
        put(out, kind, flags | last, stream, part);
        if last != 0 {
            return;
        }
        kind = CONTINUATION;
    }
}

/// A number of four bytes at the start of a payload.
pub(super) fn number(payload: &[u8]) -> u32 {
    payload
        .first_chunk()
        .map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_survives_the_wire() {
        let head = FrameHead {
            length: 0x01_02_03,
            kind: DATA,
            flags: END_STREAM,
            stream: LARGEST,
        };
        assert_eq!(FrameHead::decode(head.encode()), head);
        assert!(head.has(END_STREAM) && !head.has(PADDED));
    }

    #[test]
    fn a_long_head_is_continued() {
        let mut out = Vec::new();
        put_head(&mut out, 5, END_STREAM, b"abcde", 2);
        let mut expect = Vec::new();
        put(&mut expect, HEADERS, END_STREAM, 5, b"ab");
        put(&mut expect, CONTINUATION, 0, 5, b"cd");
        put(&mut expect, CONTINUATION, END_HEADERS, 5, b"e");
        assert_eq!(out, expect);
    }
}
