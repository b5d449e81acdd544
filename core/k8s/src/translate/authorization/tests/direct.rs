//! The translation against the object itself: what a policy says, read field by field without any translation, with
//! whatever cannot be read counted as "an ALLOW does not match, a DENY does".

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

/// A field of a rule with its values.
#[derive(Debug, Clone)]
struct Field {
    name: &'static str,
    values: Vec<&'static str>,
}

/// Alternatives of fields that must all hold.
type Alternatives = Vec<Vec<Field>>;

#[derive(Debug, Clone)]
struct TestRule {
    from: Alternatives,
    to: Alternatives,
    when: Vec<(&'static str, Vec<&'static str>, Vec<&'static str>)>,
}

fn glob(pattern: &str, value: &str) -> Option<bool> {
    Some(match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        _ if pattern.is_empty() => return None,
        (Some(""), _) => !value.is_empty(),
        (Some(end), _) => value.ends_with(end),
        (_, Some(start)) => value.starts_with(start),
        _ => pattern == value,
    })
}

/// Whether a value matches; `None` where it means nothing, or nothing that a connection has.
fn matches(field: &str, value: &str, connection: &Connection) -> Option<bool> {
    let peer = connection.peer.as_ref();
    let of_peer = |read: &dyn Fn(&Identity) -> Option<bool>| match peer {
        Some(peer) => read(peer),
        // Without a peer nothing matches, but a value that means nothing still means nothing.
        None => read(&Identity::new("", "", "")).map(|_| false),
    };
    let within = |ip: std::net::IpAddr| {
        let range = match value.split_once('/') {
            Some(_) => value.parse::<ipnet::IpNet>().ok()?,
            None => ipnet::IpNet::from(value.parse::<std::net::IpAddr>().ok()?),
        };
        Some(range.contains(&ip))
    };
    match field {
        "principals" | "source.principal" => of_peer(&|peer| glob(value, &peer.principal())),
        "namespaces" | "source.namespace" => of_peer(&|peer| glob(value, &peer.namespace)),
        "serviceAccounts" => of_peer(&|peer| match value.split('/').collect::<Vec<_>>()[..] {
            [namespace, account] if !namespace.is_empty() && !account.is_empty() => {
                Some(*peer.namespace == *namespace && *peer.service_account == *account)
            }
            [account] if !account.is_empty() => {
                Some(&*peer.namespace == "shop" && *peer.service_account == *account)
            }
            _ => None,
        }),
        "ipBlocks" | "source.ip" => within(connection.source_ip),
        "destination.ip" => within(connection.destination.ip()),
        "ports" | "destination.port" => {
            let port: u16 = value.parse().ok()?;
            (port != 0).then(|| port == connection.destination.port())
        }
        _ => None,
    }
}

/// Whether a field holds; `None` where one of its values means nothing.
fn holds(name: &str, values: &[&str], connection: &Connection) -> Option<bool> {
    let negated = name
        .strip_prefix("not")
        .map(|rest| rest[..1].to_lowercase() + &rest[1..]);
    let plain = negated.as_deref().unwrap_or(name);
    let found: Option<Vec<bool>> = values
        .iter()
        .map(|value| matches(plain, value, connection))
        .collect();
    found.map(|found| found.contains(&true) != negated.is_some())
}

/// Whether a rule matches; `unknown` is what a field counts as that cannot be decided.
fn rule_matches(rule: &TestRule, connection: &Connection, unknown: bool) -> bool {
    let mut undecided = false;
    let mut any = |alternatives: &Alternatives| {
        let found: Vec<bool> = alternatives
            .iter()
            .map(|fields| {
                let each: Vec<bool> = fields
                    .iter()
                    .map(|field| {
                        holds(field.name, &field.values, connection).unwrap_or_else(|| {
                            undecided = true;
                            unknown
                        })
                    })
                    .collect();
                !each.contains(&false)
            })
            .collect();
        found.is_empty() || found.contains(&true)
    };
    let (from, to) = (any(&rule.from), any(&rule.to));
    let mut when = true;
    for (key, yes, no) in &rule.when {
        let read = |values: &[&str], wanted: bool| -> Option<bool> {
            if values.is_empty() {
                return Some(true);
            }
            let found: Option<Vec<bool>> = values
                .iter()
                .map(|value| matches(key, value, connection))
                .collect();
            found.map(|found| found.contains(&true) == wanted)
        };
        let nothing = yes.is_empty() && no.is_empty();
        for one in [read(yes, true), read(no, false)] {
            when &= one.filter(|_| !nothing).unwrap_or_else(|| {
                undecided = true;
                unknown
            });
        }
    }
    // A rule of an ALLOW with anything undecided in it cannot match at all.
    from && to && when && (unknown || !undecided)
}

fn list(values: &[&str]) -> String {
    let quoted: Vec<String> = values.iter().map(|value| format!("'{value}'")).collect();
    format!("[{}]", quoted.join(", "))
}

fn spec(action: &str, rules: &[TestRule]) -> String {
    let part = |name: &str, inner: &str, alternatives: &Alternatives| {
        let each: Vec<String> = alternatives
            .iter()
            .map(|fields| {
                let fields: Vec<String> = fields
                    .iter()
                    .map(|field| format!("{}: {}", field.name, list(&field.values)))
                    .collect();
                format!("{{{inner}: {{{}}}}}", fields.join(", "))
            })
            .collect();
        format!("{name}: [{}]", each.join(", "))
    };
    let mut text = format!("{{action: {action}, rules: [");
    for rule in rules {
        let when: Vec<String> = rule
            .when
            .iter()
            .map(|(key, yes, no)| format!("{{key: '{key}', values: {}, notValues: {}}}", list(yes), list(no)))
            .collect();
        let (from, to) = (
            part("from", "source", &rule.from),
            part("to", "operation", &rule.to),
        );
        write!(text, "{{{from}, {to}, when: [{}]}}, ", when.join(", ")).expect("a string takes everything");
    }
    text + "]}"
}

/// Values that meet the connections of [`connection`], and some that mean nothing.
fn values(field: &'static str) -> impl Strategy<Value = Vec<&'static str>> {
    let pool: &[&str] = match field.trim_start_matches("not").to_ascii_lowercase().as_str() {
        "principals" | "source.principal" => &[
            "cluster.local/ns/a/sa/web",
            "cluster.local/ns/b/*",
            "*/sa/web",
            "*",
            "other/ns/a/sa/web",
            "",
        ],
        "namespaces" | "source.namespace" => &["a", "b", "*", "a*", "*b", ""],
        "serviceaccounts" => &["a/web", "b/api", "web", "a/b/c", "/", ""],
        "ipblocks" | "source.ip" | "destination.ip" => {
            &["10.1.0.1", "10.0.0.0/8", "192.0.2.0/24", "bad", "10.0.0.0/33", ""]
        }
        "ports" | "destination.port" => &["80", "81", "0", "http", "70000"],
        _ => &["x"],
    };
    // Bad values stand at the end, so that most lists have none.
    let weighted = (0..pool.len() * 3).prop_map(move |index| pool[(index / 3).min(index % pool.len())]);
    prop::collection::vec(weighted, 1..3)
}

fn field(names: &'static [&'static str]) -> impl Strategy<Value = Field> {
    prop::sample::select(names)
        .prop_flat_map(|name| values(name).prop_map(move |values| Field { name, values }))
}

fn alternatives(names: &'static [&'static str]) -> impl Strategy<Value = Alternatives> {
    let fields = prop::collection::vec(field(names), 0..3).prop_map(|mut fields| {
        fields.sort_by_key(|field| field.name);
        fields.dedup_by_key(|field| field.name);
        fields
    });
    prop::collection::vec(fields, 0..3)
}

fn rule() -> impl Strategy<Value = TestRule> {
    const SOURCE: &[&str] = &[
        "principals",
        "notPrincipals",
        "namespaces",
        "notNamespaces",
        "serviceAccounts",
        "notServiceAccounts",
        "ipBlocks",
        "notIpBlocks",
        "principals",
        "namespaces",
        "requestPrincipals",
        "notRemoteIpBlocks",
    ];
    const OPERATION: &[&str] = &["ports", "notPorts", "ports", "methods", "notPaths"];
    const KEYS: &[&str] = &[
        "source.ip",
        "source.namespace",
        "source.principal",
        "destination.ip",
        "destination.port",
        "request.headers[x]",
    ];
    let when = prop::sample::select(KEYS).prop_flat_map(|key| {
        let maybe = || prop_oneof![Just(Vec::new()), values(key)];
        (maybe(), maybe()).prop_map(move |(yes, no)| (key, yes, no))
    });
    (
        alternatives(SOURCE),
        alternatives(OPERATION),
        prop::collection::vec(when, 0..2),
    )
        .prop_map(|(from, to, when)| TestRule { from, to, when })
}

fn any_connection() -> impl Strategy<Value = Connection> {
    let peer = prop::sample::select(vec![
        None,
        Some(("cluster.local", "a", "web")),
        Some(("cluster.local", "b", "api")),
        Some(("other", "a", "web")),
        Some(("cluster.local", "shop", "web")),
    ]);
    let ip = prop::sample::select(vec!["10.1.0.1", "10.2.0.2", "192.0.2.7"]);
    (peer, ip, 80_u16..83).prop_map(|(peer, ip, port)| Connection {
        peer: peer.map(|(domain, namespace, account)| Identity::new(domain, namespace, account)),
        original_source: None,
        source_ip: ip.parse().expect("an address"),
        destination: std::net::SocketAddr::new("10.0.0.1".parse().expect("an address"), port),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_translated_policy_decides_as_the_object_says(
        rules in prop::collection::vec(rule(), 0..3),
        denies: bool,
        connections in prop::collection::vec(any_connection(), 1..6),
    ) {
        let action = if denies { "DENY" } else { "ALLOW" };
        let (policy, _) = translated(&spec(action, &rules));
        let policy = policy.expect("emitted");
        prop_assert!(!policy.untranslatable);
        for connection in &connections {
            let matches = rules.iter().any(|rule| rule_matches(rule, connection, denies));
            prop_assert_eq!(allows(policy.clone(), connection), matches != denies, "{:?}", connection);
        }
    }

    #[test]
    fn r312_a_value_that_means_nothing_never_lets_more_through(
        rules in prop::collection::vec(rule(), 1..3),
        denies: bool,
        bad in prop::sample::select(vec![("ipBlocks", "10.0.0.0/99"), ("namespaces", ""), ("serviceAccounts", "a/b/c"), ("principals", "")]),
        connections in prop::collection::vec(any_connection(), 1..6),
    ) {
        let action = if denies { "DENY" } else { "ALLOW" };
        let mut broken = rules.clone();
        for alternative in broken.iter_mut().flat_map(|rule| &mut rule.from) {
            alternative.retain(|field| field.name != bad.0);
            alternative.push(Field { name: bad.0, values: vec![bad.1] });
        }
        let whole = translated(&spec(action, &rules)).0.expect("emitted");
        let broken_one = translated(&spec(action, &broken)).0.expect("emitted");
        for connection in &connections {
            let through = allows(broken_one.clone(), connection);
            // A field more narrows an ALLOW. In a DENY the field counts as true, whatever stood there.
            if !denies {
                prop_assert!(!through || allows(whole.clone(), connection), "{:?}", connection);
            } else {
                let without: Vec<TestRule> = broken.iter().map(|rule| {
                    let mut rule = rule.clone();
                    rule.from.iter_mut().for_each(|fields| fields.retain(|field| field.name != bad.0));
                    rule
                }).collect();
                let without = translated(&spec(action, &without)).0.expect("emitted");
                prop_assert_eq!(through, allows(without, connection), "{:?}", connection);
            }
        }
    }
}
