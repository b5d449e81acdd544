//! A client of delta ADS that costs next to nothing, so that thousands of them fit beside a control plane on a small
//! machine.
//!
//! It speaks gRPC over TLS as proxies do, and reads no more of a response than it is told to: of a whole table it
//! counts the bytes and answers the nonce, which stands in front and is not compressed.

mod wire;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::{WireType, decode_key, decode_varint};
use tulle_identity::channel::{authenticated, connection};
use tulle_identity::{AuthenticatedChannel, ChannelConfig, RootSource, TokenSource};
use tulle_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tulle_xds_client::NodeInfo;
use zstd::bulk::Decompressor;
use zstd::zstd_safe;

use wire::{Window, Wire};

/// Where delta ADS is.
const METHOD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Length and flag in front of a gRPC message.
const PREFIX: usize = 5;
/// What is kept of a message that is only counted: enough for the texts in front.
const HEAD_KEPT: usize = 512;
/// Bytes of a frame of zstd before its first block, as our server writes them: magic, descriptor, length.
const ZSTD_HEADER: usize = 9;

/// How a node connects that has this token.
#[must_use]
pub fn node_config(address: &str, root: &Path, token: &str) -> ChannelConfig {
    ChannelConfig {
        address: address.parse().unwrap(),
        root: RootSource::File(root.to_owned()),
        server_name: None,
        token: TokenSource::Literal(token.to_owned()),
        headers: Vec::new(),
        cluster_id: None,
        mark: None,
    }
}

/// A channel with a node's token, as the node's own proxy would make it.
#[must_use]
pub fn channel(address: &str, root: &Path, token: &str) -> AuthenticatedChannel {
    authenticated(&node_config(address, root, token)).unwrap()
}

/// Who a node's proxy says it is.
#[must_use]
pub fn node_info(node: &str) -> NodeInfo {
    NodeInfo {
        name: format!("ztunnel-{node}"),
        namespace: "istio-system".to_owned(),
        node_name: node.to_owned(),
        ..NodeInfo::default()
    }
}

/// The first message of a node's proxy that asks for all of a type.
#[must_use]
pub fn first(node: &str, type_url: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(node_info(node).to_node()),
        type_url: type_url.to_owned(),
        ..DeltaDiscoveryRequest::default()
    }
}

/// How a client takes responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taking {
    /// Compressed, as our proxies do.
    Zstd,
    /// As they are, as Istio's ztunnel does.
    Raw,
    /// As they are, and 64 KiB in flight: one that does not read holds a whole table up.
    Little,
}

/// One stream.
#[derive(Debug)]
pub struct Stream {
    wire: Wire,
    waiting: VecDeque<Bytes>,
    bytes: u64,
}

/// One response, as much of it as was kept.
#[derive(Debug, Clone)]
pub struct Raw {
    compressed: bool,
    kept: Bytes,
    /// Bytes of the whole message as it travelled.
    pub length: usize,
}

/// What stands in front of every response.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// The type that it is about.
    pub type_url: String,
    /// What the answer names.
    pub nonce: String,
}

impl Stream {
    /// Opens a stream that takes zstd, as proxies do, and sends its first message.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses; says how. The server's log says why.
    pub async fn open(config: &ChannelConfig, first: &DeltaDiscoveryRequest) -> Result<Self, String> {
        Self::open_as(config, first, Taking::Zstd).await
    }

    /// As [`Self::open`], for a client that takes responses in another way.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_as(
        config: &ChannelConfig,
        first: &DeltaDiscoveryRequest,
        taking: Taking,
    ) -> Result<Self, String> {
        let TokenSource::Literal(token) = &config.token else {
            return Err("the client has no token".to_owned());
        };
        let connection = connection(config).await.map_err(|error| error.to_string())?;
        let authority = config
            .address
            .authority()
            .map_or("", |authority| authority.as_str());
        let headers = [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", METHOD),
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("authorization", &format!("Bearer {token}")),
            ("grpc-accept-encoding", "zstd"),
        ];
        let headers = match taking {
            Taking::Zstd => &headers[..],
            Taking::Raw | Taking::Little => &headers[..headers.len() - 1],
        };
        let window = match taking {
            Taking::Zstd | Taking::Raw => Window::Wide,
            Taking::Little => Window::Least,
        };
        Ok(Self {
            wire: Wire::open(connection, headers, &framed(first), window).await?,
            waiting: VecDeque::new(),
            bytes: 0,
        })
    }

    /// Bytes of all responses so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next response; of one with more than `largest` bytes only the beginning is kept.
    ///
    /// # Errors
    /// When the stream ends; says how.
    pub async fn next(&mut self, largest: usize) -> Result<Raw, String> {
        let prefix = self.take(PREFIX, PREFIX).await?;
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        let keep = if length <= largest {
            length
        } else {
            length.min(HEAD_KEPT)
        };
        let kept = self.take(length, keep).await?;
        self.bytes += (PREFIX + length) as u64;
        Ok(Raw {
            compressed: prefix[0] == 1,
            kept,
            length: PREFIX + length,
        })
    }

    /// Accepts a response.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn accept(&mut self, head: Head) -> Result<(), String> {
        self.send(&DeltaDiscoveryRequest {
            type_url: head.type_url,
            response_nonce: head.nonce,
            ..DeltaDiscoveryRequest::default()
        })
        .await
    }

    /// Sends a message.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn send(&mut self, message: &DeltaDiscoveryRequest) -> Result<(), String> {
        self.wire.send(&framed(message)).await
    }

    /// Takes so many bytes off the stream and gives the first of them.
    async fn take(&mut self, count: usize, keep: usize) -> Result<Bytes, String> {
        let mut kept = BytesMut::with_capacity(keep);
        let mut left = count;
        while left > 0 {
            let Some(front) = self.waiting.front_mut() else {
                self.waiting.push_back(self.wire.data().await?);
                continue;
            };
            let part = front.split_to(left.min(front.len()));
            if front.is_empty() {
                self.waiting.pop_front();
            }
            left -= part.len();
            let room = keep - kept.len();
            kept.put_slice(&part[..room.min(part.len())]);
        }
        Ok(kept.freeze())
    }
}

fn framed(message: &DeltaDiscoveryRequest) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX + message.encoded_len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).expect("requests are short"));
    message.encode(&mut bytes).expect("the buffer grows");
    bytes.freeze()
}

impl Raw {
    /// What stands in front; empty when this is not how our server writes.
    #[must_use]
    pub fn head(&self) -> Head {
        if self.compressed {
            // The last block of its frame, as it is: its length and kind, then the bytes themselves.
            let block = self.kept.get(ZSTD_HEADER..).unwrap_or_default();
            let head = block.split_at_checked(3).and_then(|(length, rest)| {
                let length = u32::from_le_bytes([length[0], length[1], length[2], 0]);
                let as_it_is = length & 7 == 1;
                rest.get(..length as usize >> 3).filter(|_| as_it_is)
            });
            read_head(head.unwrap_or_default())
        } else {
            read_head(&self.kept)
        }
    }

    /// The whole response, if all of it was kept.
    #[must_use]
    pub fn decode(&self) -> DeltaDiscoveryResponse {
        if !self.compressed {
            return DeltaDiscoveryResponse::decode(self.kept.clone()).expect("a response is sent");
        }
        let inflated = inflated(&self.kept);
        DeltaDiscoveryResponse::decode(&*inflated).expect("a response is sent")
    }

    /// The aliases of all its resources, if all of it was kept; nothing else is read.
    #[must_use]
    pub fn aliases(&self) -> Vec<String> {
        let whole: Bytes = match self.compressed {
            true => inflated(&self.kept).into(),
            false => self.kept.clone(),
        };
        let resources = texts(&whole, 2).flat_map(|resource| texts(resource, 4));
        resources
            .map(|alias| String::from_utf8_lossy(alias).into_owned())
            .collect()
    }
}

/// The frames of zstd in a message, one after the other.
fn inflated(mut packed: &[u8]) -> Vec<u8> {
    thread_local! {
        /// Kept, as making one costs more than what a short message takes.
        static INFLATE: RefCell<Decompressor<'static>> = RefCell::new(Decompressor::new().unwrap());
    }
    let mut all = Vec::new();
    INFLATE.with_borrow_mut(|inflate| {
        while !packed.is_empty() {
            let frame = zstd_safe::find_frame_compressed_size(packed).expect("it is compressed well");
            let length = zstd_safe::get_frame_content_size(packed).ok().flatten();
            let length = usize::try_from(length.expect("its length stands in front")).expect("it fits");
            let (one, rest) = packed.split_at(frame);
            all.extend(inflate.decompress(one, length).expect("it is compressed well"));
            packed = rest;
        }
    });
    all
}

/// The values of a length-delimited field of a message.
fn texts(mut message: &[u8], wanted: u32) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        loop {
            let (field, kind) = decode_key(&mut message).ok()?;
            let value = decode_varint(&mut message).ok()?;
            if kind == WireType::LengthDelimited {
                let (value, rest) = message.split_at_checked(usize::try_from(value).ok()?)?;
                message = rest;
                if field == wanted {
                    return Some(value);
                }
            }
        }
    })
}

/// Reads the texts up to the first field that is none of them.
fn read_head(mut bytes: &[u8]) -> Head {
    let mut head = Head::default();
    while let Ok((field, _)) = decode_key(&mut bytes) {
        let length = decode_varint(&mut bytes)
            .map_or(usize::MAX, |length| usize::try_from(length).unwrap_or(usize::MAX));
        if length > bytes.len() {
            break;
        }
        let text = || String::from_utf8_lossy(&bytes[..length]).into_owned();
        match field {
            1 => {}
            4 => head.type_url = text(),
            5 => head.nonce = text(),
            _ => break,
        }
        bytes.advance(length);
    }
    head
}

/// Names and versions that a client was told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Version by name.
    pub held: BTreeMap<String, String>,
}

impl Table {
    /// Takes a response.
    pub fn take(&mut self, response: &DeltaDiscoveryResponse) {
        for name in &response.removed_resources {
            self.held.remove(name);
        }
        for resource in &response.resources {
            self.held.insert(resource.name.clone(), resource.version.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response() -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            system_version_info: "7".to_owned(),
            type_url: "type".to_owned(),
            nonce: "e.1.2".to_owned(),
            removed_resources: vec!["gone".to_owned()],
            ..DeltaDiscoveryResponse::default()
        }
    }

    #[test]
    fn the_head_is_read_without_the_rest() {
        // The order in which our server writes: the texts first.
        let mut bytes = vec![10, 1, b'7', 34, 4];
        bytes.extend(b"type");
        bytes.extend([42, 5]);
        bytes.extend(b"e.1.2");
        bytes.extend([50, 100]);
        let head = Head {
            type_url: "type".to_owned(),
            nonce: "e.1.2".to_owned(),
        };
        assert_eq!(read_head(&bytes), head);
        let mut packed = vec![0; ZSTD_HEADER];
        let length = u32::try_from(bytes.len()).unwrap();
        packed.extend(&(length << 3 | 1).to_le_bytes()[..3]);
        packed.extend(&bytes);
        let raw = Raw {
            compressed: true,
            length: packed.len(),
            kept: packed.into(),
        };
        assert_eq!(raw.head(), head);
    }

    #[test]
    fn a_response_is_decoded_and_a_table_follows_it() {
        let bytes: Bytes = response().encode_to_vec().into();
        let raw = Raw {
            compressed: false,
            length: bytes.len(),
            kept: bytes,
        };
        let mut table = Table::default();
        table.held.insert("gone".to_owned(), "1".to_owned());
        table.take(&raw.decode());
        assert_eq!(table, Table::default());
    }
}
