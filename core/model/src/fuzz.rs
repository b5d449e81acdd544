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

/// What was accepted is rooted, has no dot segment, no backslash and no control character, and is its own canonical
/// form.
///
/// # Panics
/// If one of these does not hold.
pub fn request_path(data: &[u8]) {
    use crate::waypoint::PathNormalization::{Base, DecodeSlashes, MergeSlashes, None as Off};

    let text = String::from_utf8_lossy(data);
    for how in [Base, MergeSlashes, DecodeSlashes, Off] {
        let Ok(path) = crate::request::path::normalize(&text, how) else {
            continue;
        };
        assert_eq!(
            crate::request::path::normalize(&path, how),
            Ok(path.clone()),
            "{text}"
        );
        assert!(
            path.starts_with('/') && !path.contains(|c: char| c.is_ascii_control()),
            "{text}"
        );
        if how != Off {
            assert!(path.is_ascii() && !path.contains('\\'), "{text}");
            assert!(
                path.split('/').all(|segment| segment != "." && segment != ".."),
                "{text}"
            );
        }
        if matches!(how, MergeSlashes | DecodeSlashes) {
            assert!(!path.contains("//"), "{text}");
        }
    }
}

/// What was accepted is bounded, in lower case, without a user, and its own canonical form.
///
/// # Panics
/// If one of these does not hold.
pub fn request_host(data: &[u8]) {
    let Ok(host) = crate::request::host::parse(data) else {
        return;
    };
    assert!(host.len() <= crate::request::host::HOST_BYTES_MAX);
    assert!(
        !host.contains(|c: char| c.is_ascii_uppercase() || "@/,? ".contains(c)),
        "{host}"
    );
    assert_eq!(crate::request::host::parse(host.as_bytes()), Ok(host));
}

/// Parameters of a query are read without a panic, and any route of the text is chosen or not, alike each time.
///
/// # Panics
/// If that does not hold.
pub fn route_select(data: &[u8]) {
    use crate::testing::{exact, get, http_route, prefix, regex};

    let text = String::from_utf8_lossy(data);
    let (rules, target) = text.split_once('\n').unwrap_or(("/a", &text));
    let route = |n: u32, of| std::sync::Arc::new(http_route("fuzz/route").rule(n).on(of));
    let routes = [
        route(0, exact(rules)),
        route(1, prefix(rules).query("q", "1")),
        route(2, regex(rules)),
        route(3, prefix("/")),
    ];
    let router =
        crate::route::Router::compile(crate::route::Kind::Http, &routes, |route| route.origin.rule_index);
    let head = get(target);
    let selected = match router.select(&head) {
        crate::route::Selection::Rule(chosen) => Some(*chosen.rule),
        _ => None,
    };
    let explained = router.explain(&head);
    let wins = explained.iter().find(|one| one.fate == crate::route::Fate::Wins);
    assert_eq!(wins.map(|one| *one.rule), selected, "{text}");
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
            request_path(&data);
            request_host(&data);
            route_select(&data);
        }

        #[test]
        fn properties_hold_for_likely_text(host in "[0-9a-fx.:%_\\[\\]-]{0,30}", port in "[0-9+]{0,6}", path in "[a-z/]{0,30}") {
            connect_authority(format!("{host}:{port}").as_bytes());
            request_host(format!("{host}:{port}").as_bytes());
            spiffe(format!("spiffe://td/ns/{path}").as_bytes());
        }

        #[test]
        fn properties_hold_for_likely_paths(path in "/[a-c./\\\\%25eEfF~A ]{0,24}") {
            request_path(path.as_bytes());
            route_select(format!("{path}\n{path}?q=%31").as_bytes());
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
