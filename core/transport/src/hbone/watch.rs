//! What is noticed of the bytes under HTTP/2: when the peer was heard, floods, GOAWAY, and why TLS failed.

use std::io;
use std::sync::Arc;

use tokio::time::Instant;

use super::frames::{Frames, PREFACE_LENGTH, Part};
use super::liveness::Vitals;

/// Watches one connection.
#[derive(Debug)]
pub(super) struct Watch {
    vitals: Arc<Vitals>,
    frames: Frames,
    /// Heads of the peer open streams.
    server: bool,
    write_blocked: bool,
    owed: Option<u64>,
}

impl Watch {
    /// The server's end, which first reads the client's preface.
    pub(super) fn server(vitals: Arc<Vitals>) -> Self {
        Self::new(vitals, PREFACE_LENGTH)
    }

    /// The client's end.
    pub(super) fn client(vitals: Arc<Vitals>) -> Self {
        Self::new(vitals, 0)
    }

    fn new(vitals: Arc<Vitals>, preface: usize) -> Self {
        Self {
            vitals,
            frames: Frames::new(preface, Instant::now()),
            server: preface > 0,
            write_blocked: false,
            owed: None,
        }
    }

    /// Whether those who read the streams are to have a turn before more is read; the answer is yes once.
    pub(super) fn rests(&mut self) -> bool {
        self.frames.rests()
    }

    /// The peer sent these bytes.
    pub(super) fn arrived(&mut self, bytes: &[u8], now: Instant) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.vitals.heard(now);
        let (held, server, mut too_much) = (self.vitals.held(), self.server, Ok(()));
        let each = |part, stream, length| match part {
            Part::Head if server => held.head(stream),
            Part::Head => {}
            Part::Data => {
                let counted = held.arrived(stream, length);
                too_much = too_much.and(counted);
            }
        };
        self.frames.see(bytes, now, each).map_err(io::Error::other)?;
        if let Err(too_much) = too_much {
            self.vitals.cut(tulle_model::Reason::Overload);
            return Err(io::Error::other(too_much));
        }
        let owed = self.frames.owed();
        if std::mem::replace(&mut self.owed, owed) != owed {
            self.vitals.owes(owed.map(|_| now));
        }
        if self.frames.going_away() {
            // Streams that the peer took go on; no other is to be tried here.
            self.vitals.retire();
        }
        Ok(())
    }

    /// Reading failed.
    pub(super) fn failed(&self, error: &io::Error) {
        self.vitals.failed(error);
    }

    /// Keeps count of how long the peer takes nothing.
    pub(super) fn blocked(&mut self, blocked: bool) {
        if std::mem::replace(&mut self.write_blocked, blocked) != blocked {
            let (traffic, now) = (self.vitals.traffic(), Instant::now());
            if blocked {
                traffic.write_blocked(now);
            } else {
                traffic.write_resumed(now);
            }
        }
    }
}
