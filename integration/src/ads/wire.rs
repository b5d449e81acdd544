//! As much of HTTP/2 as one gRPC stream over a connection of its own needs, in the task that reads it.
//!
//! A usual client is three tasks and some channels for each connection. With thousands of them beside the server that
//! is measured, on the same processors, they would be most of what is measured.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tulle_identity::channel::Connection;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length, kind, flags and stream in front of each frame.
const HEADER: usize = 9;
/// The only stream.
const STREAM: u32 = 1;
/// What the server may send at first, and is allowed anew once half of it has come.
const WINDOW: u32 = (1 << 31) - 1;
/// The window that the protocol begins with.
const WINDOW_DEFAULT: u32 = 65_535;
/// Bytes read at once.
const READ: usize = 16 << 10;
/// Larger frames were not asked for.
const FRAME_MAX: usize = 16 << 10;

/// Kinds of frames.
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RESET: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const WINDOW_UPDATE: u8 = 8;
}

/// Flags of frames. One bit means an answer to settings and pings, and the end of a stream.
mod flag {
    pub(super) const ACK: u8 = 1;
    pub(super) const END_STREAM: u8 = 1;
    pub(super) const END_HEADERS: u8 = 4;
    pub(super) const PADDED: u8 = 8;
}

/// `INITIAL_WINDOW_SIZE` among the settings.
const SETTING_WINDOW: u16 = 4;

/// What the server may send unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Window {
    /// As much as it likes.
    Wide,
    /// What the protocol begins with; it is never widened.
    Least,
}

/// One connection with one stream on it.
pub(super) struct Wire {
    connection: Box<dyn Connection>,
    read: BytesMut,
    /// What the protocol itself has to say; goes out before anything else.
    out: BytesMut,
    /// The server has taken the stream.
    begun: bool,
    /// Bytes left of the frame of data that is being read.
    left: usize,
    /// Bytes of data since the window was last renewed.
    taken: u32,
    /// What the server takes on the connection and on the stream, and what it said a stream begins with.
    room: [i64; 2],
    begins_with: i64,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

impl Wire {
    /// Begins the stream and waits until the server has taken it.
    pub(super) async fn open(
        connection: Box<dyn Connection>,
        headers: &[(&str, &str)],
        first: &[u8],
        window: Window,
    ) -> Result<Self, String> {
        let mut wire = Self {
            connection,
            read: BytesMut::with_capacity(READ),
            out: BytesMut::with_capacity(1024),
            begun: false,
            left: 0,
            taken: 0,
            room: [WINDOW_DEFAULT.into(); 2],
            begins_with: WINDOW_DEFAULT.into(),
        };
        wire.out.put_slice(PREFACE);
        match window {
            Window::Least => put_header(&mut wire.out, 0, kind::SETTINGS, 0, 0),
            Window::Wide => {
                put_header(&mut wire.out, 6, kind::SETTINGS, 0, 0);
                wire.out.put_u16(SETTING_WINDOW);
                wire.out.put_u32(WINDOW);
                put_window(&mut wire.out, 0, WINDOW - WINDOW_DEFAULT);
            }
        }
        let mut block = BytesMut::new();
        for (name, value) in headers {
            put_literal(&mut block, name, value);
        }
        put_header(
            &mut wire.out,
            block.len(),
            kind::HEADERS,
            flag::END_HEADERS,
            STREAM,
        );
        wire.out.put_slice(&block);
        wire.send(first).await?;
        while !wire.begun {
            wire.frame().await?;
        }
        Ok(wire)
    }

    /// Sends bytes of the request's body.
    pub(super) async fn send(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            let room = usize::try_from(self.room[0].min(self.room[1])).unwrap_or(0);
            let (part, rest) = bytes.split_at(room.min(FRAME_MAX).min(bytes.len()));
            if part.is_empty() {
                self.flush().await?;
                if self.left > 0 || self.frame().await?.is_some_and(|frame| frame.kind == kind::DATA) {
                    return Err("the server takes nothing more while it sends".to_owned());
                }
                continue;
            }
            put_header(&mut self.out, part.len(), kind::DATA, 0, STREAM);
            self.out.put_slice(part);
            self.room = self.room.map(|room| room - part.len() as i64);
            bytes = rest;
        }
        self.flush().await
    }

    /// The next bytes of the response's body.
    pub(super) async fn data(&mut self) -> Result<Bytes, String> {
        loop {
            if self.left > 0 && !self.read.is_empty() {
                let part = self.left.min(self.read.len());
                self.left -= part;
                return Ok(self.read.split_to(part).freeze());
            }
            if self.left > 0 {
                self.fill().await?;
                continue;
            }
            if let Some(frame) = self.frame().await?
                && frame.kind == kind::DATA
            {
                self.left = frame.length;
                self.renew(frame.length);
            }
        }
    }

    /// The header of the next frame. What follows is read already, but for data; what is ours to answer gives nothing.
    async fn frame(&mut self) -> Result<Option<Frame>, String> {
        let frame = loop {
            if let Some(frame) = Frame::read(&self.read) {
                if frame.length > FRAME_MAX {
                    return Err(format!("a frame of {} bytes was not asked for", frame.length));
                }
                if frame.kind == kind::DATA || self.read.len() >= HEADER + frame.length {
                    break frame;
                }
            }
            self.fill().await?;
        };
        self.read.advance(HEADER);
        if frame.kind == kind::DATA {
            return match frame.flags & (flag::PADDED | flag::END_STREAM) {
                0 => Ok(Some(frame)),
                _ => Err("the server ended the stream in a way that gRPC does not".to_owned()),
            };
        }
        let payload = self.read.split_to(frame.length);
        self.answer(frame, &payload).await
    }

    async fn answer(&mut self, frame: Frame, payload: &[u8]) -> Result<Option<Frame>, String> {
        let is_answer = frame.flags & flag::ACK != 0;
        match frame.kind {
            kind::HEADERS if frame.flags & flag::END_STREAM != 0 => {
                Err("the server ended the stream".to_owned())
            }
            kind::HEADERS => {
                self.begun = true;
                Ok(None)
            }
            kind::WINDOW_UPDATE if payload.len() == 4 => {
                self.room[usize::from(frame.stream != 0)] += i64::from(u32_of(payload));
                Ok(None)
            }
            kind::RESET => Err(format!("the stream broke: {payload:?}")),
            kind::SETTINGS | kind::PING if !is_answer => {
                for setting in payload.chunks_exact(6).filter(|_| frame.kind == kind::SETTINGS) {
                    if setting[..2] == SETTING_WINDOW.to_be_bytes() {
                        let window = i64::from(u32_of(&setting[2..]));
                        self.room[1] += window - self.begins_with;
                        self.begins_with = window;
                    }
                }
                let echoed = if frame.kind == kind::PING { payload } else { &[] };
                put_header(&mut self.out, echoed.len(), frame.kind, flag::ACK, 0);
                self.out.put_slice(echoed);
                self.flush().await?;
                Ok(None)
            }
            _ => Ok(Some(frame)),
        }
    }

    /// Allows as much as has come, in few words.
    fn renew(&mut self, more: usize) {
        self.taken += u32::try_from(more).expect("frames are short");
        if self.taken > WINDOW / 2 {
            put_window(&mut self.out, 0, self.taken);
            put_window(&mut self.out, STREAM, self.taken);
            self.taken = 0;
        }
    }

    async fn fill(&mut self) -> Result<(), String> {
        self.read.reserve(READ);
        match self.connection.read_buf(&mut self.read).await {
            Ok(0) => Err("the server ended the connection".to_owned()),
            Ok(_) => Ok(()),
            Err(error) => Err(format!("the stream broke: {error}")),
        }
    }

    async fn flush(&mut self) -> Result<(), String> {
        let broke = |error| format!("the stream broke: {error}");
        while self.out.has_remaining() {
            self.connection.write_buf(&mut self.out).await.map_err(broke)?;
        }
        self.out.clear();
        self.connection.flush().await.map_err(broke)
    }
}

/// What stands in front of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Frame {
    fn read(mut bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= HEADER).then(|| Self {
            length: usize::try_from(bytes.get_uint(3)).expect("three bytes"),
            kind: bytes.get_u8(),
            flags: bytes.get_u8(),
            stream: bytes.get_u32(),
        })
    }
}

fn u32_of(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | u32::from(*byte))
}

fn put_header(out: &mut BytesMut, length: usize, kind: u8, flags: u8, stream: u32) {
    out.put_uint(length as u64, 3);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u32(stream);
}

fn put_window(out: &mut BytesMut, stream: u32, more: u32) {
    put_header(out, 4, kind::WINDOW_UPDATE, 0, stream);
    out.put_u32(more);
}

/// A header in full, of which neither side remembers anything.
fn put_literal(block: &mut BytesMut, name: &str, value: &str) {
    block.put_u8(0);
    for text in [name, value] {
        put_length(block, text.len());
        block.put_slice(text.as_bytes());
    }
}

/// A number in seven bits of the first byte, or what is above them in the bytes that follow.
fn put_length(block: &mut BytesMut, length: usize) {
    const FULL: usize = 127;
    if length < FULL {
        block.put_u8(u8::try_from(length).expect("seven bits"));
        return;
    }
    block.put_u8(127);
    let mut rest = length - FULL;
    while rest > FULL {
        block.put_u8(u8::try_from(rest & FULL).expect("seven bits") | 128);
        rest >>= 7;
    }
    block.put_u8(u8::try_from(rest).expect("seven bits"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_of_a_frame_is_read_as_it_is_written() {
        let mut bytes = BytesMut::new();
        put_header(&mut bytes, 70_000, kind::PING, flag::ACK, STREAM);
        let frame = Frame {
            length: 70_000,
            kind: kind::PING,
            flags: flag::ACK,
            stream: STREAM,
        };
        assert_eq!(Frame::read(&bytes), Some(frame));
        assert_eq!(Frame::read(&bytes[..HEADER - 1]), None);
    }

    #[test]
    fn lengths_are_written_as_the_protocol_says() {
        for (length, written) in [
            (5, &[5][..]),
            (127, &[127, 0]),
            (1337, &[127, 186, 9]),
            (255, &[127, 128, 1]),
        ] {
            let mut block = BytesMut::new();
            put_length(&mut block, length);
            assert_eq!(&block[..], written, "{length}");
        }
    }

    #[tokio::test]
    async fn pings_are_answered_and_data_is_handed_on() {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let mut sent = BytesMut::new();
        put_header(&mut sent, 0, kind::SETTINGS, 0, 0);
        put_header(&mut sent, 1, kind::HEADERS, flag::END_HEADERS, STREAM);
        sent.put_u8(0x88);
        put_header(&mut sent, 8, kind::PING, 0, 0);
        sent.put_slice(b"12345678");
        put_header(&mut sent, 4, kind::DATA, 0, STREAM);
        sent.put_slice(b"data");
        theirs.write_all(&sent).await.unwrap();
        let mut wire = Wire::open(Box::new(ours), &[(":method", "POST")], b"first", Window::Wide)
            .await
            .unwrap();
        assert_eq!(wire.data().await.unwrap(), &b"data"[..]);
        drop(wire);
        let mut heard = Vec::new();
        theirs.read_to_end(&mut heard).await.unwrap();
        assert!(heard.starts_with(PREFACE));
        assert!(
            heard.ends_with(b"\0\0\x08\x06\x01\0\0\0\x0012345678"),
            "{heard:?}"
        );
    }

    #[tokio::test]
    async fn no_more_is_sent_than_the_server_takes() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let mut sent = BytesMut::new();
        put_header(&mut sent, 6, kind::SETTINGS, 0, 0);
        sent.put_u16(SETTING_WINDOW);
        sent.put_u32(100_000);
        put_window(&mut sent, 0, 100_000 - WINDOW_DEFAULT);
        put_header(&mut sent, 1, kind::HEADERS, flag::END_HEADERS, STREAM);
        sent.put_u8(0x88);
        theirs.write_all(&sent).await.unwrap();
        let mut wire = Wire::open(Box::new(ours), &[], &vec![0; 90_000], Window::Least)
            .await
            .unwrap();
        assert_eq!(wire.room, [10_000; 2]);
        let mut more = BytesMut::new();
        put_window(&mut more, 0, 10_000);
        put_window(&mut more, STREAM, 5_000);
        theirs.write_all(&more).await.unwrap();
        wire.send(&[0; 15_000]).await.unwrap();
        assert_eq!(wire.room, [5_000, 0]);
    }

    #[tokio::test]
    async fn a_stream_that_ends_says_so() {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let mut sent = BytesMut::new();
        put_header(
            &mut sent,
            0,
            kind::HEADERS,
            flag::END_HEADERS | flag::END_STREAM,
            STREAM,
        );
        theirs.write_all(&sent).await.unwrap();
        let opened = Wire::open(Box::new(ours), &[], b"", Window::Least).await;
        assert!(opened.unwrap_err().contains("ended the stream"));
    }
}
