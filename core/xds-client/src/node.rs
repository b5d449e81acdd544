//! How a client names itself to the control plane.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use serde_json::Value as Json;
use tulle_proto::core::Node;
use tulle_proto::names::{DRY_RUN_FEATURE, FEATURES_KEY, TRUST_FEATURE};

/// The address written when the own one is unknown.
const UNKNOWN_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1));
/// The domain every node proxy writes; servers do not read the mesh domain from it.
const DOMAIN: &str = "cluster.local";
/// Prefix of variables that become metadata as they are.
pub const TEXT_PREFIX: &str = "ISTIO_META_";
/// Prefix of variables that become metadata as parsed JSON.
pub const JSON_PREFIX: &str = "ISTIO_METAJSON_";

/// Kind of client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NodeKind {
    /// A node proxy.
    #[default]
    Ztunnel,
    /// A waypoint.
    Waypoint,
    /// A node's agent.
    Agent,
}

/// Who the client is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeInfo {
    /// Kind of client.
    pub kind: NodeKind,
    /// Name of its pod.
    pub name: String,
    /// Namespace of its pod.
    pub namespace: String,
    /// Node it runs on; servers scope by it.
    pub node_name: String,
    /// Its addresses; the first one is part of the id.
    pub instance_ips: Vec<IpAddr>,
    /// Further metadata, such as `CLUSTER_ID` and `NETWORK`.
    pub metadata: BTreeMap<String, Json>,
    /// Build version, if told.
    pub build_version: String,
}

/// A metadata variable whose value is no JSON.
#[derive(Debug, thiserror::Error)]
#[error("{variable} is not JSON: {cause}")]
pub struct InvalidMetadata {
    /// Name of the variable.
    pub variable: String,
    /// What the parser says.
    pub cause: serde_json::Error,
}

/// Metadata from environment variables: every `ISTIO_META_<K>` as text, every `ISTIO_METAJSON_<K>` as JSON.
///
/// # Errors
/// Lists every variable that does not hold JSON but should.
pub fn metadata_from(
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<BTreeMap<String, Json>, Vec<InvalidMetadata>> {
    let (mut metadata, mut invalid) = (BTreeMap::new(), Vec::new());
    for (variable, value) in variables {
        if let Some(key) = variable.strip_prefix(TEXT_PREFIX) {
            metadata.insert(key.to_owned(), Json::String(value));
        } else if let Some(key) = variable.strip_prefix(JSON_PREFIX) {
            match serde_json::from_str(&value) {
                Ok(json) => drop(metadata.insert(key.to_owned(), json)),
                Err(cause) => invalid.push(InvalidMetadata { variable, cause }),
            }
        }
    }
    if invalid.is_empty() {
        Ok(metadata)
    } else {
        Err(invalid)
    }
}

impl NodeInfo {
    /// `<type>~<ip>~<pod>.<ns>~<ns>.svc.<domain>`.
    #[must_use]
    pub fn id(&self) -> String {
        let kind = match self.kind {
            NodeKind::Ztunnel => "ztunnel",
            NodeKind::Waypoint => "waypoint",
            NodeKind::Agent => "agent",
        };
        let ip = self.instance_ips.first().unwrap_or(&UNKNOWN_IP);
        let (name, namespace) = (&self.name, &self.namespace);
        format!("{kind}~{ip}~{name}.{namespace}~{namespace}.svc.{DOMAIN}")
    }

    /// As it travels with the first message of a stream.
    #[must_use]
    pub fn to_node(&self) -> Node {
        let addresses: Vec<String> = self.instance_ips.iter().map(ToString::to_string).collect();
        let mut fields: BTreeMap<String, Value> = self
            .metadata
            .iter()
            .map(|(key, json)| (key.clone(), value(json)))
            .collect();
        for (key, text) in [
            ("NAME", &self.name),
            ("NAMESPACE", &self.namespace),
            ("NODE_NAME", &self.node_name),
            ("INSTANCE_IPS", &addresses.join(",")),
            (FEATURES_KEY, &[TRUST_FEATURE, DRY_RUN_FEATURE].join(",")),
        ] {
            fields.insert(key.to_owned(), value(&Json::String(text.clone())));
        }
        Node {
            id: self.id(),
            metadata: Some(Struct { fields }),
            build_version: self.build_version.clone(),
            ..Node::default()
        }
    }
}

fn value(json: &Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(flag) => Kind::BoolValue(*flag),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(items) => Kind::ListValue(ListValue {
            values: items.iter().map(value).collect(),
        }),
        Json::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(key, json)| (key.clone(), value(json)))
                .collect();
            Kind::StructValue(Struct { fields })
        }
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn an_id_names_kind_address_and_pod() {
        let node = NodeInfo {
            name: "zt-1".into(),
            namespace: "istio-system".into(),
            instance_ips: vec!["10.0.0.9".parse().unwrap(), "fd00::9".parse().unwrap()],
            ..NodeInfo::default()
        };
        assert_eq!(
            node.id(),
            "ztunnel~10.0.0.9~zt-1.istio-system~istio-system.svc.cluster.local"
        );
        let metadata = node.to_node().metadata.unwrap().fields;
        assert_eq!(
            metadata["INSTANCE_IPS"],
            value(&Json::String("10.0.0.9,fd00::9".into()))
        );
        assert_eq!(NodeInfo::default().id(), "ztunnel~1.1.1.1~.~.svc.cluster.local");
    }

    #[test]
    fn an_id_begins_with_the_kind() {
        let id = |kind| {
            let node = NodeInfo {
                kind,
                ..NodeInfo::default()
            };
            node.id().split('~').next().map(str::to_owned)
        };
        assert_eq!(id(NodeKind::Ztunnel).as_deref(), Some("ztunnel"));
        assert_eq!(id(NodeKind::Waypoint).as_deref(), Some("waypoint"));
        assert_eq!(id(NodeKind::Agent).as_deref(), Some("agent"));
    }

    #[test]
    fn metadata_comes_from_variables() {
        let found = metadata_from(variables(&[
            ("ISTIO_META_CLUSTER_ID", "east"),
            ("ISTIO_METAJSON_LABELS", r#"{"app":"zt"}"#),
            ("PATH", "/bin"),
        ]));
        let found = found.unwrap();
        assert_eq!(found["CLUSTER_ID"], "east");
        assert_eq!(found["LABELS"]["app"], "zt");
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn every_broken_variable_is_listed() {
        let pairs = variables(&[("ISTIO_METAJSON_A", "{"), ("ISTIO_METAJSON_B", "nope")]);
        assert_eq!(metadata_from(pairs).unwrap_err().len(), 2);
    }
}
