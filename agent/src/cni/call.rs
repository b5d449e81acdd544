//! What a container runtime says to a plugin (environment and standard input), and the form in which it wants to hear
//! of results and errors: the CNI specification, 0.3.1 to 1.1.0.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tulle_model::Str;
use tulle_runtime::config::Env;

use crate::records::PodId;
use crate::resolver::{Lists, Resolver};

/// Versions of the specification that the plugin speaks.
pub const SUPPORTED: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Bytes of standard input.
pub const INPUT_BYTES_MAX: usize = 1 << 20;
/// Bytes of a name or id.
const NAME_BYTES_MAX: usize = 253;

/// Codes of the specification, and our own above 100.
pub mod code {
    /// The version is not supported.
    pub const VERSION: u32 = 1;
    /// A variable of the environment is missing or bad.
    pub const ENVIRONMENT: u32 = 4;
    /// Something cannot be read.
    pub const IO: u32 = 5;
    /// Standard input is no JSON of the right form.
    pub const DECODING: u32 = 6;
    /// The configuration cannot be used.
    pub const CONFIGURATION: u32 = 7;
    /// The plugin would refuse an ADD.
    pub const UNAVAILABLE: u32 = 50;
    /// The agent refused, or cannot be asked.
    pub const REFUSED: u32 = 100;
}

/// An error as the runtime wants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{msg}; {details}")]
pub struct Refusal {
    /// Version of the specification.
    pub cni_version: String,
    /// Code of the specification, or our own.
    pub code: u32,
    /// What went wrong.
    pub msg: String,
    /// What more is to be said.
    pub details: String,
}

impl Refusal {
    /// An error of the newest version; whoever knows the call's own sets that.
    #[must_use]
    pub fn new(code: u32, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self {
            cni_version: SUPPORTED[SUPPORTED.len() - 1].to_owned(),
            code,
            msg: msg.into(),
            details: details.into(),
        }
    }
}

/// What is asked of the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// A sandbox starts.
    Add,
    /// A sandbox ends.
    Del,
    /// Is the sandbox as it should be?
    Check,
    /// Would a new sandbox be taken?
    Status,
    /// Forget every sandbox that is not listed.
    Gc,
    /// Which versions are spoken?
    Version,
}

/// One call.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub verb: Verb,
    /// The sandbox's id; empty for calls that are about none.
    pub container_id: Str,
    /// Where its network namespace is, if it has one.
    pub netns: Option<PathBuf>,
    /// The pod, if the runtime named one.
    pub pod: Option<PodId>,
    /// The configuration.
    pub config: Configuration,
}

/// What the plugin is configured with, from the list's file and the runtime.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Configuration {
    /// Version of the specification.
    pub cni_version: String,
    /// Where the agent listens.
    #[serde(default = "socket")]
    pub socket: PathBuf,
    /// Folder of what must outlast both agent and plugin.
    #[serde(default = "state_dir")]
    pub state_dir: PathBuf,
    /// Namespaces whose pods start without the agent.
    #[serde(default)]
    pub exclude_namespaces: BTreeSet<Str>,
    /// What the plugins before made, as it came.
    #[serde(default)]
    pub prev_result: Option<Box<RawValue>>,
    /// What the runtime tells of the pod, for the capabilities of our entry.
    #[serde(default)]
    runtime_config: RuntimeConfig,
    /// What may stay at a GC.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Vec<Attachment>,
}

/// What a runtime tells of one pod.
#[derive(Debug, Default, Deserialize)]
struct RuntimeConfig {
    #[serde(default)]
    dns: Option<Lists>,
}

/// A sandbox that may stay.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Attachment {
    /// The sandbox's id.
    #[serde(rename = "containerID")]
    pub container_id: Str,
}

fn socket() -> PathBuf {
    super::SOCKET.into()
}

fn state_dir() -> PathBuf {
    super::STATE_DIR.into()
}

impl Configuration {
    /// Reads standard input.
    ///
    /// # Errors
    /// When it is no configuration, or of a version that is not spoken.
    pub fn parse(input: &[u8]) -> Result<Self, Refusal> {
        let config: Self = serde_json::from_slice(input).map_err(|error| {
            Refusal::new(
                code::DECODING,
                "tulle: the network configuration on standard input cannot be read",
                error.to_string(),
            )
        })?;
        if SUPPORTED.contains(&config.cni_version.as_str()) {
            return Ok(config);
        }
        let known: String = config.cni_version.chars().take(32).collect();
        Err(Refusal::new(
            code::VERSION,
            format!("tulle: cniVersion {known} is not supported"),
            format!("use one of {}", SUPPORTED.join(", ")),
        ))
    }

    /// The addresses that the plugins before gave to the pod.
    ///
    /// # Errors
    /// When their result cannot be read, or there is none: the plugin must be chained.
    pub fn addresses(&self) -> Result<Vec<IpAddr>, Refusal> {
        #[derive(Deserialize)]
        struct Made {
            #[serde(default)]
            ips: Vec<Ip>,
        }
        #[derive(Deserialize)]
        struct Ip {
            address: IpNet,
        }
        let refused = |details: String| {
            Refusal::new(
                code::CONFIGURATION,
                "tulle: the result of the plugin before cannot be used; tulle-cni stands behind the one that gives addresses",
                details,
            )
        };
        let before = self.prev_result.as_ref();
        let before = before.ok_or_else(|| refused("the configuration has no prevResult".to_owned()))?;
        let made: Made = serde_json::from_str(before.get()).map_err(|error| refused(error.to_string()))?;
        Ok(made
            .ips
            .iter()
            .map(|ip| ip.address.addr().to_canonical())
            .collect())
    }

    /// What the pod's resolv.conf will say, if the runtime told.
    pub fn take_resolver(&mut self) -> Option<Resolver> {
        self.runtime_config.dns.take()?.into()
    }

    /// Whether a pod's namespace is left to itself.
    #[must_use]
    pub fn excludes(&self, pod: &PodId) -> bool {
        self.exclude_namespaces.contains(&pod.namespace)
    }
}

impl Call {
    /// Reads a call.
    ///
    /// # Errors
    /// When the environment or the input does not follow the specification.
    pub fn read(env: &impl Env, input: &[u8]) -> Result<Self, Refusal> {
        let verb = verb(env)?;
        let config = Configuration::parse(input)?;
        let of_version = |mut refusal: Refusal| {
            refusal.cni_version.clone_from(&config.cni_version);
            refusal
        };
        let container_id = container_id(env, verb).map_err(of_version)?;
        let arguments = env.var("CNI_ARGS").unwrap_or_default();
        let pod = pod(&arguments, &container_id).map_err(of_version)?;
        let netns = env.var("CNI_NETNS").filter(|path| !path.is_empty());
        Ok(Self {
            verb,
            container_id,
            netns: netns.map(PathBuf::from),
            pod,
            config,
        })
    }
}

fn bad_variable(name: &str, details: &str) -> Refusal {
    Refusal::new(
        code::ENVIRONMENT,
        format!("tulle: the variable {name} is missing or cannot be used"),
        details,
    )
}

fn verb(env: &impl Env) -> Result<Verb, Refusal> {
    match env.var("CNI_COMMAND").unwrap_or_default().as_str() {
        "ADD" => Ok(Verb::Add),
        "DEL" => Ok(Verb::Del),
        "CHECK" => Ok(Verb::Check),
        "STATUS" => Ok(Verb::Status),
        "GC" => Ok(Verb::Gc),
        "VERSION" => Ok(Verb::Version),
        _ => Err(bad_variable(
            "CNI_COMMAND",
            "it is one of ADD, DEL, CHECK, STATUS, GC and VERSION; container runtimes set it",
        )),
    }
}

fn container_id(env: &impl Env, verb: Verb) -> Result<Str, Refusal> {
    let id = env.var("CNI_CONTAINERID").unwrap_or_default();
    let is_needed = matches!(verb, Verb::Add | Verb::Del | Verb::Check);
    match (id.is_empty(), is_needed) {
        (true, false) => Ok("".into()),
        (false, _) if is_name(&id) => Ok(id.into()),
        _ => Err(bad_variable(
            "CNI_CONTAINERID",
            "letters, digits, `.`, `_` and `-`, beginning with a letter or digit",
        )),
    }
}

/// The pod that `CNI_ARGS` names: `K8S_POD_NAMESPACE`, `K8S_POD_NAME` and, since Kubernetes 1.22, `K8S_POD_UID`.
fn pod(arguments: &str, container_id: &Str) -> Result<Option<PodId>, Refusal> {
    let value = |wanted: &str| {
        let pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
        pairs
            .filter(|(name, _)| *name == wanted)
            .map(|(_, value)| value)
            .find(|value| !value.is_empty())
    };
    let (Some(namespace), Some(name)) = (value("K8S_POD_NAMESPACE"), value("K8S_POD_NAME")) else {
        return Ok(None);
    };
    let uid = value("K8S_POD_UID").unwrap_or(container_id);
    if [namespace, name, uid].into_iter().all(is_name) {
        return Ok(Some(PodId {
            namespace: namespace.into(),
            name: name.into(),
            uid: uid.into(),
        }));
    }
    Err(bad_variable(
        "CNI_ARGS",
        "the pod's namespace, name or uid is no name",
    ))
}

fn is_name(text: &str) -> bool {
    let within = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    text.len() <= NAME_BYTES_MAX
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(within)
}

/// A pod that is named is named by names.
#[cfg(feature = "testing")]
pub(crate) fn fuzz_arguments(arguments: &str) {
    if let Ok(Some(pod)) = pod(arguments, &"c1".into()) {
        assert!(is_name(&pod.namespace) && is_name(&pod.name) && is_name(&pod.uid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tulle_runtime::config::MapEnv;

    const INPUT: &str = r#"{"cniVersion": "1.0.0", "name": "net", "type": "tulle-cni", "runtimeConfig": {},
        "excludeNamespaces": ["kube-system"],
        "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.7/24"}, {"address": "fd00::7/64"}]}}"#;
    const ARGS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_UID=u-1";

    fn call(variables: &[(&str, &str)], input: &str) -> Result<Call, Refusal> {
        let env = variables
            .iter()
            .fold(MapEnv::default(), |env, (name, value)| env.with(name, value));
        Call::read(&env, input.as_bytes())
    }

    fn add(arguments: &str) -> Result<Call, Refusal> {
        let variables = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/run/netns/x"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", arguments),
        ];
        call(&variables, INPUT)
    }

    #[test]
    fn an_add_names_sandbox_pod_and_addresses() {
        let call = add(ARGS).unwrap();
        let pod = call.pod.unwrap();
        assert_eq!((&*pod.namespace, &*pod.name, &*pod.uid), ("shop", "web-1", "u-1"));
        let addresses: Vec<_> = call
            .config
            .addresses()
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(addresses, ["10.0.0.7", "fd00::7"]);
        assert_eq!(call.netns, Some("/run/netns/x".into()));
    }

    #[test]
    fn a_sandbox_without_a_pod_is_none_of_the_meshs() {
        assert_eq!(add("IgnoreUnknown=1").unwrap().pod, None);
        assert_eq!(add("").unwrap().pod, None);
    }

    #[test]
    fn a_pod_without_a_uid_goes_by_its_sandbox() {
        let call = add("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web").unwrap();
        assert_eq!(&*call.pod.unwrap().uid, "c1");
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        let refusal = add("K8S_POD_NAMESPACE=../x;K8S_POD_NAME=web").unwrap_err();
        assert_eq!(refusal.code, code::ENVIRONMENT);
        assert_eq!(refusal.cni_version, "1.0.0");
    }

    #[test]
    fn a_del_may_come_without_a_namespace() {
        let call = call(
            &[
                ("CNI_COMMAND", "DEL"),
                ("CNI_CONTAINERID", "c1"),
                ("CNI_NETNS", ""),
                ("CNI_ARGS", ARGS),
            ],
            INPUT,
        );
        assert_eq!(call.unwrap().netns, None);
    }

    #[test]
    fn what_is_not_spoken_is_refused_with_its_code() {
        let version = [("CNI_COMMAND", "VERSION")];
        assert_eq!(
            call(&version, r#"{"cniVersion": "0.2.0"}"#).unwrap_err().code,
            code::VERSION
        );
        assert_eq!(call(&version, "{").unwrap_err().code, code::DECODING);
        assert_eq!(call(&[], INPUT).unwrap_err().code, code::ENVIRONMENT);
        assert_eq!(
            call(&[("CNI_COMMAND", "ADD")], INPUT).unwrap_err().code,
            code::ENVIRONMENT
        );
    }

    #[test]
    fn every_version_that_is_spoken_is_read() {
        for version in SUPPORTED {
            let input = format!(r#"{{"cniVersion": "{version}"}}"#);
            assert!(call(&[("CNI_COMMAND", "VERSION")], &input).is_ok(), "{version}");
        }
    }

    #[test]
    fn the_result_before_is_kept_to_the_byte() {
        let odd = r#"{"b": 1.50, "a": [ ], "ips": [], "x": 12345678901234567890123}"#;
        let input = format!(r#"{{"cniVersion": "1.0.0", "prevResult": {odd}}}"#);
        let config = Configuration::parse(input.as_bytes()).unwrap();
        assert_eq!(config.prev_result.unwrap().get(), odd);
    }

    #[test]
    fn a_plugin_that_is_not_chained_says_so() {
        let config = Configuration::parse(br#"{"cniVersion": "1.0.0"}"#).unwrap();
        let refusal = config.addresses().unwrap_err();
        assert_eq!(refusal.code, code::CONFIGURATION);
        assert!(refusal.msg.contains("stands behind"), "{refusal}");
    }
}
