//! Delta discovery messages to and from the session's own.

use prost_types::value::Kind;
use tulle_model::Str;
use tulle_proto::core::Node;
use tulle_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use tulle_proto::names::FEATURES_KEY;

use super::NodeFacts;
use crate::serve::session::{Nack, Request, Response};
use crate::serve::viewer::Features;
use crate::snapshot::Slot;

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
        features: text(FEATURES_KEY)
            .map(|list| Features::parse(&list))
            .unwrap_or_default(),
        version: version.take(VERSION_CHARS_MAX).collect::<String>().into(),
    }
}

pub(super) fn response(response: Response) -> DeltaDiscoveryResponse {
    let type_url = response.type_url.to_string();
    let resources = response.resources.into_iter();
    DeltaDiscoveryResponse {
        system_version_info: response.cut.to_string(),
        resources: resources.map(|slot| resource(slot, &type_url)).collect(),
        nonce: response.nonce.to_string(),
        removed_resources: response.removed.iter().map(ToString::to_string).collect(),
        type_url,
    }
}

fn resource(slot: Slot, type_url: &str) -> Resource {
    Resource {
        version: slot.version.to_string(),
        resource: Some(prost_types::Any {
            type_url: type_url.to_owned(),
            value: slot.body.into(),
        }),
        name: slot.name.to_string(),
        aliases: slot.aliases.iter().map(ToString::to_string).collect(),
        ttl: None,
        cache_control: None,
    }
}
