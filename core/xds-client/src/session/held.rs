//! What a client holds of one type: values in force, their versions, and what was rejected.

use std::collections::BTreeMap;
use std::sync::Arc;

use tulle_model::{MeshUpdate, NamespacedHostname, NamespacedName, Str, WorkloadUid};
use tulle_proto::discovery::Resource as Envelope;
use tulle_proto::resume::{Digests, Layout};
use tulle_proto::stub::{self, RefusedAddresses};
use tulle_proto::{Cause, Malformed, Resource};

use crate::resource::ResourceType;

/// Longest reason kept for a rejected resource, in characters.
const REASON_CHARS_MAX: usize = 1024;

/// Every name this client holds, in order.
#[derive(Debug, Default)]
pub(super) struct Held {
    names: BTreeMap<Str, Entry>,
    /// The names of `names` whose newest version was rejected.
    rejected: BTreeMap<Str, Rejection>,
}

#[derive(Debug)]
struct Entry {
    /// Last accepted version; empty if none was, or if the server gives none.
    version: Str,
    value: Value,
}

/// What the mesh holds under a name.
#[derive(Debug)]
enum Value {
    /// The resource itself.
    Good(Key),
    /// A policy that denies in place of one that was never good.
    Stub(NamespacedName),
    /// Nothing; these addresses must be refused.
    Refused(RefusedAddresses),
}

#[derive(Debug, PartialEq, Eq)]
enum Key {
    Workload(WorkloadUid),
    Service(NamespacedHostname),
    Policy(NamespacedName),
    Trust(Str),
    Waypoint(Str),
    Route(Str),
    WaypointPolicy(Str),
}

/// Why the newest version of a resource is not in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The rejected version, as the server calls it.
    pub version: Str,
    /// Place and cause.
    pub reason: String,
    /// Whether the last good version is still in force; otherwise a stand-in refuses.
    pub last_good: bool,
}

impl Held {
    /// Every held name with its last accepted version. Stand-ins are listed with an empty one, so that the
    /// server tells if the resource is gone meanwhile.
    pub(super) fn versions(&self) -> BTreeMap<String, String> {
        let pair =
            |(name, entry): (&Str, &Entry)| (name.as_ref().to_owned(), entry.version.as_ref().to_owned());
        self.names.iter().map(pair).collect()
    }

    /// Names held, stand-ins too.
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(AsRef::as_ref)
    }

    /// [`Self::versions`] in short.
    pub(super) fn digests(&self, layout: Layout) -> Digests {
        let pairs = self.names.iter();
        Digests::of(layout, pairs.map(|(name, entry)| (&**name, &*entry.version)))
    }

    /// The same of what was told last, be it accepted or not.
    pub(super) fn told(&self, layout: Layout) -> Digests {
        let pairs = self.names.iter().map(|(name, entry)| {
            let rejected = self.rejected.get(name).map(|rejection| &rejection.version);
            (&**name, &**rejected.unwrap_or(&entry.version))
        });
        Digests::of(layout, pairs)
    }

    pub(super) fn in_force(&self) -> usize {
        // Every stand-in is rejected, so only those need a look.
        self.names.len()
            - self
                .rejected
                .values()
                .filter(|rejection| !rejection.last_good)
                .count()
    }

    pub(super) fn rejected(&self) -> impl Iterator<Item = (&str, &Rejection)> {
        self.rejected
            .iter()
            .map(|(name, rejection)| (name.as_ref(), rejection))
    }

    pub(super) fn refused(&self) -> impl Iterator<Item = (&str, &RefusedAddresses)> {
        self.rejected
            .keys()
            .filter_map(|name| match &self.names.get(name)?.value {
                Value::Refused(addresses) => Some((name.as_ref(), addresses)),
                Value::Good(_) | Value::Stub(_) => None,
            })
    }

    /// Takes one resource of a response; `updates` gets what the mesh has to change.
    pub(super) fn set(
        &mut self,
        kind: ResourceType,
        envelope: Envelope,
        updates: &mut Vec<MeshUpdate>,
    ) -> Result<(), Malformed> {
        match decode(kind, &envelope) {
            Ok(resource) => {
                self.accept(&envelope, resource, updates);
                Ok(())
            }
            Err(malformed) => {
                self.reject(kind, envelope, &malformed, updates);
                Err(malformed)
            }
        }
    }

    /// Takes one name that is gone. An unknown one was gone already.
    pub(super) fn remove(&mut self, name: &str) -> Option<MeshUpdate> {
        self.rejected.remove(name);
        self.names.remove(name).and_then(|entry| entry.value.removal())
    }

    fn accept(&mut self, envelope: &Envelope, resource: Resource, updates: &mut Vec<MeshUpdate>) {
        let name: Str = envelope.name.as_str().into();
        let key = Key::of(&resource);
        self.rejected.remove(&name);
        let entry = Entry {
            version: envelope.version.as_str().into(),
            value: Value::Good(key),
        };
        let old = self.names.insert(name, entry);
        updates.extend(old.and_then(|old| old.value.removal_unless_replaced_by(&resource)));
        updates.push(resource.into());
    }

    fn reject(
        &mut self,
        kind: ResourceType,
        envelope: Envelope,
        malformed: &Malformed,
        updates: &mut Vec<MeshUpdate>,
    ) {
        let name: Str = envelope.name.as_str().into();
        let last_good = matches!(
            self.names.get(&name),
            Some(Entry {
                value: Value::Good(_),
                ..
            })
        );
        let reason = format!("{}: {}", malformed.field, malformed.cause);
        let rejection = Rejection {
            version: envelope.version.as_str().into(),
            reason: reason.chars().take(REASON_CHARS_MAX).collect(),
            last_good,
        };
        self.rejected.insert(Arc::clone(&name), rejection);
        if last_good {
            return;
        }
        let value = stand_in(kind, &envelope, updates);
        self.names.insert(
            name,
            Entry {
                version: "".into(),
                value,
            },
        );
    }
}

fn decode(kind: ResourceType, envelope: &Envelope) -> Result<Resource, Malformed> {
    let malformed = |field: &str, cause| Malformed {
        resource: envelope.name.clone(),
        field: field.into(),
        cause,
    };
    let Some(body) = &envelope.resource else {
        return Err(malformed("resource", Cause::Unset));
    };
    if body.type_url != kind.type_url() {
        return Err(malformed(
            "resource.type_url",
            Cause::OtherType(body.type_url.clone()),
        ));
    }
    kind.decode(&envelope.name, &body.value)
}

/// What refuses in place of a resource that was never good.
fn stand_in(kind: ResourceType, envelope: &Envelope, updates: &mut Vec<MeshUpdate>) -> Value {
    let body = envelope
        .resource
        .as_ref()
        .map_or(&[][..], |body| body.value.as_slice());
    match kind {
        ResourceType::Authorization => match stub::deny_all(&envelope.name, body) {
            Some(stub) => {
                let key = stub.key();
                updates.push(MeshUpdate::Policy(Arc::new(stub)));
                Value::Stub(key)
            }
            None => Value::Refused(RefusedAddresses::default()),
        },
        ResourceType::Address => Value::Refused(RefusedAddresses::read(body, &envelope.aliases)),
        // The roots of the start and of the last certificate stay in force; no address hangs on it. A policy that
        // decides about security is named by the fronts that need it, which let nobody pass without it.
        ResourceType::Trust | ResourceType::Policy | ResourceType::Route | ResourceType::Waypoint => {
            Value::Refused(RefusedAddresses::default())
        }
    }
}

impl Key {
    fn of(resource: &Resource) -> Self {
        match resource {
            Resource::Workload(workload) => Self::Workload(workload.uid.clone()),
            Resource::Service(service) => Self::Service(service.key()),
            Resource::Authorization(policy) => Self::Policy(policy.key()),
            Resource::Trust(trust) => Self::Trust(trust.trust_domain.clone()),
            Resource::Waypoint(waypoint) => Self::Waypoint(waypoint.name()),
            Resource::Route(route) => Self::Route(route.name()),
            Resource::Policy(policy) => Self::WaypointPolicy(policy.name()),
        }
    }

    fn removal(self) -> MeshUpdate {
        match self {
            Self::Workload(uid) => MeshUpdate::RemoveWorkload(uid),
            Self::Service(key) => MeshUpdate::RemoveService(key),
            Self::Policy(key) => MeshUpdate::RemovePolicy(key),
            Self::Trust(domain) => MeshUpdate::RemoveTrust(domain),
            Self::Waypoint(name) => MeshUpdate::RemoveWaypoint(name),
            Self::Route(name) => MeshUpdate::RemoveRoute(name),
            Self::WaypointPolicy(name) => MeshUpdate::RemoveWaypointPolicy(name),
        }
    }
}

impl Value {
    fn key(self) -> Option<Key> {
        match self {
            Self::Good(key) => Some(key),
            Self::Stub(key) => Some(Key::Policy(key)),
            Self::Refused(_) => None,
        }
    }

    fn removal(self) -> Option<MeshUpdate> {
        self.key().map(Key::removal)
    }

    /// A name that stood for something of another kind leaves that behind.
    fn removal_unless_replaced_by(self, resource: &Resource) -> Option<MeshUpdate> {
        self.key()
            .filter(|key| *key != Key::of(resource))
            .map(Key::removal)
    }
}
