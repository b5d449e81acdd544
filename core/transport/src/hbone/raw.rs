//! One end of an HTTP/2 connection, frame by frame, for peers that do what no library would.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The type of DATA.
pub const DATA: u8 = 0;
/// The type of HEADERS.
pub const HEADERS: u8 = 1;
/// The type of RST_STREAM.
pub const RST_STREAM: u8 = 3;
/// The type of SETTINGS.
pub const SETTINGS: u8 = 4;
/// The type of PING.
pub const PING: u8 = 6;
/// The type of GOAWAY.
pub const GOAWAY: u8 = 7;
/// The type of WINDOW_UPDATE.
pub const WINDOW_UPDATE: u8 = 8;
/// The type of CONTINUATION.
pub const CONTINUATION: u8 = 9;

/// The flag of the last frame of a direction.
pub const END_STREAM: u8 = 1;
/// The flag of an answer to SETTINGS or PING.
pub const ACK: u8 = 1;
/// The flag of the last frame of a head.
pub const END_HEADERS: u8 = 4;

/// What a client begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// `:method: CONNECT`, `:authority: 10.0.0.1:80`, both literal.
pub const CONNECT: &[u8] = b"\x02\x07CONNECT\x01\x0b10.0.0.1:80";

/// A frame as bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len())
        .expect("a test's frame is short")
        .to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// HEADERS of a CONNECT.
pub fn connect(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, CONNECT)
}

/// HEADERS of a 200.
pub fn ok(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &[0x88])
}

/// RST_STREAM(CANCEL).
pub fn cancel(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())
}

/// GOAWAY.
pub fn goaway(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
}

/// A frame that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// A peer that only does what the test says.
#[derive(Debug)]
pub struct Peer<S>(S);

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    /// A server: the client's preface is read, our SETTINGS are sent.
    pub async fn server(mut stream: S) -> Self {
        let mut preface = [0; PREFACE.len()];
        stream.read_exact(&mut preface).await.expect("a client begins");
        assert_eq!(preface, PREFACE);
        let mut peer = Self(stream);
        peer.send(&frame(SETTINGS, 0, 0, &[])).await;
        peer
    }

    /// A client: our preface and SETTINGS are sent.
    pub async fn client(stream: S) -> Self {
        Self::try_client(stream).await.expect("the connection is open")
    }

    /// As [`Self::client`], where the other side may have had enough before.
    pub async fn try_client(stream: S) -> io::Result<Self> {
        let mut peer = Self(stream);
        peer.try_send(PREFACE).await?;
        peer.try_send(&frame(SETTINGS, 0, 0, &[])).await?;
        Ok(peer)
    }

    /// Sends bytes.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).await.expect("the connection is open");
    }

    /// Sends what the other side may no longer want to hear.
    pub async fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await?;
        self.0.flush().await
    }

    /// The next frame, or that there is none any more.
    pub async fn read(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).await?;
        Ok(Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
            payload,
        })
    }

    /// The next frame that is neither SETTINGS nor WINDOW_UPDATE.
    pub async fn next(&mut self) -> Frame {
        loop {
            let frame = self.read().await.expect("the connection is open");
            if frame.kind != SETTINGS && frame.kind != WINDOW_UPDATE {
                return frame;
            }
        }
    }

    /// The next frame of `kind`.
    pub async fn next_of(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.read().await.expect("the connection is open");
            if frame.kind == kind {
                return frame;
            }
        }
    }
}

/// Carries `length` bytes, written `write` at a time, from one end of our framing to the other without a socket; says
/// in how many batches.
#[must_use]
pub fn through_memory(write: usize, length: usize) -> usize {
    super::own::fuzz::through_memory(write, length)
}

/// The block of a CONNECT's head.
///
/// # Panics
/// When the request has no authority that could be one.
#[must_use]
pub fn encode(request: &super::ConnectRequest) -> Vec<u8> {
    super::own::fuzz::encode(request)
}

/// The request that a block says, decoded as the first of its connection.
///
/// # Panics
/// When it is no CONNECT's.
#[must_use]
pub fn decode(block: &[u8]) -> super::ConnectRequest {
    super::own::fuzz::decode(block)
}
