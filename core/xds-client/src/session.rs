//! The client's side of a delta-ADS stream, without the stream: requests and responses go in and out as values.
//!
//! ```text
//!          on_open                     on_response
//! closed ──────────▶ open ──────────────────────────────▶ open
//!          requests         updates, then ACK or NACK       │ stream lost: nothing is forgotten
//!            ▲                                              │
//!            └──────────────────────────────────────────────┘
//! ```
//!
//! A response is taken resource by resource. What is malformed keeps its last good value; without one a stand-in
//! refuses what it would have decided about. The rejected version is not recorded, so that it comes again after
//! a reconnect.

mod held;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use tulle_model::MeshUpdate;
use tulle_proto::core::Node;
use tulle_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tulle_proto::rpc_status::Status as RpcStatus;
use tulle_proto::stub::RefusedAddresses;

use crate::resource::ResourceType;
use held::Held;
pub use held::Rejection;

/// gRPC's INVALID_ARGUMENT, the code of a NACK.
const INVALID_ARGUMENT: i32 = 3;
/// Longest text of a NACK; more rejections are counted, not told.
const NACK_TEXT_MAX: usize = 8 * 1024;

/// What a client holds and how far it got, over any number of streams.
#[derive(Debug)]
pub struct Session {
    node: Node,
    subscriptions: Vec<Subscription>,
}

#[derive(Debug)]
struct Subscription {
    kind: ResourceType,
    held: Held,
    acked: bool,
}

/// What a response leads to, in this order: apply the updates, count the first ACK, send the answer.
#[derive(Debug)]
pub struct Outcome {
    /// For [`tulle_model::Mesh::apply`], as one batch.
    pub updates: Vec<MeshUpdate>,
    /// The ACK or NACK.
    pub answer: DeltaDiscoveryRequest,
    /// The type whose first ACK this is.
    pub first_ack: Option<ResourceType>,
    /// Whether what is rejected or refused may have changed.
    pub rejections_changed: bool,
}

impl Outcome {
    /// Whether the whole response was accepted.
    #[must_use]
    pub fn accepted(&self) -> bool {
        self.answer.error_detail.is_none()
    }
}

impl Session {
    /// A session that holds nothing yet. Types are asked for in the given order.
    #[must_use]
    pub fn new(node: Node, types: &[ResourceType]) -> Self {
        let subscription = |kind: &ResourceType| Subscription {
            kind: *kind,
            held: Held::default(),
            acked: false,
        };
        Self {
            node,
            subscriptions: types.iter().map(subscription).collect(),
        }
    }

    /// The first messages of a stream: a wildcard per type, with everything held from earlier streams.
    #[must_use]
    pub fn on_open(&self) -> Vec<DeltaDiscoveryRequest> {
        let first = |subscription: &Subscription| DeltaDiscoveryRequest {
            node: Some(self.node.clone()),
            type_url: subscription.kind.type_url().into(),
            initial_resource_versions: subscription.held.versions(),
            ..DeltaDiscoveryRequest::default()
        };
        self.subscriptions.iter().map(first).collect()
    }

    /// Takes one response.
    pub fn on_response(&mut self, response: DeltaDiscoveryResponse) -> Outcome {
        let kind = ResourceType::from_type_url(&response.type_url);
        let wanted = |subscription: &&mut Subscription| Some(subscription.kind) == kind;
        match self.subscriptions.iter_mut().find(wanted) {
            Some(subscription) => subscription.take(response),
            None => not_asked_for(response),
        }
    }

    /// Whether every type was ACKed at least once.
    #[must_use]
    pub fn synced(&self) -> bool {
        self.subscriptions.iter().all(|subscription| subscription.acked)
    }

    /// Per type: how many resources are in force, whether it was ACKed once, and what is rejected.
    pub fn summary(&self) -> impl Iterator<Item = Summary<'_>> {
        self.subscriptions.iter().map(|subscription| Summary {
            kind: subscription.kind,
            acked: subscription.acked,
            in_force: subscription.held.in_force(),
            rejected: subscription.held.rejected().collect(),
        })
    }

    /// The addresses of resources that were rejected and have no last good value, by resource name.
    pub fn refused(&self) -> impl Iterator<Item = (&str, &RefusedAddresses)> {
        self.subscriptions
            .iter()
            .flat_map(|subscription| subscription.held.refused())
    }
}

/// How one type stands.
#[derive(Debug)]
pub struct Summary<'a> {
    /// The type.
    pub kind: ResourceType,
    /// Whether it was ACKed once.
    pub acked: bool,
    /// Resources the mesh holds, stand-ins not counted.
    pub in_force: usize,
    /// Rejected resources by name.
    pub rejected: Vec<(&'a str, &'a Rejection)>,
}

impl Subscription {
    fn take(&mut self, response: DeltaDiscoveryResponse) -> Outcome {
        let rejected_before = self.held.rejected().count();
        let (mut updates, mut flaws) = (Vec::with_capacity(response.resources.len()), Vec::new());
        for resource in response.resources {
            if let Err(malformed) = self.held.set(self.kind, resource, &mut updates) {
                flaws.push(malformed.to_string());
            }
        }
        for name in &response.removed_resources {
            updates.extend(self.held.remove(name));
        }
        let accepted = flaws.is_empty();
        let first = accepted && !self.acked;
        self.acked |= accepted;
        Outcome {
            updates,
            answer: answer(response.type_url, response.nonce, &flaws),
            first_ack: first.then_some(self.kind),
            rejections_changed: !accepted || rejected_before != self.held.rejected().count(),
        }
    }
}

/// Nobody waits for it and nobody could remove it, so it is refused as a whole.
fn not_asked_for(response: DeltaDiscoveryResponse) -> Outcome {
    let flaw = format!("type `{}` was not asked for", response.type_url);
    Outcome {
        updates: Vec::new(),
        answer: answer(response.type_url, response.nonce, &[flaw]),
        first_ack: None,
        rejections_changed: false,
    }
}

/// An ACK without flaws, a NACK with them.
fn answer(type_url: String, response_nonce: String, flaws: &[String]) -> DeltaDiscoveryRequest {
    let error_detail = (!flaws.is_empty()).then(|| RpcStatus {
        code: INVALID_ARGUMENT,
        message: joined(flaws),
        details: Vec::new(),
    });
    DeltaDiscoveryRequest {
        type_url,
        response_nonce,
        error_detail,
        ..DeltaDiscoveryRequest::default()
    }
}

fn joined(flaws: &[String]) -> String {
    let mut text = String::new();
    for (index, flaw) in flaws.iter().enumerate() {
        if text.len() + flaw.len() > NACK_TEXT_MAX && index > 0 {
            let _ = write!(text, "; and {} more", flaws.len() - index);
            break;
        }
        if index > 0 {
            text.push_str("; ");
        }
        text.extend(flaw.chars().take(NACK_TEXT_MAX));
    }
    text
}
