//! The door between wire and model: one decode function per type, strict where security hangs on it.

pub mod authorization;
pub mod ca;
mod extension;
pub(crate) mod gateway;
pub mod service;
pub(crate) mod trust;
pub mod waypoint;
pub mod workload;
pub mod zds;

use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use prost::Message;
use tulle_model::authz::policy::Authorization;
use tulle_model::policy::Policy;
use tulle_model::route::Route;
use tulle_model::waypoint::Waypoint;
use tulle_model::{MeshUpdate, NamespacedName, Service, Str, Trust, Workload};

use crate::names::resource_name;
use crate::strict;
use crate::workload::{Address, address};
use crate::{mesh, security, workload as wire};

/// A resource that must not be used, and the place that makes it so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{resource}: {field}: {cause}")]
pub struct Malformed {
    /// Name of the resource.
    pub resource: String,
    /// Path of the field, such as `rules[0].clauses[1].matches[0].source_ips[2]`.
    pub field: String,
    /// What is wrong with it.
    pub cause: Cause,
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The bytes are no message of this type.
    #[error("not decodable: {0}")]
    Undecodable(prost::DecodeError),
    /// A value that reaches beyond the message, or a group.
    #[error("not decodable: a value is cut off")]
    Truncated,
    /// A field number this version does not know, where ignoring it could change a verdict.
    #[error("unknown field {0}")]
    UnknownField(u32),
    /// An enum value this version does not know.
    #[error("unknown value {0}")]
    UnknownValue(i32),
    /// A required field, or every member of a `oneof`, is absent.
    #[error("must be set")]
    Unset,
    /// Not the bytes of an IP address.
    #[error("an address has 4 or 16 bytes, not {0}")]
    AddressLength(usize),
    /// A prefix longer than its address.
    #[error("a prefix of {length} bits does not fit an address of {width} bits")]
    PrefixLength {
        /// What the message says.
        length: u32,
        /// What the address has.
        width: u8,
    },
    /// A range where one address is needed.
    #[error("one address is needed, not a range")]
    NotOneAddress,
    /// Beyond 65535, or zero where zero has no meaning.
    #[error("{0} is no port")]
    Port(u32),
    /// A status of HTTP that there is not.
    #[error("{0} is no status")]
    Status(u32),
    /// Negative, too long, or zero where zero has no meaning.
    #[error("{0} seconds and its fraction are no duration here")]
    Duration(i64),
    /// Not two parts.
    #[error("`{0}` is not <namespace>/<name>")]
    Name(String),
    /// Not a SPIFFE identity.
    #[error(transparent)]
    Identity(#[from] tulle_model::identity::InvalidIdentity),
    /// Not the serial number of a certificate.
    #[error(transparent)]
    Serial(#[from] tulle_model::trust::InvalidSerial),
    /// An extension this version does not know, where ignoring it could change a verdict.
    #[error("unknown extension `{0}`")]
    UnknownExtension(String),
    /// An extension whose value is not of the kind its name asks for.
    #[error("extension `{0}` has an unexpected value")]
    ExtensionValue(String),
    /// The tunnel of sidecars.
    #[error("the legacy sidecar tunnel is not supported")]
    LegacyTunnel,
    /// The body calls itself otherwise than the envelope does.
    #[error("the body is called `{0}`")]
    OtherName(String),
    /// The envelope carries another type than the response says.
    #[error("the body is of type `{0}`")]
    OtherType(String),
    /// More bytes than the message may have.
    #[error("{length} bytes are more than {max}")]
    TooLong {
        /// What came.
        length: usize,
        /// What is allowed.
        max: usize,
    },
}

/// One decoded resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resource {
    /// A workload.
    Workload(Arc<Workload>),
    /// A service.
    Service(Arc<Service>),
    /// A policy.
    Authorization(Arc<Authorization>),
    /// Whom a trust domain believes.
    Trust(Arc<Trust>),
    /// The settings of a waypoint, or one of its fronts.
    Waypoint(Arc<Waypoint>),
    /// A rule of a route.
    Route(Arc<Route>),
    /// A policy that waypoints enforce.
    Policy(Arc<Policy>),
}

impl From<Resource> for MeshUpdate {
    fn from(resource: Resource) -> Self {
        match resource {
            Resource::Workload(workload) => Self::Workload(workload),
            Resource::Service(service) => Self::Service(service),
            Resource::Authorization(policy) => Self::Policy(policy),
            Resource::Trust(trust) => Self::Trust(trust),
            Resource::Waypoint(waypoint) => Self::Waypoint(waypoint),
            Resource::Route(route) => Self::Route(route),
            Resource::Policy(policy) => Self::WaypointPolicy(policy),
        }
    }
}

/// Decodes the body of an [`crate::ADDRESS_TYPE`] resource; unknown fields are ignored.
///
/// # Errors
/// Names the first field that cannot be used.
pub fn decode_address(name: &str, body: &[u8]) -> Result<Resource, Malformed> {
    let address = Address::decode(body).map_err(|error| undecodable(error).of(name))?;
    let resource = match address.r#type {
        Some(address::Type::Workload(workload)) => {
            workload::parse(workload).map(|workload| Resource::Workload(Arc::new(workload)))
        }
        Some(address::Type::Service(service)) => {
            service::parse(service).map(|service| Resource::Service(Arc::new(service)))
        }
        None => Err(Flaw::new("type", Cause::Unset)),
    };
    resource
        .and_then(|resource| called(resource, name))
        .map_err(|flaw| flaw.of(name))
}

/// Decodes the body of a [`crate::WORKLOAD_TYPE`] resource; unknown fields are ignored.
///
/// # Errors
/// Names the first field that cannot be used.
pub fn decode_workload(name: &str, body: &[u8]) -> Result<Resource, Malformed> {
    wire::Workload::decode(body)
        .map_err(undecodable)
        .and_then(workload::parse)
        .and_then(|workload| called(Resource::Workload(Arc::new(workload)), name))
        .map_err(|flaw| flaw.of(name))
}

/// Decodes the body of an [`crate::AUTHORIZATION_TYPE`] resource. What it does not know, it refuses: a part of
/// a policy that is skipped could turn a refusal into a permission.
///
/// # Errors
/// Names the first field that cannot be used.
pub fn decode_authorization(name: &str, body: &[u8]) -> Result<Resource, Malformed> {
    strict::check(body, &strict::AUTHORIZATION)
        .and_then(|()| security::Authorization::decode(body).map_err(undecodable))
        .and_then(authorization::parse)
        .and_then(|policy| called(Resource::Authorization(Arc::new(policy)), name))
        .map_err(|flaw| flaw.of(name))
}

/// Decodes the body of a [`crate::TRUST_TYPE`] resource; unknown fields are ignored, unknown denials are not.
///
/// # Errors
/// Names the first field that cannot be used.
pub fn decode_trust(name: &str, body: &[u8]) -> Result<Resource, Malformed> {
    mesh::Trust::decode(body)
        .map_err(undecodable)
        .and_then(trust::parse)
        .and_then(|trust| called(Resource::Trust(Arc::new(trust)), name))
        .map_err(|flaw| flaw.of(name))
}

/// The bytes of an [`crate::ADDRESS_TYPE`] resource; `None` for anything else. Equal resources give equal bytes.
#[must_use]
pub fn encode_address(resource: &Resource) -> Option<Vec<u8>> {
    let body = match resource {
        Resource::Workload(workload) => address::Type::Workload(workload.as_ref().into()),
        Resource::Service(service) => address::Type::Service(service.as_ref().into()),
        _ => return None,
    };
    Some(Address { r#type: Some(body) }.encode_to_vec())
}

/// The bytes of an [`crate::AUTHORIZATION_TYPE`] resource. Equal policies give equal bytes.
#[must_use]
pub fn encode_authorization(policy: &Authorization) -> Vec<u8> {
    security::Authorization::from(policy).encode_to_vec()
}

/// The bytes of a [`crate::TRUST_TYPE`] resource. Equal values give equal bytes.
#[must_use]
pub fn encode_trust(trust: &Trust) -> Vec<u8> {
    mesh::Trust::from(trust).encode_to_vec()
}

/// Removals come by the envelope's name, so a body under another name could never be removed.
fn called(resource: Resource, name: &str) -> Result<Resource, Flaw> {
    let own = resource_name(&resource);
    if own.as_ref() == name {
        return Ok(resource);
    }
    Err(Flaw::new("name", Cause::OtherName(own.as_ref().into())))
}

/// A [`Malformed`] on its way up: the path grows from the inside out.
#[derive(Debug)]
pub(crate) struct Flaw {
    path: String,
    cause: Cause,
}

impl Flaw {
    pub(crate) fn new(field: impl Into<String>, cause: Cause) -> Self {
        Self {
            path: field.into(),
            cause,
        }
    }

    /// The place as seen from the enclosing message.
    pub(crate) fn within(self, outer: impl Display) -> Self {
        let path = if self.path.is_empty() {
            outer.to_string()
        } else {
            format!("{outer}.{}", self.path)
        };
        Self {
            path,
            cause: self.cause,
        }
    }

    /// Names the resource it stands in.
    pub(crate) fn of(self, resource: &str) -> Malformed {
        Malformed {
            resource: resource.into(),
            field: self.path,
            cause: self.cause,
        }
    }
}

pub(crate) fn undecodable(error: prost::DecodeError) -> Flaw {
    Flaw::new("message", Cause::Undecodable(error))
}

/// Converts every element; a flaw is placed at `field[index]`.
fn each<T, U, C>(
    field: &str,
    items: impl IntoIterator<Item = T>,
    convert: impl Fn(T) -> Result<U, Flaw>,
) -> Result<C, Flaw>
where
    C: FromIterator<U>,
{
    let place = |(index, item)| convert(item).map_err(|flaw| flaw.within(format_args!("{field}[{index}]")));
    items.into_iter().enumerate().map(place).collect()
}

/// An enum value this version knows.
fn known<T: TryFrom<i32>>(field: &str, value: i32) -> Result<T, Flaw> {
    T::try_from(value).map_err(|_| Flaw::new(field, Cause::UnknownValue(value)))
}

/// A text that must not be empty.
fn required(field: &str, text: String) -> Result<Str, Flaw> {
    if text.is_empty() {
        Err(Flaw::new(field, Cause::Unset))
    } else {
        Ok(text.into())
    }
}

/// A text with a meaning for its absence.
fn or_default(text: &str, default: &str) -> Str {
    if text.is_empty() {
        default.into()
    } else {
        text.into()
    }
}

/// The inverse of [`or_default`].
fn unless_default(text: &str, default: &str) -> String {
    if text == default {
        String::new()
    } else {
        text.into()
    }
}

/// Exactly two non-empty parts, the second without a further slash.
fn namespaced(text: &str) -> Result<NamespacedName, Flaw> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(NamespacedName::new(namespace, name))
        }
        _ => Err(Flaw::new("", Cause::Name(text.into()))),
    }
}

fn port(field: &str, number: u32) -> Result<u16, Flaw> {
    u16::try_from(number).map_err(|_| Flaw::new(field, Cause::Port(number)))
}

/// A port that zero does not stand for.
fn real_port(field: &str, number: u32) -> Result<u16, Flaw> {
    match port(field, number)? {
        0 => Err(Flaw::new(field, Cause::Port(number))),
        number => Ok(number),
    }
}

/// Raw bytes in network order, as they stand: an IPv4-mapped address is still IPv6.
fn raw_address(bytes: &[u8]) -> Result<IpAddr, Flaw> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(v4));
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(v6) => Ok(IpAddr::from(v6)),
        Err(_) => Err(Flaw::new("", Cause::AddressLength(bytes.len()))),
    }
}

/// One address; IPv4-mapped IPv6 becomes IPv4.
fn ip(bytes: &[u8]) -> Result<IpAddr, Flaw> {
    raw_address(bytes).map(|address| address.to_canonical())
}

/// A range without host bits; an IPv4-mapped range becomes IPv4, because that is how peers are seen.
fn ip_net(bytes: &[u8], length: u32) -> Result<IpNet, Flaw> {
    let address = raw_address(bytes).map_err(|flaw| flaw.within("address"))?;
    let width = if address.is_ipv4() { 32 } else { 128 };
    let too_long = || Flaw::new("length", Cause::PrefixLength { length, width });
    let prefix = u8::try_from(length)
        .ok()
        .filter(|prefix| *prefix <= width)
        .ok_or_else(too_long)?;
    let canonical = address.to_canonical();
    let (address, prefix) = match prefix.checked_sub(96) {
        Some(rest) if address.is_ipv6() && canonical.is_ipv4() => (canonical, rest),
        _ => (address, prefix),
    };
    IpNet::new(address, prefix)
        .map(|net| net.trunc())
        .map_err(|_| too_long())
}

/// The bytes of an address in network order.
fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
