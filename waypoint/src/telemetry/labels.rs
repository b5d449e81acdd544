//! How requests and streams are told apart in metrics.

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};
use tulle_runtime::metrics::{Label, LabelNames, LabelSet};
use xxhash_rust::xxh3::xxh3_128;

use super::party::{Party, Prefix, ServiceLabels};
use super::series::Labels;

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Spoken {
    /// Requests of HTTP.
    Http,
    /// Calls of gRPC.
    Grpc,
    /// Bytes.
    Tcp,
}

impl Spoken {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

/// The labels of a request or stream.
#[derive(Debug, Clone)]
pub struct TrafficLabels {
    /// Who asked.
    pub source: Arc<Party>,
    /// Who answered.
    pub destination: Arc<Party>,
    /// What was asked for.
    pub service: Arc<ServiceLabels>,
    /// What is spoken.
    pub spoken: Spoken,
    /// Status of HTTP; 0 for a stream of bytes, and for a request that ended without.
    pub code: u16,
    /// Status of gRPC.
    pub grpc: Option<u32>,
    /// How it ended; `-` where nothing is wrong.
    pub flags: &'static str,
    /// Both hops were mutual TLS.
    pub mutual_tls: bool,
}

impl Labels for TrafficLabels {
    fn id(&self) -> u128 {
        let mut bytes = [0u8; 64];
        bytes[..16].copy_from_slice(&self.source.id().to_le_bytes());
        bytes[16..32].copy_from_slice(&self.destination.id().to_le_bytes());
        bytes[32..48].copy_from_slice(&self.service.id().to_le_bytes());
        bytes[48..50].copy_from_slice(&self.code.to_le_bytes());
        bytes[50..54].copy_from_slice(&self.grpc.map_or(u32::MAX, |code| code.min(17)).to_le_bytes());
        bytes[54] = u8::from(self.mutual_tls);
        bytes[55] = match self.spoken {
            Spoken::Http => 0,
            Spoken::Grpc => 1,
            Spoken::Tcp => 2,
        };
        for (byte, letter) in bytes[56..].iter_mut().zip(self.flags.bytes()) {
            *byte = letter;
        }
        xxh3_128(&bytes)
    }

    fn is_configured(&self) -> bool {
        self.source.described && self.destination.described
    }

    fn other(&self) -> Self {
        Self {
            source: Party::other(),
            ..self.clone()
        }
    }
}

impl EncodeLabelSet for TrafficLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        ("reporter", "waypoint").encode(encoder.encode_label())?;
        self.source.encode(Prefix::Source, encoder)?;
        self.service.encode(encoder)?;
        self.destination.encode(Prefix::Destination, encoder)?;
        ("request_protocol", self.spoken.as_str()).encode(encoder.encode_label())?;
        if self.spoken != Spoken::Tcp {
            ("response_code", u64::from(self.code)).encode(encoder.encode_label())?;
            match self.grpc {
                Some(code) => {
                    ("grpc_response_status", u64::from(code.min(17))).encode(encoder.encode_label())?
                }
                None => ("grpc_response_status", "").encode(encoder.encode_label())?,
            }
        }
        ("response_flags", self.flags).encode(encoder.encode_label())?;
        let security = if self.mutual_tls { "mutual_tls" } else { "none" };
        ("connection_security_policy", security).encode(encoder.encode_label())
    }
}

/// Labels as they are written: those of a request, or those of a stream.
#[derive(Debug)]
pub(super) struct Of<'a, const REQUEST: bool>(pub(super) &'a TrafficLabels);

/// Labels of a request.
pub(super) type OfRequest<'a> = Of<'a, true>;

/// Labels of a stream.
pub(super) type OfStream<'a> = Of<'a, false>;

impl<const REQUEST: bool> EncodeLabelSet for Of<'_, REQUEST> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }
}

const REPORTER: &[Label] = &[Label::says("reporter", "`waypoint`")];

const SERVICE: &[Label] = &[
    Label::new("destination_service"),
    Label::new("destination_service_name"),
    Label::new("destination_service_namespace"),
];

const OUTCOME: &[Label] = &[
    Label::says(
        "response_flags",
        "`-` where nothing is wrong, or what [the reason](errors.md) has in the column *Waypoint*",
    ),
    Label::says(
        "connection_security_policy",
        "`mutual_tls` if both hops were, else `none`",
    ),
];

impl LabelSet for OfRequest<'_> {
    const NAMES: LabelNames = LabelNames {
        of: "requests",
        groups: &[
            REPORTER,
            &Prefix::Source.labels(),
            SERVICE,
            &Prefix::Destination.labels(),
            &[
                Label::says("request_protocol", "`http`, `grpc`"),
                Label::says("response_code", "0 for a client that left before an answer began"),
                Label::says("grpc_response_status", "empty where there is none"),
            ],
            OUTCOME,
        ],
    };
}

impl LabelSet for OfStream<'_> {
    const NAMES: LabelNames = LabelNames {
        of: "streams",
        groups: &[
            REPORTER,
            &Prefix::Source.labels(),
            SERVICE,
            &Prefix::Destination.labels(),
            &[Label::says("request_protocol", "`tcp`")],
            OUTCOME,
        ],
    };
}
