//! Policies: what they are attached to, and which concern they carry.

use tulle_model::policy::traffic::SubjectAltName;
use tulle_model::policy::{BackendTls, Concern, On, Policy, Target};

use super::super::{Flaw, each, required};
use super::{any_port, filter, hostname, jwt, names, optional, route, text, texts, traffic, unset};
use crate::waypoint as wire;
use crate::waypoint::{policy, subject_alt_name, target};

pub(super) fn parse(message: wire::Policy) -> Result<Policy, Flaw> {
    Ok(Policy {
        object: required("object", message.object)?,
        origin: route::origin("origin", message.origin)?,
        targets: each("targets", message.targets, target)?,
        dry_run: message.dry_run,
        concern: concern(message.concern.ok_or_else(|| unset("concern"))?)?,
    })
}

fn target(message: wire::Target) -> Result<Target, Flaw> {
    let on = match message.on.ok_or_else(|| unset("on"))? {
        target::On::Service(name) => On::Service(hostname("service", Some(name))?),
        target::On::Route(origin) => On::Route {
            kind: route::kind("route.kind", origin.kind)?,
            namespace: required("route.namespace", origin.namespace)?,
            name: required("route.name", origin.name)?,
        },
        target::On::Waypoint(name) => On::Waypoint(required("waypoint", name)?),
        target::On::Mesh(true) => On::Mesh,
        target::On::Mesh(false) => return Err(unset("mesh")),
        target::On::WorkloadUid(uid) => On::Workload(required("workload_uid", uid)?.as_ref().into()),
        target::On::Class(name) => On::Class(required("class", name)?),
    };
    Ok(Target {
        on,
        port: any_port("port", message.port)?,
        section: optional(message.section),
    })
}

fn concern(message: policy::Concern) -> Result<Concern, Flaw> {
    let place = |field: &'static str| move |flaw: Flaw| flaw.within(field);
    Ok(match message {
        policy::Concern::Authz(message) => {
            Concern::Authz(super::authz::parse(message).map_err(place("authz"))?)
        }
        policy::Concern::Jwt(message) => Concern::Jwt(jwt::parse(message).map_err(place("jwt"))?),
        policy::Concern::ExtAuthz(message) => {
            Concern::ExtAuthz(Box::new(filter::ext_authz(message).map_err(place("ext_authz"))?))
        }
        policy::Concern::DenyAll(cause) => Concern::DenyAll(cause.into()),
        policy::Concern::Fault(message) => Concern::Fault(traffic::fault(message).map_err(place("fault"))?),
        policy::Concern::LocalRateLimit(message) => {
            Concern::LocalRateLimit(traffic::local_rate_limit(message).map_err(place("local_rate_limit"))?)
        }
        policy::Concern::GlobalRateLimit(message) => {
            Concern::GlobalRateLimit(traffic::global_rate_limit(message).map_err(place("global_rate_limit"))?)
        }
        policy::Concern::Circuit(message) => {
            Concern::Circuit(traffic::circuit(message).map_err(place("circuit"))?)
        }
        policy::Concern::Outlier(message) => {
            Concern::Outlier(traffic::outlier(message).map_err(place("outlier"))?)
        }
        policy::Concern::LoadBalancing(message) => {
            Concern::LoadBalancing(traffic::load_balancing(message).map_err(place("load_balancing"))?)
        }
        policy::Concern::RetryBudget(message) => {
            Concern::RetryBudget(traffic::retry_budget(message).map_err(place("retry_budget"))?)
        }
        policy::Concern::Session(message) => {
            Concern::Session(route::session(message).map_err(place("session"))?)
        }
        policy::Concern::BackendTls(message) => {
            Concern::BackendTls(backend_tls(message).map_err(place("backend_tls"))?)
        }
    })
}

fn backend_tls(message: wire::BackendTls) -> Result<BackendTls, Flaw> {
    let name = |name: wire::SubjectAltName| {
        Ok(match name.kind.ok_or_else(|| unset("kind"))? {
            subject_alt_name::Kind::Hostname(text) => SubjectAltName::Hostname(text.into()),
            subject_alt_name::Kind::Uri(text) => SubjectAltName::Uri(text.into()),
        })
    };
    Ok(BackendTls {
        hostname: required("hostname", message.hostname)?,
        subject_alt_names: each("subject_alt_names", message.subject_alt_names, name)?,
        roots: names(message.roots),
    })
}

impl From<&Policy> for wire::Policy {
    fn from(policy: &Policy) -> Self {
        Self {
            origin: Some((&policy.origin).into()),
            targets: policy.targets.iter().map(Into::into).collect(),
            dry_run: policy.dry_run,
            object: policy.object.as_ref().into(),
            concern: Some((&policy.concern).into()),
        }
    }
}

impl From<&Target> for wire::Target {
    fn from(target: &Target) -> Self {
        let on = match &target.on {
            On::Service(name) => target::On::Service(name.into()),
            On::Route {
                kind,
                namespace,
                name,
            } => target::On::Route(wire::Origin {
                kind: route::to_kind(*kind),
                namespace: namespace.as_ref().into(),
                name: name.as_ref().into(),
                ..wire::Origin::default()
            }),
            On::Waypoint(name) => target::On::Waypoint(name.as_ref().into()),
            On::Class(name) => target::On::Class(name.as_ref().into()),
            On::Mesh => target::On::Mesh(true),
            On::Workload(uid) => target::On::WorkloadUid(uid.0.as_ref().into()),
        };
        Self {
            on: Some(on),
            port: target.port.unwrap_or_default().into(),
            section: text(&target.section),
        }
    }
}

impl From<&Concern> for policy::Concern {
    fn from(concern: &Concern) -> Self {
        match concern {
            Concern::Authz(authz) => Self::Authz(authz.into()),
            Concern::Jwt(jwt) => Self::Jwt(jwt.into()),
            Concern::ExtAuthz(ask) => Self::ExtAuthz(ask.as_ref().into()),
            Concern::DenyAll(cause) => Self::DenyAll(cause.as_ref().into()),
            Concern::Fault(fault) => Self::Fault(fault.into()),
            Concern::LocalRateLimit(limit) => Self::LocalRateLimit(limit.into()),
            Concern::GlobalRateLimit(limit) => Self::GlobalRateLimit(limit.into()),
            Concern::Circuit(circuit) => Self::Circuit(circuit.into()),
            Concern::Outlier(outlier) => Self::Outlier(outlier.into()),
            Concern::LoadBalancing(balancing) => Self::LoadBalancing(balancing.into()),
            Concern::RetryBudget(budget) => Self::RetryBudget(budget.into()),
            Concern::Session(session) => Self::Session(session.into()),
            Concern::BackendTls(tls) => Self::BackendTls(tls.into()),
        }
    }
}

impl From<&BackendTls> for wire::BackendTls {
    fn from(tls: &BackendTls) -> Self {
        let name = |name: &SubjectAltName| wire::SubjectAltName {
            kind: Some(match name {
                SubjectAltName::Hostname(text) => subject_alt_name::Kind::Hostname(text.as_ref().into()),
                SubjectAltName::Uri(text) => subject_alt_name::Kind::Uri(text.as_ref().into()),
            }),
        };
        Self {
            hostname: tls.hostname.as_ref().into(),
            subject_alt_names: tls.subject_alt_names.iter().map(name).collect(),
            roots: texts(&tls.roots),
        }
    }
}
