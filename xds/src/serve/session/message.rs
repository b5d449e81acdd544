//! What a session takes and gives: delta discovery messages, free of any wire format.

use std::collections::BTreeMap;
use std::sync::Arc;

use tulle_model::Str;

use crate::serve::push::size_of;
use crate::snapshot::{Chunk, Slot, Step};

/// A delta discovery request, without the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Type URL.
    pub type_url: Str,
    /// Names or aliases to subscribe to; `*` is the wildcard.
    pub subscribe: Vec<Str>,
    /// Names or aliases to unsubscribe from.
    pub unsubscribe: Vec<Str>,
    /// What the client holds from before; read in the first request of a type only.
    pub initial_versions: BTreeMap<Str, Str>,
    /// Nonce of the response that is answered; empty if none is.
    pub nonce: Str,
    /// Set if the answer is a NACK.
    pub error: Option<Nack>,
}

/// Why a client rejected a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nack {
    /// `name: reason`, joined with `; `.
    pub message: String,
}

impl Request {
    /// Whether the request subscribes or unsubscribes anything.
    #[must_use]
    pub fn changes_subscription(&self) -> bool {
        !self.subscribe.is_empty() || !self.unsubscribe.is_empty()
    }

    /// Whether the wildcard is among the subscriptions.
    #[must_use]
    pub fn names_wildcard(&self) -> bool {
        self.subscribe.iter().any(|name| &**name == "*")
    }
}

/// A delta discovery response.
#[derive(Debug, Clone)]
pub struct Response {
    /// Type URL.
    pub type_url: Str,
    /// Never empty, unique per stream.
    pub nonce: Str,
    /// The cut that this response belongs to.
    pub cut: u64,
    /// New and changed resources.
    pub resources: Arc<[Arc<Slot>]>,
    /// The chunk that they are, for a client that held nothing.
    pub chunk: Option<Arc<Chunk>>,
    /// The step between two cuts that it is, for a client that is sent everything.
    pub step: Option<Arc<Step>>,
    /// Names that do not exist, or not any more.
    pub removed: Vec<Str>,
    /// It is part of what the client is told first of the type, whatever it held.
    pub is_opening: bool,
}

impl Response {
    /// Bytes of the resources, as far as they count for what waits for an answer.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match (&self.chunk, &self.step) {
            (Some(chunk), _) => chunk.bytes(),
            (None, Some(step)) => step.bytes(),
            (None, None) => self.resources.iter().map(|slot| size_of(slot)).sum(),
        }
    }
}
