//! Where requests go: services that are there, and what stands for those that are not.

use tulle_model::Str;
use tulle_model::route::{Backend, BackendTo};

use super::super::lookup::{Lookup, NoDefinition, Reference, is_granted};
use super::{is_service, is_service_entry};
use crate::api::route::BackendRef;

/// A reference that leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::translate) struct Invalid {
    pub(in crate::translate) reason: &'static str,
    pub(in crate::translate) message: String,
}

/// Who refers to a backend.
#[derive(Debug, Clone, Copy)]
pub struct Referred<'a> {
    /// Group of the object.
    pub group: &'a str,
    /// Its kind.
    pub kind: &'a str,
    /// Its namespace.
    pub namespace: &'a Str,
    /// Whether references to other namespaces need a grant.
    pub needs_grant: bool,
}

/// Reads a reference to a backend. One that leads nowhere keeps its share, and says why.
pub fn backend(of: &BackendRef, by: Referred<'_>, around: &impl Lookup) -> Backend {
    resolve(of, by, around).0
}

/// As [`backend`], with what is to be said of it.
pub(in crate::translate) fn resolve(
    of: &BackendRef,
    by: Referred<'_>,
    around: &impl Lookup,
) -> (Backend, Option<Invalid>) {
    let weight = of.weight.unwrap_or(1);
    let (to, invalid) = match service(of, by, around) {
        Ok(to) => (to, None),
        Err(invalid) => (BackendTo::Invalid(invalid.reason.into()), Some(invalid)),
    };
    let backend = Backend {
        to,
        weight,
        filters: Vec::new(),
    };
    (backend, invalid)
}

fn service(of: &BackendRef, by: Referred<'_>, around: &impl Lookup) -> Result<BackendTo, Invalid> {
    let invalid = |reason, message: String| Invalid { reason, message };
    let namespace = if of.namespace.is_empty() {
        by.namespace
    } else {
        &of.namespace
    };
    let kind = if of.kind.is_empty() { "Service" } else { &*of.kind };
    let shown = format!("{kind} {namespace}/{}", of.name);
    let reference = Reference {
        from: (by.group, by.kind, by.namespace),
        to: (&of.group, kind, namespace, &of.name),
    };
    if by.needs_grant && !is_granted(reference, around) {
        let message = format!("{shown} is in another namespace, and no ReferenceGrant there allows it");
        return Err(invalid("RefNotPermitted", message));
    }
    let group = Some(&*of.group);
    let missing = |_: NoDefinition| invalid("BackendNotFound", format!("{shown} does not exist"));
    let definition = if is_service(group, kind) {
        around.service_of(namespace, &of.name).map_err(missing)?
    } else if is_service_entry(group, kind) {
        let mut hosts = around.entry_of(namespace, &of.name).map_err(missing)?;
        if hosts.is_empty() {
            return Err(missing(NoDefinition::Missing));
        }
        hosts.swap_remove(0)
    } else if group == Some("networking.istio.io") && kind == "Hostname" {
        let found = around.hostname(by.namespace, &of.name);
        found.ok_or_else(|| missing(NoDefinition::Missing))?
    } else {
        let message = format!("{shown}: a backend is a Service, a ServiceEntry or a Hostname");
        return Err(invalid("InvalidKind", message));
    };
    let ports = &definition.service.ports;
    let port = match (of.port, ports.len()) {
        (Some(port), _) => port,
        (None, 1) => *ports.keys().next().unwrap_or(&0),
        (None, _) => return Err(invalid("BackendNotFound", format!("{shown}: `port` is missing"))),
    };
    if !ports.contains_key(&port) {
        return Err(invalid("BackendNotFound", format!("{shown} has no port {port}")));
    }
    Ok(BackendTo::Service {
        service: definition.service.key(),
        port,
    })
}
