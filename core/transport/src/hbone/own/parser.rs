//! Bytes to frames, however they are cut. Payload of DATA is handed on as it arrives; other frames are gathered whole.

use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize};

use super::fault::Fault;
use super::wire::{self, FrameHead, HEADER_LENGTH, code};

/// Longest payload that is gathered, unless it belongs to a head: more than any SETTINGS that means something.
const GATHERED_MAX: usize = 16 * 1024;

/// What of a GOAWAY is read: the rest is text for people.
const GOAWAY_READ: usize = 8;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Item {
    /// A DATA frame begins; all of its `length` counts against windows.
    Data { stream: u32, length: usize, last: bool },
    /// Bytes of it.
    Part {
        stream: u32,
        #[serde(with = "crate::plain::bytes")]
        bytes: Bytes,
    },
    /// It is complete. `overhead` of its bytes were padding.
    DataEnd {
        stream: u32,
        overhead: usize,
        last: bool,
    },
    /// Any other frame that means something, with as much of its payload as means something.
    Frame {
        head: FrameHead,
        #[serde(with = "crate::plain::bytes")]
        payload: Bytes,
    },
}

#[derive(Debug, Serialize, Deserialize)]
enum State {
    Head,
    PadLength(FrameHead),
    Data {
        head: FrameHead,
        left: usize,
        padding: usize,
    },
    Payload {
        head: FrameHead,
        keep: usize,
    },
    /// Bytes that mean nothing, and the item that comes after them.
    Skip {
        left: usize,
        then: Option<Item>,
    },
}

/// Finds frames. Plain data.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Parser {
    state: State,
    gathered: Vec<u8>,
    /// Longest frame we allowed the peer.
    frame_max: usize,
    /// Longest payload of a head's frame.
    head_max: usize,
}

impl Parser {
    pub(super) fn new(frame_max: usize, head_max: usize) -> Self {
        Self {
            state: State::Head,
            gathered: Vec::new(),
            frame_max,
            head_max,
        }
    }

    /// Takes the next item off the front of `input`; `None` when more is needed.
    pub(super) fn next(&mut self, input: &mut Bytes) -> Result<Option<Item>, Fault> {
        loop {
            let state = std::mem::replace(&mut self.state, State::Head);
            match state {
                State::Head => {
                    let Some(head) = self.gather(input, HEADER_LENGTH) else {
                        return Ok(None);
                    };
                    let head = FrameHead::decode(*head.first_chunk().expect("as many were gathered"));
                    if let Some(item) = self.begin(head)? {
                        return Ok(Some(item));
                    }
                }
                State::PadLength(head) => {
                    if input.is_empty() {
                        self.state = State::PadLength(head);
                        return Ok(None);
                    }
                    let padding = usize::from(input.get_u8());
                    let left = (head.length - 1)
                        .checked_sub(padding)
                        .ok_or(Fault::protocol("more padding than payload"))?;
                    self.state = State::Data { head, left, padding };
                }
                State::Data {
                    head,
                    left: 0,
                    padding,
                } => self.end_data(head, padding),
                State::Data { head, left, padding } => {
                    let bytes = input.split_to(left.min(input.len()));
                    let left = left - bytes.len();
                    self.state = State::Data { head, left, padding };
                    let stream = head.stream;
                    return Ok((!bytes.is_empty()).then_some(Item::Part { stream, bytes }));
                }
                State::Payload { head, keep } => {
                    let Some(payload) = self.gather(input, keep) else {
                        self.state = State::Payload { head, keep };
                        return Ok(None);
                    };
                    let left = head.length - keep;
                    let then = Some(Item::Frame { head, payload });
                    self.state = State::Skip { left, then };
                }
                State::Skip { left: 0, then: None } => {}
                State::Skip { left: 0, then } => return Ok(then),
                State::Skip { left, then } => {
                    let passed = left.min(input.len());
                    input.advance(passed);
                    let left = left - passed;
                    self.state = State::Skip { left, then };
                    if left > 0 {
                        return Ok(None);
                    }
                }
            }
        }
    }

    fn begin(&mut self, head: FrameHead) -> Result<Option<Item>, Fault> {
        check(head, self.frame_max, self.head_max)?;
        let (length, stream) = (head.length, head.stream);
        match head.kind {
            wire::DATA => {
                self.state = if head.has(wire::PADDED) {
                    State::PadLength(head)
                } else {
                    State::Data {
                        head,
                        left: length,
                        padding: 0,
                    }
                };
                let last = head.has(wire::END_STREAM);
                return Ok(Some(Item::Data { stream, length, last }));
            }
            wire::GOAWAY => {
                self.state = State::Payload {
                    head,
                    keep: GOAWAY_READ,
                }
            }
            wire::PRIORITY | wire::CONTINUATION.. if head.kind != wire::CONTINUATION => {
                // An extension, or a wish we do not know; still a frame, should one not be allowed here.
                let then = Some(Item::Frame {
                    head,
                    payload: Bytes::new(),
                });
                self.state = State::Skip { left: length, then };
            }
            _ => self.state = State::Payload { head, keep: length },
        }
        Ok(None)
    }

    fn end_data(&mut self, head: FrameHead, padding: usize) {
        let item = Item::DataEnd {
            stream: head.stream,
            overhead: padding + usize::from(head.has(wire::PADDED)),
            last: head.has(wire::END_STREAM),
        };
        self.state = State::Skip {
            left: padding,
            then: Some(item),
        };
    }

    /// The next `length` bytes, once all of them are there. They are copied only if they came in parts.
    fn gather(&mut self, input: &mut Bytes, length: usize) -> Option<Bytes> {
        if self.gathered.is_empty() && input.len() >= length {
            return Some(input.split_to(length));
        }
        let part = (length - self.gathered.len()).min(input.len());
        self.gathered.extend_from_slice(&input[..part]);
        input.advance(part);
        (self.gathered.len() == length).then(|| std::mem::take(&mut self.gathered).into())
    }
}

/// What can be said of a frame before its payload.
fn check(head: FrameHead, frame_max: usize, head_max: usize) -> Result<(), Fault> {
    let FrameHead {
        length, kind, stream, ..
    } = head;
    if length > frame_max {
        return Err(Fault::size("a frame is longer than was allowed"));
    }
    let size_is_right = match kind {
        wire::DATA => length > 0 || !head.has(wire::PADDED),
        wire::PRIORITY => length == 5,
        wire::RST_STREAM | wire::WINDOW_UPDATE => length == 4,
        wire::SETTINGS => length.is_multiple_of(6) && (length == 0 || !head.has(wire::ACK)),
        wire::PING => length == 8,
        wire::GOAWAY => length >= GOAWAY_READ,
        _ => true,
    };
    if !size_is_right {
        return Err(Fault::size("a frame's length does not fit its type"));
    }
    let bounded = match kind {
        wire::HEADERS | wire::CONTINUATION => length <= head_max,
        wire::SETTINGS => length <= GATHERED_MAX,
        _ => true,
    };
    if !bounded {
        return Err(Fault::connection(
            code::ENHANCE_YOUR_CALM,
            "a frame is longer than it needs to be",
        ));
    }
    let place_is_right = match kind {
        wire::DATA | wire::HEADERS | wire::PRIORITY | wire::RST_STREAM | wire::CONTINUATION => stream != 0,
        wire::SETTINGS | wire::PING | wire::GOAWAY => stream == 0,
        wire::PUSH_PROMISE => false,
        _ => true,
    };
    if !place_is_right {
        return Err(Fault::protocol("a frame is not allowed on this stream"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(parser: &mut Parser, bytes: Vec<u8>) -> Result<Vec<Item>, Fault> {
        let (mut input, mut items) = (Bytes::from(bytes), Vec::new());
        while let Some(item) = parser.next(&mut input)? {
            items.push(item);
        }
        assert!(input.is_empty());
        Ok(items)
    }

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        wire::put(&mut out, kind, flags, stream, payload);
        out
    }

    /// All parts of DATA joined, so that how it was cut does not show.
    fn joined(items: Vec<Item>) -> Vec<Item> {
        let mut whole: Vec<Item> = Vec::new();
        for item in items {
            match (whole.last_mut(), item) {
                (Some(Item::Part { bytes: before, .. }), Item::Part { bytes, .. }) => {
                    *before = [&before[..], &bytes[..]].concat().into();
                }
                (_, item) => whole.push(item),
            }
        }
        whole
    }

    proptest! {
        #[test]
        fn frames_are_found_however_they_are_cut(
            frames in proptest::collection::vec((0u8..12, any::<bool>(), 0usize..40), 0..20),
            cuts in proptest::collection::vec(1usize..30, 1..100),
        ) {
            let mut bytes = Vec::new();
            for (kind, padded, length) in frames {
                let (kind, length) = match kind {
                    wire::PRIORITY => (kind, 5),
                    wire::RST_STREAM | wire::WINDOW_UPDATE => (kind, 4),
                    wire::SETTINGS => (kind, length / 6 * 6),
                    wire::PUSH_PROMISE => (wire::DATA, length),
                    wire::PING => (kind, 8),
                    wire::GOAWAY => (kind, length + 8),
                    other => (other, length),
                };
                let stream = u32::from(![wire::SETTINGS, wire::PING, wire::GOAWAY].contains(&kind));
                let padded = padded && kind == wire::DATA && length > 0;
                let mut payload = vec![7; length];
                if padded {
                    payload[0] = u8::try_from(length / 2).unwrap();
                }
                bytes.extend(frame(kind, if padded { wire::PADDED } else { 0 }, stream, &payload));
            }
            let whole = parse(&mut Parser::new(16_384, 16_384), bytes.clone()).unwrap();
            let (mut parser, mut rest, mut items) = (Parser::new(16_384, 16_384), &bytes[..], Vec::new());
            for cut in cuts.into_iter().cycle() {
                let part = cut.min(rest.len());
                items.extend(parse(&mut parser, rest[..part].to_vec()).unwrap());
                rest = &rest[part..];
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(joined(items), joined(whole));
        }
    }

    #[test]
    fn padding_is_taken_off_data() {
        let bytes = frame(wire::DATA, wire::PADDED | wire::END_STREAM, 1, b"\x02hello..");
        let items = parse(&mut Parser::new(100, 100), bytes).unwrap();
        let expect = [
            Item::Data {
                stream: 1,
                length: 8,
                last: true,
            },
            Item::Part {
                stream: 1,
                bytes: Bytes::from_static(b"hello"),
            },
            Item::DataEnd {
                stream: 1,
                overhead: 3,
                last: true,
            },
        ];
        assert_eq!(items, expect);
    }

    #[test]
    fn what_the_head_shows_to_be_wrong_is_refused() {
        let wrong = [
            (frame(wire::DATA, 0, 0, b"x"), code::PROTOCOL_ERROR),
            (frame(wire::DATA, wire::PADDED, 1, b""), code::FRAME_SIZE_ERROR),
            (frame(wire::DATA, wire::PADDED, 1, b"\x01"), code::PROTOCOL_ERROR),
            (frame(wire::DATA, 0, 1, &[0; 101]), code::FRAME_SIZE_ERROR),
            (frame(wire::PING, 0, 0, b"short"), code::FRAME_SIZE_ERROR),
            (frame(wire::PING, 0, 1, &[0; 8]), code::PROTOCOL_ERROR),
            (frame(wire::SETTINGS, 0, 0, &[0; 5]), code::FRAME_SIZE_ERROR),
            (
                frame(wire::SETTINGS, wire::ACK, 0, &[0; 6]),
                code::FRAME_SIZE_ERROR,
            ),
            (frame(wire::SETTINGS, 0, 1, &[0; 6]), code::PROTOCOL_ERROR),
            (frame(wire::RST_STREAM, 0, 1, &[0; 5]), code::FRAME_SIZE_ERROR),
            (frame(wire::RST_STREAM, 0, 0, &[0; 4]), code::PROTOCOL_ERROR),
            (frame(wire::WINDOW_UPDATE, 0, 0, &[0; 3]), code::FRAME_SIZE_ERROR),
            (frame(wire::GOAWAY, 0, 0, &[0; 7]), code::FRAME_SIZE_ERROR),
            (frame(wire::GOAWAY, 0, 1, &[0; 8]), code::PROTOCOL_ERROR),
            (frame(wire::PUSH_PROMISE, 0, 1, &[0; 8]), code::PROTOCOL_ERROR),
            (frame(wire::HEADERS, 0, 0, b""), code::PROTOCOL_ERROR),
            (frame(wire::HEADERS, 0, 1, &[0; 51]), code::ENHANCE_YOUR_CALM),
            (frame(wire::CONTINUATION, 0, 0, b""), code::PROTOCOL_ERROR),
        ];
        for (bytes, code) in wrong {
            let fault = parse(&mut Parser::new(100, 50), bytes.clone()).unwrap_err();
            assert_eq!(fault.code, code, "{bytes:?}");
        }
    }
}
