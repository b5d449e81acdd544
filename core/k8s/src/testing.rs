//! Objects from text, for tests.

use crate::document::documents;
use crate::object::{Object, Reading, read};

/// The objects of a text; a bad one becomes its stand-in.
///
/// # Panics
/// Something in the text is no object.
#[must_use]
pub fn objects(text: &str) -> Vec<Object> {
    let read = |node: &_| match read(node) {
        Reading::Good { object, .. }
        | Reading::Bad {
            stand_in: Some(object),
            ..
        } => Object::clone(&object),
        other => panic!("no object: {other:?}"),
    };
    documents(text)
        .iter()
        .map(|document| read(document.as_ref().expect("a readable document")))
        .collect()
}

/// Defines a function that reads one object of a kind.
macro_rules! one {
    ($($name:ident $kind:ident;)*) => {
        $(
            #[doc = concat!("The ", stringify!($kind), " of a text.")]
            ///
            /// # Panics
            /// The text is something else.
            #[must_use]
            pub fn $name(text: &str) -> crate::api::$kind {
                match objects(text).remove(0) {
                    Object::$kind(object) => object,
                    other => panic!("another kind: {other:?}"),
                }
            }
        )*
    };
}

one! {
    namespace Namespace;
    node Node;
    pod Pod;
    service Service;
    endpoint_slice EndpointSlice;
    service_entry ServiceEntry;
    workload_entry WorkloadEntry;
    authorization_policy AuthorizationPolicy;
    peer_authentication PeerAuthentication;
    request_authentication RequestAuthentication;
    gateway Gateway;
    http_route HttpRoute;
    traffic_policy TrafficPolicy;
}
