//! Gateways and their classes, and the grants that let references cross namespaces.

use serde::Deserialize;
use tulle_model::Str;

use super::meta::{Labels, Meta};

/// A class of gateways.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayClass {
    /// Metadata.
    pub metadata: Meta,
    /// Wanted state.
    pub spec: GatewayClassSpec,
}

/// Wanted state of a [`GatewayClass`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayClassSpec {
    /// Who is responsible for gateways of the class.
    pub controller_name: Str,
}

/// A gateway; one of a waypoint's class is a waypoint.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Gateway {
    /// Metadata.
    pub metadata: Meta,
    /// Wanted state.
    pub spec: GatewaySpec,
    /// Observed state.
    pub status: GatewayStatus,
}

/// Wanted state of a [`Gateway`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaySpec {
    /// Its class.
    pub gateway_class_name: Str,
    /// Where it listens.
    pub listeners: Vec<Listener>,
}

/// A port that a gateway listens on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Listener {
    /// Name.
    pub name: Str,
    /// Port.
    pub port: u16,
    /// Protocol, such as `HBONE`.
    pub protocol: Str,
    /// Host names it is for; empty is every name.
    pub hostname: Str,
    /// Who may attach to it.
    pub allowed_routes: AllowedRoutes,
}

/// Who may attach to a listener.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AllowedRoutes {
    /// Namespaces.
    pub namespaces: RouteNamespaces,
}

/// Namespaces that may attach.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteNamespaces {
    /// `Same` if empty; `All`, `Selector`, `None`.
    pub from: Str,
    /// Which, for `Selector`.
    pub selector: Option<NamespaceSelector>,
}

/// Namespaces by label.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NamespaceSelector {
    /// The labels.
    pub match_labels: Labels,
    /// Further conditions.
    pub match_expressions: Vec<MatchExpression>,
}

/// A condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MatchExpression {
    /// The label.
    pub key: Str,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`.
    pub operator: Str,
    /// Its values.
    pub values: Vec<Str>,
}

impl NamespaceSelector {
    /// Whether these labels fulfil every condition; one that is not known is not fulfilled.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        super::meta::selects(&self.match_labels, labels)
            && self.match_expressions.iter().all(|condition| {
                let value = labels.get(&condition.key);
                match &*condition.operator {
                    "In" => value.is_some_and(|value| condition.values.contains(value)),
                    "NotIn" => value.is_none_or(|value| !condition.values.contains(value)),
                    "Exists" => value.is_some(),
                    "DoesNotExist" => value.is_none(),
                    _ => false,
                }
            })
    }
}

/// Observed state of a [`Gateway`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayStatus {
    /// Where it is reached; none until it was ready once.
    pub addresses: Vec<GatewayStatusAddress>,
}

/// An address of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayStatusAddress {
    /// `IPAddress` if empty, or `Hostname`.
    #[serde(rename = "type")]
    pub kind: Str,
    /// The address.
    pub value: Str,
}

/// Lets references from other namespaces in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReferenceGrant {
    /// Metadata.
    pub metadata: Meta,
    /// What it allows.
    pub spec: ReferenceGrantSpec,
}

/// What a [`ReferenceGrant`] allows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReferenceGrantSpec {
    /// Who may refer.
    pub from: Vec<GrantFrom>,
    /// What may be referred to.
    pub to: Vec<GrantTo>,
}

/// Who may refer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrantFrom {
    /// Group.
    pub group: Str,
    /// Kind.
    pub kind: Str,
    /// Namespace.
    pub namespace: Str,
}

/// What may be referred to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrantTo {
    /// Group.
    pub group: Str,
    /// Kind.
    pub kind: Str,
    /// Name; empty is every one.
    pub name: Str,
}
