//! One plain function per decoder of foreign bytes, for fuzzers and corpus tests. None may panic, and what a
//! decoder accepts must survive being written and read again.

use std::fmt::Debug;
use std::sync::Arc;

use prost::Message;

use crate::convert::zds::{Answer, Hello, Request};
use crate::stub::{self, RefusedAddresses};
use crate::{
    Cause, Malformed, Resource, decode_address, decode_authorization, decode_policy, decode_route,
    decode_waypoint, encode_address, encode_authorization, encode_policy, encode_route, encode_waypoint,
    resource_name,
};
use crate::{security, workload};

/// Workloads and services.
///
/// # Panics
/// If an accepted resource does not survive a round trip.
pub fn xds_workload(data: &[u8]) {
    let _ = RefusedAddresses::read(data, &[String::from_utf8_lossy(data).into_owned()]);
    let Ok(address) = workload::Address::decode(data) else {
        return;
    };
    let name = match address.r#type {
        Some(workload::address::Type::Workload(workload)) => workload.uid,
        Some(workload::address::Type::Service(service)) => {
            format!("{}/{}", service.namespace, service.hostname)
        }
        None => String::new(),
    };
    let Ok(resource) = decode_address(&name, data) else {
        return;
    };
    assert_eq!(resource_name(&resource).as_ref(), name);
    let bytes = encode_address(&resource).expect("an address resource is encodable as one");
    assert_eq!(decode_address(&name, &bytes), Ok(resource));
}

/// Policies.
///
/// # Panics
/// If an accepted policy does not survive a round trip, or a refused one has no stub.
pub fn xds_authorization(data: &[u8]) {
    let name = security::Authorization::decode(data).map_or_else(
        |_| "ns/p".to_owned(),
        |policy| format!("{}/{}", policy.namespace, policy.name),
    );
    match decode_authorization(&name, data) {
        Ok(Resource::Authorization(policy)) => {
            let again = decode_authorization(&name, &encode_authorization(&policy));
            assert_eq!(again, Ok(Resource::Authorization(Arc::clone(&policy))));
        }
        Ok(other) => panic!("a policy decoded to {other:?}"),
        Err(_) => {
            let stub = stub::deny_all("ns/p", data).expect("a namespaced name gives a stub");
            assert!(stub.untranslatable && !stub.rules.is_empty());
        }
    }
}

/// Rules of routes.
///
/// # Panics
/// If an accepted route does not survive a round trip.
pub fn xds_route(data: &[u8]) {
    survives(data, decode_route, encode_route);
}

/// Concerns of policies, as waypoints enforce them.
///
/// # Panics
/// If an accepted policy does not survive a round trip.
pub fn xds_policy(data: &[u8]) {
    survives(data, decode_policy, encode_policy);
}

/// Settings of waypoints, and what they stand in front of.
///
/// # Panics
/// If an accepted one does not survive a round trip.
pub fn xds_waypoint(data: &[u8]) {
    survives(data, decode_waypoint, encode_waypoint);
}

/// What is accepted is written and read as the same, and always written alike.
fn survives<T: PartialEq + Debug>(
    data: &[u8],
    decode: fn(&str, &[u8]) -> Result<T, Malformed>,
    encode: fn(&T) -> Vec<u8>,
) {
    // Nothing is called by an empty name; what else is good says what it is called by.
    let refused = decode("", data).expect_err("a resource has a name");
    let Cause::OtherName(name) = refused.cause else {
        return;
    };
    let value = decode(&name, data).expect("a resource is good under its own name");
    let bytes = encode(&value);
    let again = decode(&name, &bytes).expect("what was written can be read");
    assert_eq!(again, value);
    assert_eq!(encode(&again), bytes);
}

/// Packets between agent and proxy, both ways.
///
/// # Panics
/// If an accepted packet does not survive a round trip.
pub fn zds(data: &[u8]) {
    if let Ok(hello) = Hello::decode(data) {
        assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
    }
    if let Ok(request) = Request::decode(data) {
        let again = Request::decode(&request.encode());
        assert!(again.is_ok(), "{request:?} became {again:?}");
    }
    if let Ok(answer) = Answer::decode(data) {
        assert!(Answer::decode(&answer.encode()).is_ok());
    }
}
