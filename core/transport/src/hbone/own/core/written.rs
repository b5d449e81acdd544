//! Heads as they are written down: in the block that would carry them over the wire.

use std::collections::VecDeque;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::super::head::{Head, encode_refusal, encode_request, encode_response};
use super::super::hpack::Decoder;
use crate::hbone::connect::{ConnectRequest, ConnectResponse, MalformedConnect, Refusal};

fn head<E: serde::de::Error>(block: &[u8]) -> Result<Head, E> {
    let mut head = Head::default();
    let decoded = Decoder::default().decode(block, usize::MAX, |name, value| head.put(name, value));
    decoded.map_err(E::custom)?;
    Ok(head)
}

/// Streams that the peer opened and nobody has taken.
pub(super) mod accepted {
    use super::*;

    type Accepted = VecDeque<(u32, Result<ConnectRequest, MalformedConnect>)>;
    type Blocks = Vec<(u32, Result<Vec<u8>, MalformedConnect>)>;

    pub(in super::super) fn serialize<S: Serializer>(
        accepted: &Accepted,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut blocks = Blocks::new();
        for (id, request) in accepted {
            let block = match request {
                Ok(request) => Ok(encode_request(request).map_err(S::Error::custom)?),
                Err(malformed) => Err(*malformed),
            };
            blocks.push((*id, block));
        }
        blocks.serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Accepted, D::Error> {
        let request = |block: Vec<u8>| {
            let request = head(&block)?.request();
            request.map_err(|_| D::Error::custom("the head of a request is malformed"))
        };
        let blocks = Blocks::deserialize(deserializer)?.into_iter();
        let read = blocks.map(|(id, block)| {
            Ok(match block {
                Ok(block) => (id, request(block)?),
                Err(malformed) => (id, Err(malformed)),
            })
        });
        read.collect()
    }
}

/// An answer that nobody has taken.
pub(super) mod answer {
    use super::*;

    type Answer = Box<Result<ConnectResponse, Refusal>>;

    pub(in super::super) fn serialize<S: Serializer>(
        answer: &Answer,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let block = match &**answer {
            Ok(response) => encode_response(response),
            Err(refusal) => encode_refusal(refusal),
        };
        block.serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Answer, D::Error> {
        let block = Vec::<u8>::deserialize(deserializer)?;
        let answer = head::<D::Error>(&block)?.response().ok().flatten();
        answer
            .map(Box::new)
            .ok_or_else(|| D::Error::custom("the head of an answer is malformed"))
    }
}
