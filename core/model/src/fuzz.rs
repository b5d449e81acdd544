//! One entry per parser of foreign text, for the fuzzers and their kept corpus. Each panics when a property does
//! not hold.

use std::net::SocketAddr;

use crate::identity::Identity;
use crate::inbound::{AUTHORITY_LENGTH_MAX, Authority};
use crate::policy::authz::path::{self, Template};
use crate::policy::authz::reference;

/// What was accepted is bounded, has a port, is no disguised IPv4 address, and is written and parsed alike.
///
/// # Panics
/// If one of these does not hold.
pub fn connect_authority(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Ok(parsed) = text.parse::<Authority>() else {
        return;
    };
    assert!(text.len() <= AUTHORITY_LENGTH_MAX, "{text}");
    assert_ne!(parsed.port(), 0, "{text}");
    if let Authority::Ip(SocketAddr::V6(address)) = &parsed {
        assert_eq!(address.ip().to_ipv4_mapped(), None, "{text}");
    }
    assert_eq!(parsed.to_string().parse(), Ok(parsed));
}

/// What was accepted has one spelling: it is written as it was read.
///
/// # Panics
/// If that does not hold.
pub fn spiffe(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match text.parse::<Identity>() {
        Ok(identity) => {
            assert_eq!(identity.to_string(), text);
            assert_eq!(format!("spiffe://{}", identity.principal()), text);
        }
        Err(error) => assert!(error.text.chars().count() <= 256, "{text}"),
    }
}

/// A template that can be read is matched alike by a plain regular expression; the lenient form of a path is rooted,
/// has no empty segment, and is the same for itself.
///
/// # Panics
/// If that does not hold.
pub fn path_template(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (template, path) = text.split_once(' ').unwrap_or((&text, "/"));
    if let Some(read) = Template::new(template) {
        assert!(template.starts_with('/'), "{template}");
        assert_eq!(
            read.matches(path),
            reference::is_like(template, path),
            "{template} {path}"
        );
    }
    if let Some(form) = path::decoded(path) {
        assert!(
            form.starts_with('/') && !form.contains("//") && !form.contains('\\'),
            "{form}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn properties_hold_for_any_bytes(data: Vec<u8>) {
            connect_authority(&data);
            spiffe(&data);
            path_template(&data);
        }

        #[test]
        fn properties_hold_for_likely_text(host in "[0-9a-fx.:%_\\[\\]-]{0,30}", port in "[0-9+]{0,6}", path in "[a-z/]{0,30}") {
            connect_authority(format!("{host}:{port}").as_bytes());
            spiffe(format!("spiffe://td/ns/{path}").as_bytes());
        }

        #[test]
        fn properties_hold_for_likely_templates(
            template in "(/(\\{\\*\\}|\\{\\*\\*\\}|[ab%2Ff]{0,3})){1,4}",
            path in "(/[ab%25Ff.]{0,3}){0,4}",
        ) {
            path_template(format!("{template} {path}").as_bytes());
        }
    }
}
