//! Replies of name servers, kept for when none answers any more: an old address is better than none, for a while.
//!
//! As long as a server answers, its word holds and nothing from here is served, not even a fresh reply. That it failed
//! (SERVFAIL) is no answer (RFC 8767 section 5); any other code is. Each workload keeps its own: what one is told is
//! never told to another.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::forward::{ForwardError, Upstream};
use super::wire::{self, Query, Transport};

/// How long a reply is served after its own time is over.
pub const STALE_MAX: Duration = Duration::from_secs(10 * 60);

/// Longest time of its own that a reply is believed to have.
pub const TTL_MAX: Duration = Duration::from_secs(60 * 60);

/// How long servers have to answer a question that could be answered from here: less than clients wait (RFC 8767
/// section 5).
pub const PATIENCE: Duration = Duration::from_millis(1800);

/// How long a client may keep a stale answer (RFC 8767 section 4).
const CLIENT_TTL: Duration = Duration::from_secs(30);

/// Replies that are kept for one workload.
const REPLIES_MAX: usize = 512;

/// Longest reply that is kept.
const REPLY_BYTES_MAX: usize = 1232;

/// What a reply is to: see [`wire::asked`].
type Asked = (Vec<u8>, u16, Option<bool>);

/// The replies of one workload.
#[derive(Debug, Default)]
pub struct Stale {
    kept: Mutex<HashMap<Asked, Kept>>,
}

#[derive(Debug, Clone)]
struct Kept {
    reply: Vec<u8>,
    /// Not to be served from then on.
    until: Instant,
}

/// A reply, and whether it is an old one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The message.
    pub reply: Vec<u8>,
    /// No server answered, and this was kept.
    pub stale: bool,
}

impl Stale {
    /// Asks the servers; answers from what was kept if none answers, or all that one says is that it failed.
    ///
    /// # Errors
    /// When none answers, and nothing is kept.
    pub async fn ask(
        &self,
        servers: &Upstream,
        query: &Query<'_>,
        transport: Transport,
    ) -> Result<Answered, ForwardError> {
        let asking = servers.ask(query, transport);
        let outcome = if self.find(query).is_some() {
            let late = |_| Err(ForwardError::NoAnswer);
            timeout(PATIENCE, asking).await.unwrap_or_else(late)
        } else {
            asking.await
        };
        match outcome {
            Ok(failure) if wire::says_it_failed(&failure) => {
                let kept = self.find(query);
                let stale = kept.is_some();
                let reply = kept.unwrap_or(failure);
                Ok(Answered { reply, stale })
            }
            Ok(reply) => {
                self.keep(query, &reply);
                Ok(Answered { reply, stale: false })
            }
            Err(error) => {
                let reply = self.find(query).ok_or(error)?;
                Ok(Answered { reply, stale: true })
            }
        }
    }

    /// What may still be served, made to fit the query.
    fn find(&self, query: &Query<'_>) -> Option<Vec<u8>> {
        let now = Instant::now();
        let asked = wire::asked(query)?;
        let kept = self
            .kept
            .lock()
            .get(&asked)
            .filter(|kept| now < kept.until)?
            .clone();
        let mut reply = kept.reply;
        wire::set_id(&mut reply, query.id());
        wire::set_question(&mut reply, query.bytes);
        wire::limit_ttls(&mut reply, CLIENT_TTL.min(kept.until - now));
        Some(reply)
    }

    /// Keeps a reply with records; one that says there are none ends what was kept, and a failure changes nothing.
    fn keep(&self, query: &Query<'_>, reply: &[u8]) {
        let Some(asked) = wire::asked(query) else {
            return;
        };
        let mut kept = self.kept.lock();
        match wire::shortest_ttl(reply).filter(|_| reply.len() <= REPLY_BYTES_MAX) {
            Some(ttl) => {
                make_room(&mut kept, &asked);
                let until = Instant::now() + ttl.min(TTL_MAX) + STALE_MAX;
                let reply = reply.to_vec();
                kept.insert(asked, Kept { reply, until });
            }
            None if wire::says_nothing_is_there(reply) => drop(kept.remove(&asked)),
            None => {}
        }
    }
}

/// What is soonest out of date makes room.
fn make_room(kept: &mut HashMap<Asked, Kept>, new: &Asked) {
    if kept.len() < REPLIES_MAX || kept.contains_key(new) {
        return;
    }
    let soonest = kept.iter().min_by_key(|(_, kept)| kept.until);
    if let Some(soonest) = soonest.map(|(asked, _)| asked.clone()) {
        kept.remove(&soonest);
    }
}

#[cfg(test)]
mod tests;
