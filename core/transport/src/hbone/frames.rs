//! A glance at frame headers as they arrive: floods are cut, a GOAWAY is noticed at once, and so is who never ends.
//!
//! A frame or a head that was begun is to be finished; DATA alone may take as long as it takes.
//!
//! HTTP/2 libraries answer every PING and SETTINGS a peer cares to send. Here they have a budget, which refills.

use tokio::time::Instant;

/// Length of the preface that a client sends before its first frame.
pub(super) const PREFACE_LENGTH: usize = 24;

const HEADER_LENGTH: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_HEADERS: u8 = 4;

/// DATA shorter than this is tiny: what it costs to keep is more than what it carries.
const TINY_BELOW: usize = 256;

/// Tiny frames after which those who read them are to have a turn.
const TINY_BURST: u32 = 1024;

/// PING, SETTINGS and such that may arrive at once.
const CONTROL_BURST: u32 = 2000;

/// How many more may arrive each second.
const CONTROL_PER_SECOND: u32 = 1000;

/// The peer sent more control frames than anyone needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many HTTP/2 control frames")]
pub(super) struct Flood;

/// The bits of a stream's number.
const STREAM: u32 = 0x7fff_ffff;

/// A part of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The first frame of a head, or of trailers.
    Head,
    /// DATA.
    Data,
}

/// Where in the stream of frames we are.
#[derive(Debug)]
pub(super) struct Frames {
    /// Bytes to pass over: the preface, or the rest of a payload.
    skip: usize,
    header: [u8; HEADER_LENGTH],
    have: usize,
    /// Type of the frame whose payload is passed over.
    kind: u8,
    /// A head was begun, and its last frame has not come.
    head_open: bool,
    /// Heads and frames that were begun, counted so that one is told from the next.
    begun: u64,
    going_away: bool,
    /// Tiny frames since the last rest.
    tiny: u32,
    budget: u32,
    refilled: Instant,
}

impl Frames {
    /// Begins after `preface` bytes.
    pub(super) fn new(preface: usize, now: Instant) -> Self {
        Self {
            skip: preface,
            header: [0; HEADER_LENGTH],
            have: 0,
            kind: SETTINGS,
            head_open: false,
            begun: 0,
            going_away: false,
            tiny: 0,
            budget: CONTROL_BURST,
            refilled: now,
        }
    }

    /// Whether a GOAWAY has arrived.
    pub(super) fn going_away(&self) -> bool {
        self.going_away
    }

    /// Whether so many tiny frames came that their readers are to have a turn before more are taken.
    pub(super) fn rests(&mut self) -> bool {
        let rests = self.tiny >= TINY_BURST;
        if rests {
            self.tiny = 0;
        }
        rests
    }

    /// What the peer has begun and not finished, as a number that changes with each; 0 is the first frame of all. Who
    /// stops inside of a frame's first bytes is no more than idle.
    pub(super) fn owed(&self) -> Option<u64> {
        let inside = self.skip > 0 && self.kind != DATA;
        (inside || self.head_open || self.begun == 0).then_some(self.begun)
    }

    /// Looks at what arrived; `each` is told of heads that open streams or end them, and of DATA, with the stream and the
    /// length.
    pub(super) fn see(
        &mut self,
        mut bytes: &[u8],
        now: Instant,
        mut each: impl FnMut(Part, u32, usize),
    ) -> Result<(), Flood> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let passed = self.skip.min(bytes.len());
                self.skip -= passed;
                bytes = &bytes[passed..];
                continue;
            }
            let part = (HEADER_LENGTH - self.have).min(bytes.len());
            self.header[self.have..self.have + part].copy_from_slice(&bytes[..part]);
            self.have += part;
            bytes = &bytes[part..];
            if self.have == HEADER_LENGTH {
                self.have = 0;
                self.frame(now)?;
                let [.., a, b, c, d] = self.header;
                let stream = u32::from_be_bytes([a, b, c, d]) & STREAM;
                match self.kind {
                    HEADERS => each(Part::Head, stream, self.skip),
                    DATA => each(Part::Data, stream, self.skip),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn frame(&mut self, now: Instant) -> Result<(), Flood> {
        let [a, b, c, kind, flags, ..] = self.header;
        self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
        self.kind = kind;
        // A head of many frames is one.
        self.begun += u64::from(!self.head_open);
        match kind {
            HEADERS => self.head_open = flags & END_HEADERS == 0,
            DATA => self.tiny += u32::from(self.skip < TINY_BELOW),
            CONTINUATION => self.head_open &= flags & END_HEADERS == 0,
            _ => {}
        }
        match kind {
            // What has bounds of its own: windows, streams, header lists.
            DATA | HEADERS | RST_STREAM | WINDOW_UPDATE | CONTINUATION => Ok(()),
            _ => {
                self.going_away |= kind == GOAWAY;
                self.spend(now)
            }
        }
    }

    fn spend(&mut self, now: Instant) -> Result<(), Flood> {
        let seconds = now.duration_since(self.refilled).as_secs();
        if seconds > 0 {
            let refill = u32::try_from(seconds)
                .unwrap_or(u32::MAX)
                .saturating_mul(CONTROL_PER_SECOND);
            self.budget = self.budget.saturating_add(refill).min(CONTROL_BURST);
            self.refilled = now;
        }
        self.budget = self.budget.checked_sub(1).ok_or(Flood)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use proptest::prelude::*;

    const PING: u8 = 6;

    fn frame(kind: u8, length: u8) -> Vec<u8> {
        let mut bytes = vec![0, 0, length, kind, 0, 0, 0, 0, 0];
        bytes.extend(vec![GOAWAY; usize::from(length)]);
        bytes
    }

    fn see(frames: &mut Frames, bytes: &[u8], now: Instant) -> Result<(), Flood> {
        frames.see(bytes, now, |_, _, _| {})
    }

    #[test]
    fn parts_of_streams_are_told_of() {
        let now = Instant::now();
        let (mut frames, mut told) = (Frames::new(0, now), Vec::new());
        let bytes = [
            &[0, 0, 1, HEADERS, END_HEADERS, 0, 0, 0, 5, 7][..],
            &[0, 0, 2, DATA, 0, 0x80, 0, 0, 5, 7, 7],
            &frame(PING, 8),
        ]
        .concat();
        for byte in bytes {
            frames
                .see(&[byte], now, |part, stream, length| {
                    told.push((part, stream, length))
                })
                .unwrap();
        }
        assert_eq!(told, [(Part::Head, 5, 1), (Part::Data, 5, 2)]);
    }

    proptest! {
        #[test]
        fn frames_are_found_however_they_are_cut(
            before in proptest::collection::vec(0u8..7, 0..20),
            cuts in proptest::collection::vec(1usize..40, 1..200),
        ) {
            let now = Instant::now();
            let mut bytes = vec![GOAWAY; PREFACE_LENGTH];
            before.iter().for_each(|kind| bytes.extend(frame(*kind, *kind * 30)));
            let (mut frames, mut rest) = (Frames::new(PREFACE_LENGTH, now), &bytes[..]);
            for cut in cuts.into_iter().cycle() {
                let part = cut.min(rest.len());
                see(&mut frames, &rest[..part], now).unwrap();
                rest = &rest[part..];
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert!(!frames.going_away(), "payloads are no frames");
            see(&mut frames, &frame(GOAWAY, 8), now).unwrap();
            prop_assert!(frames.going_away());
        }
    }

    #[test]
    fn what_was_begun_is_owed_until_it_is_finished() {
        let now = Instant::now();
        let mut frames = Frames::new(PREFACE_LENGTH, now);
        let mut owed = |bytes: &[u8]| {
            see(&mut frames, bytes, now).unwrap();
            frames.owed()
        };
        assert_eq!(
            owed(&[0; PREFACE_LENGTH]),
            Some(0),
            "SETTINGS belong to the preface"
        );
        assert_eq!(owed(&frame(SETTINGS, 6)), None);
        assert_eq!(owed(&frame(DATA, 100)[..50]), None, "DATA may take its time");
        assert_eq!(owed(&[0; 59]), None);
        assert_eq!(
            owed(&frame(HEADERS, 9)[..4]),
            None,
            "no more than an idle connection"
        );
        assert_eq!(owed(&frame(HEADERS, 9)[4..]), Some(3), "END_HEADERS was not set");
        assert_eq!(owed(&frame(CONTINUATION, 9)), Some(3), "still the same head");
        assert_eq!(
            owed(&[0, 0, 2, CONTINUATION, END_HEADERS, 0, 0, 0, 1, 7]),
            Some(3)
        );
        assert_eq!(owed(&[7]), None);
        assert_eq!(owed(&[0, 0, 1, HEADERS, END_HEADERS, 0, 0, 0, 3]), Some(4));
        assert_eq!(owed(&[7]), None);
    }

    #[test]
    fn a_flood_is_cut_and_a_trickle_is_not() {
        let now = Instant::now();
        let mut flooded = Frames::new(0, now);
        let floods = (0..200_000).position(|_| see(&mut flooded, &frame(PING, 8), now).is_err());
        assert_eq!(floods, Some(CONTROL_BURST as usize));
        let mut frames = Frames::new(0, now);
        for second in 0..100 {
            for _ in 0..CONTROL_PER_SECOND {
                see(&mut frames, &frame(PING, 8), now + Duration::from_secs(second)).unwrap();
            }
        }
    }

    #[test]
    fn readers_have_a_turn_after_many_tiny_frames() {
        let now = Instant::now();
        let mut frames = Frames::new(0, now);
        for _ in 0..TINY_BURST {
            assert!(!frames.rests());
            see(&mut frames, &frame(DATA, 1), now).unwrap();
        }
        assert!(frames.rests());
        assert!(!frames.rests());
    }

    #[test]
    fn traffic_is_never_a_flood() {
        let now = Instant::now();
        let mut frames = Frames::new(0, now);
        for kind in [DATA, HEADERS, RST_STREAM, WINDOW_UPDATE] {
            for _ in 0..10_000 {
                see(&mut frames, &frame(kind, 4), now).unwrap();
            }
        }
    }
}
