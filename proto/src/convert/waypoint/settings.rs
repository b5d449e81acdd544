//! A waypoint's settings and fronts.

use std::net::IpAddr;

use tulle_model::waypoint::{
    AccessLog, Front, FrontOf, Limits, PathNormalization, Provider, ProviderKind, Scope, Settings,
    SourceIdentity, Target, Telemetry, Waypoint,
};

use super::super::gateway::gateway;
use super::super::{Flaw, each, ip, known, octets, real_port, required};
use super::{duration, filter, hostname, names, optional, text, texts, to_duration, unset};
use crate::waypoint as wire;
use crate::waypoint::{front, provider, waypoint};

pub(super) fn parse(message: wire::Waypoint) -> Result<Waypoint, Flaw> {
    match message.kind {
        Some(waypoint::Kind::Settings(message)) => settings(message)
            .map(|settings| Waypoint::Settings(Box::new(settings)))
            .map_err(|flaw| flaw.within("settings")),
        Some(waypoint::Kind::Front(message)) => front_of(message)
            .map(Waypoint::Front)
            .map_err(|flaw| flaw.within("front")),
        None => Err(unset("kind")),
    }
}

fn settings(message: wire::Settings) -> Result<Settings, Flaw> {
    Ok(Settings {
        namespace: required("namespace", message.namespace)?,
        gateway: required("name", message.name)?,
        class: message.class.into(),
        addresses: each("addresses", message.addresses, gateway)?,
        scope: match known("scope", message.scope)? {
            wire::Scope::Service => Scope::Service,
            wire::Scope::Workload => Scope::Workload,
            wire::Scope::All => Scope::All,
            wire::Scope::Neither => Scope::None,
        },
        source_identity: match known("source_identity", message.source_identity)? {
            wire::SourceIdentity::Forward => SourceIdentity::Forward,
            wire::SourceIdentity::Off => SourceIdentity::Off,
        },
        path_normalization: match known("path_normalization", message.path_normalization)? {
            wire::PathNormalization::Base => PathNormalization::Base,
            wire::PathNormalization::MergeSlashes => PathNormalization::MergeSlashes,
            wire::PathNormalization::DecodeSlashes => PathNormalization::DecodeSlashes,
            wire::PathNormalization::None => PathNormalization::None,
        },
        limits: limits(message.limits.unwrap_or_default())?,
        telemetry: telemetry(message.telemetry.unwrap_or_default())?,
        providers: each("providers", message.providers, provider)?,
        gateway_identities: names(message.gateway_identities),
        forward_client_cert: message.forward_client_cert,
        node_addresses: nodes(message.node_addresses)?,
    })
}

/// In order, whatever order they came in: they are searched.
fn nodes(messages: Vec<Vec<u8>>) -> Result<Vec<IpAddr>, Flaw> {
    let mut nodes: Vec<IpAddr> = each("node_addresses", messages, |bytes| ip(&bytes))?;
    nodes.sort_unstable();
    nodes.dedup();
    Ok(nodes)
}

fn limits(message: wire::Limits) -> Result<Limits, Flaw> {
    Ok(Limits {
        tunnels: message.tunnels,
        streams: message.streams,
        buffer_bytes: message.buffer_bytes,
        header_bytes: message.header_bytes,
        head_timeout: duration("limits.head_timeout", message.head_timeout)?,
        body_idle: duration("limits.body_idle", message.body_idle)?,
        stream_idle: duration("limits.stream_idle", message.stream_idle)?,
        drain: duration("limits.drain", message.drain)?,
    })
}

fn telemetry(message: wire::Telemetry) -> Result<Telemetry, Flaw> {
    Ok(Telemetry {
        access_log: match known("telemetry.access_log", message.access_log)? {
            wire::AccessLog::Errors => AccessLog::Errors,
            wire::AccessLog::LogOff => AccessLog::Off,
            wire::AccessLog::LogAll => AccessLog::All,
        },
        json: message.json,
        tracing: optional(message.tracing),
        sampling_ppm: message.sampling_ppm,
    })
}

fn provider(message: wire::Provider) -> Result<Provider, Flaw> {
    let kind = match message.kind.ok_or_else(|| unset("kind"))? {
        provider::Kind::ExtAuthz(ask) => ProviderKind::ExtAuthz(Box::new(
            filter::ext_authz(ask).map_err(|flaw| flaw.within("ext_authz"))?,
        )),
        provider::Kind::RateLimit(port) => {
            ProviderKind::RateLimit(target(port).map_err(|flaw| flaw.within("rate_limit"))?)
        }
        provider::Kind::Tracing(port) => {
            ProviderKind::Tracing(target(port).map_err(|flaw| flaw.within("tracing"))?)
        }
    };
    Ok(Provider {
        name: required("name", message.name)?,
        kind,
    })
}

fn target(message: wire::ServicePort) -> Result<Target, Flaw> {
    Ok(Target {
        service: hostname("service", message.service)?,
        port: real_port("port", message.port)?,
    })
}

fn front_of(message: wire::Front) -> Result<Front, Flaw> {
    let object = match message.object.ok_or_else(|| unset("object"))? {
        front::Object::Service(name) => FrontOf::Service(hostname("service", Some(name))?),
        front::Object::WorkloadUid(uid) => FrontOf::Workload(required("workload_uid", uid)?.as_ref().into()),
    };
    Ok(Front {
        waypoint: required("waypoint", message.waypoint)?,
        object,
        required_policies: names(message.required_policies),
        required_routes: names(message.required_routes),
        client_namespaces: names(message.client_namespaces),
        draining: message.draining,
    })
}

impl From<&Waypoint> for wire::Waypoint {
    fn from(waypoint: &Waypoint) -> Self {
        let kind = match waypoint {
            Waypoint::Settings(settings) => waypoint::Kind::Settings(settings.as_ref().into()),
            Waypoint::Front(front) => waypoint::Kind::Front(front.into()),
        };
        Self { kind: Some(kind) }
    }
}

impl From<&Settings> for wire::Settings {
    fn from(settings: &Settings) -> Self {
        let scope = match settings.scope {
            Scope::Service => wire::Scope::Service,
            Scope::Workload => wire::Scope::Workload,
            Scope::All => wire::Scope::All,
            Scope::None => wire::Scope::Neither,
        };
        let source_identity = match settings.source_identity {
            SourceIdentity::Forward => wire::SourceIdentity::Forward,
            SourceIdentity::Off => wire::SourceIdentity::Off,
        };
        let path_normalization = match settings.path_normalization {
            PathNormalization::Base => wire::PathNormalization::Base,
            PathNormalization::MergeSlashes => wire::PathNormalization::MergeSlashes,
            PathNormalization::DecodeSlashes => wire::PathNormalization::DecodeSlashes,
            PathNormalization::None => wire::PathNormalization::None,
        };
        Self {
            namespace: settings.namespace.as_ref().into(),
            name: settings.gateway.as_ref().into(),
            addresses: settings.addresses.iter().map(Into::into).collect(),
            scope: scope.into(),
            source_identity: source_identity.into(),
            path_normalization: path_normalization.into(),
            limits: (settings.limits != Limits::default()).then(|| (&settings.limits).into()),
            telemetry: (settings.telemetry != Telemetry::default()).then(|| (&settings.telemetry).into()),
            providers: settings.providers.iter().map(Into::into).collect(),
            gateway_identities: texts(&settings.gateway_identities),
            class: settings.class.as_ref().into(),
            forward_client_cert: settings.forward_client_cert,
            node_addresses: settings.node_addresses.iter().copied().map(octets).collect(),
        }
    }
}

impl From<&Limits> for wire::Limits {
    fn from(limits: &Limits) -> Self {
        Self {
            tunnels: limits.tunnels,
            streams: limits.streams,
            buffer_bytes: limits.buffer_bytes,
            header_bytes: limits.header_bytes,
            head_timeout: limits.head_timeout.map(to_duration),
            body_idle: limits.body_idle.map(to_duration),
            stream_idle: limits.stream_idle.map(to_duration),
            drain: limits.drain.map(to_duration),
        }
    }
}

impl From<&Telemetry> for wire::Telemetry {
    fn from(telemetry: &Telemetry) -> Self {
        let access_log = match telemetry.access_log {
            AccessLog::Errors => wire::AccessLog::Errors,
            AccessLog::Off => wire::AccessLog::LogOff,
            AccessLog::All => wire::AccessLog::LogAll,
        };
        Self {
            access_log: access_log.into(),
            json: telemetry.json,
            tracing: text(&telemetry.tracing),
            sampling_ppm: telemetry.sampling_ppm,
        }
    }
}

impl From<&Provider> for wire::Provider {
    fn from(provider: &Provider) -> Self {
        let kind = match &provider.kind {
            ProviderKind::ExtAuthz(ask) => provider::Kind::ExtAuthz(ask.as_ref().into()),
            ProviderKind::RateLimit(target) => provider::Kind::RateLimit(target.into()),
            ProviderKind::Tracing(target) => provider::Kind::Tracing(target.into()),
        };
        Self {
            name: provider.name.as_ref().into(),
            kind: Some(kind),
        }
    }
}

impl From<&Target> for wire::ServicePort {
    fn from(target: &Target) -> Self {
        Self {
            service: Some((&target.service).into()),
            port: target.port.into(),
        }
    }
}

impl From<&Front> for wire::Front {
    fn from(front: &Front) -> Self {
        let object = match &front.object {
            FrontOf::Service(service) => front::Object::Service(service.into()),
            FrontOf::Workload(uid) => front::Object::WorkloadUid(uid.0.as_ref().into()),
        };
        Self {
            object: Some(object),
            required_policies: texts(&front.required_policies),
            required_routes: texts(&front.required_routes),
            client_namespaces: texts(&front.client_namespaces),
            draining: front.draining,
            waypoint: front.waypoint.as_ref().into(),
        }
    }
}
