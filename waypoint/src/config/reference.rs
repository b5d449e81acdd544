//! The environment variables of a waypoint, as docs/reference/config.md lists them.

use tulle_runtime::config::Preset::{Depends, Nothing, Value};
use tulle_runtime::config::Variable;

/// Every variable under its heading.
pub const VARIABLES: &[(&str, &[Variable])] = &[
    ("Who a waypoint is", IDENTITY),
    ("A waypoint's control plane and certificates", CONTROL_PLANE),
    ("What a waypoint carries", TRAFFIC),
    ("Watching a waypoint", OBSERVATION),
];

const IDENTITY: &[Variable] = &[
    Variable::new(
        "POD_NAMESPACE",
        Nothing,
        "Namespace of its Gateway and of its pod; required, as a part of its identity",
    ),
    Variable::new(
        "SERVICE_ACCOUNT",
        Nothing,
        "Its service account; required, as a part of its identity",
    ),
    Variable::new(
        "TULLE_WAYPOINT",
        Depends("`SERVICE_ACCOUNT`"),
        "Name of its Gateway",
    ),
    Variable::new("TRUST_DOMAIN", Value("cluster.local"), "Trust domain of the mesh"),
    Variable::new("POD_NAME", Nothing, "Name of its pod"),
    Variable::new(
        "INSTANCE_IP",
        Nothing,
        "Address of its pod, told to the control plane",
    ),
    Variable::new("NODE_NAME", Nothing, "Name of its node"),
    Variable::new(
        "NETWORK",
        Nothing,
        "Name of the own network; empty is the default network",
    ),
    Variable::new("CLUSTER_ID", Value("Kubernetes"), "Name of the own cluster"),
    Variable::new(
        "ISTIO_META_CLUSTER_ID",
        Depends("`CLUSTER_ID`"),
        "Name of the own cluster; wins over `CLUSTER_ID`",
    ),
    Variable::new(
        "ISTIO_META_*",
        Nothing,
        "Further things the control plane is told: `ISTIO_META_ZONE=a` tells `ZONE` as the text `a`",
    ),
    Variable::new("ISTIO_METAJSON_*", Nothing, "The same as JSON"),
];

const CONTROL_PLANE: &[Variable] = &[
    Variable::new(
        "XDS_ADDRESS",
        Depends("`https://istiod.istio-system.svc:15012` in Kubernetes, else `https://localhost:15012`"),
        "Control plane, `https://host:port`",
    ),
    Variable::new(
        "CA_ADDRESS",
        Depends("`https://istiod.istio-system.svc:15012` in Kubernetes, else `https://localhost:15012`"),
        "Certificate authority, `https://host:port`",
    ),
    Variable::new(
        "KUBERNETES_SERVICE_HOST",
        Nothing,
        "Set by Kubernetes; decides the default addresses",
    ),
    Variable::new(
        "XDS_ROOT_CA",
        Value("./var/run/secrets/istio/root-cert.pem"),
        "What the control plane's certificate is verified with: a file, `SYSTEM` or PEM text",
    ),
    Variable::new(
        "CA_ROOT_CA",
        Value("./var/run/secrets/istio/root-cert.pem"),
        "What the authority's certificate is verified with, likewise",
    ),
    Variable::new(
        "ALT_XDS_HOSTNAME",
        Nothing,
        "Other server name to verify at the control plane",
    ),
    Variable::new(
        "ALT_CA_HOSTNAME",
        Nothing,
        "Other server name to verify at the authority",
    ),
    Variable::new(
        "AUTH_TOKEN",
        Depends("the file `./var/run/secrets/tokens/istio-token`, if there is one"),
        "What it proves itself with: a file, if it begins with `/` or `.` or exists; else the token itself",
    ),
    Variable::new(
        "XDS_HEADER_*",
        Nothing,
        "Further headers of each request to the control plane",
    ),
    Variable::new(
        "CA_HEADER_*",
        Nothing,
        "Further headers of each request to the authority",
    ),
    Variable::new(
        "TULLE_CREDENTIAL",
        Value("own"),
        "Whose credential it shows: `own`, such as the token of its service account, or that of the `node` it is placed on",
    ),
    Variable::new("SECRET_TTL", Value("24h"), "Lifetime asked for certificates"),
    Variable::new(
        "TULLE_JWKS_ROOTS",
        Value("SYSTEM"),
        "Who vouches for servers outside of the mesh that keys of tokens are fetched from: a file, `SYSTEM` or PEM text",
    ),
];

const TRAFFIC: &[Variable] = &[
    Variable::new(
        "TULLE_WAYPOINT_LISTEN",
        Value("[::]:15008"),
        "Where it takes tunnels",
    ),
    Variable::new(
        "TULLE_WAYPOINT_THREADS",
        Depends("one per core, at least 2"),
        "Threads that carry requests",
    ),
    Variable::new(
        "TULLE_WAYPOINT_BUFFERS",
        Value("256MiB"),
        "How much may wait for slow readers, in all; a quarter of the memory limit, if that is less; `0` is no bound",
    ),
    Variable::new(
        "HTTP2_STREAM_WINDOW_SIZE",
        Value("1MiB"),
        "How much of one stream of a tunnel may be on its way to it, and wait in it",
    ),
    Variable::new(
        "TULLE_WAYPOINT_EGRESS_ALLOW",
        Nothing,
        "Networks that names outside of the mesh may lead to, and listed endpoints be in, although nobody may be sent there, such as `127.0.0.0/8`",
    ),
    Variable::new(
        "TULLE_WAYPOINT_EGRESS_DENY",
        Nothing,
        "Networks that no name outside of the mesh may lead to, such as those of the nodes; they count before those that are allowed",
    ),
    Variable::new(
        "TERMINATION_DRAIN_DURATION",
        Value("30s"),
        "How long a drain waits for requests and streams to end; the settings of the Gateway win",
    ),
    Variable::new(
        "TULLE_POLICY_WAIT",
        Value("2s"),
        "How long a stream waits for policies that have not arrived",
    ),
    Variable::new(
        "TULLE_REASON_DETAIL",
        Value("full"),
        "How much of a reason a caller is told: `full`, `code` or `none`; gateways and callers of other trust domains are told `code` at most",
    ),
];

const OBSERVATION: &[Variable] = &[
    Variable::new(
        "TULLE_ADMIN_PORT",
        Value("15000"),
        "Port of the admin pages on loopback, or `off`",
    ),
    Variable::new("TULLE_STATS_PORT", Value("15020"), "Port of metrics, or `off`"),
    Variable::new(
        "TULLE_READINESS_PORT",
        Value("15021"),
        "Port of readiness, or `off`",
    ),
    Variable::new(
        "TULLE_RUN_DIR",
        Value("/run/tulle"),
        "Folder of the unix socket that `tulle` asks",
    ),
    Variable::new("RUST_LOG", Value("info"), "Levels of the log by target"),
    Variable::new("LOG_FORMAT", Value("text"), "`text` or `json`"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::cell::RefCell;
    use std::collections::{BTreeMap, BTreeSet};
    use tulle_runtime::config::{Env, MapEnv};

    const NEEDED: [(&str, &str); 2] = [("POD_NAMESPACE", "shop"), ("SERVICE_ACCOUNT", "way")];

    /// An environment that remembers what it was asked for.
    struct Asked(MapEnv, RefCell<BTreeSet<String>>);

    impl Env for Asked {
        fn raw(&self, name: &str) -> Option<String> {
            self.1.borrow_mut().insert(name.to_owned());
            self.0.raw(name)
        }

        fn with_prefix(&self, prefix: &str) -> BTreeMap<String, String> {
            self.1.borrow_mut().insert(format!("{prefix}*"));
            self.0.with_prefix(prefix)
        }
    }

    fn all() -> impl Iterator<Item = &'static Variable> {
        VARIABLES.iter().flat_map(|(_, variables)| *variables)
    }

    #[test]
    fn every_variable_that_is_read_is_listed_and_the_other_way_round() {
        let env = Asked(MapEnv::from(NEEDED), RefCell::default());
        let _ = Config::from_env(&env);
        let listed: BTreeSet<String> = all().map(|variable| variable.name.to_owned()).collect();
        assert_eq!(env.1.into_inner(), listed);
    }

    #[test]
    fn setting_a_default_changes_nothing() {
        let effective = |env: MapEnv| {
            let config = Config::from_env(&env).unwrap_or_else(|error| panic!("{error}"));
            serde_json::to_value(config).expect("a configuration can be shown")
        };
        let untouched = effective(MapEnv::from(NEEDED));
        for variable in all() {
            if let Value(default) = variable.default {
                let set = effective(MapEnv::from(NEEDED).with(variable.name, default));
                assert_eq!(set, untouched, "{} has another default", variable.name);
            }
        }
    }
}
