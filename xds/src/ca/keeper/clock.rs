//! Whether the system's clock goes on as time does.

use std::time::{Duration, Instant};

use time::OffsetDateTime;

/// The wall clock may drift this far from the monotonic one between two looks.
const CLOCK_JUMP: Duration = Duration::from_secs(60);

/// Both clocks at the last look.
#[derive(Debug)]
pub(super) struct ClockWatch {
    wall: OffsetDateTime,
    monotonic: Instant,
}

impl ClockWatch {
    pub(super) fn new(wall: OffsetDateTime, monotonic: Instant) -> Self {
        Self { wall, monotonic }
    }

    /// How far the wall clock jumped since the last look, if it did.
    pub(super) fn look(&mut self, wall: OffsetDateTime, monotonic: Instant) -> Option<Duration> {
        let expected = self.wall + monotonic.saturating_duration_since(self.monotonic);
        *self = Self { wall, monotonic };
        let jump = (wall - expected).unsigned_abs();
        (jump > CLOCK_JUMP).then_some(jump)
    }
}
