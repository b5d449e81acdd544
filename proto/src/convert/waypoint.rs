//! What waypoints receive: `tulle.waypoint.v1` and back.

use std::time::Duration;

use prost::Message;
use tulle_model::policy::Policy;
use tulle_model::route::Route;
use tulle_model::waypoint::Waypoint;
use tulle_model::{NamespacedHostname, Str};

use super::{Cause, Flaw, Malformed, required, undecodable};
use crate::waypoint as wire;
use crate::{strict, workload};

mod authz;
mod filter;
mod jwt;
mod policy;
mod route;
mod settings;
mod traffic;

/// Decodes the body of a [`crate::WAYPOINT_TYPE`] resource; unknown fields are ignored.
///
/// # Errors
/// Names the first field that cannot be used.
pub fn decode_waypoint(name: &str, body: &[u8]) -> Result<Waypoint, Malformed> {
    wire::Waypoint::decode(body)
        .map_err(undecodable)
        .and_then(settings::parse)
        .and_then(|waypoint| called(waypoint, Waypoint::name, name))
        .map_err(|flaw| flaw.of(name))
}

/// Decodes the body of a [`crate::ROUTE_TYPE`] resource; unknown fields are ignored.
///
/// # Errors
/// Names the first field that cannot be used.
pub fn decode_route(name: &str, body: &[u8]) -> Result<Route, Malformed> {
    wire::Route::decode(body)
        .map_err(undecodable)
        .and_then(route::parse)
        .and_then(|route| called(route, Route::name, name))
        .map_err(|flaw| flaw.of(name))
}

/// Decodes the body of a [`crate::POLICY_TYPE`] resource. What it does not know, it refuses where security hangs
/// on it: a part that is skipped could turn a refusal into a permission.
///
/// # Errors
/// Names the first field that cannot be used.
pub fn decode_policy(name: &str, body: &[u8]) -> Result<Policy, Malformed> {
    strict::check(body, &strict::POLICY)
        .and_then(|()| wire::Policy::decode(body).map_err(undecodable))
        .and_then(policy::parse)
        .and_then(|policy| called(policy, Policy::name, name))
        .map_err(|flaw| flaw.of(name))
}

/// The bytes of a [`crate::WAYPOINT_TYPE`] resource. Equal values give equal bytes.
#[must_use]
pub fn encode_waypoint(waypoint: &Waypoint) -> Vec<u8> {
    wire::Waypoint::from(waypoint).encode_to_vec()
}

/// The bytes of a [`crate::ROUTE_TYPE`] resource. Equal values give equal bytes.
#[must_use]
pub fn encode_route(route: &Route) -> Vec<u8> {
    wire::Route::from(route).encode_to_vec()
}

/// The bytes of a [`crate::POLICY_TYPE`] resource. Equal values give equal bytes.
#[must_use]
pub fn encode_policy(policy: &Policy) -> Vec<u8> {
    wire::Policy::from(policy).encode_to_vec()
}

/// Removals come by the envelope's name, so a body under another name could never be removed.
fn called<T>(value: T, own: impl Fn(&T) -> Str, name: &str) -> Result<T, Flaw> {
    let own = own(&value);
    if own.as_ref() == name {
        return Ok(value);
    }
    Err(Flaw::new("name", Cause::OtherName(own.as_ref().into())))
}

/// Most seconds of a duration of the wire.
const SECONDS_MAX: u64 = 315_576_000_000;

/// A duration that may be absent; a negative one is none.
fn duration(field: &str, value: Option<prost_types::Duration>) -> Result<Option<Duration>, Flaw> {
    value
        .map(|value| {
            let flaw = || Flaw::new(field, Cause::Duration(value.seconds));
            let seconds = u64::try_from(value.seconds).map_err(|_| flaw())?;
            let nanos = u32::try_from(value.nanos).map_err(|_| flaw())?;
            if seconds > SECONDS_MAX || nanos >= 1_000_000_000 {
                return Err(flaw());
            }
            Ok(Duration::new(seconds, nanos))
        })
        .transpose()
}

/// Longer than anything means for ever, as far as the wire can say that.
fn to_duration(duration: Duration) -> prost_types::Duration {
    let seconds = duration.as_secs().min(SECONDS_MAX);
    prost_types::Duration {
        seconds: i64::try_from(seconds).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

/// Empty is absent.
fn optional(text: String) -> Option<Str> {
    (!text.is_empty()).then(|| text.into())
}

fn text(value: &Option<Str>) -> String {
    value.as_deref().unwrap_or_default().to_owned()
}

fn names(values: Vec<String>) -> Vec<Str> {
    values.into_iter().map(Into::into).collect()
}

fn texts(values: &[Str]) -> Vec<String> {
    values.iter().map(|value| value.as_ref().into()).collect()
}

/// A port, or zero for every port.
fn any_port(field: &str, number: u32) -> Result<Option<u16>, Flaw> {
    super::port(field, number).map(|number| (number != 0).then_some(number))
}

fn status(field: &str, number: u32) -> Result<Option<u16>, Flaw> {
    match u16::try_from(number) {
        Ok(0) => Ok(None),
        Ok(number @ 100..=599) => Ok(Some(number)),
        _ => Err(Flaw::new(field, Cause::Status(number))),
    }
}

fn statuses(field: &str, numbers: Vec<u32>) -> Result<Vec<u16>, Flaw> {
    super::each(field, numbers, |number| {
        status("", number)?.ok_or_else(|| Flaw::new("", Cause::Status(number)))
    })
}

fn hostname(field: &str, name: Option<workload::NamespacedHostname>) -> Result<NamespacedHostname, Flaw> {
    let name = name.ok_or_else(|| Flaw::new(field, Cause::Unset))?;
    let namespace = required("namespace", name.namespace).map_err(|flaw| flaw.within(field))?;
    let hostname = required("hostname", name.hostname).map_err(|flaw| flaw.within(field))?;
    Ok(NamespacedHostname { namespace, hostname })
}

fn unset(field: &str) -> Flaw {
    Flaw::new(field, Cause::Unset)
}

fn within<T, U>(
    field: &str,
    value: Option<T>,
    convert: impl Fn(T) -> Result<U, Flaw>,
) -> Result<Option<U>, Flaw> {
    value
        .map(|value| convert(value).map_err(|flaw| flaw.within(field)))
        .transpose()
}
