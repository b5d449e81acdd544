//! What waits in this process for slow readers, in all, and what follows when that is much: windows of new connections
//! get smaller, then nothing new is taken, then whoever holds more than a little is cut.
//!
//! Tunnels count what they hold by themselves. What the HTTP libraries hold is counted here, by connection: what arrived
//! in it, less what was handed on. What is counted that is held no more, because its request was given up, is forgotten
//! when the connection carries no request.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use tulle_runtime::memory::MemoryLimits;
use tulle_runtime::metrics::{Collect, Descriptor, Scrape, whole};
use tulle_transport::copy;
use tulle_transport::hbone::Settings;
use tulle_transport::hbone::held::{self, Part, Room};

use crate::config::Config;
use crate::context::Waypoint;

/// Windows of new connections once there is little room.
const SMALL_WINDOW: u32 = 1024 * 1024;
/// A connection may hold this much, however little room is left.
const LITTLE: usize = 1024 * 1024;

/// Sets the budget of this process. To be called before there are tunnels.
pub fn limit(config: &Config) {
    set(config, None);
}

/// Sets it anew whenever the settings say something else of it, for as long as the process lives.
pub async fn follow(waypoint: Arc<Waypoint>) {
    let (mut moved, mut last) = (waypoint.view.subscribe(), None);
    loop {
        let told = waypoint.view.load().settings.limits.buffer_bytes;
        if told != last {
            set(&waypoint.config, told);
            last = told;
        }
        if moved.changed().await.is_err() {
            return;
        }
    }
}

fn set(config: &Config, told: Option<u64>) {
    let bytes = config.buffers_within(told, MemoryLimits::of_process().tightest());
    held::set_budget(usize::try_from(bytes).unwrap_or(usize::MAX));
}

/// Whether nothing new is to be taken.
#[must_use]
pub fn is_short() -> bool {
    held::room() >= Room::Short
}

/// A window of a new connection.
#[must_use]
pub fn window(usual: u32) -> u32 {
    match held::room() {
        Room::Ample => usual,
        _ => usual.min(SMALL_WINDOW),
    }
}

/// The settings of a new tunnel, whose streams have this window towards us.
#[must_use]
pub fn tunnel(usual: Settings, stream_window: u32) -> Settings {
    Settings {
        stream_window: window(stream_window),
        connection_window: window(usual.connection_window),
        ..usual
    }
}

/// HTTP/2 inside of tunnels: how much of it may be on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Http2 {
    /// Bytes of one body that may come before they were taken.
    pub stream_window: u32,
    /// Bytes of all bodies of a connection.
    pub connection_window: u32,
    /// Longest frame that may come.
    pub frame_size: u32,
}

impl Default for Http2 {
    fn default() -> Self {
        Self {
            stream_window: 1024 * 1024,
            connection_window: 4 * 1024 * 1024,
            frame_size: 16 * 1024,
        }
    }
}

/// What an HTTP library holds of one connection.
#[derive(Debug, Default)]
pub struct Carried(Mutex<Part>);

impl Carried {
    /// Bytes have arrived that wait for a reader.
    ///
    /// # Errors
    /// There is no room at all, and this connection holds more than a little.
    pub fn arrived(&self, bytes: usize) -> Result<(), NoRoom> {
        let mut part = self.0.lock();
        let all = part.get().saturating_add(bytes);
        part.set(all);
        if all > LITTLE && held::room() == Room::None {
            return Err(NoRoom);
        }
        Ok(())
    }

    /// Bytes were handed on.
    pub fn handed_on(&self, bytes: usize) {
        let mut part = self.0.lock();
        let left = part.get().saturating_sub(bytes);
        part.set(left);
    }

    /// It carries no request.
    pub fn clear(&self) {
        self.0.lock().set(0);
    }
}

/// A connection holds more than a little, and there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("as much waits for slow readers as may, and this connection holds more than a little of it")]
pub struct NoRoom;

/// Shows what is held, at the moment of a scrape.
#[derive(Debug)]
pub(crate) struct Shown;

impl Collect for Shown {
    const METRICS: &'static [Descriptor] = &[Descriptor::gauge(
        "tulle_waypoint_buffer_bytes",
        "Bytes that wait for slow readers, and of buffers that are in use",
    )];

    fn collect(&self, scrape: &mut Scrape<'_>) -> fmt::Result {
        let bytes = held::bytes() + copy::buffer_bytes();
        scrape.gauge("tulle_waypoint_buffer_bytes", whole(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_holds_what_arrived_and_was_not_handed_on() {
        let carried = Carried::default();
        carried.arrived(10).unwrap();
        carried.handed_on(4);
        assert_eq!(carried.0.lock().get(), 6);
        carried.handed_on(100);
        assert_eq!(carried.0.lock().get(), 0);
        carried.arrived(10).unwrap();
        carried.clear();
        assert_eq!(carried.0.lock().get(), 0);
    }

    #[test]
    fn windows_are_as_usual_while_there_is_room() {
        let usual = Settings {
            stream_window: 3 * SMALL_WINDOW,
            ..Settings::server()
        };
        assert_eq!(tunnel(Settings::server(), 3 * SMALL_WINDOW), usual);
    }
}
