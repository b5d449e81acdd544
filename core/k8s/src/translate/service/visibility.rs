//! Who may see a service: what `exportTo` says.

use std::collections::BTreeSet;

use tulle_model::Str;
use tulle_model::service::Visibility;

use super::{Findings, shown};
use crate::api::{Service, ServiceEntry};

/// Annotation of a service that says in which namespaces it is seen, apart by commas.
const EXPORT_TO: &str = "networking.istio.io/exportTo";

/// Who may see the services of an entry.
#[must_use]
pub fn visibility_of_entry(entry: &ServiceEntry) -> Visibility {
    of_entry(entry, &mut Findings::default())
}

/// Who may see a Kubernetes service.
#[must_use]
pub fn visibility_of_service(service: &Service) -> Visibility {
    of_service(service, &mut Findings::default())
}

pub(super) fn of_entry(entry: &ServiceEntry, findings: &mut Findings) -> Visibility {
    let words = entry.spec.export_to.iter().map(AsRef::as_ref);
    exported(words, &entry.metadata.namespace, findings)
}

pub(super) fn of_service(service: &Service, findings: &mut Findings) -> Visibility {
    let text = service.metadata.annotation(EXPORT_TO).unwrap_or_default();
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    exported(words, &service.metadata.namespace, findings)
}

/// `*` is everybody, `.` its own namespace, `~` nobody, and everything else the name of a namespace. Nothing said is
/// everybody; nothing said that can be used is nobody.
fn exported<'a>(words: impl IntoIterator<Item = &'a str>, own: &Str, findings: &mut Findings) -> Visibility {
    let mut words = words.into_iter().peekable();
    if words.peek().is_none() {
        return Visibility::Public;
    }
    let mut listed = BTreeSet::new();
    for word in words {
        match word {
            "*" => return Visibility::Public,
            "." => drop(listed.insert(own.clone())),
            "~" => {}
            name if is_namespace(name) => drop(listed.insert(name.into())),
            other => findings.add(format!(
                "exportTo: `{}` is no namespace and is left out; write a name, `.` or `*`",
                shown(other)
            )),
        }
    }
    // As every proxy knows it.
    if listed.len() == 1 && listed.contains(own) {
        return Visibility::Namespace;
    }
    Visibility::Namespaces(listed)
}

/// Whether a text may be the name of a namespace.
fn is_namespace(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| is_word(*byte) || *byte == b'-')
        && bytes.first().copied().is_some_and(is_word)
        && bytes.last().copied().is_some_and(is_word)
}
