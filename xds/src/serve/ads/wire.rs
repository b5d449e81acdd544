//! Delta discovery requests as the session takes them.

use prost_types::value::Kind;
use tulle_model::Str;
use tulle_proto::core::Node;
use tulle_proto::discovery::DeltaDiscoveryRequest;
#[cfg(test)]
use tulle_proto::discovery::DeltaDiscoveryResponse;
use tulle_proto::names::FEATURES_KEY;

use super::NodeFacts;
#[cfg(test)]
use crate::serve::frame::{Encoding, Payload};
#[cfg(test)]
use crate::serve::session::Response;
use crate::serve::session::{Nack, Request};
use crate::serve::viewer::Features;

/// Longest version text kept of a client.
const VERSION_CHARS_MAX: usize = 64;

pub(super) fn request(message: DeltaDiscoveryRequest) -> Request {
    let names = |names: Vec<String>| names.into_iter().map(Str::from).collect();
    let held = message.initial_resource_versions.into_iter();
    let error = message
        .error_detail
        .filter(|status| status.code != 0 || !status.message.is_empty());
    Request {
        type_url: message.type_url.into(),
        subscribe: names(message.resource_names_subscribe),
        unsubscribe: names(message.resource_names_unsubscribe),
        initial_versions: held
            .map(|(name, version)| (name.into(), version.into()))
            .collect(),
        nonce: message.response_nonce.into(),
        error: error.map(|status| Nack {
            message: status.message,
        }),
    }
}

pub(super) fn node_facts(node: &Node) -> NodeFacts {
    let text = |key: &str| match node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.clone()),
        _ => None,
    };
    let version = Some(node.build_version.clone()).filter(|version| !version.is_empty());
    let version = version.or_else(|| text("ISTIO_VERSION")).unwrap_or_default();
    let version = version.chars().filter(|character| !character.is_control());
    NodeFacts {
        id: node.id.clone(),
        node_name: text("NODE_NAME"),
        cluster_id: text("CLUSTER_ID"),
        namespace: text("NAMESPACE"),
        service_account: text("SERVICE_ACCOUNT"),
        features: text(FEATURES_KEY)
            .map(|list| Features::parse(&list))
            .unwrap_or_default(),
        version: version.take(VERSION_CHARS_MAX).collect::<String>().into(),
    }
}

/// A response as a client reads it.
#[cfg(test)]
pub(super) fn response(response: &Response) -> DeltaDiscoveryResponse {
    use prost::Message as _;
    let payload = Payload::encode(&response.type_url, &response.resources, &response.removed);
    let message = payload.message(&response.type_url, response.cut, &response.nonce, Encoding::Raw);
    let all: Vec<u8> = message.parts.into_iter().flatten().collect();
    DeltaDiscoveryResponse::decode(&all[5..]).expect("what is written can be read")
}
