//! Rules between the fields of an object, as an API server would enforce them: an object that breaks one is refused.

use tulle_model::Str;
use tulle_model::filter::ASKED_BODY_BYTES_MAX;

use super::{Kind, Object};
use crate::api::route::{GrpcRule, HttpMatch, HttpRule, PathModifier, RouteFilter};
use crate::api::security::PolicyTargetRef;
use crate::api::traffic::{ExternalAuth, RequestKey};
use crate::api::{BackendTlsPolicy, Gateway, HttpRoute, ServiceEntry, TrafficPolicy};
use crate::document::Fault;
use crate::document::node::Node;

/// Rules in one route.
const RULES_MAX: usize = 16;
/// Matches in one route.
const MATCHES_MAX: usize = 128;

/// What is wrong between the fields of an object.
pub(super) fn faults(node: &Node, object: &Object) -> Vec<Fault> {
    let mut found = Faults {
        spec: node.field("spec").unwrap_or(node),
        found: Vec::new(),
    };
    match object {
        Object::HttpRoute(route) => http_route(route, &mut found),
        Object::GrpcRoute(route) => {
            let rules = &route.spec.rules;
            found.require(
                rules.len() <= RULES_MAX,
                &["rules"],
                "there are more than 16 rules",
            );
            for (index, rule) in rules.iter().enumerate() {
                grpc_rule(rule, index, &mut found);
            }
        }
        Object::Gateway(gateway) => listeners(gateway, &mut found),
        Object::TrafficPolicy(policy) => traffic_policy(policy, &mut found),
        Object::BackendTlsPolicy(policy) => backend_tls(policy, &mut found),
        Object::ServiceEntry(entry) => service_entry(entry, &mut found),
        Object::AuthorizationPolicy(policy) => {
            targets(
                &policy.spec.target_refs,
                policy.spec.target_ref.as_ref(),
                &mut found,
            );
        }
        Object::RequestAuthentication(policy) => {
            targets(
                &policy.spec.target_refs,
                policy.spec.target_ref.as_ref(),
                &mut found,
            );
            let targets = !policy.spec.target_refs.is_empty() || policy.spec.target_ref.is_some();
            let both = targets && policy.spec.selector.is_some();
            found.require(!both, &["selector"], "it has both a selector and targetRefs");
            for rule in &policy.spec.jwt_rules {
                found.require(!rule.issuer.is_empty(), &["jwtRules"], "an issuer is missing");
                let both = !rule.jwks.is_empty() && !rule.jwks_uri.is_empty();
                found.require(!both, &["jwtRules"], "a rule has both jwks and jwksUri");
            }
        }
        _ => {}
    }
    found.found
}

struct Faults<'a> {
    spec: &'a Node,
    found: Vec<Fault>,
}

impl Faults<'_> {
    /// Adds a fault at the innermost of these fields that is written.
    fn require(&mut self, holds: bool, path: &[&str], cause: impl Into<String>) {
        if holds {
            return;
        }
        let mut node = self.spec;
        for name in path {
            let Some(inner) = node.field(name) else { break };
            node = inner;
        }
        let path = path.join(".");
        let cause = format!("`spec.{path}`: {}", cause.into());
        self.found
            .push(Fault::new(node.place, cause, "correct the value"));
    }
}

fn http_route(route: &HttpRoute, found: &mut Faults<'_>) {
    let rules = &route.spec.rules;
    found.require(
        rules.len() <= RULES_MAX,
        &["rules"],
        "there are more than 16 rules",
    );
    let matches: usize = rules.iter().map(|rule| rule.matches.len()).sum();
    found.require(
        matches <= MATCHES_MAX,
        &["rules"],
        "there are more than 128 matches",
    );
    for (index, rule) in rules.iter().enumerate() {
        http_rule(rule, index, found);
    }
    let ports: Vec<_> = route.spec.parent_refs.iter().collect();
    let doubled = ports
        .iter()
        .enumerate()
        .any(|(index, one)| ports[..index].contains(one));
    found.require(!doubled, &["parentRefs"], "a parent stands twice");
}

fn http_rule(rule: &HttpRule, index: usize, found: &mut Faults<'_>) {
    for matching in &rule.matches {
        http_match(matching, &["rules"], &format!("rules[{index}]"), found);
    }
    filters(&rule.filters, index, found);
    for backend in &rule.backend_refs {
        filters(&backend.filters, index, found);
    }
    let has = |kind: &str| rule.filters.iter().any(|filter| &*filter.kind == kind);
    let both = has("RequestRedirect") && has("URLRewrite");
    found.require(
        !both,
        &["rules"],
        format!("rules[{index}] has both a redirect and a rewrite"),
    );
    let useless = has("RequestRedirect") && !rule.backend_refs.is_empty();
    found.require(
        !useless,
        &["rules"],
        format!("rules[{index}] has a redirect and backends"),
    );
    let modifiers = rule.filters.iter().filter_map(path_modifier);
    for modifier in modifiers {
        let prefix = modifier.replace_prefix_match.is_some();
        let single = rule.matches.len() == 1
            && rule.matches[0]
                .path
                .as_ref()
                .is_none_or(|path| is_prefix(&path.kind));
        let none = rule.matches.is_empty();
        found.require(
            !prefix || single || none,
            &["rules"],
            format!(
                "rules[{index}] replaces a prefix, so that it must have exactly one match, of type PathPrefix"
            ),
        );
    }
    if let Some(timeouts) = &rule.timeouts {
        let whole = timeouts.request.filter(|span| !span.0.is_zero());
        let longer = whole
            .zip(timeouts.backend_request)
            .is_some_and(|(all, one)| one > all);
        found.require(
            !longer,
            &["rules"],
            format!("rules[{index}]: backendRequest is longer than request"),
        );
    }
    let codes = rule.retry.iter().flat_map(|retry| &retry.codes);
    for code in codes {
        found.require(
            (400..=599).contains(code),
            &["rules"],
            format!("rules[{index}] retries status {code}"),
        );
    }
}

fn is_prefix(kind: &str) -> bool {
    kind.is_empty() || kind == "PathPrefix"
}

fn path_modifier(filter: &RouteFilter) -> Option<&PathModifier> {
    let redirect = filter
        .request_redirect
        .as_ref()
        .and_then(|redirect| redirect.path.as_ref());
    redirect.or_else(|| {
        filter
            .url_rewrite
            .as_ref()
            .and_then(|rewrite| rewrite.path.as_ref())
    })
}

fn http_match(matching: &HttpMatch, place: &[&str], shown: &str, found: &mut Faults<'_>) {
    let Some(path) = &matching.path else { return };
    let value = path.value.as_deref().unwrap_or("/");
    match &*path.kind {
        "" | "PathPrefix" | "Exact" => {
            let bad = ["//", "/./", "/../", "%2f", "%2F", "#"];
            let plain = value.starts_with('/')
                && bad.iter().all(|part| !value.contains(part))
                && !value.ends_with("/..")
                && !value.ends_with("/.")
                && value.len() <= 1024;
            found.require(
                plain,
                place,
                format!("{shown}: a path begins with `/` and has no `//`, `.`, `..`, `%2f` or `#`"),
            );
        }
        "RegularExpression" => {}
        _ => found.require(
            false,
            place,
            format!("{shown}: a path's type is Exact, PathPrefix or RegularExpression"),
        ),
    }
}

fn filters(filters: &[RouteFilter], index: usize, found: &mut Faults<'_>) {
    for filter in filters {
        let set = match &*filter.kind {
            "RequestHeaderModifier" => filter.request_header_modifier.is_some(),
            "ResponseHeaderModifier" => filter.response_header_modifier.is_some(),
            "RequestMirror" => filter.request_mirror.is_some(),
            "RequestRedirect" => filter.request_redirect.is_some(),
            "URLRewrite" => filter.url_rewrite.is_some(),
            "CORS" => filter.cors.is_some(),
            "ExternalAuth" => filter.external_auth.is_some(),
            _ => true,
        };
        let kind = shown(&filter.kind);
        found.require(
            set,
            &["rules"],
            format!("rules[{index}]: the filter {kind} says nothing"),
        );
        let once = ["RequestMirror", "ExtensionRef"].contains(&&*filter.kind)
            || filters.iter().filter(|other| other.kind == filter.kind).count() == 1;
        found.require(
            once,
            &["rules"],
            format!("rules[{index}]: the filter {kind} stands twice"),
        );
        if let Some(mirror) = &filter.request_mirror {
            let both = mirror.percent.is_some() && mirror.fraction.is_some();
            let zero = mirror.fraction.as_ref().is_some_and(|share| {
                share.denominator == Some(0) || share.numerator > share.denominator.unwrap_or(100)
            });
            let over = mirror.percent.is_some_and(|percent| percent > 100);
            found.require(
                !both && !zero && !over,
                &["rules"],
                format!("rules[{index}]: the share of a mirror"),
            );
        }
        if let Some(redirect) = &filter.request_redirect {
            let known = redirect
                .status_code
                .is_none_or(|code| [301, 302, 303, 307, 308].contains(&code));
            found.require(
                known,
                &["rules"],
                format!("rules[{index}]: a redirect has status 301, 302, 303, 307 or 308"),
            );
        }
    }
}

fn grpc_rule(rule: &GrpcRule, index: usize, found: &mut Faults<'_>) {
    filters(&rule.filters, index, found);
    for matching in rule
        .matches
        .iter()
        .filter_map(|matching| matching.method.as_ref())
    {
        let something = !matching.service.is_empty() || !matching.method.is_empty();
        found.require(
            something,
            &["rules"],
            format!("rules[{index}] matches neither a service nor a method"),
        );
    }
}

fn listeners(gateway: &Gateway, found: &mut Faults<'_>) {
    let listeners = &gateway.spec.listeners;
    found.require(
        !gateway.spec.gateway_class_name.is_empty(),
        &["gatewayClassName"],
        "it is missing",
    );
    let doubled = listeners
        .iter()
        .enumerate()
        .any(|(index, one)| listeners[..index].iter().any(|other| other.name == one.name));
    found.require(!doubled, &["listeners"], "two listeners have the same name");
}

/// What a security policy is attached to: where that means nothing, nobody would enforce it.
fn targets(refs: &[PolicyTargetRef], single: Option<&PolicyTargetRef>, found: &mut Faults<'_>) {
    for of in refs {
        target((&of.group, &of.kind, &of.name), "targetRefs", found);
    }
    if let Some(of) = single {
        target((&of.group, &of.kind, &of.name), "targetRef", found);
    }
}

fn target((group, kind, name): (&Str, &Str, &Str), field: &str, found: &mut Faults<'_>) {
    let of_group = match group.is_empty() {
        true => String::new(),
        false => format!(" of group {}", shown(group)),
    };
    let known = Kind::target(kind, group).is_some();
    let cause = format!(
        "{}{of_group} is nothing that a policy can be attached to",
        shown(kind)
    );
    found.require(known, &[field], cause);
    found.require(!name.is_empty(), &[field], "a name is missing");
}

fn traffic_policy(policy: &TrafficPolicy, found: &mut Faults<'_>) {
    let spec = &policy.spec;
    for of in &spec.target_refs {
        target((&of.group, &of.kind, &of.name), "targetRefs", found);
    }
    if let Some(fault) = &spec.fault {
        let delay = fault
            .delay
            .as_ref()
            .is_none_or(|delay| delay.duration.0.as_secs() <= 300);
        found.require(delay, &["fault", "delay"], "a delay is at most 5m");
        if let Some(abort) = &fault.abort {
            let one = abort.http_status.is_some() != abort.grpc_status.is_some();
            let known = abort
                .http_status
                .is_none_or(|status| (200..=599).contains(&status));
            found.require(
                one && known,
                &["fault", "abort"],
                "it needs one of httpStatus and grpcStatus",
            );
        }
    }
    limits(policy, found);
    if let Some(auth) = &spec.external_auth {
        external_auth(auth, found);
    }
}

fn limits(policy: &TrafficPolicy, found: &mut Faults<'_>) {
    let spec = &policy.spec;
    if let Some(local) = spec.rate_limit.as_ref().and_then(|limit| limit.local.as_ref()) {
        found.require(
            local.requests > 0,
            &["rateLimit", "local"],
            "requests must be at least 1",
        );
        found.require(
            local.per.is_none_or(|per| !per.0.is_zero()),
            &["rateLimit", "local", "per"],
            "it must not be 0s",
        );
        keys(&local.keys, &["rateLimit", "local", "keys"], found);
    }
    if let Some(global) = spec.rate_limit.as_ref().and_then(|limit| limit.global.as_ref()) {
        found.require(
            !global.provider.name.is_empty(),
            &["rateLimit", "global"],
            "a provider is missing",
        );
        for entry in global
            .descriptors
            .iter()
            .flat_map(|descriptor| &descriptor.entries)
        {
            keys(
                std::slice::from_ref(&entry.key),
                &["rateLimit", "global", "descriptors"],
                found,
            );
        }
    }
    if let Some(balancing) = &spec.load_balancing {
        let known = [
            "",
            "PeakEwma",
            "LeastRequest",
            "RoundRobin",
            "Random",
            "RingHash",
            "Maglev",
        ];
        found.require(
            known.contains(&&*balancing.algorithm),
            &["loadBalancing", "algorithm"],
            "it is not known",
        );
        keys(&balancing.hash, &["loadBalancing", "hash"], found);
    }
    let percents = spec
        .outlier_detection
        .iter()
        .filter_map(|outlier| outlier.max_ejection_percent);
    let percents = percents.chain(spec.retry_budget.iter().filter_map(|budget| budget.percent));
    for percent in percents {
        found.require(percent <= 100, &[], format!("{percent} is no percentage"));
    }
}

fn external_auth(auth: &ExternalAuth, found: &mut Faults<'_>) {
    let one = auth.provider.is_some() != auth.backend_ref.is_some();
    found.require(one, &["externalAuth"], "it needs one of provider and backendRef");
    let known = ["", "GRPC", "HTTP"].contains(&&*auth.protocol);
    found.require(known, &["externalAuth", "protocol"], "it is GRPC or HTTP");
    let cause = format!("at most {ASKED_BODY_BYTES_MAX} bytes of a body are sent along");
    let fits = auth.max_body_bytes <= ASKED_BODY_BYTES_MAX;
    found.require(fits, &["externalAuth", "maxBodyBytes"], cause);
    let status = auth
        .status_on_error
        .is_none_or(|status| (400..=599).contains(&status));
    found.require(
        status,
        &["externalAuth", "statusOnError"],
        "it is a status from 400 to 599",
    );
}

fn keys(keys: &[RequestKey], place: &[&str], found: &mut Faults<'_>) {
    for key in keys {
        let named = match &*key.kind {
            "SourceIdentity" | "SourceNamespace" | "SourceIP" | "Route" | "Method" => true,
            "Header" | "Query" | "Cookie" | "Constant" => !key.name.is_empty(),
            _ => false,
        };
        found.require(
            named,
            place,
            format!("a key of type `{}` is not known or has no name", shown(&key.kind)),
        );
    }
}

fn backend_tls(policy: &BackendTlsPolicy, found: &mut Faults<'_>) {
    let validation = &policy.spec.validation;
    found.require(
        !validation.hostname.is_empty(),
        &["validation", "hostname"],
        "it is missing",
    );
    let system = &*validation.well_known_ca_certificates == "System";
    let one = system == validation.ca_certificate_refs.is_empty();
    found.require(
        one,
        &["validation"],
        "it needs one of caCertificateRefs and wellKnownCACertificates: System",
    );
}

fn service_entry(entry: &ServiceEntry, found: &mut Faults<'_>) {
    let both = !entry.spec.endpoints.is_empty() && entry.spec.workload_selector.is_some();
    found.require(
        !both,
        &["workloadSelector"],
        "it has both endpoints and a workloadSelector",
    );
}

/// A user's text for a message: bounded, without control characters.
fn shown(text: &Str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}
