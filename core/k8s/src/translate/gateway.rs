//! A waypoint's gateway into its settings, and what is said of gateways and classes.

use tulle_model::Str;
use tulle_model::waypoint::{PathNormalization, Scope, Settings, SourceIdentity};

use super::condition::{ACCEPTED, Condition, PROGRAMMED, RESOLVED_REFS};
use super::lookup::Lookup;
use super::waypoint::{self, is_waypoint, is_waypoint_class};
use crate::api::{Gateway, GatewayClass};

/// Annotation of waypoints whose applications are told who asked.
const XFCC: &str = "ambient.istio.io/xfcc-include-client-identity";

/// The settings of a waypoint; `None` for any other gateway.
#[must_use]
pub fn settings(gateway: &Gateway, around: &impl Lookup) -> Option<Settings> {
    let meta = &gateway.metadata;
    let class = around.gateway_class(&gateway.spec.gateway_class_name);
    if !is_waypoint(gateway, class) {
        return None;
    }
    let of_mesh = &around.mesh().waypoint;
    Some(Settings {
        namespace: meta.namespace.clone(),
        gateway: meta.name.clone(),
        class: gateway.spec.gateway_class_name.clone(),
        addresses: waypoint::address_of(gateway, around).into_iter().collect(),
        scope: match waypoint::purpose(gateway, class) {
            "workload" => Scope::Workload,
            "all" => Scope::All,
            "service" => Scope::Service,
            _ => Scope::None,
        },
        source_identity: of_mesh.source_identity,
        path_normalization: of_mesh.path_normalization,
        limits: of_mesh.limits.clone(),
        telemetry: of_mesh.telemetry.clone(),
        providers: around.mesh().providers.clone(),
        gateway_identities: of_mesh.gateway_identities.clone(),
        forward_client_cert: meta.annotation(XFCC) == Some("true"),
    })
}

/// What is said of a waypoint's gateway. Other gateways belong to others.
#[must_use]
pub fn conditions(gateway: &Gateway, around: &impl Lookup) -> Vec<Condition> {
    let class = around.gateway_class(&gateway.spec.gateway_class_name);
    if !is_waypoint(gateway, class) {
        return Vec::new();
    }
    let accepted = match waypoint::purpose(gateway, class) {
        "service" | "workload" | "all" | "none" => {
            let listens = gateway
                .spec
                .listeners
                .iter()
                .any(|listener| waypoint::hbone(&listener));
            if listens || waypoint::inbound_binding(gateway, class).is_some() {
                Condition::holds(ACCEPTED, "Accepted", "it is a waypoint")
            } else {
                let message = "it has no listener with port 15008 and protocol HBONE; add one";
                Condition::fails(ACCEPTED, "ListenersNotValid", message)
            }
        }
        _ => {
            let message = "the label istio.io/waypoint-for must be service, workload, all or none";
            Condition::fails(ACCEPTED, "Invalid", message)
        }
    };
    let programmed = match waypoint::address_of(gateway, around) {
        Some(address) => Condition::holds(PROGRAMMED, "Programmed", format!("it is reached at {address}")),
        None => {
            let message = "it was never ready: it has no address in its status";
            Condition::fails(PROGRAMMED, "AddressNotAssigned", message)
        }
    };
    let resolved = Condition::holds(RESOLVED_REFS, "ResolvedRefs", "it refers to nothing");
    vec![accepted, programmed, resolved]
}

/// What is said of a class of waypoints.
#[must_use]
pub fn class_conditions(class: &GatewayClass) -> Vec<Condition> {
    if !is_waypoint_class(&class.metadata.name, Some(class)) {
        return Vec::new();
    }
    vec![
        Condition::holds(ACCEPTED, "Accepted", "gateways of this class are waypoints"),
        Condition::holds(
            "SupportedVersion",
            "SupportedVersion",
            "the kinds of the Gateway API are known",
        ),
    ]
}

/// Reads what the mesh settings say of paths.
#[must_use]
pub fn path_normalization(text: &str) -> Option<PathNormalization> {
    Some(match text {
        "" | "BASE" => PathNormalization::Base,
        "MERGE_SLASHES" => PathNormalization::MergeSlashes,
        "DECODE_SLASHES" | "DECODE_AND_MERGE_SLASHES" => PathNormalization::DecodeSlashes,
        "NONE" => PathNormalization::None,
        _ => return None,
    })
}

/// Reads what the mesh settings say of the source's identity.
#[must_use]
pub fn source_identity(text: &Str) -> Option<SourceIdentity> {
    match &**text {
        "" | "forward" => Some(SourceIdentity::Forward),
        "off" => Some(SourceIdentity::Off),
        _ => None,
    }
}
