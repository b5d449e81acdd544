//! The control plane's command line, with defaults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tulle_k8s::api::gateway::NamespaceSelector;
use tulle_k8s::translate::MeshConfig;
use tulle_model::{Identity, Str};
use tulle_runtime::config::parse_duration;
use tulle_runtime::telemetry::LogFormat;

use crate::ca::issue::TTL_MIN;
use crate::ca::rotation::Waits;
use crate::serve::pace::BATCH_APART_MAX;
use crate::token::jwt::Issuer;

/// Longest validity that certificates can be configured to have.
const TTL_CONFIGURABLE_MAX: Duration = Duration::from_secs(90 * 24 * 3600);

/// Run the control plane: reads configuration, serves it to proxies and agents, signs their certificates
///
/// Configuration objects are Kubernetes manifests in a folder, watched while running. Node proxies and agents connect
/// over TLS with a token of their node, made by `tulle xds token --node NODE`, and trust the root certificate in
/// STATE_DIR/ca/root-cert.pem.
#[derive(Debug, Clone, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(
    after_help = "Exit codes: 0 ended when asked to; 1 failed while running; 64 cannot be started like this."
)]
pub struct Config {
    /// Something else to do than to run.
    #[command(subcommand)]
    pub action: Option<Action>,
    /// Folder with the configuration objects (*.yaml, *.yml, *.json, also in subfolders)
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/etc/tulle/config",
        env = "TULLE_CONFIG_DIR"
    )]
    pub config_dir: PathBuf,
    /// Folder for what must survive a restart: root certificate and key, hashes of node tokens
    #[arg(long, value_name = "DIR", default_value = STATE_DIR, env = "TULLE_STATE_DIR")]
    pub state_dir: PathBuf,
    /// Folder for the admin socket xds.sock
    #[arg(long, value_name = "DIR", default_value = "/run/tulle", env = "TULLE_RUN_DIR")]
    pub run_dir: PathBuf,
    /// Address that proxies and agents connect to, over TLS; may be given several times
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:15012")]
    pub listen: Vec<SocketAddr>,
    /// Further names and addresses of this server in its certificate
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub xds_san: Vec<String>,
    /// Address of the metrics (/metrics), with /healthz and /readyz
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:15014")]
    pub metrics_address: SocketAddr,
    /// Address of the readiness check alone (/healthz/ready, /readyz)
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:15021")]
    pub readiness_address: SocketAddr,
    /// Trust domain of the identities that are issued
    #[arg(long, value_name = "NAME", default_value = "cluster.local", value_parser = dns_name, env = "TRUST_DOMAIN")]
    pub trust_domain: String,
    /// Namespace whose policies hold for the whole mesh
    #[arg(long, value_name = "NAME", default_value = "istio-system", value_parser = dns_name)]
    pub root_namespace: String,
    /// Domain of service names: <name>.<namespace>.svc.<domain>
    #[arg(long, value_name = "NAME", default_value = "cluster.local", value_parser = dns_name)]
    pub cluster_domain: String,
    /// Name of the cluster in resource names
    #[arg(long, value_name = "NAME", default_value = "Kubernetes", value_parser = dns_name, env = "CLUSTER_ID")]
    pub cluster_id: String,
    /// Serve only the namespaces with these labels (env=canary,tier in (web,api),!old), the root namespace, and what has
    /// no namespace; for a second control plane beside the one that serves all
    #[arg(long, value_name = "SELECTOR")]
    pub scope: Option<NamespaceSelector>,
    /// Keep the root certificate in memory only: a restart makes a new one, which nothing trusts yet
    #[arg(long)]
    pub memory_ca: bool,
    /// Serve beside the control plane that owns the state folder: read what it recorded, write nothing, and leave
    /// certificates and joining nodes to it
    #[arg(long, conflicts_with = "memory_ca")]
    pub replica: bool,
    /// Folder with an intermediate of your own to issue with: ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem
    /// (and ca-crl.pem), or tls.crt, tls.key and ca.crt; replaced files are taken over while running
    #[arg(long, value_name = "DIR", conflicts_with = "memory_ca", env = "TULLE_CA_DIR")]
    pub ca_dir: Option<PathBuf>,
    /// Believe service account tokens of this issuer by its keys (JWKS) in a file, those that are bound to a pod while
    /// the configuration has that pod with that UID; may be given several times
    #[arg(long, value_name = "ISSUER=FILE")]
    pub jwt_issuer: Vec<Issuer>,
    /// What such a token must be made for
    #[arg(long, value_name = "AUDIENCE", default_value = "istio-ca")]
    pub jwt_audience: String,
    /// Service accounts that run node proxies
    #[arg(
        long,
        value_name = "NAMESPACE/NAME",
        value_delimiter = ',',
        default_value = "istio-system/ztunnel",
        value_parser = account,
        env = "CA_TRUSTED_NODE_ACCOUNTS"
    )]
    pub trusted_node_account: Vec<(Str, Str)>,
    /// Identities that may read the debug pages on the TLS port, all of them and of every namespace, such as
    /// spiffe://cluster.local/ns/ops/sa/debug; nobody unless listed
    #[arg(long, value_name = "IDENTITY", value_delimiter = ',')]
    pub debug_identity: Vec<Identity>,
    /// Least time in which a new root is handed out before it signs
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_duration)]
    pub rotation_distribute: Duration,
    /// The same while a client is connected that does not tell which roots it has
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_duration)]
    pub rotation_distribute_untold: Duration,
    /// How long an old root is believed after its last certificate has ended
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration)]
    pub rotation_margin: Duration,
    /// How long an absent node holds up a rotation before you are asked to decide
    #[arg(long, value_name = "DURATION", default_value = "168h", value_parser = parse_duration)]
    pub rotation_deadline: Duration,
    /// Longest validity of a workload certificate
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = certificate_ttl)]
    pub max_certificate_ttl: Duration,
    /// Age at which a client's connection is ended so that it connects anew, varied by a quarter; 0: never
    #[arg(long, value_name = "DURATION", default_value = "30m", value_parser = parse_duration)]
    pub max_stream_age: Duration,
    /// Least time between two batches to a client while more than 50 changes a second come; at most 10ms, 0: none
    #[arg(long, value_name = "DURATION", default_value = "5ms", value_parser = batch_interval)]
    pub batch_interval: Duration,
    /// Form of the log lines: text or json
    #[arg(long, value_name = "FORM", default_value = "text", env = "LOG_FORMAT")]
    pub log_format: LogFormat,
    /// What is logged, such as info or warn,tulle_xds=debug
    #[arg(long, value_name = "FILTER", default_value = "info", env = "RUST_LOG")]
    pub log_level: String,
}

/// Default of `--state-dir`.
const STATE_DIR: &str = "/var/lib/tulle";

/// What else the control plane's command does.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Action {
    /// Make a token for a node and print it; the state folder keeps its hash
    ///
    /// The node's proxy and agent show it to the control plane. A running control plane accepts it at once. Earlier
    /// tokens of the node stay valid; delete STATE_DIR/tokens/NODE.json to take all of them away.
    Token {
        /// The node: what its proxy and agent call NODE_NAME
        #[arg(long, value_name = "NODE")]
        node: String,
        /// State folder of the control plane
        #[arg(long, value_name = "DIR", default_value = STATE_DIR, env = "TULLE_STATE_DIR")]
        state_dir: PathBuf,
    },
}

impl Config {
    /// What a rotation of the root waits for.
    #[must_use]
    pub fn rotation_waits(&self) -> Waits {
        Waits {
            distribute: self.rotation_distribute,
            distribute_untold: self.rotation_distribute_untold,
            margin: self.rotation_margin,
            deadline: self.rotation_deadline,
        }
    }

    /// The mesh, before the settings in its configuration are known.
    #[must_use]
    pub fn mesh(&self) -> MeshConfig {
        MeshConfig {
            cluster_id: self.cluster_id.as_str().into(),
            trust_domain: self.trust_domain.as_str().into(),
            domain: self.cluster_domain.as_str().into(),
            ..MeshConfig::rooted_in(&self.root_namespace)
        }
    }

    /// What this process is called among those over one state folder: machine and port.
    #[must_use]
    pub fn replica_name(&self, host: Option<&str>) -> Str {
        let port = self.listen.first().map_or(0, SocketAddr::port);
        format!("{}:{port}", host.unwrap_or("localhost")).into()
    }

    /// Names of this server in its certificate; `host` is the machine's own.
    #[must_use]
    pub fn server_names(&self, host: Option<&str>) -> Vec<Str> {
        let root = &self.root_namespace;
        let services = ["tulle-xds", "istiod"];
        let short = services.iter().map(|service| format!("{service}.{root}.svc"));
        let long = services
            .iter()
            .map(|service| format!("{service}.{root}.svc.{}", self.cluster_domain));
        let fixed = ["localhost", "127.0.0.1", "::1", "tulle-xds"].map(str::to_owned);
        let names = fixed.into_iter().chain(short).chain(long);
        let names = names
            .chain(host.map(str::to_owned))
            .chain(self.xds_san.iter().cloned());
        let mut known = std::collections::BTreeSet::new();
        names
            .filter(|name| known.insert(name.clone()))
            .map(Str::from)
            .collect()
    }
}

/// `namespace/name`.
fn account(text: &str) -> Result<(Str, Str), String> {
    let (namespace, name) = text.split_once('/').ok_or("use NAMESPACE/NAME")?;
    Ok((dns_name(namespace)?.into(), dns_name(name)?.into()))
}

/// Reads a name of a domain, a namespace or a cluster.
///
/// # Errors
/// It is none.
pub fn dns_name(text: &str) -> Result<String, &'static str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let fits = (1..=253).contains(&text.len()) && text.bytes().all(allowed);
    fits.then(|| text.to_owned())
        .ok_or("use 1 to 253 letters, digits, `-`, `_` and dots")
}

fn certificate_ttl(text: &str) -> Result<Duration, String> {
    let ttl = parse_duration(text).map_err(|error| error.to_string())?;
    if (TTL_MIN..=TTL_CONFIGURABLE_MAX).contains(&ttl) {
        Ok(ttl)
    } else {
        Err("must be between 60s and 2160h (90 days)".to_owned())
    }
}

fn batch_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text).map_err(|error| error.to_string())?;
    if interval <= BATCH_APART_MAX {
        Ok(interval)
    } else {
        Err("must be at most 10ms: every change waits for it".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::world::World;
    use crate::serve::pace::BATCH_APART;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        config: Config,
    }

    fn parse(arguments: &[&str]) -> Result<Config, clap::Error> {
        Cli::try_parse_from([&["xds"], arguments].concat()).map(|cli| cli.config)
    }

    #[test]
    fn defaults_serve_every_family_on_the_known_ports() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.listen, ["[::]:15012".parse().unwrap()]);
        assert_eq!(
            (config.metrics_address.port(), config.readiness_address.port()),
            (15014, 15021)
        );
        assert_eq!(config.batch_interval, BATCH_APART);
        assert_eq!(
            (&*config.trust_domain, &*config.root_namespace),
            ("cluster.local", "istio-system")
        );
    }

    #[test]
    fn values_out_of_bounds_are_refused() {
        for arguments in [
            ["--max-certificate-ttl", "30s"],
            ["--max-certificate-ttl", "2161h"],
            ["--batch-interval", "11ms"],
            ["--trust-domain", "a/b"],
            ["--root-namespace", ""],
            ["--log-format", "xml"],
            ["--listen", "15012"],
            ["--scope", ""],
            ["--scope", "env in canary"],
        ] {
            assert!(parse(&arguments).is_err(), "{arguments:?}");
        }
    }

    #[test]
    fn what_runs_in_the_root_namespace_and_in_no_other_is_left_out_of_the_mesh() {
        for (arguments, root) in [(&[][..], "istio-system"), (&["--root-namespace", "mesh"], "mesh")] {
            let world = World::new(parse(arguments).unwrap().mesh());
            let excluded = &world.mesh().enrolment.excluded_namespaces;
            assert_eq!(*excluded, ["kube-system".into(), root.into()].into());
        }
    }

    #[test]
    fn replicas_of_one_machine_are_told_apart() {
        let name = |arguments: &[&str]| parse(arguments).unwrap().replica_name(Some("m"));
        assert_eq!(&*name(&[]), "m:15012");
        assert_eq!(&*name(&["--listen", "[::]:15112"]), "m:15112");
    }

    #[test]
    fn tokens_are_an_action_of_their_own() {
        let config = parse(&["token", "--node", "n1", "--state-dir", "/s"]).unwrap();
        let Some(Action::Token { node, state_dir }) = config.action else {
            panic!("an action");
        };
        assert_eq!((node.as_str(), state_dir), ("n1", PathBuf::from("/s")));
    }

    #[test]
    fn the_server_answers_to_its_services_and_to_what_is_added() {
        let config = parse(&["--xds-san", "mesh.example,10.9.0.1", "--root-namespace", "mesh"]).unwrap();
        let names = config.server_names(Some("host-1"));
        for name in [
            "localhost",
            "127.0.0.1",
            "::1",
            "istiod.mesh.svc",
            "host-1",
            "mesh.example",
            "10.9.0.1",
        ] {
            assert!(names.iter().any(|known| &**known == name), "{name}");
        }
    }
}
