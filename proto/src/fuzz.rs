//! One plain function per decoder of foreign bytes, for fuzzers and corpus tests. None may panic, and what a
//! decoder accepts must survive being written and read again.

use std::sync::Arc;

use prost::Message;

use crate::convert::zds::{Answer, Hello, Request};
use crate::stub::{self, RefusedAddresses};
use crate::{
    Resource, decode_address, decode_authorization, encode_address, encode_authorization, resource_name,
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
