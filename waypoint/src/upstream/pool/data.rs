//! The DATA of HTTP/2 that an endpoint sends, counted below the library.

use std::io;
use std::sync::Arc;

use crate::buffers::Carried;
use crate::http::frames::{DATA, Frames};
use crate::watched::Look;

/// Counts DATA of HTTP/2.
#[derive(Debug)]
pub(super) struct Data {
    frames: Frames,
    carried: Arc<Carried>,
}

impl Data {
    pub(super) fn new(carried: &Arc<Carried>) -> Self {
        Self {
            frames: Frames::after(0),
            carried: Arc::clone(carried),
        }
    }
}

impl Look for Data {
    fn look(&mut self, bytes: &[u8]) -> io::Result<()> {
        let carried = &self.carried;
        let seen = self.frames.see(bytes, |frame| match frame.kind {
            DATA => carried.arrived(frame.length),
            _ => Ok(()),
        });
        seen.map_err(io::Error::other)
    }
}
