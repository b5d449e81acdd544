//! A waypoint's gateway into its settings, and what is said of gateways and classes.

use tulle_model::Str;
use tulle_model::waypoint::{PathNormalization, Scope, Settings, SourceIdentity};

use super::condition::{ACCEPTED, CONFLICTED, Condition, PROGRAMMED, RESOLVED_REFS, Status};
use super::lookup::Lookup;
use super::waypoint::{self, is_waypoint, is_waypoint_class};
use crate::api::gateway::Listener;
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
        node_addresses: around.node_addresses(),
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
    let taken = waypoint::listener(gateway, class);
    let listeners = &gateway.spec.listeners;
    let of_listeners = listeners.iter().enumerate().flat_map(|(place, listener)| {
        let is_bound = taken.is_some_and(|taken| std::ptr::eq(taken, listener));
        let is_taken = is_bound || waypoint::hbone(&listener);
        of_listener(listener, &listeners[..place], is_taken, &programmed)
    });
    let of_listeners: Vec<Condition> = of_listeners.collect();
    let mut all = vec![accepted, programmed, resolved];
    all.extend(of_listeners);
    all
}

/// What is said of a listener: an earlier one keeps its port.
fn of_listener(
    listener: &Listener,
    earlier: &[Listener],
    is_taken: bool,
    gateway: &Condition,
) -> Vec<Condition> {
    let rival = earlier.iter().find(|other| {
        let is_same = other.hostname == listener.hostname || waypoint::hbone(&listener);
        other.port == listener.port && (other.protocol != listener.protocol || is_same)
    });
    let mut conditions = Vec::new();
    if let Some(rival) = rival {
        let reason = match rival.protocol == listener.protocol {
            true => "HostnameConflict",
            false => "ProtocolConflict",
        };
        let message = format!(
            "listener {} has port {} already; remove one of them",
            rival.name, listener.port
        );
        conditions.push(Condition::fails(ACCEPTED, "PortUnavailable", message.clone()));
        conditions.push(Condition::holds(CONFLICTED, reason, message));
    } else if is_taken {
        let message = "the waypoint takes traffic on it";
        conditions.push(Condition::holds(ACCEPTED, "Accepted", message));
    } else {
        let message = "a waypoint takes traffic on port 15008 by protocol HBONE, and as its inbound binding says; remove \
                       this listener";
        conditions.push(Condition::fails(ACCEPTED, "UnsupportedProtocol", message));
    }
    conditions.push(match gateway.status {
        _ if rival.is_some() || !is_taken => Condition::fails(
            PROGRAMMED,
            "Invalid",
            "it is not accepted; see its other condition",
        ),
        Status::True => gateway.clone(),
        Status::False => Condition::fails(
            PROGRAMMED,
            "Pending",
            "the gateway is not programmed; see its condition",
        ),
    });
    conditions.push(Condition::holds(
        RESOLVED_REFS,
        "ResolvedRefs",
        "it refers to nothing",
    ));
    let of = format!("listener {}", listener.name);
    conditions
        .into_iter()
        .map(|condition| condition.of(of.clone()))
        .collect()
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
