//! Host names, and the names a short one may stand for.

use hickory_proto::rr::Name;

/// A name as services are stored by: lower case, without the last dot. `None` for the root, and for names with
/// bytes that no host name of the mesh has.
#[must_use]
pub fn host_name(name: &Name) -> Option<String> {
    let mut text = String::new();
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'*' => {
                    text.push(char::from(byte.to_ascii_lowercase()));
                }
                _ => return None,
            }
        }
    }
    (!text.is_empty()).then_some(text)
}

/// A host name the client may have meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The name to look for.
    pub host: String,
    /// What was left of the name asked for after a search domain was cut, if one was.
    pub cut: Option<String>,
}

/// Where short names are looked for.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// Namespace of the client.
    pub namespace: &'a str,
    /// Domain of the cluster.
    pub domain: &'a str,
    /// The client's search list.
    pub search: &'a [String],
}

/// The names that `asked` may stand for, in the order in which they are tried.
#[must_use]
pub fn candidates(asked: &str, origin: Origin<'_>) -> Vec<Candidate> {
    let mut found = Vec::new();
    let mut add = |base: &str, cut: Option<&str>| {
        let hosts = std::iter::once(base.to_owned()).chain(kubernetes_forms(base, origin));
        for host in hosts {
            if !found.iter().any(|known: &Candidate| known.host == host) {
                found.push(Candidate {
                    host,
                    cut: cut.map(str::to_owned),
                });
            }
        }
    };
    add(asked, None);
    for domain in origin.search {
        if let Some(rest) = without_domain(asked, domain) {
            add(rest, Some(rest));
        }
    }
    found
}

/// What Kubernetes' short forms of a service, or of a pod with a subdomain, stand for.
fn kubernetes_forms(name: &str, origin: Origin<'_>) -> Vec<String> {
    let Origin {
        namespace, domain, ..
    } = origin;
    let ends_in_svc = name.ends_with(".svc");
    match name.split('.').count() {
        1 => vec![format!("{name}.{namespace}.svc.{domain}")],
        2 => vec![
            format!("{name}.svc.{domain}"),
            format!("{name}.{namespace}.svc.{domain}"),
        ],
        3 if ends_in_svc => vec![format!("{name}.{domain}"), format!("{name}.svc.{domain}")],
        3 => vec![format!("{name}.svc.{domain}")],
        4 if ends_in_svc => vec![format!("{name}.{domain}")],
        _ => Vec::new(),
    }
}

fn without_domain<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    let rest = name.strip_suffix(domain)?.strip_suffix('.')?;
    (!rest.is_empty()).then_some(rest)
}

/// A host, then the wildcards it falls under, the longest first.
pub fn with_wildcards(host: &str) -> impl Iterator<Item = String> {
    let parents = host
        .match_indices('.')
        .map(|(dot, _)| format!("*{}", &host[dot..]));
    std::iter::once(host.to_owned()).chain(parents)
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    fn tried(asked: &str, search: &[&str]) -> Vec<String> {
        let search: Vec<_> = search.iter().map(|domain| (*domain).to_owned()).collect();
        let origin = Origin {
            namespace: "shop",
            domain: "cluster.local",
            search: &search,
        };
        let all = candidates(asked, origin).into_iter();
        all.map(|one| match one.cut {
            Some(cut) => format!("{} (cut: {cut})", one.host),
            None => one.host,
        })
        .collect()
    }

    #[test]
    fn short_forms_are_completed_by_their_number_of_labels() {
        assert_eq!(tried("db", &[]), ["db", "db.shop.svc.cluster.local"]);
        assert_eq!(
            tried("db.prod", &[]),
            [
                "db.prod",
                "db.prod.svc.cluster.local",
                "db.prod.shop.svc.cluster.local"
            ]
        );
        assert_eq!(
            tried("db.prod.svc", &[]),
            [
                "db.prod.svc",
                "db.prod.svc.cluster.local",
                "db.prod.svc.svc.cluster.local"
            ]
        );
        assert_eq!(
            tried("a.db.prod", &[]),
            ["a.db.prod", "a.db.prod.svc.cluster.local"]
        );
        assert_eq!(
            tried("a.db.prod.svc", &[]),
            ["a.db.prod.svc", "a.db.prod.svc.cluster.local"]
        );
        assert_eq!(tried("a.b.c.d", &[]), ["a.b.c.d"]);
        assert_eq!(tried("a.b.c.d.svc", &[]), ["a.b.c.d.svc"]);
    }

    #[test]
    fn search_domains_are_cut_after_the_name_itself_was_tried() {
        let search = ["shop.svc.cluster.local", "svc.cluster.local"];
        assert_eq!(
            tried("www.example.com.shop.svc.cluster.local", &search),
            [
                "www.example.com.shop.svc.cluster.local",
                "www.example.com (cut: www.example.com)",
                "www.example.com.svc.cluster.local (cut: www.example.com)",
                "www.example.com.shop (cut: www.example.com.shop)",
            ]
        );
        assert_eq!(
            tried("shop.svc.cluster.local", &["shop.svc.cluster.local"]),
            ["shop.svc.cluster.local"],
            "nothing would be left"
        );
        assert_eq!(
            tried("workshop.svc.x.y", &["shop.svc.x.y"]),
            ["workshop.svc.x.y"],
            "only whole labels are cut"
        );
    }

    #[test]
    fn wildcards_come_after_the_host_longest_first() {
        let all: Vec<_> = with_wildcards("a.b.example.com").collect();
        assert_eq!(
            all,
            ["a.b.example.com", "*.b.example.com", "*.example.com", "*.com"]
        );
        assert_eq!(with_wildcards("db").collect::<Vec<_>>(), ["db"]);
    }

    #[test]
    fn names_are_lower_case_text_without_the_last_dot() {
        let text = |name: &str| host_name(&Name::from_str(name).unwrap());
        assert_eq!(
            text("DB.Shop.svc.cluster.LOCAL."),
            Some("db.shop.svc.cluster.local".to_owned())
        );
        assert_eq!(text("_http._tcp.db"), Some("_http._tcp.db".to_owned()));
        assert_eq!(text("."), None);
        let odd = Name::from_labels([&b"a.b"[..], &b"c"[..]]).unwrap();
        assert_eq!(host_name(&odd), None, "a dot inside of a label is no separator");
    }

    proptest::proptest! {
        #[test]
        fn candidates_begin_with_the_name_and_never_repeat(
            labels in proptest::collection::vec("[a-z]{1,4}", 1..6),
            search in proptest::collection::vec("[a-z]{1,4}(\\.[a-z]{1,4}){0,2}", 0..3),
        ) {
            let asked = labels.join(".");
            let origin = Origin { namespace: "shop", domain: "cluster.local", search: &search };
            let all = candidates(&asked, origin);
            proptest::prop_assert_eq!(&all[0].host, &asked);
            let mut hosts: Vec<_> = all.iter().map(|one| &one.host).collect();
            hosts.sort();
            hosts.dedup();
            proptest::prop_assert_eq!(hosts.len(), all.len());
            for one in &all {
                if let Some(cut) = &one.cut {
                    proptest::prop_assert!(asked.starts_with(&format!("{cut}.")), "whole labels were cut");
                }
            }
        }

        #[test]
        fn a_wildcard_covers_the_host_it_comes_from(labels in proptest::collection::vec("[a-z]{1,4}", 1..6)) {
            let host = labels.join(".");
            let all: Vec<_> = with_wildcards(&host).collect();
            proptest::prop_assert_eq!(all.len(), labels.len());
            for wildcard in &all[1..] {
                proptest::prop_assert!(host.ends_with(wildcard.trim_start_matches('*')));
            }
        }
    }
}
