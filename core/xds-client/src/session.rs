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
pub(crate) mod tests;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use tulle_model::{MeshUpdate, Str};
use tulle_proto::core::Node;
use tulle_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tulle_proto::resume::{self, Bucket, Layout};
use tulle_proto::rpc_status::Status as RpcStatus;
use tulle_proto::stub::RefusedAddresses;

use crate::resource::ResourceType;
use held::Held;
pub use held::Rejection;

/// Everything of a type.
const WILDCARD: &str = "*";
/// gRPC's INVALID_ARGUMENT, the code of a NACK.
const INVALID_ARGUMENT: i32 = 3;
/// Names held from which on digests of them are shorter than their list.
const DIGESTS_MIN: usize = 128;
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
    /// Answered in any way.
    answered: bool,
    part: Part,
    /// What the server says must be held once this response is taken, as it stands among removals.
    confirmation: Option<String>,
    /// Short digests hid a change: the next ones are longer.
    was_misled: bool,
}

/// How much of a type is asked for, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// All of it, at once.
    All,
    /// What is named by and by.
    OnDemand,
    /// All of it, once the server has said on a stream that it knows the type.
    IfOffered { offered: bool },
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
    /// Short digests hid a change from the server: the stream is to be ended, and the next one will tell.
    pub misled: bool,
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
            answered: false,
            confirmation: None,
            was_misled: false,
            part: if *kind == ResourceType::Trust {
                Part::IfOffered { offered: false }
            } else {
                Part::All
            },
        };
        Self {
            node,
            subscriptions: types.iter().map(subscription).collect(),
        }
    }

    /// Asks for addresses one by one, where they are needed.
    #[must_use]
    pub fn on_demand(mut self) -> Self {
        for subscription in &mut self.subscriptions {
            if subscription.kind == ResourceType::Address {
                subscription.part = Part::OnDemand;
            }
        }
        self
    }

    /// The stream is gone; another server may answer the next one.
    pub fn on_close(&mut self) {
        for subscription in &mut self.subscriptions {
            subscription.confirmation = None;
            if let Part::IfOffered { offered } = &mut subscription.part {
                *offered = false;
            }
        }
    }

    /// The server of this stream knows a type that is asked for only then; the first message about it.
    pub fn on_offer(&mut self, kind: ResourceType) -> Option<DeltaDiscoveryRequest> {
        let known = |subscription: &&mut Subscription| subscription.kind == kind;
        let subscription = self.subscriptions.iter_mut().find(known)?;
        match &mut subscription.part {
            Part::IfOffered { offered } => *offered = true,
            Part::All | Part::OnDemand => return None,
        }
        Some(subscription.first(&[], None))
    }

    /// Asks for addresses by name, and no longer for others.
    #[must_use]
    pub fn ask(&self, ask: &[Str], forget: &[Str]) -> DeltaDiscoveryRequest {
        let text = |names: &[Str]| names.iter().map(ToString::to_string).collect();
        DeltaDiscoveryRequest {
            type_url: ResourceType::Address.type_url().into(),
            resource_names_subscribe: text(ask),
            resource_names_unsubscribe: text(forget),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// The first messages of a stream: a wildcard per type, with everything held from earlier streams.
    #[must_use]
    pub fn on_open(&self) -> Vec<DeltaDiscoveryRequest> {
        self.on_open_asking(&[])
    }

    /// As [`Self::on_open`] where addresses are asked for one by one: these were asked for, and are not held.
    #[must_use]
    pub fn on_open_asking(&self, asked: &[Str]) -> Vec<DeltaDiscoveryRequest> {
        self.first_requests(asked, None)
    }

    /// As [`Self::on_open_asking`] towards a server that understands such digests of what is held, and coarser ones.
    #[must_use]
    pub fn on_resume(&self, asked: &[Str], layout: Layout) -> Vec<DeltaDiscoveryRequest> {
        self.first_requests(asked, Some(layout))
    }

    fn first_requests(&self, asked: &[Str], digests: Option<Layout>) -> Vec<DeltaDiscoveryRequest> {
        let at_once = |subscription: &&Subscription| !matches!(subscription.part, Part::IfOffered { .. });
        let subscriptions = self.subscriptions.iter().filter(at_once);
        let mut requests: Vec<_> = subscriptions.map(|one| one.first(asked, digests)).collect();
        if let Some(first) = requests.first_mut() {
            // A server reads it of the first message alone.
            first.node = Some(self.node.clone());
        }
        requests
    }

    /// Puts names in the place of the buckets that a response removes: everything held of them that it does not tell. Keeps
    /// what it says of everything until it is taken.
    pub fn name_buckets(&mut self, response: &mut DeltaDiscoveryResponse) {
        let buckets: BTreeSet<Bucket> = response
            .removed_resources
            .iter()
            .filter_map(|name| Bucket::named(name))
            .collect();
        let kind = ResourceType::from_type_url(&response.type_url);
        let of_kind = |subscription: &&mut Subscription| Some(subscription.kind) == kind;
        let Some(subscription) = self.subscriptions.iter_mut().find(of_kind) else {
            return;
        };
        let confirmation = response
            .removed_resources
            .iter()
            .position(|name| resume::is_whole(name));
        subscription.confirmation = confirmation.map(|at| response.removed_resources.remove(at));
        let Some(layout) = buckets.first().map(|bucket| bucket.layout()) else {
            return;
        };
        let told: BTreeSet<&str> = response
            .resources
            .iter()
            .map(|resource| resource.name.as_str())
            .collect();
        let gone = subscription.held.names();
        let gone = gone.filter(|name| !told.contains(name) && buckets.contains(&layout.bucket_of(name)));
        let gone: Vec<String> = gone.map(ToOwned::to_owned).collect();
        response
            .removed_resources
            .retain(|name| Bucket::named(name).is_none());
        response.removed_resources.extend(gone);
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
        self.subscriptions
            .iter()
            .all(|subscription| match subscription.part {
                // What is denied is known before the first connection, where somebody knows it.
                Part::IfOffered { offered } => subscription.answered || !offered,
                Part::All | Part::OnDemand => subscription.acked,
            })
    }

    /// Per type: how many resources are in force, whether it was ACKed once, and what is rejected.
    pub fn summary(&self) -> impl Iterator<Item = Summary<'_>> {
        let asked_for = |subscription: &&Subscription| {
            subscription.answered || subscription.part != Part::IfOffered { offered: false }
        };
        self.subscriptions
            .iter()
            .filter(asked_for)
            .map(|subscription| Summary {
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
    fn first(&self, asked: &[Str], digests: Option<Layout>) -> DeltaDiscoveryRequest {
        let digests = digests
            .filter(|_| self.part == Part::All && self.held.len() >= DIGESTS_MIN)
            .map(|layout| if self.was_misled { Layout::Coarse } else { layout });
        let mut first = DeltaDiscoveryRequest {
            type_url: self.kind.type_url().into(),
            initial_resource_versions: match digests {
                Some(layout) => {
                    let text = self.held.digests(layout).to_text();
                    [(layout.name().to_owned(), text)].into()
                }
                None => self.held.versions(),
            },
            ..DeltaDiscoveryRequest::default()
        };
        if self.part == Part::OnDemand {
            // Both at once: nothing but what is named later, and no wildcard.
            first.resource_names_subscribe = vec![WILDCARD.to_owned()];
            first.resource_names_unsubscribe = vec![WILDCARD.to_owned()];
            let pending = asked.iter().map(|key| (key.to_string(), String::new()));
            first.initial_resource_versions.extend(pending);
        } else if self.kind == ResourceType::Address && !asked.is_empty() {
            let names = asked.iter().map(ToString::to_string);
            first.resource_names_subscribe = std::iter::once(WILDCARD.to_owned()).chain(names).collect();
        }
        first
    }

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
        self.answered = true;
        let confirmation = self.confirmation.take();
        self.was_misled = confirmation.is_some_and(|whole| !self.is_confirmed_by(&whole));
        Outcome {
            updates,
            answer: answer(response.type_url, response.nonce, &flaws),
            first_ack: first.then_some(self.kind),
            rejections_changed: !accepted || rejected_before != self.held.rejected().count(),
            misled: self.was_misled,
        }
    }

    /// Whether everything that was told is what the server says it is. One that says it in other words is not understood.
    fn is_confirmed_by(&self, whole: &str) -> bool {
        self.held.told(Layout::Fine).whole_name().as_deref() == Some(whole)
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
        misled: false,
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
