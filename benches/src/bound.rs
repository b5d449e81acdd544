//! The least that two hops of sealed records can cost: blocking threads, nothing copied, no HTTP/2, no handshake.
//!
//! ```text
//!   read into slots ─▶ seal where it lies ─▶ one write ══ one read ─▶ open where it lies ─▶ one vectored write
//! ```

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::ops::Range;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use crate::{Path, sockets};

const HEADER: usize = 5;
const TAG: usize = 16;
const PLAINTEXT: usize = 1 << 14;
const RECORD: usize = HEADER + PLAINTEXT + 1 + TAG;

/// Records that are moved at once.
const RECORDS: usize = 16;

/// A key that both ends know, and how often it was used.
struct Key {
    cipher: LessSafeKey,
    records: u64,
}

impl Key {
    fn new() -> Self {
        let key = UnboundKey::new(&AES_128_GCM, &[7; 16]).expect("a key has this length");
        Self {
            cipher: LessSafeKey::new(key),
            records: 0,
        }
    }

    fn nonce(&mut self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.records.to_be_bytes());
        self.records += 1;
        Nonce::assume_unique_for_key(nonce)
    }

    /// Seals what lies behind the room for a header.
    fn seal(&mut self, record: &mut [u8], length: usize) -> usize {
        let sealed = u16::try_from(length + 1 + TAG)
            .expect("records are short")
            .to_be_bytes();
        let header = [23, 3, 3, sealed[0], sealed[1]];
        record[..HEADER].copy_from_slice(&header);
        record[HEADER + length] = 23;
        let (body, tag) = record[HEADER..].split_at_mut(length + 1);
        let nonce = self.nonce();
        let made = self
            .cipher
            .seal_in_place_separate_tag(nonce, Aad::from(header), body)
            .expect("it can be sealed");
        tag[..TAG].copy_from_slice(made.as_ref());
        HEADER + length + 1 + TAG
    }

    fn open(&mut self, record: &mut [u8]) -> Range<usize> {
        let (header, body) = record.split_first_chunk_mut::<HEADER>().expect("it is whole");
        let nonce = self.nonce();
        let opened = self
            .cipher
            .open_in_place(nonce, Aad::from(*header), body)
            .expect("it was sealed by us");
        HEADER..HEADER + opened.len() - 1
    }
}

/// Two applications with two hops of records between them.
pub async fn bound() -> Path {
    let ((client, captured), (near, far), (delivered, server)) =
        (sockets().await, sockets().await, sockets().await);
    let blocking = |socket: tokio::net::TcpStream| {
        let socket = socket.into_std().expect("it is idle");
        socket.set_nonblocking(false).expect("a fresh socket");
        socket
    };
    let [captured, near, far, delivered] = [captured, near, far, delivered].map(blocking);
    for (application, wire) in [(captured, near), (delivered, far)] {
        let (from, to) = (application.try_clone(), wire.try_clone());
        let (from, to) = (
            from.expect("there are descriptors"),
            to.expect("there are descriptors"),
        );
        std::thread::spawn(move || sealing(from, to));
        std::thread::spawn(move || opening(wire, application));
    }
    Path { client, server }
}

/// Two applications with a relay between them that is nothing but blocking threads and `splice`: the least that a plain
/// hop can cost.
pub async fn spliced() -> Path {
    let ((client, captured), (delivered, server)) = (sockets().await, sockets().await);
    let blocking = |socket: tokio::net::TcpStream| {
        let socket = socket.into_std().expect("it is idle");
        socket.set_nonblocking(false).expect("a fresh socket");
        socket
    };
    let (captured, delivered) = (blocking(captured), blocking(delivered));
    for (from, to) in [(&captured, &delivered), (&delivered, &captured)] {
        let (from, to) = (from.try_clone(), to.try_clone());
        let (from, to) = (
            from.expect("there are descriptors"),
            to.expect("there are descriptors"),
        );
        std::thread::spawn(move || splicing(&from, &to));
    }
    Path { client, server }
}

fn splicing(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let (out, into) = pipe_with(PipeFlags::CLOEXEC)?;
    let room = fcntl_setpipe_size(&into, 1 << 20).unwrap_or(1 << 16);
    loop {
        let mut held = splice(from, None, &into, None, room, SpliceFlags::MOVE)?;
        if held == 0 {
            return to.shutdown(std::net::Shutdown::Write);
        }
        while held > 0 {
            held -= splice(&out, None, to, None, held, SpliceFlags::MOVE)?;
        }
    }
}

fn sealing(mut from: TcpStream, mut to: TcpStream) -> io::Result<()> {
    let (mut key, mut buffer) = (Key::new(), vec![0; RECORDS * RECORD]);
    loop {
        let mut slots: Vec<_> = buffer
            .chunks_mut(RECORD)
            .map(|record| IoSliceMut::new(&mut record[HEADER..HEADER + PLAINTEXT]))
            .collect();
        let mut left = from.read_vectored(&mut slots)?;
        if left == 0 {
            return to.shutdown(std::net::Shutdown::Write);
        }
        let mut length = 0;
        for record in buffer.chunks_mut(RECORD) {
            let part = left.min(PLAINTEXT);
            if part == 0 {
                break;
            }
            length += key.seal(record, part);
            left -= part;
        }
        to.write_all(&buffer[..length])?;
    }
}

fn opening(mut from: TcpStream, mut to: TcpStream) -> io::Result<()> {
    let (mut key, mut buffer, mut filled) = (Key::new(), vec![0; RECORDS * RECORD], 0);
    loop {
        let read = from.read(&mut buffer[filled..])?;
        if read == 0 {
            return to.shutdown(std::net::Shutdown::Write);
        }
        filled += read;
        let (mut at, mut found) = (0, Vec::with_capacity(RECORDS));
        while let Some(header) = buffer[at..filled].first_chunk::<HEADER>() {
            let length = HEADER + usize::from(u16::from_be_bytes([header[3], header[4]]));
            if filled - at < length {
                break;
            }
            let data = key.open(&mut buffer[at..at + length]);
            found.push(at + data.start..at + data.end);
            at += length;
        }
        let mut slices: Vec<_> = found
            .into_iter()
            .map(|range| IoSlice::new(&buffer[range]))
            .collect();
        let mut slices = &mut slices[..];
        while !slices.is_empty() {
            let written = to.write_vectored(slices)?;
            IoSlice::advance_slices(&mut slices, written);
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
    }
}
