//! HPACK (RFC 7541): full decoding with a bounded table; encoding that leaves the peer's table empty.

mod huffman;
mod table;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use table::{STATIC, STATUS_OK};

/// The table that peers may fill, as every connection begins; we never announce another size.
const TABLE_MAX: usize = 4096;

/// What each entry counts beside its bytes.
const ENTRY_OVERHEAD: usize = 32;

/// Numbers beyond this mean nothing in a block of bounded length.
const NUMBER_MAX: usize = 1 << 24;

/// Why a block cannot be decoded; the connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the header block cannot be decoded: {0}")]
pub(super) struct Malformed(&'static str);

/// A header that the peer put into its table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    name: Box<[u8]>,
    value: Box<[u8]>,
}

impl Entry {
    fn size(&self) -> usize {
        self.name.len() + self.value.len() + ENTRY_OVERHEAD
    }
}

/// Decodes the blocks of one connection, in order. Plain data.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Decoder {
    /// The newest first.
    entries: VecDeque<Entry>,
    size: usize,
    /// As the peer last chose it.
    size_max: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            size: 0,
            size_max: TABLE_MAX,
        }
    }
}

impl Decoder {
    /// Calls `put` with each header until their sizes pass `list_max`; says whether they did not. All of the block is
    /// decoded in any case, as the next one builds on it.
    pub(super) fn decode(
        &mut self,
        mut block: &[u8],
        list_max: usize,
        mut put: impl FnMut(&[u8], &[u8]),
    ) -> Result<bool, Malformed> {
        let (mut total, mut begun) = (0usize, false);
        let mut count = |name: &[u8], value: &[u8]| {
            total = total.saturating_add(name.len() + value.len() + ENTRY_OVERHEAD);
            if total <= list_max {
                put(name, value);
            }
        };
        while let Some(first) = block.first().copied() {
            match first {
                0x80.. => {
                    let index = number(&mut block, 7)?;
                    let (name, value) = self.get(index)?;
                    count(name, value);
                }
                0x40.. => {
                    let (name, value) = self.literal(&mut block, 6)?;
                    count(&name, &value);
                    self.insert(Entry {
                        name: name.into(),
                        value: value.into(),
                    });
                }
                0x20.. => {
                    if begun {
                        return Err(Malformed("a table size inside of a block"));
                    }
                    let size = number(&mut block, 5)?;
                    if size > TABLE_MAX {
                        return Err(Malformed("a table larger than allowed"));
                    }
                    self.size_max = size;
                    self.evict(0);
                    continue;
                }
                _ => {
                    let (name, value) = self.literal(&mut block, 4)?;
                    count(&name, &value);
                }
            }
            begun = true;
        }
        Ok(total <= list_max)
    }

    fn get(&self, index: usize) -> Result<(&[u8], &[u8]), Malformed> {
        let index = index.checked_sub(1).ok_or(Malformed("index 0"))?;
        if let Some((name, value)) = STATIC.get(index) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let entry = self.entries.get(index - STATIC.len());
        let entry = entry.ok_or(Malformed("an index beyond the table"))?;
        Ok((&entry.name, &entry.value))
    }

    fn literal(&self, block: &mut &[u8], prefix: u8) -> Result<(Vec<u8>, Vec<u8>), Malformed> {
        let name = match number(block, prefix)? {
            0 => string(block)?,
            index => self.get(index)?.0.to_vec(),
        };
        Ok((name, string(block)?))
    }

    fn insert(&mut self, entry: Entry) {
        let size = entry.size();
        self.evict(size);
        // One that does not fit leaves the table empty, and is no error.
        if size <= self.size_max {
            self.size += size;
            self.entries.push_front(entry);
        }
    }

    /// Makes room for `size` bytes.
    fn evict(&mut self, size: usize) {
        while self.size + size > self.size_max {
            let Some(oldest) = self.entries.pop_back() else {
                return;
            };
            self.size -= oldest.size();
        }
    }
}

/// A number whose first byte keeps its lowest `prefix` bits for it.
fn number(block: &mut &[u8], prefix: u8) -> Result<usize, Malformed> {
    const SHORT: Malformed = Malformed("it ends inside of a number");
    let (first, mut rest) = block.split_first().ok_or(SHORT)?;
    let mask = (1usize << prefix) - 1;
    let mut value = usize::from(*first) & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let (byte, after) = rest.split_first().ok_or(SHORT)?;
            rest = after;
            value += usize::from(byte & 0x7f) << shift;
            shift += 7;
            if value > NUMBER_MAX || shift > 28 {
                return Err(Malformed("a number too large"));
            }
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *block = rest;
    Ok(value)
}

fn string(block: &mut &[u8]) -> Result<Vec<u8>, Malformed> {
    let coded = block.first().is_some_and(|first| first & 0x80 != 0);
    let length = number(block, 7)?;
    let (bytes, rest) = block
        .split_at_checked(length)
        .ok_or(Malformed("it ends inside of a string"))?;
    *block = rest;
    if coded {
        huffman::decode(bytes).ok_or(Malformed("a string that is no Huffman code"))
    } else {
        Ok(bytes.to_vec())
    }
}

/// A header block in the making. Nothing is put into the peer's table, so blocks do not depend on each other.
#[derive(Debug)]
pub(super) struct Encoder(Vec<u8>);

impl Encoder {
    /// An empty block. It says that the table is not used, which a peer that shrinks its table has to be told.
    pub(super) fn new() -> Self {
        Self(vec![0x20])
    }

    /// `:status: 200`.
    pub(super) fn ok(&mut self) {
        self.0.push(0x80 | STATUS_OK);
    }

    /// A header by literal value; its name by index if it has one.
    pub(super) fn header(&mut self, name: &str, value: &[u8]) {
        match STATIC.iter().position(|(known, _)| *known == name) {
            Some(index) => put_number(&mut self.0, 0, 4, index + 1),
            None => {
                self.0.push(0);
                put_string(&mut self.0, name.as_bytes());
            }
        }
        put_string(&mut self.0, value);
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }
}

fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, 0, 7, bytes.len());
    out.extend_from_slice(bytes);
}

fn put_number(out: &mut Vec<u8>, flags: u8, prefix: u8, value: usize) {
    let mask = (1usize << prefix) - 1;
    let low = |value: usize| u8::try_from(value & 0xff).unwrap_or(0);
    if value < mask {
        out.push(flags | low(value));
        return;
    }
    out.push(flags | low(mask));
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(low(rest & 0x7f) | 0x80);
        rest >>= 7;
    }
    out.push(low(rest));
}

#[cfg(test)]
mod tests;
