//! `tulle waypoint-config`: what waypoints know and do, in the words of the manifests it comes from.

use clap::Subcommand;
use serde::Deserialize;
use serde_json::{Value, json};
use tulle_model::policy::{On, Policy};
use tulle_model::route::{BackendTo, Match, ParentTo, PathMatch, Route, ValueMatch};
use tulle_model::waypoint::{Front, FrontOf};
use tulle_runtime::exit::Exit;

use super::Reading;
use crate::running::{Component, Kind};

/// Show what waypoints know and do: routes, policies, services, endpoints
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tulle waypoint-config routes\n  tulle waypoint-config endpoints --waypoint shop/waypoint -o json"
)]
pub(crate) struct WaypointConfig {
    #[command(subcommand)]
    what: What,
    /// Only this waypoint: NAME or NAMESPACE/NAME [default: every waypoint]
    #[arg(long, global = true, value_name = "NAME")]
    waypoint: Option<String>,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
enum What {
    /// Rules of routes, with the shares of their backends
    #[command(alias = "route")]
    Routes,
    /// Policies, with what they are attached to
    #[command(alias = "policy")]
    Policies,
    /// What they stand in front of, port by port
    #[command(aliases = ["cluster", "clusters", "service"])]
    Services,
    /// Who serves it, and how it stands with each of them
    #[command(alias = "endpoint")]
    Endpoints,
    /// All of these, one table after the other
    All,
}

/// The page of a waypoint.
#[derive(Debug, Deserialize)]
struct Dump {
    fronts: Vec<Fronted>,
    routes: Vec<Route>,
    policies: Vec<Policy>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fronted {
    front: Front,
    missing_policies: Vec<String>,
    ports: Vec<Port>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    port: u16,
    protocol: Value,
    reads_requests: bool,
    routes: Vec<String>,
    endpoints: Vec<Value>,
}

impl What {
    const EACH: [Self; 4] = [Self::Routes, Self::Policies, Self::Services, Self::Endpoints];

    fn schema(self) -> &'static str {
        match self {
            Self::Routes => "waypoint-config.routes",
            Self::Policies => "waypoint-config.policies",
            Self::Services => "waypoint-config.services",
            Self::Endpoints => "waypoint-config.endpoints",
            Self::All => "waypoint-config.all",
        }
    }

    /// Columns, with the field of an item that each shows.
    fn columns(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Routes => &[
                ("WAYPOINT", "waypoint"),
                ("PARENT", "parents"),
                ("ROUTE", "route"),
                ("RULE", "rule"),
                ("MATCHES", "matches"),
                ("BACKENDS", "backends"),
            ],
            Self::Policies => &[
                ("WAYPOINT", "waypoint"),
                ("POLICY", "policy"),
                ("CONCERN", "concern"),
                ("TARGETS", "targets"),
                ("DRY-RUN", "dryRun"),
            ],
            Self::Services => &[
                ("WAYPOINT", "waypoint"),
                ("SERVICE", "service"),
                ("PROTOCOL", "protocol"),
                ("ROUTES", "routes"),
                ("ENDPOINTS", "endpoints"),
                ("MISSING POLICIES", "missingPolicies"),
            ],
            Self::Endpoints => &[
                ("WAYPOINT", "waypoint"),
                ("SERVICE", "service"),
                ("WORKLOAD", "workload"),
                ("ADDRESS", "addresses"),
                ("TARGET PORT", "targetPort"),
                ("ENCRYPTION", "encryption"),
                ("STATE", "state"),
                ("IN FLIGHT", "inFlight"),
            ],
            Self::All => &[],
        }
    }

    fn items(self, waypoint: &str, dump: &Dump) -> Vec<Value> {
        let mut items: Vec<Value> = match self {
            Self::Routes => dump.routes.iter().map(route).collect(),
            Self::Policies => dump.policies.iter().map(policy).collect(),
            Self::Services => dump.fronts.iter().flat_map(services).collect(),
            Self::Endpoints => dump.fronts.iter().flat_map(endpoints).collect(),
            Self::All => Vec::new(),
        };
        for item in items.iter_mut().filter_map(Value::as_object_mut) {
            item.insert("waypoint".to_owned(), waypoint.into());
        }
        items
    }
}

pub(crate) async fn run(config: WaypointConfig) -> anyhow::Result<Exit> {
    let components = config.reading.run_dir().of_kind(Kind::Waypoint)?;
    let wanted = |component: &Component| is_wanted(component, config.waypoint.as_deref());
    let components: Vec<_> = components.into_iter().filter(wanted).collect();
    anyhow::ensure!(
        !components.is_empty(),
        "no waypoint{} answers here; `tulle waypoint list` shows those of the folder",
        config
            .waypoint
            .as_ref()
            .map_or_else(String::new, |name| format!(" {name}"))
    );
    let mut dumps: Vec<(String, Dump)> = Vec::new();
    for component in &components {
        dumps.push((
            component.node.replacen('.', "/", 1),
            component.json("/config_dump").await?,
        ));
    }
    let asked = match config.what {
        What::All => &What::EACH[..],
        ref one => std::slice::from_ref(one),
    };
    for what in asked {
        let of_all = dumps.iter().flat_map(|(name, dump)| what.items(name, dump));
        let items: Vec<Value> = of_all.collect();
        crate::output::print(config.reading.output(), what.schema(), &items, || {
            table(*what, &items)
        })?;
    }
    Ok(Exit::Ok)
}

fn is_wanted(component: &Component, name: Option<&str>) -> bool {
    let Some(name) = name else { return true };
    component
        .gateway()
        .is_some_and(|(namespace, gateway)| match name.split_once('/') {
            Some(full) => full == (namespace, gateway),
            None => name == gateway,
        })
}

fn table(what: What, items: &[Value]) -> comfy_table::Table {
    let names: Vec<_> = what.columns().iter().map(|(name, _)| *name).collect();
    let mut table = crate::output::table(&names);
    for item in items {
        table.add_row(what.columns().iter().map(|(_, field)| cell(&item[*field])));
    }
    table
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(all) if all.is_empty() => "-".to_owned(),
        Value::Array(all) => all.iter().map(cell).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

fn route(route: &Route) -> Value {
    let parents = route.parents.iter().map(|parent| {
        let to = match &parent.to {
            ParentTo::Service(service) => short(&service.hostname),
            ParentTo::Listener { gateway, name, .. } => format!("{gateway}/{name}"),
        };
        let port = parent.port.map_or_else(String::new, |port| format!(":{port}"));
        let only = parent.consumer_namespace.as_ref();
        let only = only.map_or_else(String::new, |namespace| format!(" for callers in {namespace}"));
        format!("{to}{port}{only}")
    });
    let parents: Vec<_> = parents.collect();
    let origin = &route.origin;
    let matches: Vec<_> = route.matches.iter().map(matched).collect();
    let backends = route.backends.iter().map(|backend| match &backend.to {
        BackendTo::Service { service, port } => {
            format!("{}:{port} {}", short(&service.hostname), backend.weight)
        }
        BackendTo::Invalid(cause) => format!("invalid ({cause}) {}", backend.weight),
    });
    let backends: Vec<_> = backends.collect();
    json!({
        "route": format!("{}/{}/{}", origin.kind.as_str(), origin.namespace, origin.name),
        "rule": if origin.rule_name.is_empty() { origin.rule_index.to_string() } else { origin.rule_name.to_string() },
        "parents": parents,
        "matches": if matches.is_empty() { vec!["/*".to_owned()] } else { matches },
        "backends": backends,
        "error": route.error,
    })
}

/// `GET /v2/* x-team=blue ?debug=1`.
fn matched(of: &Match) -> String {
    if let Some(cause) = &of.unreadable {
        return format!("nothing ({cause})");
    }
    let mut parts: Vec<String> = of.method.iter().map(ToString::to_string).collect();
    parts.extend(of.path.as_ref().map(|path| match path {
        PathMatch::Exact(path) => path.to_string(),
        PathMatch::Prefix(path) => format!("{}/*", path.trim_end_matches('/')),
        PathMatch::Regex(pattern) => format!("~{pattern}"),
    }));
    parts.extend(of.grpc.as_ref().map(|call| {
        let part = |part: Option<&str>| part.unwrap_or("*").to_owned();
        format!(
            "{}/{}",
            part(call.service.as_deref()),
            part(call.method.as_deref())
        )
    }));
    let value = |value: &ValueMatch| match value {
        ValueMatch::Exact(text) => format!("={text}"),
        ValueMatch::Regex(pattern) => format!("~{pattern}"),
    };
    parts.extend(
        of.headers
            .iter()
            .map(|one| format!("{}{}", one.name, value(&one.value))),
    );
    parts.extend(
        of.query
            .iter()
            .map(|one| format!("?{}{}", one.name, value(&one.value))),
    );
    if parts.is_empty() {
        "/*".to_owned()
    } else {
        parts.join(" ")
    }
}

fn policy(policy: &Policy) -> Value {
    let targets = policy.targets.iter().map(|target| {
        let on = match &target.on {
            On::Service(service) => format!("Service {}", short(&service.hostname)),
            On::Route {
                kind,
                namespace,
                name,
            } => format!("{} {namespace}/{name}", kind.as_str()),
            On::Waypoint(name) => format!("Gateway {name}"),
            On::Class(name) => format!("GatewayClass {name}"),
            On::Mesh => "mesh".to_owned(),
            On::Workload(uid) => format!("workload {}", uid.0),
        };
        let port = target.port.map_or_else(String::new, |port| format!(":{port}"));
        let section = target
            .section
            .as_ref()
            .map_or_else(String::new, |name| format!(" rule {name}"));
        format!("{on}{port}{section}")
    });
    json!({
        "policy": format!("{}/{}/{}", policy.object, policy.origin.namespace, policy.origin.name),
        "concern": policy.concern.as_str(),
        "targets": targets.collect::<Vec<_>>(),
        "dryRun": policy.dry_run,
    })
}

fn services(fronted: &Fronted) -> Vec<Value> {
    let item = |port: &Port| {
        json!({
            "service": format!("{}:{}", object(&fronted.front.object), port.port),
            "protocol": port.protocol,
            "readsRequests": port.reads_requests,
            "routes": port.routes,
            "endpoints": port.endpoints.len(),
            "missingPolicies": fronted.missing_policies,
            "draining": fronted.front.draining,
        })
    };
    fronted.ports.iter().map(item).collect()
}

fn endpoints(fronted: &Fronted) -> Vec<Value> {
    let of_port = |port: &Port| {
        let service = format!("{}:{}", object(&fronted.front.object), port.port);
        let endpoints = port.endpoints.clone().into_iter().map(move |mut endpoint| {
            endpoint["service"] = service.clone().into();
            endpoint
        });
        endpoints.collect::<Vec<_>>()
    };
    fronted.ports.iter().flat_map(of_port).collect()
}

fn object(of: &FrontOf) -> String {
    match of {
        FrontOf::Service(service) => short(&service.hostname),
        FrontOf::Workload(uid) => uid.0.to_string(),
    }
}

/// `reviews.shop` of `reviews.shop.svc.cluster.local`; other host names as they are.
fn short(hostname: &str) -> String {
    hostname
        .split_once(".svc.")
        .map_or(hostname, |(name, _)| name)
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_the_mesh_are_short_and_others_whole() {
        assert_eq!(short("reviews.shop.svc.cluster.local"), "reviews.shop");
        assert_eq!(short("api.example.com"), "api.example.com");
    }

    #[test]
    fn a_match_without_conditions_takes_everything() {
        assert_eq!(matched(&Match::default()), "/*");
        let of = Match {
            path: Some(PathMatch::Prefix("/v2/".into())),
            method: Some("GET".into()),
            headers: vec![tulle_model::route::KeyMatch {
                name: "x-team".into(),
                value: ValueMatch::Exact("blue".into()),
            }],
            ..Match::default()
        };
        assert_eq!(matched(&of), "GET /v2/* x-team=blue");
        let unreadable = Match::unreadable("the type is unknown");
        assert_eq!(matched(&unreadable), "nothing (the type is unknown)");
    }
}
