//! `BackendTLSPolicy`: how backends outside of the mesh are spoken to.

use tulle_model::Str;
use tulle_model::policy::traffic::SubjectAltName;
use tulle_model::policy::{BackendTls, Concern};

use super::super::lookup::Lookup;
use super::Said;
use crate::api::BackendTlsPolicy;

/// Stands where no root could be read: no certificate is signed by it, so that no backend is believed.
const NOBODY: &str = "# no usable certificate";

/// The same, and nobody is believed.
pub(super) fn untrusting(tls: &BackendTls) -> BackendTls {
    BackendTls {
        roots: vec![NOBODY.into()],
        ..tls.clone()
    }
}

/// What a policy says.
pub(super) fn said(policy: &BackendTlsPolicy, around: &impl Lookup) -> Said {
    let validation = &policy.spec.validation;
    let namespace = &policy.metadata.namespace;
    let mut roots: Vec<Str> = Vec::new();
    let mut flaw = None;
    for reference in &validation.ca_certificate_refs {
        let found = around.certificates(&reference.kind, namespace, &reference.name);
        match found.filter(|pem| pem.contains("-----BEGIN CERTIFICATE-----")) {
            Some(pem) => roots.push(pem),
            None => {
                let shown = format!("{} {namespace}/{}", reference.kind, reference.name);
                let message =
                    format!("{shown} has no certificate under ca.crt; no backend is believed by it");
                flaw.get_or_insert(("Invalid", message));
            }
        }
    }
    if roots.is_empty() && &*validation.well_known_ca_certificates != "System" {
        roots.push(NOBODY.into());
        flaw.get_or_insert_with(|| {
            let message = "it names no certificates; no backend is believed";
            ("Invalid", message.to_owned())
        });
    }
    let names = validation.subject_alt_names.iter().map(|name| match &*name.kind {
        "URI" => SubjectAltName::Uri(name.uri.clone()),
        _ => SubjectAltName::Hostname(name.hostname.clone()),
    });
    Said {
        concerns: vec![Concern::BackendTls(BackendTls {
            hostname: validation.hostname.clone(),
            subject_alt_names: names.collect(),
            roots,
        })],
        flaw,
    }
}
