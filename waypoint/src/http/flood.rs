//! Counts the frames of a client's HTTP/2 that cost us work and carry nothing, and ends the connection when there are too
//! many. Libraries answer every PING and SETTINGS, and open every stream that is reset at once.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::frames::{DATA, Frames, HEADERS, Header, PING, PRIORITY, RST_STREAM, SETTINGS};

/// Bytes before the first frame of a client.
const PREFACE: usize = 24;
/// How long what was counted counts.
const WINDOW: Duration = Duration::from_secs(10);
/// PING, SETTINGS, PRIORITY and empty DATA in a window, beside one for each DATA that carries something.
const CONTROL_MAX: u32 = 1_000;
/// Streams that a client may reset in a window …
const RESETS_MAX: u32 = 200;

/// A client sends more frames without content than anyone needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flood {
    /// PING, SETTINGS, PRIORITY or empty DATA.
    #[error("too many HTTP/2 frames that carry nothing")]
    Control,
    /// … unless they are at most half of those it opened.
    #[error("too many HTTP/2 streams that are reset")]
    Resets,
}

/// What was seen of a connection.
#[derive(Debug)]
pub struct Meter {
    frames: Frames,
    count: Count,
}

#[derive(Debug)]
struct Count {
    begun: Instant,
    control: u32,
    opened: u32,
    resets: u32,
    /// The last stream that the client opened.
    last: u32,
}

impl Meter {
    /// A connection that begins now, with its preface.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            frames: Frames::after(PREFACE),
            count: Count {
                begun: now,
                control: 0,
                opened: 0,
                resets: 0,
                last: 0,
            },
        }
    }

    /// GOAWAY with ENHANCE_YOUR_CALM, RFC 9113, 6.8.
    pub(super) fn goodbye(&self) -> Bytes {
        const GOAWAY: u8 = 7;
        const ENHANCE_YOUR_CALM: u32 = 0xb;
        let mut frame = vec![0, 0, 8, GOAWAY, 0, 0, 0, 0, 0];
        frame.extend(self.count.last.to_be_bytes());
        frame.extend(ENHANCE_YOUR_CALM.to_be_bytes());
        frame.into()
    }

    /// Looks at what arrived, and says how many bytes of it are DATA.
    ///
    /// # Errors
    /// If it is too much.
    pub fn see(&mut self, bytes: &[u8], now: Instant) -> Result<usize, Flood> {
        let (count, mut data) = (&mut self.count, 0);
        self.frames.see(bytes, |frame| {
            data += if frame.kind == DATA { frame.length } else { 0 };
            count.frame(frame, now)
        })?;
        Ok(data)
    }
}

impl Count {
    fn frame(&mut self, frame: Header, now: Instant) -> Result<(), Flood> {
        if now.duration_since(self.begun) >= WINDOW {
            (self.begun, self.control, self.opened, self.resets) = (now, 0, 0, 0);
        }
        match frame.kind {
            DATA if frame.length > 0 => self.control = self.control.saturating_sub(1),
            DATA | PRIORITY | SETTINGS | PING => self.control += 1,
            HEADERS => {
                self.opened += 1;
                self.last = self.last.max(frame.stream);
            }
            RST_STREAM => self.resets += 1,
            _ => {}
        }
        if self.control > CONTROL_MAX {
            return Err(Flood::Control);
        }
        if self.resets > RESETS_MAX && self.resets * 2 > self.opened {
            return Err(Flood::Resets);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(kind: u8, length: u8, count: usize) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, 0, 0, 0, 0, 1];
        frame.extend(vec![4; usize::from(length)]);
        frame.repeat(count)
    }

    /// What becomes of frames after the preface, in pieces of 7 bytes.
    fn seen(parts: &[Vec<u8>]) -> Result<(), Flood> {
        let mut meter = Meter::new(Instant::now());
        let bytes = [vec![b'P'; PREFACE], parts.concat()].concat();
        let now = meter.count.begun;
        bytes
            .chunks(7)
            .try_for_each(|piece| meter.see(piece, now).map(|_| ()))
    }

    #[test]
    fn pings_settings_priorities_and_empty_data_have_one_budget() {
        assert_eq!(seen(&[frames(6, 8, 500), frames(4, 0, 500)]), Ok(()));
        for kind in [(0, 0), (2, 5), (4, 6), (6, 8)] {
            let flood = frames(kind.0, kind.1, 1_001);
            assert_eq!(seen(&[flood]), Err(Flood::Control), "{kind:?}");
        }
    }

    #[test]
    fn who_sends_content_may_ping_as_often() {
        let both = [frames(6, 8, 1), frames(0, 9, 1)].concat();
        assert_eq!(seen(&[both.repeat(5_000)]), Ok(()));
    }

    #[test]
    fn resets_are_too_many_when_they_are_most_of_what_was_opened() {
        let pair = [frames(1, 3, 1), frames(3, 4, 1)].concat();
        assert_eq!(seen(&[pair.repeat(200)]), Ok(()));
        assert_eq!(seen(&[pair.repeat(201)]), Err(Flood::Resets));
        let served = [frames(1, 3, 2), frames(3, 4, 1)].concat();
        assert_eq!(seen(&[served.repeat(1_000)]), Ok(()));
    }

    #[test]
    fn what_was_counted_is_forgotten_after_a_while() {
        let now = Instant::now();
        let mut meter = Meter::new(now);
        meter.see(&[b'P'; PREFACE], now).unwrap();
        meter.see(&frames(6, 8, 1_000), now).unwrap();
        meter.see(&frames(6, 8, 1_000), now + WINDOW).unwrap();
        assert_eq!(meter.see(&frames(6, 8, 1), now + WINDOW), Err(Flood::Control));
    }
}
