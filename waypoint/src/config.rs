//! The configuration of a waypoint's process, read from its environment. What it does with requests comes from the
//! control plane.

pub mod reference;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Serialize, Serializer};
use serde_json::Value;
use tulle_identity::ControlPlane;
use tulle_identity::ca::Impersonation;
use tulle_model::gateway::HBONE_PORT;
use tulle_model::identity::DEFAULT_TRUST_DOMAIN;
use tulle_model::{Identity, Str};
use tulle_runtime::config::{Collector, ConfigError, Env, format_duration, parse_size};
use tulle_xds_client::node::{JSON_PREFIX, TEXT_PREFIX, metadata_from};

use crate::buffers::Http2;

/// Everything that can be set for the process.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Namespace of its gateway and of its pod.
    pub namespace: Str,
    /// Name of its gateway.
    pub gateway: Str,
    /// Its service account; with namespace and trust domain it is the identity that peers see.
    pub service_account: Str,
    /// Trust domain of the mesh.
    pub trust_domain: Str,
    /// Own network; empty is the default network.
    pub network: Str,
    /// Own node.
    pub node: Str,
    /// Own cluster.
    pub cluster_id: Str,
    /// Name of its pod.
    pub pod_name: Str,
    /// Its address, if it is told.
    pub instance_ip: Option<IpAddr>,
    /// Further things that the control plane is told.
    pub node_metadata: BTreeMap<String, Value>,
    /// Control plane.
    pub xds: ControlPlane,
    /// Certificate authority.
    pub ca: ControlPlane,
    /// Whose credential it shows.
    pub credential: Credential,
    /// Lifetime asked for certificates.
    #[serde(serialize_with = "as_duration")]
    pub secret_ttl: Duration,
    /// Threads.
    pub worker_threads: usize,
    /// Where tunnels are taken.
    pub listen: SocketAddr,
    /// How long a drain waits.
    #[serde(serialize_with = "as_duration")]
    pub drain: Duration,
    /// How long a stream waits for policies that have not arrived.
    #[serde(serialize_with = "as_duration")]
    pub policy_wait: Duration,
    /// How much of a reason a peer is told at most.
    pub reason_detail: ReasonDetail,
    /// Bytes that may wait in this process for slow readers, as configured; a memory limit may lower it.
    pub buffers: u64,
    /// Bytes that a peer may send on one stream of a tunnel before they were taken.
    pub stream_window: u32,
    /// HTTP/2 inside of tunnels.
    pub http2: Http2,
    /// Networks that names outside of the mesh may lead to although they are near, such as the machine's own.
    pub egress_allow: Vec<IpNet>,
    /// Networks that no name outside of the mesh may lead to; they count before those that may.
    pub egress_deny: Vec<IpNet>,
    /// Who vouches for servers outside of the mesh that keys of tokens are fetched from: `SYSTEM`, PEM text, or a path.
    pub jwks_roots: String,
    /// Listeners of the process.
    pub ports: Ports,
    /// Folder of the unix socket that `tulle` asks.
    pub run_dir: PathBuf,
    /// Levels of the log by target.
    pub log_filter: String,
    /// Log lines are JSON.
    pub log_json: bool,
}

/// Whose credential is shown to the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Credential {
    /// The waypoint's own, such as the token of its service account.
    Own,
    /// That of the node it is placed on.
    Node,
}

impl Credential {
    /// Whose certificate the authority is told to issue.
    #[must_use]
    pub fn impersonation(self) -> Impersonation {
        match self {
            Self::Own => Impersonation::Own,
            Self::Node => Impersonation::Workload,
        }
    }
}

/// How much of a reason a caller of the mesh is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReasonDetail {
    /// Code, token, policy.
    Full,
    /// Code and token.
    Code,
    /// Nothing.
    None,
}

/// Listeners of the process beside that for tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ports {
    /// Admin, on loopback; `None` leaves the unix socket alone.
    pub admin: Option<u16>,
    /// Metrics.
    pub stats: Option<u16>,
    /// Readiness.
    pub readiness: Option<u16>,
}

const DEFAULT_RUN_DIR: &str = "/run/tulle";
/// Time for what is running when the process ends.
const DEFAULT_DRAIN: Duration = Duration::from_secs(30);
/// Bytes that may wait for slow readers.
const DEFAULT_BUFFERS: u64 = 256 * MEBIBYTE;
const MEBIBYTE: u64 = 1024 * 1024;
/// A quarter of what node proxies have: what fills it, waits in this process, which stands between two tunnels
/// (docs/decisions/0019).
const DEFAULT_STREAM_WINDOW: u32 = 1024 * 1024;
/// Windows that a stream can have: no less than the protocol begins with, no more than it knows.
const STREAM_WINDOWS: RangeInclusive<u32> = 65_535..=(1 << 31) - 1;
/// Of a memory limit, this part may wait for slow readers: one of four.
const BUFFERS_SHARE: u64 = 4;
/// Fewest threads when nothing is set.
const THREADS_MIN: usize = 2;

impl Config {
    /// Reads the environment.
    ///
    /// # Errors
    /// All values that cannot be used, together.
    pub fn from_env(env: &dyn Env) -> Result<Self, ConfigError> {
        let mut read = Collector::new(env);
        let config = Self::read(&mut read, env);
        for (name, value) in [
            ("POD_NAMESPACE", &config.namespace),
            ("SERVICE_ACCOUNT", &config.service_account),
        ] {
            if value.is_empty() {
                read.problem(
                    name,
                    "",
                    "must be set: it is part of the identity of the waypoint",
                );
            }
        }
        read.finish()?;
        Ok(config)
    }

    fn read(read: &mut Collector<'_>, env: &dyn Env) -> Self {
        let service_account = read.string("SERVICE_ACCOUNT", "");
        let cluster = read.optional_string("ISTIO_META_CLUSTER_ID");
        let format = read.string("LOG_FORMAT", "text");
        if !["text", "json", "plain"].contains(&format.as_str()) {
            read.problem("LOG_FORMAT", &format, "must be text or json");
        }
        Self {
            namespace: read.string("POD_NAMESPACE", "").into(),
            gateway: read.string("TULLE_WAYPOINT", &service_account).into(),
            service_account: service_account.into(),
            trust_domain: read.string("TRUST_DOMAIN", DEFAULT_TRUST_DOMAIN).into(),
            network: read.string("NETWORK", "").into(),
            node: read.string("NODE_NAME", "").into(),
            cluster_id: cluster
                .unwrap_or_else(|| read.string("CLUSTER_ID", "Kubernetes"))
                .into(),
            pod_name: read.string("POD_NAME", "").into(),
            instance_ip: read.optional("INSTANCE_IP", str::parse),
            node_metadata: metadata(read),
            xds: server(read, env, "XDS"),
            ca: server(read, env, "CA"),
            credential: read.value("TULLE_CREDENTIAL", Credential::Own, credential),
            secret_ttl: read.duration("SECRET_TTL", Duration::from_secs(24 * 60 * 60)),
            worker_threads: read
                .optional("TULLE_WAYPOINT_THREADS", str::parse)
                .unwrap_or_else(default_threads)
                .max(1),
            listen: read.parsed(
                "TULLE_WAYPOINT_LISTEN",
                SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), HBONE_PORT),
            ),
            drain: read.duration("TERMINATION_DRAIN_DURATION", DEFAULT_DRAIN),
            policy_wait: read.duration("TULLE_POLICY_WAIT", Duration::from_secs(2)),
            reason_detail: read.value("TULLE_REASON_DETAIL", ReasonDetail::Full, reason_detail),
            buffers: read.size("TULLE_WAYPOINT_BUFFERS", DEFAULT_BUFFERS),
            stream_window: read.value("HTTP2_STREAM_WINDOW_SIZE", DEFAULT_STREAM_WINDOW, window),
            http2: Http2::default(),
            egress_allow: read.value("TULLE_WAYPOINT_EGRESS_ALLOW", Vec::new(), networks),
            egress_deny: read.value("TULLE_WAYPOINT_EGRESS_DENY", Vec::new(), networks),
            jwks_roots: read.string("TULLE_JWKS_ROOTS", "SYSTEM"),
            ports: Ports {
                admin: read.value("TULLE_ADMIN_PORT", Some(15000), port),
                stats: read.value("TULLE_STATS_PORT", Some(15020), port),
                readiness: read.value("TULLE_READINESS_PORT", Some(15021), port),
            },
            run_dir: read.string("TULLE_RUN_DIR", DEFAULT_RUN_DIR).into(),
            log_filter: read.string("RUST_LOG", "info"),
            log_json: format == "json",
        }
    }

    /// Hosts of the control plane: addresses, or names that lead to some.
    pub fn control_plane_hosts(&self) -> impl Iterator<Item = &str> {
        let servers = [&self.xds, &self.ca].into_iter();
        let hosts = servers.filter_map(|server| server.address.host());
        hosts.map(|host| host.trim_matches(['[', ']']))
    }

    /// Bytes that may wait in this process for slow readers, where memory is limited to so much. What the settings of the
    /// Gateway say wins.
    #[must_use]
    pub fn buffers_within(&self, told: Option<u64>, memory: Option<u64>) -> u64 {
        let wanted = told.unwrap_or(self.buffers);
        memory.map_or(wanted, |limit| wanted.min(limit / BUFFERS_SHARE))
    }

    /// The identity that peers see.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity::new(
            self.trust_domain.clone(),
            self.namespace.clone(),
            self.service_account.clone(),
        )
    }
}

fn server(read: &mut Collector<'_>, env: &dyn Env, kind: &str) -> ControlPlane {
    let address = read.string(&format!("{kind}_ADDRESS"), ControlPlane::default_address(env));
    ControlPlane::read(read, kind, &address).unwrap_or_else(ControlPlane::unusable)
}

fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(THREADS_MIN, |cores| usize::from(cores).max(THREADS_MIN))
}

fn credential(text: &str) -> Result<Credential, &'static str> {
    match text {
        "own" => Ok(Credential::Own),
        "node" => Ok(Credential::Node),
        _ => Err("must be own or node"),
    }
}

fn reason_detail(text: &str) -> Result<ReasonDetail, &'static str> {
    match text {
        "full" => Ok(ReasonDetail::Full),
        "code" => Ok(ReasonDetail::Code),
        "none" => Ok(ReasonDetail::None),
        _ => Err("must be full, code or none"),
    }
}

fn window(text: &str) -> Result<u32, String> {
    let size = parse_size(text).map_err(|error| error.to_string())?;
    u32::try_from(size)
        .ok()
        .filter(|size| STREAM_WINDOWS.contains(size))
        .ok_or_else(|| {
            let (least, most) = STREAM_WINDOWS.into_inner();
            format!("must lie between {least} and {most} bytes")
        })
}

fn networks(text: &str) -> Result<Vec<IpNet>, &'static str> {
    let list = text.split(',').map(str::trim).filter(|one| !one.is_empty());
    let network = |one: &str| {
        let address = || one.parse::<IpAddr>().map(IpNet::from);
        one.parse::<IpNet>().or_else(|_| address())
    };
    list.map(|one| network(one).map_err(|_| "must be a list of networks, such as 10.0.0.0/8,192.0.2.7"))
        .collect()
}

fn port(text: &str) -> Result<Option<u16>, &'static str> {
    match text {
        "off" => Ok(None),
        number => number.parse().map(Some).map_err(|_| "must be a port, or off"),
    }
}

fn metadata(read: &mut Collector<'_>) -> BTreeMap<String, Value> {
    let mut metadata = BTreeMap::new();
    // A call for each, so that one bad value does not hide the good ones.
    for prefix in [TEXT_PREFIX, JSON_PREFIX] {
        for variable in read.with_prefix(prefix) {
            match metadata_from([variable.clone()]) {
                Ok(found) => metadata.extend(found),
                Err(_) => read.problem(&variable.0, &variable.1, "must be JSON"),
            }
        }
    }
    metadata
}

fn as_duration<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_duration(*value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tulle_runtime::config::MapEnv;

    const NEEDED: [(&str, &str); 2] = [("POD_NAMESPACE", "shop"), ("SERVICE_ACCOUNT", "way")];

    #[test]
    fn a_waypoint_is_its_service_account() {
        let config = Config::from_env(&MapEnv::from(NEEDED)).unwrap();
        assert_eq!(
            config.identity().to_string(),
            "spiffe://cluster.local/ns/shop/sa/way"
        );
        assert_eq!(&*config.gateway, "way");
        assert_eq!(config.listen.port(), 15008);
    }

    #[test]
    fn without_an_identity_nothing_starts() {
        let error = Config::from_env(&MapEnv::default()).unwrap_err().to_string();
        assert!(
            error.contains("POD_NAMESPACE") && error.contains("SERVICE_ACCOUNT"),
            "{error}"
        );
    }

    #[test]
    fn a_memory_limit_lowers_what_may_wait() {
        let config = Config::from_env(&MapEnv::from(NEEDED)).unwrap();
        assert_eq!(config.buffers_within(None, None), 256 * MEBIBYTE);
        assert_eq!(config.buffers_within(None, Some(128 * MEBIBYTE)), 32 * MEBIBYTE);
        let env = MapEnv::from(NEEDED).with("TULLE_WAYPOINT_BUFFERS", "8MiB");
        let config = Config::from_env(&env).unwrap();
        assert_eq!(config.buffers_within(None, Some(128 * MEBIBYTE)), 8 * MEBIBYTE);
        let told = |told: u64| config.buffers_within(Some(told * MEBIBYTE), Some(128 * MEBIBYTE));
        assert_eq!((told(16), told(64)), (16 * MEBIBYTE, 32 * MEBIBYTE));
    }

    #[test]
    fn every_bad_value_is_told() {
        let env = MapEnv::from(NEEDED)
            .with("TULLE_CREDENTIAL", "stolen")
            .with("TULLE_ADMIN_PORT", "x")
            .with("TULLE_WAYPOINT_BUFFERS", "much")
            .with("HTTP2_STREAM_WINDOW_SIZE", "2GiB")
            .with("TERMINATION_DRAIN_DURATION", "soon");
        let error = Config::from_env(&env).unwrap_err().to_string();
        for name in [
            "TULLE_CREDENTIAL",
            "TULLE_ADMIN_PORT",
            "TULLE_WAYPOINT_BUFFERS",
            "HTTP2_STREAM_WINDOW_SIZE",
            "TERMINATION_DRAIN_DURATION",
        ] {
            assert!(error.contains(name), "{error}");
        }
    }
}
