//! The configuration of the node proxy, read from ztunnel's environment variables (node-proxy.md section 19).

mod mesh;
pub mod reference;
mod threads;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use serde::{Serialize, Serializer};
use tulle_identity::{RootSource, TokenSource};
use tulle_model::Str;
use tulle_model::identity::DEFAULT_TRUST_DOMAIN;
use tulle_runtime::config::{Collector, ConfigError, Env, parse_bool, parse_duration};

use self::mesh::ProxyConfig;

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
    /// Control plane; `None` = what is known comes from [`Self::local_xds`] alone.
    pub xds: Option<ControlPlane>,
    /// Certificate authority.
    pub ca: CertificateAuthority,
    /// Workloads, services and policies from here.
    pub local_xds: Option<LocalXds>,
    /// Lifetime asked for certificates.
    #[serde(serialize_with = "as_duration")]
    pub secret_ttl: Duration,
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
    /// Folder of the unix socket that `tulle` asks.
    pub run_dir: PathBuf,
}

/// Whom a proxy serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ProxyMode {
    /// All pods of the node, as the agent names them.
    Shared,
    /// One workload, in the current network namespace.
    Dedicated(WorkloadName),
}

/// What the control plane knows a workload by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadName {
    /// Namespace.
    pub namespace: Str,
    /// Name of the pod.
    pub name: Str,
    /// Service account.
    pub service_account: Str,
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.name, self.service_account)
    }
}

/// The proxy's own pod.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessIdentity {
    /// Its address.
    pub instance_ip: Option<IpAddr>,
    /// Its name.
    pub pod_name: String,
    /// Its namespace.
    pub pod_namespace: String,
    /// Its service account.
    pub service_account: String,
}

/// One server of the control plane.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlPlane {
    /// Where.
    #[serde(serialize_with = "as_text")]
    pub address: Uri,
    /// What its certificate is verified with.
    #[serde(serialize_with = "as_root")]
    pub root: RootSource,
    /// Other server name to verify.
    pub server_name: Option<String>,
    /// How the caller proves itself.
    #[serde(serialize_with = "as_token")]
    pub token: TokenSource,
}

/// Where certificates come from.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum CertificateAuthority {
    /// A server.
    Server(ControlPlane),
    /// This process itself, for tests.
    #[cfg(feature = "testing")]
    Fake,
}

/// Configuration without a control plane.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum LocalXds {
    /// A YAML file.
    Path(PathBuf),
    /// YAML text.
    Text(String),
}

/// Bounds of the tunnel pool.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// Streams per connection.
    pub streams_max: usize,
    /// Unused connections are closed after this.
    #[serde(serialize_with = "as_duration")]
    pub unused_release: Duration,
    /// Connections per key.
    pub connections_per_key: usize,
}

/// HTTP/2 settings, in bytes.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Http2 {
    /// Flow control of one stream.
    pub stream_window: u32,
    /// Flow control of a connection.
    pub connection_window: u32,
    /// Largest frame.
    pub frame: u32,
}

/// Whether the application sees the client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceAddress {
    /// If the kernel lets us.
    BestEffort,
    /// Or the connection fails.
    Required,
    /// It sees the proxy's.
    Off,
}

/// In-pod protocol.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inpod {
    /// The agent's socket.
    pub socket: PathBuf,
    /// SO_REUSEPORT on listeners that the agent does not hand over.
    pub port_reuse: bool,
}

/// TCP keepalive.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Keepalive {
    /// Idle time before the first probe.
    #[serde(serialize_with = "as_duration")]
    pub time: Duration,
    /// Time between probes.
    #[serde(serialize_with = "as_duration")]
    pub interval: Duration,
    /// Probes.
    pub retries: u32,
    /// Also bound unacknowledged data.
    pub user_timeout: bool,
}

/// How lines are written.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Log {
    /// Levels by target.
    pub filter: String,
    /// JSON instead of text.
    pub json: bool,
}

/// How much of a reason a peer of our trust domain is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ReasonDetail {
    /// Code, token, policy.
    Full,
    /// Code and token.
    Code,
    /// Nothing.
    None,
}

/// Listeners of each pod. Together they are the *own ports* that guard against loops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ports {
    /// Captured outbound TCP.
    pub outbound: u16,
    /// Captured inbound plaintext.
    pub inbound_plain: u16,
    /// Tunnels.
    pub inbound_hbone: u16,
}

impl Ports {
    /// What every peer and every packet rule expects.
    pub const DEFAULT: Self = Self {
        outbound: 15001,
        inbound_plain: 15006,
        inbound_hbone: tulle_model::gateway::HBONE_PORT,
    };

    /// Whether a connection to this port would come back to the proxy.
    #[must_use]
    pub fn is_own(&self, port: u16) -> bool {
        [self.outbound, self.inbound_plain, self.inbound_hbone].contains(&port)
    }
}

/// Listeners of the process, in its own network namespace.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessPorts {
    /// Admin, on loopback.
    pub admin: u16,
    /// Metrics.
    pub stats: u16,
    /// Readiness.
    pub readiness: u16,
}

fn as_text<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn as_duration<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&tulle_runtime::config::format_duration(*value))
}

/// A token never shows, only where it comes from.
fn as_token<S: Serializer>(token: &TokenSource, serializer: S) -> Result<S::Ok, S::Error> {
    match token {
        TokenSource::File(path) => serializer.collect_str(&format_args!("file {}", path.display())),
        TokenSource::Literal(_) => serializer.serialize_str("literal"),
        TokenSource::None => serializer.serialize_str("none"),
    }
}

fn as_root<S: Serializer>(root: &RootSource, serializer: S) -> Result<S::Ok, S::Error> {
    match root {
        RootSource::File(path) => serializer.collect_str(&format_args!("file {}", path.display())),
        RootSource::Pem(_) => serializer.serialize_str("pem"),
        RootSource::System => serializer.serialize_str("system"),
    }
}

const DEFAULT_ROOT: &str = "./var/run/secrets/istio/root-cert.pem";
const DEFAULT_TOKEN: &str = "./var/run/secrets/tokens/istio-token";
const DEFAULT_INPOD_SOCKET: &str = "/var/run/ztunnel/ztunnel.sock";
const DEFAULT_RUN_DIR: &str = "/run/tulle";
const DEFAULT_MARK: u32 = 1337;
const DEFAULT_DRAIN: Duration = Duration::from_secs(5);

impl Config {
    /// Reads the environment.
    ///
    /// # Errors
    /// All values that cannot be used, together.
    pub fn from_env(env: &dyn Env) -> Result<Self, ConfigError> {
        let mut read = Collector::new(env);
        let proxy_config = ProxyConfig::read(&mut read);
        let config = Self::read(&mut read, env, &proxy_config);
        read.finish()?;
        Ok(config)
    }

    fn read(read: &mut Collector<'_>, env: &dyn Env, proxy_config: &ProxyConfig) -> Self {
        let mode = read_mode(read);
        let shared = mode == ProxyMode::Shared;
        let local_xds = read_local_xds(read);
        let worker_threads = threads::read(read, proxy_config.concurrency);
        warn_unused(read);
        Self {
            xds: read_xds(read, env, proxy_config, local_xds.is_some()),
            ca: read_ca(read, env),
            network: read.string("NETWORK", "").into(),
            node: read.string("NODE_NAME", "").into(),
            cluster_id: read_cluster_id(read),
            trust_domain: read.string("TRUST_DOMAIN", DEFAULT_TRUST_DOMAIN).into(),
            process: read_process(read),
            local_xds,
            secret_ttl: read.duration("SECRET_TTL", Duration::from_secs(24 * 60 * 60)),
            post_quantum_only: read_compliance(read),
            pool: read_pool(read, worker_threads),
            worker_threads,
            http2: read_http2(read),
            drain_deadline: read_drain_deadline(read),
            source_address: read_source_address(read),
            localhost_app_tunnel: read.bool("LOCALHOST_APP_TUNNEL", true),
            response_baggage: read.bool("ENABLE_RESPONSE_BAGGAGE", true),
            packet_mark: read
                .optional("PACKET_MARK", str::parse)
                .or_else(|| shared.then_some(DEFAULT_MARK)),
            inpod: read_inpod(read),
            ipv6: read.bool("IPV6_ENABLED", true),
            keepalive: read_keepalive(read),
            log: read_log(read),
            authz_info_logging: read.bool("AUTHZ_POLICY_INFO_LOGGING", false),
            policy_wait: read.duration("TULLE_POLICY_WAIT", Duration::from_secs(2)),
            connect_retries: read.parsed("TULLE_CONNECT_RETRIES", 2),
            reason_detail: read_reason_detail(read),
            connections_max: read_connections_max(read),
            metric_ttl: read.duration("TULLE_METRIC_TTL", Duration::from_secs(15 * 60)),
            ports: Ports::DEFAULT,
            process_ports: proxy_config.ports(),
            run_dir: read.string("TULLE_RUN_DIR", DEFAULT_RUN_DIR).into(),
            mode,
        }
    }
}

/// Values of ztunnel that have no effect here: they are read, so that bad ones are still reported.
fn warn_unused(read: &mut Collector<'_>) {
    for name in ["TLS12_ENABLED", "XDS_ON_DEMAND", "UNSTABLE_ENABLE_SOCKS5"] {
        if read.bool(name, false) {
            tracing::warn!(variable = name, "has no effect");
        }
    }
}

fn read_mode(read: &mut Collector<'_>) -> ProxyMode {
    let mode = read.string("PROXY_MODE", "shared");
    match mode.as_str() {
        "shared" => ProxyMode::Shared,
        "dedicated" => read_dedicated(read).map_or(ProxyMode::Shared, ProxyMode::Dedicated),
        other => {
            read.problem("PROXY_MODE", other, "must be shared or dedicated");
            ProxyMode::Shared
        }
    }
}

fn read_dedicated(read: &mut Collector<'_>) -> Option<WorkloadName> {
    const NAME: &str = "PROXY_WORKLOAD_INFO";
    let Some(text) = read.optional_string(NAME) else {
        read.problem(NAME, "", "must be set with PROXY_MODE=dedicated");
        return None;
    };
    let parts: Vec<&str> = text.split('/').collect();
    match parts[..] {
        [namespace, name, service_account] if parts.iter().all(|part| !part.is_empty()) => {
            Some(WorkloadName {
                namespace: namespace.into(),
                name: name.into(),
                service_account: service_account.into(),
            })
        }
        _ => {
            read.problem(NAME, &text, "must be <namespace>/<name>/<service account>");
            None
        }
    }
}

fn read_cluster_id(read: &mut Collector<'_>) -> Str {
    let meta = read.optional_string("ISTIO_META_CLUSTER_ID");
    meta.unwrap_or_else(|| read.string("CLUSTER_ID", "Kubernetes"))
        .into()
}

fn read_process(read: &mut Collector<'_>) -> ProcessIdentity {
    ProcessIdentity {
        instance_ip: read.optional("INSTANCE_IP", str::parse),
        pod_name: read.string("POD_NAME", ""),
        pod_namespace: read.string("POD_NAMESPACE", ""),
        service_account: read.string("SERVICE_ACCOUNT", ""),
    }
}

fn read_local_xds(read: &mut Collector<'_>) -> Option<LocalXds> {
    let path = read.optional_string("LOCAL_XDS_PATH");
    let text = read.optional_string("LOCAL_XDS");
    match (path, text) {
        (Some(path), Some(_)) => {
            read.problem(
                "LOCAL_XDS_PATH",
                &path,
                "only one of LOCAL_XDS_PATH and LOCAL_XDS may be set",
            );
            None
        }
        (Some(path), None) => Some(LocalXds::Path(path.into())),
        (None, Some(text)) => Some(LocalXds::Text(text)),
        (None, None) => None,
    }
}

fn default_address(env: &dyn Env) -> &'static str {
    if env.var("KUBERNETES_SERVICE_HOST").is_some() {
        "https://istiod.istio-system.svc:15012"
    } else {
        "https://localhost:15012"
    }
}

/// Without XDS_ADDRESS a local configuration stands alone.
fn read_xds(
    read: &mut Collector<'_>,
    env: &dyn Env,
    proxy_config: &ProxyConfig,
    local: bool,
) -> Option<ControlPlane> {
    let set = read
        .optional_string("XDS_ADDRESS")
        .or_else(|| proxy_config.discovery_address.clone());
    let address = match set {
        Some(address) => address,
        None if local => return None,
        None => default_address(env).to_owned(),
    };
    read_server(read, "XDS", &address)
}

fn read_ca(read: &mut Collector<'_>, env: &dyn Env) -> CertificateAuthority {
    if read.bool("FAKE_CA", false) {
        #[cfg(feature = "testing")]
        return CertificateAuthority::Fake;
        #[cfg(not(feature = "testing"))]
        read.problem("FAKE_CA", "true", "exists only in builds for tests");
    }
    let address = read.string("CA_ADDRESS", default_address(env));
    let server = read_server(read, "CA", &address);
    CertificateAuthority::Server(server.unwrap_or_else(|| ControlPlane {
        // Never used: the bad address has been noted, so reading ends in an error.
        address: Uri::from_static("https://localhost:15012"),
        root: RootSource::System,
        server_name: None,
        token: TokenSource::None,
    }))
}

/// `kind` is `XDS` or `CA`, as in the variables' names.
fn read_server(read: &mut Collector<'_>, kind: &str, address: &str) -> Option<ControlPlane> {
    let address = match parse_address(address) {
        Ok(address) => address,
        Err(message) => {
            read.problem(&format!("{kind}_ADDRESS"), address, message);
            return None;
        }
    };
    Some(ControlPlane {
        address,
        root: RootSource::from_setting(&read.string(&format!("{kind}_ROOT_CA"), DEFAULT_ROOT)),
        server_name: read.optional_string(&format!("ALT_{kind}_HOSTNAME")),
        token: token_source(read.optional_string("AUTH_TOKEN")),
    })
}

fn parse_address(text: &str) -> Result<Uri, &'static str> {
    const EXPECTED: &str = "must be an address such as https://localhost:15012";
    let text = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let uri: Uri = text.parse().map_err(|_| EXPECTED)?;
    match uri.scheme_str() {
        Some("https" | "http") if uri.host().is_some_and(|host| !host.is_empty()) => Ok(uri),
        _ => Err(EXPECTED),
    }
}

/// What is not set is the file that Kubernetes mounts, if it is there.
fn token_source(text: Option<String>) -> TokenSource {
    match text {
        Some(text) => TokenSource::from_setting(&text),
        None if Path::new(DEFAULT_TOKEN).exists() => TokenSource::File(DEFAULT_TOKEN.into()),
        None => TokenSource::None,
    }
}

fn read_compliance(read: &mut Collector<'_>) -> bool {
    let policy = read.string("COMPLIANCE_POLICY", "");
    match policy.as_str() {
        "" => false,
        "pqc" => true,
        other => {
            read.problem("COMPLIANCE_POLICY", other, "must be pqc, or not set");
            false
        }
    }
}

fn read_pool(read: &mut Collector<'_>, worker_threads: usize) -> Pool {
    /// More connections per key bring nothing on the machines measured.
    const CONNECTIONS_PER_KEY_MAX: usize = 8;
    Pool {
        streams_max: read.value("POOL_MAX_STREAMS_PER_CONNECTION", 100, parse_positive),
        unused_release: read.duration("POOL_UNUSED_RELEASE_TIMEOUT", Duration::from_secs(5 * 60)),
        connections_per_key: read.value(
            "TULLE_POOL_CONNECTIONS_PER_KEY",
            worker_threads.min(CONNECTIONS_PER_KEY_MAX),
            parse_positive,
        ),
    }
}

fn parse_positive(text: &str) -> Result<usize, &'static str> {
    text.parse()
        .ok()
        .filter(|number| *number > 0)
        .ok_or("must be a number above 0")
}

fn read_http2(read: &mut Collector<'_>) -> Http2 {
    const MIB: u64 = 1 << 20;
    // RFC 9113: windows reach 2^31 - 1, frames 2^24 - 1 bytes and no less than 2^14.
    let mut size = |name: &str, default: u64, range: std::ops::RangeInclusive<u64>| {
        let parse = |text: &str| match tulle_runtime::config::parse_size(text) {
            Ok(size) if range.contains(&size) => Ok(size),
            Ok(_) => Err(format!(
                "must lie between {} and {} bytes",
                range.start(),
                range.end()
            )),
            Err(error) => Err(error.to_string()),
        };
        let size = read.value(name, default, parse);
        u32::try_from(size).expect("the range lies within 32 bits")
    };
    const WINDOW_MAX: u64 = (1 << 31) - 1;
    Http2 {
        stream_window: size("HTTP2_STREAM_WINDOW_SIZE", 4 * MIB, 65_535..=WINDOW_MAX),
        connection_window: size("HTTP2_CONNECTION_WINDOW_SIZE", 16 * MIB, 65_535..=WINDOW_MAX),
        frame: size("HTTP2_FRAME_SIZE", MIB, 16_384..=(1 << 24) - 1),
    }
}

/// CONNECTION_TERMINATION_DEADLINE; else what Kubernetes grants, less a margin for the end itself.
fn read_drain_deadline(read: &mut Collector<'_>) -> Duration {
    let deadline = read.optional("CONNECTION_TERMINATION_DEADLINE", parse_duration);
    let grace = read.optional("TERMINATION_GRACE_PERIOD_SECONDS", parse_seconds);
    deadline
        .or_else(|| grace.map(drain_within))
        .unwrap_or(DEFAULT_DRAIN)
}

fn parse_seconds(text: &str) -> Result<Duration, tulle_runtime::config::InvalidDuration> {
    text.parse()
        .map(Duration::from_secs)
        .or_else(|_| parse_duration(text))
}

fn drain_within(grace: Duration) -> Duration {
    const SHORT: Duration = Duration::from_secs(10);
    let margin = Duration::from_secs(if grace <= SHORT { 1 } else { 5 });
    grace.saturating_sub(margin).max(Duration::from_secs(1))
}

fn read_source_address(read: &mut Collector<'_>) -> SourceAddress {
    match read.optional("ENABLE_ORIG_SRC", parse_bool) {
        None => SourceAddress::BestEffort,
        Some(true) => SourceAddress::Required,
        Some(false) => SourceAddress::Off,
    }
}

fn read_inpod(read: &mut Collector<'_>) -> Inpod {
    Inpod {
        socket: read.string("INPOD_UDS", DEFAULT_INPOD_SOCKET).into(),
        port_reuse: read.bool("INPOD_PORT_REUSE", false),
    }
}

fn read_keepalive(read: &mut Collector<'_>) -> Option<Keepalive> {
    let enabled = read.bool("KEEPALIVE_ENABLED", true);
    let keepalive = Keepalive {
        time: read.duration("KEEPALIVE_TIME", Duration::from_secs(180)),
        interval: read.duration("KEEPALIVE_INTERVAL", Duration::from_secs(180)),
        retries: read.parsed("KEEPALIVE_RETRIES", 9),
        user_timeout: read.bool("USER_TIMEOUT_ENABLED", false),
    };
    enabled.then_some(keepalive)
}

fn read_log(read: &mut Collector<'_>) -> Log {
    let format = read.string("LOG_FORMAT", "text");
    if !["text", "json", "plain"].contains(&format.as_str()) {
        read.problem("LOG_FORMAT", &format, "must be text or json");
    }
    Log {
        filter: read.string("RUST_LOG", "info"),
        json: format == "json",
    }
}

/// Zero is no bound.
fn read_connections_max(read: &mut Collector<'_>) -> Option<usize> {
    Some(read.parsed("TULLE_MAX_CONNECTIONS_PER_WORKLOAD", 0)).filter(|max| *max > 0)
}

fn read_reason_detail(read: &mut Collector<'_>) -> ReasonDetail {
    let detail = read.string("TULLE_REASON_DETAIL", "full");
    match detail.as_str() {
        "full" => ReasonDetail::Full,
        "code" => ReasonDetail::Code,
        "none" => ReasonDetail::None,
        other => {
            read.problem("TULLE_REASON_DETAIL", other, "must be full, code or none");
            ReasonDetail::Full
        }
    }
}

#[cfg(test)]
mod tests;
