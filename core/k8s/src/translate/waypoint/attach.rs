//! What a waypoint takes: which kind of traffic, from which namespaces.

use tulle_model::service::Visibility;

use super::super::lookup::Lookup;
use super::hbone;
use crate::api::gateway::Listener;
use crate::api::{Gateway, GatewayClass, Meta};

/// Label of gateways and classes with the kind of traffic they take.
const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// Annotation of gateways and classes whose replicas take traffic on another listener.
const INBOUND_BINDING: &str = "ambient.istio.io/waypoint-inbound-binding";

/// A kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// To a service.
    Service,
    /// To the address of a workload.
    Workload,
}

impl Traffic {
    /// For messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::Workload => "workloads",
        }
    }
}

/// Whether a class is one of waypoints.
#[must_use]
pub fn is_waypoint_class(name: &str, class: Option<&GatewayClass>) -> bool {
    let controller = class.map(|class| &*class.spec.controller_name);
    matches!(name, "tulle-waypoint" | "istio-waypoint")
        || matches!(
            controller,
            Some("tulle.dev/waypoint" | "istio.io/mesh-controller")
        )
}

/// Whether a gateway is a waypoint.
#[must_use]
pub fn is_waypoint(gateway: &Gateway, class: Option<&GatewayClass>) -> bool {
    is_waypoint_class(&gateway.spec.gateway_class_name, class)
}

/// What the gateway says with a label or annotation, else its class.
fn said<'a>(
    gateway: &'a Gateway,
    class: Option<&'a GatewayClass>,
    read: impl Fn(&'a Meta) -> Option<&'a str>,
) -> Option<&'a str> {
    read(&gateway.metadata).or_else(|| class.and_then(|class| read(&class.metadata)))
}

/// The kind of traffic a waypoint is for: `service`, `workload`, `all` or `none`.
pub(in crate::translate) fn purpose<'a>(gateway: &'a Gateway, class: Option<&'a GatewayClass>) -> &'a str {
    said(gateway, class, |meta| meta.label(WAYPOINT_FOR)).unwrap_or("service")
}

/// Whether a waypoint takes a kind of traffic.
#[must_use]
pub fn accepts(gateway: &Gateway, class: Option<&GatewayClass>, traffic: Traffic) -> bool {
    matches!(
        (purpose(gateway, class), traffic),
        ("all", _) | ("service", Traffic::Service) | ("workload", Traffic::Workload)
    )
}

/// Protocol and port of the listener that replicas take traffic on, if it is not the usual one.
#[must_use]
pub fn inbound_binding<'a>(
    gateway: &'a Gateway,
    class: Option<&'a GatewayClass>,
) -> Option<(&'a str, Option<u16>)> {
    let text = said(gateway, class, |meta| meta.annotation(INBOUND_BINDING))?;
    match text.split_once('/') {
        Some((protocol, port)) => Some((protocol, Some(port.parse().ok()?))),
        None => Some((text, None)),
    }
}

/// Whether a waypoint lets an object attach to it.
pub(super) fn allows(
    gateway: &Gateway,
    class: Option<&GatewayClass>,
    meta: &Meta,
    visibility: &Visibility,
    around: &impl Lookup,
) -> bool {
    let same = gateway.metadata.namespace == meta.namespace;
    if !same && !visibility.reaches(&meta.namespace, &gateway.metadata.namespace) {
        return false;
    }
    let Some(listener) = listener(gateway, class) else {
        return false;
    };
    let namespaces = &listener.allowed_routes.namespaces;
    match &*namespaces.from {
        "" | "Same" => same,
        "All" => true,
        "Selector" => namespaces.selector.as_ref().is_some_and(|selector| {
            let labels = around
                .namespace(&meta.namespace)
                .map(|object| &object.metadata.labels);
            labels.is_some_and(|labels| selector.matches(labels))
        }),
        _ => false,
    }
}

/// The listener that a waypoint takes traffic on.
pub(in crate::translate) fn listener<'a>(
    gateway: &'a Gateway,
    class: Option<&'a GatewayClass>,
) -> Option<&'a Listener> {
    let listeners = &gateway.spec.listeners;
    match inbound_binding(gateway, class) {
        Some((protocol, port)) => listeners.iter().find(|listener| {
            &*listener.protocol == protocol && port.is_none_or(|port| listener.port == port)
        }),
        None => listeners.iter().find(hbone),
    }
}
