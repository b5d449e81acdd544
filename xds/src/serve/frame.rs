//! Responses as bytes: what many streams are sent is encoded once for all of them, and compressed once for those that
//! take it.
//!
//! ```text
//! raw:   prefix | type URL, cut, nonce         | resources and removals
//! gzip:  prefix | gzip header | stored block   | deflated blocks         | checksum, length
//!                 of this stream                 shared
//! zstd:  prefix | frame of one raw block       | frame
//!                 of this stream                 shared
//! ```

use std::collections::VecDeque;
use std::io::Write as _;
use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use flate2::write::DeflateEncoder;
use flate2::{Compression, Crc};
use parking_lot::Mutex;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use tulle_model::Str;

use crate::serve::session::Response;
use crate::snapshot::Slot;

/// Responses below this many bytes are sent as they are: compressing them saves less than it costs.
pub const COMPRESS_MIN: usize = 1024;
/// Payloads remembered, so that streams at the same place share one.
pub const SHARED_MAX: usize = 64;
/// Shared bytes up to this many are copied behind what is the stream's own.
const COPIED_MAX: usize = 4096;
/// Header of a gzip member: magic, deflate, no flags, no time, unknown system.
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// Begins a frame of zstd: magic, then that it is one segment whose length of four bytes follows, without a checksum.
const ZSTD_HEADER: [u8; 5] = [0x28, 0xb5, 0x2f, 0xfd, 0xa0];
/// The quickest level that is not a compromise.
const ZSTD_LEVEL: i32 = 1;
/// Longest text of one field of the head; URLs and nonces are far below.
const HEAD_TEXT_MAX: usize = 16 << 10;

/// Field numbers of a delta discovery response.
mod response_field {
    pub(super) const SYSTEM_VERSION_INFO: u32 = 1;
    pub(super) const RESOURCES: u32 = 2;
    pub(super) const TYPE_URL: u32 = 4;
    pub(super) const NONCE: u32 = 5;
    pub(super) const REMOVED_RESOURCES: u32 = 6;
}

/// Field numbers of one resource in it.
mod resource_field {
    pub(super) const VERSION: u32 = 1;
    pub(super) const RESOURCE: u32 = 2;
    pub(super) const NAME: u32 = 3;
    pub(super) const ALIASES: u32 = 4;
}

/// Field numbers of `Any`.
mod any_field {
    pub(super) const TYPE_URL: u32 = 1;
    pub(super) const VALUE: u32 = 2;
}

/// How a message is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// As it is.
    Raw,
    /// As a gzip member.
    Gzip,
    /// As two frames of zstd.
    Zstd,
}

impl Encoding {
    /// The word for it in headers and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "identity",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// The best of those whose words stand in a list: less to send, then nothing to do.
    #[must_use]
    pub fn best<'a>(words: impl Iterator<Item = &'a str>) -> Self {
        words.fold(Self::Raw, |best, word| match (word.trim(), best) {
            ("zstd", _) => Self::Zstd,
            ("gzip", Self::Raw) => Self::Gzip,
            _ => best,
        })
    }
}

/// The part of a response that does not depend on the stream. Each form is made when somebody takes it and kept from then
/// on; bytes that nobody takes as they are do not stay beside their compressed form.
#[derive(Debug)]
pub struct Payload {
    type_url: Str,
    resources: Arc<[Arc<Slot>]>,
    removed: Vec<Str>,
    /// Bytes before compression.
    length: usize,
    raw: OnceLock<Bytes>,
    gzip: OnceLock<Packed>,
    zstd: OnceLock<Bytes>,
}

#[derive(Debug)]
struct Packed {
    deflated: Bytes,
    checksum: Crc,
}

/// One gRPC message, in parts that are written one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The parts; the first begins with the length of all.
    pub parts: VecDeque<Bytes>,
    /// How it is written.
    pub encoding: Encoding,
}

impl Message {
    /// Bytes of all parts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    /// Whether nothing is left to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }
}

impl Payload {
    /// Resources and removals of one type.
    #[must_use]
    pub fn encode(type_url: &str, resources: &Arc<[Arc<Slot>]>, removed: &[Str]) -> Self {
        let bytes: usize = resources.iter().map(|slot| entry_len(slot, type_url)).sum();
        let names: usize = removed.iter().map(|name| text_len(name)).sum();
        Self {
            type_url: type_url.into(),
            resources: resources.clone(),
            removed: removed.to_vec(),
            length: bytes + names,
            raw: OnceLock::new(),
            gzip: OnceLock::new(),
            zstd: OnceLock::new(),
        }
    }

    /// Bytes before compression.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it holds neither a resource nor a removal.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Everything as it is, kept for whoever takes it so.
    fn raw(&self) -> &Bytes {
        self.raw.get_or_init(|| self.written())
    }

    /// Everything as it is, to be compressed.
    fn plain(&self) -> Bytes {
        self.raw.get().cloned().unwrap_or_else(|| self.written())
    }

    fn written(&self) -> Bytes {
        let mut raw = BytesMut::with_capacity(self.length);
        for slot in self.resources.iter() {
            put_resource(&mut raw, slot, &self.type_url);
        }
        for name in &self.removed {
            put_text(&mut raw, response_field::REMOVED_RESOURCES, name);
        }
        raw.freeze()
    }

    /// Bytes as they are written, without what is the stream's own. Compression happens at the first call for all that follow.
    #[must_use]
    pub fn packed_len(&self, encoding: Encoding) -> usize {
        match encoding {
            Encoding::Raw => self.length,
            Encoding::Gzip => self.gzip().deflated.len(),
            Encoding::Zstd => self.zstd().len(),
        }
    }

    /// The response of one stream.
    #[must_use]
    pub fn message(&self, type_url: &str, cut: u64, nonce: &str, best: Encoding) -> Message {
        let mut head = BytesMut::with_capacity(64 + type_url.len() + nonce.len());
        put_text(&mut head, response_field::SYSTEM_VERSION_INFO, &cut.to_string());
        put_text(&mut head, response_field::TYPE_URL, bounded(type_url));
        put_text(&mut head, response_field::NONCE, bounded(nonce));
        let encoding = match self.length >= COMPRESS_MIN {
            true => best,
            false => Encoding::Raw,
        };
        match encoding {
            Encoding::Gzip => self.gzip().message(&head),
            Encoding::Zstd => zstd_message(&head, self.zstd().clone()),
            Encoding::Raw => {
                let mut first = prefix(false, head.len() + self.length);
                first.put_slice(&head);
                Message {
                    parts: joined(first, self.raw()),
                    encoding: Encoding::Raw,
                }
            }
        }
    }

    fn zstd(&self) -> &Bytes {
        self.zstd.get_or_init(|| {
            let packed = zstd::bulk::compress(&self.plain(), ZSTD_LEVEL);
            let packed = packed.expect("compressing into memory does not fail");
            packed.into_boxed_slice().into()
        })
    }

    fn gzip(&self) -> &Packed {
        self.gzip.get_or_init(|| {
            let raw = self.plain();
            let mut encoder = DeflateEncoder::new(Vec::with_capacity(raw.len() / 4), Compression::fast());
            let deflated = encoder.write_all(&raw).and_then(|()| encoder.finish());
            let mut checksum = Crc::new();
            checksum.update(&raw);
            let deflated = deflated.expect("writing to memory does not fail");
            Packed {
                deflated: deflated.into_boxed_slice().into(),
                checksum,
            }
        })
    }
}

impl Packed {
    /// The stream's own part goes in front as a block that is not compressed; checksums of parts can be combined.
    fn message(&self, head: &[u8]) -> Message {
        let stored = u16::try_from(head.len()).expect("the head's texts are bounded");
        let length = GZIP_HEADER.len() + 5 + head.len() + self.deflated.len() + 8;
        let mut first = prefix(true, length);
        first.put_slice(&GZIP_HEADER);
        first.put_u8(0);
        first.put_u16_le(stored);
        first.put_u16_le(!stored);
        first.put_slice(head);
        let mut checksum = Crc::new();
        checksum.update(head);
        checksum.combine(&self.checksum);
        let mut last = BytesMut::with_capacity(8);
        last.put_u32_le(checksum.sum());
        last.put_u32_le(checksum.amount());
        Message {
            parts: [first.freeze(), self.deflated.clone(), last.freeze()].into(),
            encoding: Encoding::Gzip,
        }
    }
}

/// The stream's own part is a frame by itself, of one block that is not compressed; frames follow each other.
fn zstd_message(head: &[u8], packed: Bytes) -> Message {
    let stored = u32::try_from(head.len()).expect("the head's texts are bounded");
    let mut first = prefix(true, ZSTD_HEADER.len() + 4 + 3 + head.len() + packed.len());
    first.put_slice(&ZSTD_HEADER);
    first.put_u32_le(stored);
    // The last block of its frame, as it is, and its length.
    first.put_uint_le(u64::from(stored) << 3 | 1, 3);
    first.put_slice(head);
    Message {
        parts: joined(first, &packed),
        encoding: Encoding::Zstd,
    }
}

/// What is the stream's own and what is shared. Each part becomes a frame of its own, which costs more than to copy
/// what is short.
fn joined(mut first: BytesMut, shared: &Bytes) -> VecDeque<Bytes> {
    if shared.len() <= COPIED_MAX {
        first.put_slice(shared);
        return [first.freeze()].into();
    }
    [first.freeze(), shared.clone()].into()
}

fn prefix(compressed: bool, length: usize) -> BytesMut {
    let mut first = BytesMut::with_capacity(64 + length.min(512 + COPIED_MAX));
    first.put_u8(u8::from(compressed));
    first.put_u32(u32::try_from(length).expect("a resource is read from a file far below 4 GiB"));
    first
}

/// A text of the head as far as it fits; ours all do.
fn bounded(text: &str) -> &str {
    text.get(..HEAD_TEXT_MAX.min(text.len())).unwrap_or_default()
}

fn text_len(text: &str) -> usize {
    1 + encoded_len_varint(text.len() as u64) + text.len()
}

fn put_text(buffer: &mut BytesMut, field: u32, text: &str) {
    put_bytes(buffer, field, text.as_bytes());
}

fn put_bytes(buffer: &mut BytesMut, field: u32, bytes: &[u8]) {
    encode_key(field, WireType::LengthDelimited, buffer);
    encode_varint(bytes.len() as u64, buffer);
    buffer.put_slice(bytes);
}

fn any_len(slot: &Slot, type_url: &str) -> usize {
    let value = slot.body.len();
    text_len(type_url) + 1 + encoded_len_varint(value as u64) + value
}

fn resource_len(slot: &Slot, type_url: &str) -> usize {
    let any = any_len(slot, type_url);
    let aliases: usize = slot.aliases.iter().map(|alias| text_len(alias)).sum();
    text_len(&slot.version) + 1 + encoded_len_varint(any as u64) + any + text_len(&slot.name) + aliases
}

fn entry_len(slot: &Slot, type_url: &str) -> usize {
    let resource = resource_len(slot, type_url);
    1 + encoded_len_varint(resource as u64) + resource
}

fn put_resource(buffer: &mut BytesMut, slot: &Slot, type_url: &str) {
    encode_key(response_field::RESOURCES, WireType::LengthDelimited, buffer);
    encode_varint(resource_len(slot, type_url) as u64, buffer);
    put_text(buffer, resource_field::VERSION, &slot.version);
    encode_key(resource_field::RESOURCE, WireType::LengthDelimited, buffer);
    encode_varint(any_len(slot, type_url) as u64, buffer);
    put_text(buffer, any_field::TYPE_URL, type_url);
    put_bytes(buffer, any_field::VALUE, &slot.body);
    put_text(buffer, resource_field::NAME, &slot.name);
    for alias in &slot.aliases {
        put_text(buffer, resource_field::ALIASES, alias);
    }
}

/// The payloads made last, for streams that are sent the same.
#[derive(Debug, Default)]
pub struct Shared {
    recent: Mutex<VecDeque<Arc<Payload>>>,
}

impl Payload {
    fn is_of(&self, response: &Response) -> bool {
        let mut pairs = self.resources.iter().zip(response.resources.iter());
        self.resources.len() == response.resources.len()
            && self.type_url == response.type_url
            && pairs.all(|(one, other)| Arc::ptr_eq(one, other))
            && self.removed == response.removed
    }
}

impl Shared {
    /// The payload of a response, which is that of another stream if it says the same.
    #[must_use]
    pub fn payload(&self, response: &Response) -> Arc<Payload> {
        if let Some(chunk) = &response.chunk {
            return chunk.payload(&response.type_url);
        }
        if let Some(step) = &response.step {
            return step.payload(&response.type_url);
        }
        let found = self
            .recent
            .lock()
            .iter()
            .find(|recent| recent.is_of(response))
            .cloned();
        if let Some(found) = found {
            return found;
        }
        let payload = Arc::new(Payload::encode(
            &response.type_url,
            &response.resources,
            &response.removed,
        ));
        let mut all = self.recent.lock();
        all.truncate(SHARED_MAX - 1);
        all.push_front(payload.clone());
        payload
    }
}

#[cfg(test)]
mod tests;
