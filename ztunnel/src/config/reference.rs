//! The environment variables of the node proxy, as docs/reference/config.md lists them.

pub use tulle_runtime::config::{Preset, Variable};

use Preset::{Depends, Nothing, Value};

const fn variable(name: &'static str, default: Preset, meaning: &'static str) -> Variable {
    Variable::new(name, default, meaning)
}

/// Every variable under its heading.
pub const VARIABLES: &[(&str, &[Variable])] = &[
    ("Who this proxy is", IDENTITY),
    ("Control plane and certificates", CONTROL_PLANE),
    ("Traffic", TRAFFIC),
    ("Pods of the node", PODS),
    ("Threads", THREADS),
    ("Logs, metrics and administration", OBSERVATION),
    ("With `--supervise`", SUPERVISOR),
    ("Accepted without effect", UNUSED),
];

const IDENTITY: &[Variable] = &[
    variable(
        "PROXY_MODE",
        Value("shared"),
        "`shared`: all pods of the node, as the agent names them; `dedicated`: one workload, in the current network namespace",
    ),
    variable(
        "ENABLE_PROXY",
        Value("true"),
        "`false` leaves only the answering of names; nothing else is carried",
    ),
    variable(
        "PROXY_WORKLOAD_INFO",
        Nothing,
        "The workload of a dedicated proxy, `<namespace>/<name>/<service account>`; required there",
    ),
    variable(
        "NODE_NAME",
        Nothing,
        "Name of the node, as the control plane knows it",
    ),
    variable(
        "NETWORK",
        Nothing,
        "Name of the own network; empty is the default network",
    ),
    variable("CLUSTER_ID", Value("Kubernetes"), "Name of the own cluster"),
    variable(
        "ISTIO_META_CLUSTER_ID",
        Depends("`CLUSTER_ID`"),
        "Name of the own cluster; wins over `CLUSTER_ID`",
    ),
    variable(
        "CLUSTER_DOMAIN",
        Value("cluster.local"),
        "Domain that the names of services end in",
    ),
    variable("TRUST_DOMAIN", Value("cluster.local"), "Trust domain of the mesh"),
    variable(
        "INSTANCE_IP",
        Nothing,
        "Address of the proxy's own pod, told to the control plane",
    ),
    variable("POD_NAME", Nothing, "Name of the proxy's own pod"),
    variable("POD_NAMESPACE", Nothing, "Namespace of the proxy's own pod"),
    variable(
        "SERVICE_ACCOUNT",
        Nothing,
        "Service account of the proxy's own pod",
    ),
    variable(
        "ISTIO_META_*",
        Depends("`proxyMetadata` of `PROXY_CONFIG`, name by name"),
        "Further things the control plane is told of the node: `ISTIO_META_ZONE=a` tells `ZONE` as the text `a`",
    ),
    variable(
        "ISTIO_METAJSON_*",
        Nothing,
        "The same as JSON: `ISTIO_METAJSON_LABELS={\"app\":\"zt\"}`",
    ),
];

const CONTROL_PLANE: &[Variable] = &[
    variable(
        "XDS_ADDRESS",
        Depends(
            "`discoveryAddress` of `PROXY_CONFIG`; none with a local configuration; else `https://istiod.istio-system.svc:15012` in Kubernetes and `https://localhost:15012` outside",
        ),
        "Control plane, `https://host:port`; without a scheme `https` is meant; set, but to nothing: there is none",
    ),
    variable(
        "CA_ADDRESS",
        Depends("`https://istiod.istio-system.svc:15012` in Kubernetes, else `https://localhost:15012`"),
        "Certificate authority, `https://host:port`",
    ),
    variable(
        "KUBERNETES_SERVICE_HOST",
        Nothing,
        "Set by Kubernetes; decides the default addresses",
    ),
    variable(
        "XDS_ROOT_CA",
        Value("./var/run/secrets/istio/root-cert.pem"),
        "What the control plane's certificate is verified with: a file, `SYSTEM` or PEM text",
    ),
    variable(
        "CA_ROOT_CA",
        Value("./var/run/secrets/istio/root-cert.pem"),
        "What the authority's certificate is verified with, likewise",
    ),
    variable(
        "ALT_XDS_HOSTNAME",
        Nothing,
        "Other server name to verify at the control plane",
    ),
    variable(
        "ALT_CA_HOSTNAME",
        Nothing,
        "Other server name to verify at the authority",
    ),
    variable(
        "AUTH_TOKEN",
        Depends("the file `./var/run/secrets/tokens/istio-token`, if there is one"),
        "What the proxy proves itself with: a file, if it begins with `/` or `.` or exists; else the token itself",
    ),
    variable(
        "XDS_HEADER_*",
        Nothing,
        "Further headers of each request to the control plane: `XDS_HEADER_X-TEAM=shop` sends `x-team: shop`",
    ),
    variable(
        "CA_HEADER_*",
        Nothing,
        "Further headers of each request to the authority, likewise",
    ),
    variable("SECRET_TTL", Value("24h"), "Lifetime asked for certificates"),
    variable(
        "XDS_ON_DEMAND",
        Value("false"),
        "Ask for an address when traffic or a question for a name needs it, instead of holding all; a lookup waits at most 5 s",
    ),
    variable(
        "CRL_PATH",
        Nothing,
        "File of revocation lists, PEM or DER, read again when it changes; revoked peers are refused and cut off",
    ),
    variable(
        "TULLE_CRL_STALE",
        Value("deny"),
        "`deny`: a list that is missing or past its next update refuses everyone it should speak about; `allow`: it refuses nobody",
    ),
    variable(
        "COMPLIANCE_POLICY",
        Nothing,
        "`pqc`: only post-quantum key exchange",
    ),
    variable(
        "LOCAL_XDS_PATH",
        Nothing,
        "YAML file with workloads, services and policies",
    ),
    variable(
        "LOCAL_XDS",
        Nothing,
        "The same as YAML text; only one of the two may be set",
    ),
    variable(
        "PROXY_CONFIG",
        Depends("`defaultConfig` of the file `./etc/istio/config/mesh`, field by field"),
        "YAML with `discoveryAddress`, `proxyAdminPort` [15000], `statsPort` [15020], `concurrency` and `proxyMetadata`, of which `DNS_CAPTURE` [true] says whether names are answered and `DNS_PROXY_ADDR` [localhost:15053] where; other fields are ignored",
    ),
    variable(
        "FAKE_CA",
        Value("false"),
        "Sign certificates in this process; exists only in builds for tests",
    ),
];

const TRAFFIC: &[Variable] = &[
    variable(
        "ENABLE_ORIG_SRC",
        Depends("the client's address where the kernel allows it"),
        "Whether the application sees the client's address: `true`, or the connection fails; `false`, it sees the proxy's",
    ),
    variable(
        "LOCALHOST_APP_TUNNEL",
        Value("true"),
        "Connect to and from loopback for an application tunnel of type PROXY",
    ),
    variable(
        "ENABLE_RESPONSE_BAGGAGE",
        Value("true"),
        "Describe this end in answers",
    ),
    variable(
        "PREFERED_SERVICE_NAMESPACE",
        Nothing,
        "Namespace whose service a name means when several have it and none is of the own namespace or canonical (spelled so)",
    ),
    variable("IPV6_ENABLED", Value("true"), "Listen on and use IPv6"),
    variable(
        "CONNECTION_TERMINATION_DEADLINE",
        Depends("what `TERMINATION_GRACE_PERIOD_SECONDS` leaves, else `5s`"),
        "How long a drain waits for connections to end",
    ),
    variable(
        "TERMINATION_GRACE_PERIOD_SECONDS",
        Nothing,
        "What Kubernetes grants for the end; a drain takes that less 5 s, or less 1 s up to 10 s",
    ),
    variable(
        "TULLE_POLICY_WAIT",
        Value("2s"),
        "How long a connection waits for policies that have not arrived",
    ),
    variable(
        "TULLE_CONNECT_RETRIES",
        Value("2"),
        "Further endpoints that are tried before a byte was sent",
    ),
    variable(
        "TULLE_REASON_DETAIL",
        Value("full"),
        "How much of a reason a peer of the own trust domain is told: `full`, `code` or `none`",
    ),
    variable(
        "TULLE_MAX_CONNECTIONS_PER_WORKLOAD",
        Value("0"),
        "Open connections of one workload; 0 is no bound",
    ),
    variable(
        "POOL_MAX_STREAMS_PER_CONNECTION",
        Value("100"),
        "Connections in one tunnel",
    ),
    variable(
        "POOL_UNUSED_RELEASE_TIMEOUT",
        Value("5m"),
        "Unused tunnels are closed after this",
    ),
    variable(
        "TULLE_POOL_CONNECTIONS_PER_KEY",
        Depends("one per thread, at most 8"),
        "Tunnels between the same two workloads",
    ),
    variable(
        "UNSTABLE_ENABLE_SOCKS5",
        Value("false"),
        "SOCKS5 on 127.0.0.1:15080 of each pod: no authentication, CONNECT by address or name",
    ),
    variable(
        "TULLE_SAME_NODE",
        Value("inprocess"),
        "How two pods of this node reach each other: `inprocess` hands streams over without a tunnel, under the same identities and checks; `hbone` tunnels them as to any other node",
    ),
    variable(
        "HTTP2_STREAM_WINDOW_SIZE",
        Value("4MiB"),
        "Flow control window of one connection in a tunnel, 65535 bytes to 2 GiB - 1",
    ),
    variable(
        "HTTP2_CONNECTION_WINDOW_SIZE",
        Value("16MiB"),
        "Flow control window of a tunnel, 65535 bytes to 2 GiB - 1",
    ),
    variable(
        "HTTP2_FRAME_SIZE",
        Value("1MiB"),
        "Largest frame of a tunnel, 16 KiB to 16 MiB - 1",
    ),
    variable(
        "TULLE_HBONE",
        Value("records"),
        "Who makes the HTTP/2 frames of tunnels and their TLS records: `records` makes both by itself, `own` the \
         frames only, `h2` leaves them to the crate of that name",
    ),
    variable("KEEPALIVE_ENABLED", Value("true"), "TCP keepalive"),
    variable(
        "KEEPALIVE_TIME",
        Value("180s"),
        "Idle time before the first probe",
    ),
    variable("KEEPALIVE_INTERVAL", Value("180s"), "Time between probes"),
    variable(
        "KEEPALIVE_RETRIES",
        Value("9"),
        "Probes without an answer before the connection is given up",
    ),
    variable(
        "USER_TIMEOUT_ENABLED",
        Value("false"),
        "Also bound how long sent data may stay unacknowledged",
    ),
];

const PODS: &[Variable] = &[
    variable(
        "INPOD_UDS",
        Value("/var/run/ztunnel/ztunnel.sock"),
        "Socket of the agent",
    ),
    variable(
        "INPOD_PORT_REUSE",
        Value("false"),
        "`SO_REUSEPORT` on listeners that the agent does not hand over",
    ),
    variable(
        "PACKET_MARK",
        Depends("`1337` of a shared proxy, none of a dedicated one"),
        "`SO_MARK` of the proxy's own packets",
    ),
];

const THREADS: &[Variable] = &[
    variable(
        "ZTUNNEL_WORKER_THREADS",
        Depends(
            "`concurrency` of `PROXY_CONFIG`; else `ZTUNNEL_RESOURCE_CPU_LIMIT`, or a quarter of the cores, at least the request; at least 2 without a limit",
        ),
        "Threads that carry traffic; a number, a percentage of the cores such as `50%`, or `0` for one per core; no more than there are cores are started, or two",
    ),
    variable(
        "ZTUNNEL_RESOURCE_CPU_LIMIT",
        Nothing,
        "CPU limit of the container, such as `2`, `1.5` or `500m`; rounded up",
    ),
    variable(
        "ZTUNNEL_RESOURCE_CPU_REQUEST",
        Nothing,
        "CPU request of the container, likewise",
    ),
    variable(
        "ZTUNNEL_CPU_LIMIT",
        Depends("the cores this process may use"),
        "What counts as the cores where no limit of the container is set, likewise",
    ),
];

const OBSERVATION: &[Variable] = &[
    variable(
        "RUST_LOG",
        Value("info"),
        "What is logged, such as `info` or `warn,tulle_ztunnel=debug`",
    ),
    variable(
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
        Nothing,
        "Collector of OpenTelemetry that access lines are exported to, `http://host[:4318][/v1/logs]`; has an effect in builds with the feature `otlp`",
    ),
    variable("LOG_FORMAT", Value("text"), "`text` or `json`; `plain` is `text`"),
    variable(
        "AUTHZ_POLICY_INFO_LOGGING",
        Value("false"),
        "Log decisions of policies at level info instead of debug",
    ),
    variable(
        "TULLE_METRIC_TTL",
        Value("15m"),
        "Series of traffic that nobody touched for this long are removed",
    ),
    variable(
        "TULLE_RUN_DIR",
        Value("/run/tulle"),
        "Folder of the unix socket that `tulle` asks",
    ),
    variable(
        "TULLE_SUPERVISED",
        Value("false"),
        "An older generation on this node may still hold the ports of pages: wait for them (set by `--supervise`)",
    ),
    variable(
        "NOTIFY_SOCKET",
        Depends("none"),
        "Where readiness is told, and keys and configuration are held for the next process (set by systemd, or by `--supervise`)",
    ),
    variable(
        "TULLE_HELD_KEYS",
        Depends("none"),
        "Descriptor of the keys that an earlier process left (set by `--supervise`)",
    ),
    variable(
        "TULLE_HELD_CONFIGURATION",
        Depends("none"),
        "Descriptor of the configuration that an earlier process left (set by `--supervise`)",
    ),
    variable(
        "LISTEN_FDNAMES",
        Depends("none"),
        "Names of the descriptors that systemd held for us: `tulle-keys`, `tulle-configuration`",
    ),
];

const SUPERVISOR: &[Variable] = &[
    variable(
        "TULLE_EXIT_WITH_STDIN",
        Depends("none"),
        "End when standard input ends: `true` at once, `drain` with the last connection (set by `tulle up` and `--supervise`)",
    ),
    variable(
        "TULLE_SUPERVISE_SETTLE",
        Value("2s"),
        "With `--supervise`: how long a new generation must have been ready before the older ones drain",
    ),
    variable(
        "TULLE_SUPERVISE_STOP",
        Value("5s"),
        "With `--supervise`: how long generations may drain once the supervisor itself is told to end",
    ),
];

const UNUSED: &[Variable] = &[variable(
    "TLS12_ENABLED",
    Value("false"),
    "Tunnels are TLS 1.3 only; a warning is logged",
)];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::cell::RefCell;
    use std::collections::{BTreeMap, BTreeSet};
    use tulle_runtime::config::{Env, MapEnv};

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

    fn read_with(variables: &[(&str, &str)]) -> BTreeSet<String> {
        let env = Asked(variables.iter().copied().collect(), RefCell::default());
        let _ = Config::from_env(&env);
        let _ = crate::supervise::Settings::read(&env);
        env.1.into_inner()
    }

    fn listed() -> BTreeSet<String> {
        let all = VARIABLES.iter().flat_map(|(_, variables)| *variables);
        all.map(|variable| variable.name.to_owned()).collect()
    }

    fn effective(variables: &[(&str, &str)]) -> serde_json::Value {
        let env: MapEnv = variables.iter().copied().collect();
        let config = Config::from_env(&env).unwrap_or_else(|error| panic!("{variables:?}: {error}"));
        serde_json::to_value(config).expect("a configuration can be shown")
    }

    #[test]
    fn every_variable_that_is_read_is_listed_and_the_other_way_round() {
        let mut asked = read_with(&[]);
        asked.extend(read_with(&[("PROXY_MODE", "dedicated")]));
        assert_eq!(asked, listed());
    }

    #[test]
    fn no_name_in_the_source_is_forgotten() {
        let sources = [
            include_str!("../config.rs"),
            include_str!("control_plane.rs"),
            include_str!("../../../core/identity/src/channel/settings.rs"),
            include_str!("inpod.rs"),
            include_str!("log.rs"),
            include_str!("mesh.rs"),
            include_str!("metadata.rs"),
            include_str!("ports.rs"),
            include_str!("threads.rs"),
            include_str!("traffic.rs"),
            include_str!("tunnels.rs"),
            include_str!("who.rs"),
        ];
        let is_name = |text: &str| {
            let allowed = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
            text.contains('_') && text.bytes().all(allowed)
        };
        let listed = listed();
        for literal in sources
            .iter()
            .flat_map(|source| source.split('"').skip(1).step_by(2))
        {
            assert!(
                !is_name(literal) || listed.contains(literal),
                "{literal} is not in VARIABLES"
            );
        }
    }

    #[test]
    fn setting_a_default_changes_nothing() {
        let untouched = effective(&[]);
        for variable in VARIABLES.iter().flat_map(|(_, variables)| *variables) {
            if let Value(default) = variable.default {
                let set = effective(&[(variable.name, default)]);
                assert_eq!(set, untouched, "{} has another default", variable.name);
            }
        }
    }
}
