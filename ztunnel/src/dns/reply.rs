//! Replies that are made here.

use std::net::IpAddr;
use std::str::FromStr;

use hickory_proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record};
use rand::seq::SliceRandom;

use super::answer::Answer;
use super::wire::{self, DATAGRAM_BYTES_MAX, Query};

/// How long a client may keep an answer: endpoints come and go.
const TTL_SECONDS: u32 = 30;

/// Addresses in one reply; a client connects to one of them.
const ADDRESSES_MAX: usize = 1000;

/// The only version of EDNS there is.
const EDNS_VERSION: u8 = 0;

/// A reply that says what the mesh knows, in an order that spreads clients over the addresses.
#[must_use]
pub fn answer(query: &Query<'_>, mut answer: Answer) -> Vec<u8> {
    if query.edns.is_some_and(|edns| edns.version > EDNS_VERSION) {
        return failure(query, ResponseCode::BADVERS);
    }
    answer.addresses.shuffle(&mut rand::rng());
    answer.addresses.truncate(ADDRESSES_MAX);
    let mut message = reply_to(query, ResponseCode::NoError);
    message.metadata.authoritative = true;
    let asked = query.question.name();
    let alias = answer.alias_of.and_then(|name| absolute(&name));
    if let Some(alias) = &alias {
        let cname = RData::CNAME(CNAME(alias.clone()));
        message.add_answer(Record::from_rdata(asked.clone(), TTL_SECONDS, cname));
    }
    let owner = alias.as_ref().unwrap_or(asked);
    for address in answer.addresses {
        let data = match address {
            IpAddr::V4(address) => RData::A(A(address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(address)),
        };
        message.add_answer(Record::from_rdata(owner.clone(), TTL_SECONDS, data));
    }
    encode(query, &message)
}

/// A reply that says why there is no answer.
#[must_use]
pub fn failure(query: &Query<'_>, code: ResponseCode) -> Vec<u8> {
    encode(query, &reply_to(query, code))
}

fn absolute(name: &str) -> Option<Name> {
    let mut name = Name::from_str(name).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn reply_to(query: &Query<'_>, code: ResponseCode) -> Message {
    let mut message = Message::response(query.id(), OpCode::Query);
    message.metadata.response_code = code;
    message.metadata.recursion_desired = query.recursion_desired();
    message.metadata.recursion_available = true;
    message.add_query(query.question.clone());
    if let Some(asked) = query.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(DATAGRAM_BYTES_MAX);
        edns.set_version(EDNS_VERSION);
        edns.set_dnssec_ok(asked.dnssec_ok);
        message.set_edns(edns);
    }
    message
}

fn encode(query: &Query<'_>, message: &Message) -> Vec<u8> {
    message
        .to_vec()
        .unwrap_or_else(|_| wire::bare_reply(query.bytes, ResponseCode::ServFail))
}

#[cfg(test)]
mod tests;
