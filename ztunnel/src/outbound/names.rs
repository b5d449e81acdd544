//! Host names of workloads that have no address, looked up when a connection needs them.
//!
//! Each workload asks its own name servers out of its own namespace and keeps the answers to itself: what one pod is
//! told must not lead another one's traffic.

use std::collections::HashMap;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, Query as Question, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use parking_lot::Mutex;
use tokio::time::Instant;
use tulle_model::Str;

use crate::dns::forward::Upstream;
use crate::dns::wire::{Received, Transport};

/// Names whose addresses are kept.
const NAMES_MAX: usize = 4096;

/// Addresses of one name that are kept.
const ADDRESSES_MAX: usize = 64;

/// Longest reply that is decoded, so that a hostile one costs little: [`ADDRESSES_MAX`] addresses and the names on the
/// way to them fit.
const REPLY_BYTES_MAX: usize = 4096;

/// How long an answer is believed at least, so that a server that says zero is not asked for every connection.
const TTL_MIN: Duration = Duration::from_secs(1);

/// And at most.
const TTL_MAX: Duration = Duration::from_secs(3600);

/// Names and their addresses.
#[derive(Debug, Default)]
pub struct Names {
    known: Mutex<HashMap<Str, Known>>,
}

#[derive(Debug, Clone)]
struct Known {
    addresses: Arc<[IpAddr]>,
    until: Instant,
}

/// What one question was answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    addresses: Vec<IpAddr>,
    ttl: Duration,
}

impl Names {
    /// The addresses of a name: both families, asked for in parallel; none if nobody knows it.
    pub async fn lookup(&self, servers: &Upstream, name: &Str, ipv6: bool) -> Arc<[IpAddr]> {
        if let Some(known) = self.fresh(name) {
            return known;
        }
        let (v4, v6) = tokio::join!(ask(servers, name, RecordType::A), async {
            if ipv6 {
                ask(servers, name, RecordType::AAAA).await
            } else {
                None
            }
        });
        let found: Vec<Found> = [v4, v6].into_iter().flatten().collect();
        let addresses = found.iter().flat_map(|found| &found.addresses).copied();
        let addresses: Arc<[IpAddr]> = addresses.take(ADDRESSES_MAX).collect();
        let answered = found.iter().filter(|found| !found.addresses.is_empty());
        let ttl = answered.map(|found| found.ttl).min().unwrap_or(TTL_MIN);
        self.keep(name, &addresses, ttl);
        addresses
    }

    fn fresh(&self, name: &str) -> Option<Arc<[IpAddr]>> {
        let known = self.known.lock();
        let known = known.get(name).filter(|known| Instant::now() < known.until)?;
        Some(Arc::clone(&known.addresses))
    }

    /// What is soonest out of date makes room.
    fn keep(&self, name: &Str, addresses: &Arc<[IpAddr]>, ttl: Duration) {
        let now = Instant::now();
        let mut known = self.known.lock();
        if known.len() >= NAMES_MAX && !known.contains_key(name) {
            known.retain(|_, known| now < known.until);
        }
        if known.len() >= NAMES_MAX && !known.contains_key(name) {
            let soonest = known.iter().min_by_key(|(_, known)| known.until);
            if let Some(soonest) = soonest.map(|(name, _)| Arc::clone(name)) {
                known.remove(&soonest);
            }
        }
        let entry = Known {
            addresses: Arc::clone(addresses),
            until: now + ttl.clamp(TTL_MIN, TTL_MAX),
        };
        known.insert(Arc::clone(name), entry);
    }
}

/// One of the allowed addresses, of the preferred family if there is one; `random(n)` is uniform in `0..n`.
pub fn pick(
    addresses: &[IpAddr],
    prefers_ipv4: bool,
    allows: impl Fn(IpAddr) -> bool,
    random: &mut dyn FnMut(u64) -> u64,
) -> Option<IpAddr> {
    let of_family = |ipv4: bool| -> Vec<IpAddr> {
        let fits = |address: &&IpAddr| address.is_ipv4() == ipv4 && allows(**address);
        addresses.iter().filter(fits).copied().collect()
    };
    let mut candidates = of_family(prefers_ipv4);
    if candidates.is_empty() {
        candidates = of_family(!prefers_ipv4);
    }
    let count = u64::try_from(candidates.len()).unwrap_or(u64::MAX);
    let drawn = if count > 0 { random(count) } else { return None };
    candidates.get(usize::try_from(drawn).ok()?).copied()
}

/// Asks for one kind of address; by TCP if the answer does not fit a datagram.
async fn ask(servers: &Upstream, name: &str, kind: RecordType) -> Option<Found> {
    let question = question(name, kind)?;
    let Received::Query(query) = Received::read(&question) else {
        return None;
    };
    for transport in [Transport::Udp, Transport::Tcp] {
        match servers.ask(&query, transport).await {
            Ok(reply) => match read(&reply, kind)? {
                Answer::Whole(found) => return Some(found),
                Answer::Cut => {}
            },
            Err(error) => {
                tracing::debug!(name, %kind, %error, "the name of a workload cannot be looked up");
                return None;
            }
        }
    }
    None
}

fn question(name: &str, kind: RecordType) -> Option<Vec<u8>> {
    let mut name = Name::from_str(name).ok()?;
    name.set_fqdn(true);
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(name, kind));
    message.to_vec().ok()
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Whole(Found),
    Cut,
}

/// Reads a reply: the addresses at the end of its chain of aliases. `None` if the server failed.
fn read(reply: &[u8], kind: RecordType) -> Option<Answer> {
    if reply.len() > REPLY_BYTES_MAX {
        return None;
    }
    let message = Message::from_vec(reply).ok()?;
    if message.metadata.truncation {
        return Some(Answer::Cut);
    }
    if ![ResponseCode::NoError, ResponseCode::NXDomain].contains(&message.metadata.response_code) {
        return None;
    }
    let mut found = Found {
        addresses: Vec::new(),
        ttl: TTL_MAX,
    };
    for record in &message.answers {
        found.ttl = found.ttl.min(Duration::from_secs(u64::from(record.ttl)));
        match record.data {
            RData::A(address) if kind == RecordType::A => found.addresses.push(IpAddr::V4(address.0)),
            RData::AAAA(address) if kind == RecordType::AAAA => found.addresses.push(IpAddr::V6(address.0)),
            _ => {}
        }
    }
    Some(Answer::Whole(found))
}

#[cfg(test)]
mod tests;
