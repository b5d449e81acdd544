//! The headers of HTTP/2 frames in a stream of bytes, however it is cut.

/// Length of a frame's header.
const HEADER: usize = 9;

/// DATA.
pub const DATA: u8 = 0;
/// The first frame of a head.
pub const HEADERS: u8 = 1;
/// PRIORITY.
pub const PRIORITY: u8 = 2;
/// RST_STREAM.
pub const RST_STREAM: u8 = 3;
/// SETTINGS.
pub const SETTINGS: u8 = 4;
/// PING.
pub const PING: u8 = 6;

/// Where in the stream of frames we are.
#[derive(Debug)]
pub struct Frames {
    /// Bytes to pass over.
    skip: usize,
    header: [u8; HEADER],
    have: usize,
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: u8,
    /// Bytes of its payload.
    pub length: usize,
    /// Its stream.
    pub stream: u32,
}

impl Frames {
    /// Begins after so many bytes.
    #[must_use]
    pub fn after(preface: usize) -> Self {
        Self {
            skip: preface,
            header: [0; HEADER],
            have: 0,
        }
    }

    /// Looks at what arrived, and tells of each header that is complete with it.
    ///
    /// # Errors
    /// The first that `each` brings; the rest is not looked at.
    pub fn see<E>(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(Header) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            let passed = self.skip.min(bytes.len());
            self.skip -= passed;
            bytes = &bytes[passed..];
            let part = (HEADER - self.have).min(bytes.len());
            self.header[self.have..self.have + part].copy_from_slice(&bytes[..part]);
            self.have += part;
            bytes = &bytes[part..];
            if self.have == HEADER {
                self.have = 0;
                let [a, b, c, kind, _, stream @ ..] = self.header;
                self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
                each(Header {
                    kind,
                    length: self.skip,
                    stream: u32::from_be_bytes(stream) & 0x7fff_ffff,
                })?;
            }
        }
        Ok(())
    }
}
