//! The configuration of the node proxy, read from ztunnel's environment variables.

mod control_plane;
mod crl;
mod dns;
pub mod held;
mod inpod;
mod log;
mod mesh;
mod metadata;
mod ports;
pub mod reference;
mod show;
mod threads;
mod traffic;
mod tunnels;
mod who;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tulle_identity::ControlPlane;
use tulle_model::Str;
use tulle_model::identity::DEFAULT_TRUST_DOMAIN;
use tulle_runtime::config::{Collector, ConfigError, Env};

pub use self::control_plane::{CertificateAuthority, LocalXds};
pub use self::crl::Crl;
pub use self::dns::{Dns, DnsListen};
pub use self::inpod::Inpod;
pub use self::log::{Log, LogCollector, NotACollector};
use self::mesh::ProxyConfig;
pub use self::ports::{Ports, ProcessPorts};
use self::show::as_duration;
pub use self::traffic::{Keepalive, ReasonDetail, SameNode, SourceAddress};
pub use self::tunnels::{Http2, Pool};
pub use self::who::{ProcessIdentity, ProxyMode, WorkloadName};

/// Everything that can be set.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Whom this proxy serves.
    pub mode: ProxyMode,
    /// Own network; empty is the default network.
    pub network: Str,
    /// Own node.
    pub node: Str,
    /// Own cluster.
    pub cluster_id: Str,
    /// Trust domain of the mesh.
    pub trust_domain: Str,
    /// What this proxy is for the control plane.
    pub process: ProcessIdentity,
    /// Further things that the control plane is told of this node.
    pub node_metadata: BTreeMap<String, Value>,
    /// Control plane; `None` = what is known comes from [`Self::local_xds`] alone.
    pub xds: Option<ControlPlane>,
    /// Certificate authority.
    pub ca: CertificateAuthority,
    /// Ask for addresses where they are needed, instead of holding all of them.
    pub on_demand: bool,
    /// Carry connections; without it names are answered, and nothing else.
    pub proxy: bool,
    /// Workloads, services and policies from here.
    pub local_xds: Option<LocalXds>,
    /// Lifetime asked for certificates.
    #[serde(serialize_with = "as_duration")]
    pub secret_ttl: Duration,
    /// What is believed of certificates beyond their signature.
    pub crl: Crl,
    /// Only post-quantum key exchange.
    pub post_quantum_only: bool,
    /// Threads that carry traffic.
    pub worker_threads: usize,
    /// Tunnels to peers.
    pub pool: Pool,
    /// HTTP/2 windows and frames.
    pub http2: Http2,
    /// How long a drain waits.
    #[serde(serialize_with = "as_duration")]
    pub drain_deadline: Duration,
    /// Whether the application sees the client's address.
    pub source_address: SourceAddress,
    /// Connect to and from loopback for an application tunnel of type PROXY.
    pub localhost_app_tunnel: bool,
    /// Describe this end in answers.
    pub response_baggage: bool,
    /// SO_MARK of the proxy's own packets.
    pub packet_mark: Option<u32>,
    /// Names of local workloads.
    pub dns: Dns,
    /// In-pod protocol.
    pub inpod: Inpod,
    /// Listen on and use IPv6.
    pub ipv6: bool,
    /// TCP keepalive; `None` = off.
    pub keepalive: Option<Keepalive>,
    /// How lines are written.
    pub log: Log,
    /// Lift policy decisions from debug to info.
    pub authz_info_logging: bool,
    /// How long a connection waits for policies that have not arrived.
    #[serde(serialize_with = "as_duration")]
    pub policy_wait: Duration,
    /// Further endpoints that are tried before a byte was sent.
    pub connect_retries: usize,
    /// How workloads of this process reach each other.
    pub same_node: SameNode,
    /// How much of a reason a peer is told.
    pub reason_detail: ReasonDetail,
    /// Open connections of one workload; `None` = no bound.
    pub connections_max: Option<usize>,
    /// Series of traffic that nobody touched for this long are removed.
    #[serde(serialize_with = "as_duration")]
    pub metric_ttl: Duration,
    /// Listeners of each pod.
    pub ports: Ports,
    /// Listeners of the process.
    pub process_ports: ProcessPorts,
    /// Variables that are set and have no effect here.
    pub without_effect: Vec<&'static str>,
    /// Folder of the unix socket that `tulle` asks.
    pub run_dir: PathBuf,
    /// Who looks after this process.
    pub supervision: held::Supervision,
}

const DEFAULT_RUN_DIR: &str = "/run/tulle";
const DEFAULT_MARK: u32 = 1337;

impl Config {
    /// Reads the environment.
    ///
    /// # Errors
    /// All values that cannot be used, together.
    pub fn from_env(env: &dyn Env) -> Result<Self, ConfigError> {
        let mut read = Collector::new(env);
        let proxy_config = ProxyConfig::read(&mut read);
        let config = Self::read(&mut read, env, &proxy_config);
        if !config.proxy && config.dns.listen.is_none() {
            let message =
                "leaves nothing to do, as names are not answered either (proxyMetadata.DNS_CAPTURE)";
            read.problem("ENABLE_PROXY", "false", message);
        }
        read.finish()?;
        Ok(config)
    }

    fn read(read: &mut Collector<'_>, env: &dyn Env, proxy_config: &ProxyConfig) -> Self {
        let mode = who::read_mode(read);
        let shared = mode == ProxyMode::Shared;
        let local_xds = control_plane::read_local_xds(read);
        let worker_threads = threads::read(read, proxy_config.concurrency);
        Self {
            xds: control_plane::read_xds(read, env, proxy_config, local_xds.is_some()),
            ca: control_plane::read_ca(read, env),
            network: read.string("NETWORK", "").into(),
            node: read.string("NODE_NAME", "").into(),
            cluster_id: who::read_cluster_id(read),
            trust_domain: read.string("TRUST_DOMAIN", DEFAULT_TRUST_DOMAIN).into(),
            process: who::read_process(read),
            node_metadata: metadata::read(read, &proxy_config.proxy_metadata),
            on_demand: read.bool("XDS_ON_DEMAND", false),
            proxy: read.bool("ENABLE_PROXY", true),
            local_xds,
            secret_ttl: read.duration("SECRET_TTL", Duration::from_secs(24 * 60 * 60)),
            crl: crl::read(read),
            post_quantum_only: control_plane::read_compliance(read),
            pool: tunnels::read_pool(read, worker_threads),
            worker_threads,
            http2: tunnels::read_http2(read),
            drain_deadline: traffic::read_drain_deadline(read),
            source_address: traffic::read_source_address(read),
            localhost_app_tunnel: read.bool("LOCALHOST_APP_TUNNEL", true),
            response_baggage: read.bool("ENABLE_RESPONSE_BAGGAGE", true),
            packet_mark: read
                .optional("PACKET_MARK", str::parse)
                .or_else(|| shared.then_some(DEFAULT_MARK)),
            dns: dns::read(read, &proxy_config.proxy_metadata),
            inpod: inpod::read(read),
            ipv6: read.bool("IPV6_ENABLED", true),
            keepalive: traffic::read_keepalive(read),
            log: log::read(read),
            authz_info_logging: read.bool("AUTHZ_POLICY_INFO_LOGGING", false),
            policy_wait: read.duration("TULLE_POLICY_WAIT", Duration::from_secs(2)),
            connect_retries: read.parsed("TULLE_CONNECT_RETRIES", 2),
            same_node: traffic::read_same_node(read),
            reason_detail: traffic::read_reason_detail(read),
            connections_max: traffic::read_connections_max(read),
            metric_ttl: read.duration("TULLE_METRIC_TTL", Duration::from_secs(15 * 60)),
            ports: Ports {
                socks5: read
                    .bool("UNSTABLE_ENABLE_SOCKS5", false)
                    .then_some(Ports::SOCKS5),
                ..Ports::DEFAULT
            },
            process_ports: proxy_config.ports(),
            supervision: held::read(read, env),
            run_dir: read.string("TULLE_RUN_DIR", DEFAULT_RUN_DIR).into(),
            without_effect: without_effect(read),
            mode,
        }
    }
}

/// Values of ztunnel that have no effect here: they are read, so that bad ones are still reported, and named at the
/// start, once there is a log.
fn without_effect(read: &mut Collector<'_>) -> Vec<&'static str> {
    let set = read.bool("TLS12_ENABLED", false).then_some("TLS12_ENABLED");
    let exported = read.optional_string(log::COLLECTOR).map(|_| log::COLLECTOR);
    let not_built = exported.filter(|_| cfg!(not(feature = "otlp")));
    set.into_iter().chain(not_built).collect()
}

#[cfg(test)]
mod tests;
