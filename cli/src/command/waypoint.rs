//! `tulle waypoint VERB`: puts waypoints into the configuration folder and says what became of them.

mod enforced;
mod report;

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Subcommand, ValueEnum};
use tulle_k8s::translate::MeshConfig;
use tulle_model::{NamespacedName, Str};
use tulle_runtime::exit::Exit;
use tulle_xds::analyze::enforced::{Shift, enforcement};

use super::folder::{Change, Folder, Target};
use super::{ControlFolders, Reading};
use crate::output::Form;

/// Examples of the verbs, and the variables of an instance.
const HELP: &str = "\
Examples:
  tulle waypoint apply --enroll-namespace --wait
  tulle waypoint apply --name strict --for all -n shop
  tulle waypoint list
  tulle waypoint delete strict -n shop

Environment of an instance:
  POD_NAMESPACE         namespace of the gateway
  SERVICE_ACCOUNT       its service account: with the namespace, its identity
  TULLE_WAYPOINT        name of the gateway [the service account]
  POD_NAME, NODE_NAME   own pod and node
  INSTANCE_IP           own address
  XDS_ADDRESS           control plane, https://HOST:PORT
  CA_ADDRESS            certificate authority, https://HOST:PORT
  XDS_ROOT_CA           root of the control plane: path or PEM text (likewise CA_ROOT_CA)
  AUTH_TOKEN            file with the token, or the token itself
  TULLE_CREDENTIAL      own (the token is of the service account) or node (of the node) [own]
  TULLE_WAYPOINT_LISTEN where tunnels are taken [[::]:15008]
  TULLE_WAYPOINT_THREADS  threads [one for each core]
  TULLE_ADMIN_PORT      admin pages on loopback, or off [15000]
  TULLE_STATS_PORT      metrics, or off [15020]
  TULLE_READINESS_PORT  readiness, or off [15021]
  TERMINATION_DRAIN_DURATION  how long what runs may take at the end [30s]
  TULLE_POLICY_WAIT     how long a stream waits for policies that have not arrived [2s]
  TULLE_REASON_DETAIL   what callers are told of a refusal: full, code or none [full]
  TULLE_RUN_DIR         folder of the admin socket [/run/tulle]
  RUST_LOG, LOG_FORMAT  log filter [info]; text or json [text]";

/// Put waypoints, the L7 proxies of services, into the mesh; without a verb, run one
///
/// The verbs edit the configuration folder; the control plane takes it from there. Without a verb this process is an
/// instance of a waypoint, and takes environment variables.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Waypoint {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    folders: ControlFolders,
    /// Namespace of the waypoint
    #[arg(short, long, global = true, default_value = "default")]
    namespace: String,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Put a waypoint into the folder, and say who enforces what before and after
    Apply {
        #[command(flatten)]
        wanted: Wanted,
        /// Send the traffic of its whole namespace through it: labels the Namespace
        #[arg(long)]
        enroll_namespace: bool,
        /// Replace a waypoint of this name that is there and differs
        #[arg(long)]
        overwrite: bool,
        /// Wait until it serves
        #[arg(long)]
        wait: bool,
        /// How long to wait, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        timeout: u64,
        /// Only check, and say what would be written
        #[arg(long)]
        dry_run: bool,
    },
    /// Print the manifest of a waypoint
    Generate {
        #[command(flatten)]
        wanted: Wanted,
    },
    /// List the waypoints of all namespaces, and what is bound to them
    List,
    /// Say how a waypoint is, and what it stands in front of
    ///
    /// Exit code 1 if it does not serve.
    Status {
        /// Its name
        #[arg(default_value = "waypoint")]
        name: String,
    },
    /// Take a waypoint out of the folder, and the label of its namespace with it; say who enforces what then
    Delete {
        /// Its name
        #[arg(default_value = "waypoint")]
        name: String,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
}

/// A waypoint as it is wanted.
#[derive(Debug, Clone, clap::Args)]
struct Wanted {
    /// Its name
    #[arg(long, default_value = "waypoint")]
    name: String,
    /// Which traffic it takes
    #[arg(long = "for", value_enum, default_value_t)]
    purpose: Purpose,
}

/// Which traffic a waypoint takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Purpose {
    /// Requests to services
    #[default]
    Service,
    /// Requests to addresses of workloads
    Workload,
    /// Both
    All,
    /// Neither
    None,
}

impl Purpose {
    fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Workload => "workload",
            Self::All => "all",
            Self::None => "none",
        }
    }
}

/// The manifest of a waypoint.
fn manifest(namespace: &str, wanted: &Wanted) -> String {
    let (name, purpose) = (&wanted.name, wanted.purpose.as_str());
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  \
         labels:\n    istio.io/waypoint-for: {purpose}\nspec:\n  gatewayClassName: tulle-waypoint\n  listeners:\n  \
         - name: mesh\n    port: 15008\n    protocol: HBONE\n"
    )
}

/// A name of Kubernetes: it stands in manifests, labels and the names of files.
pub(super) fn check_name(what: &str, name: &str) -> anyhow::Result<()> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let ends = |name: &str| name.starts_with('-') || name.ends_with('-');
    if name.is_empty() || name.len() > 63 || !name.bytes().all(plain) || ends(name) {
        bail!("{what} {name:?} is no name; use at most 63 of a-z, 0-9 and -, none of them - at an end");
    }
    Ok(())
}

pub(crate) async fn run(command: Waypoint) -> anyhow::Result<Exit> {
    check_name("the namespace", &command.namespace)?;
    let Some(verb) = &command.verb else {
        bail!("name what to do with waypoints")
    };
    match verb {
        Verb::Generate { wanted } => {
            check_name("the waypoint", &wanted.name)?;
            print!("{}", manifest(&command.namespace, wanted));
            Ok(Exit::Ok)
        }
        Verb::Apply {
            wanted,
            enroll_namespace,
            overwrite,
            wait,
            timeout,
            dry_run,
        } => {
            check_name("the waypoint", &wanted.name)?;
            let exit = command
                .put(wanted, *enroll_namespace, *overwrite, *dry_run)
                .await?;
            if !*wait || *dry_run || exit == Exit::BadInput {
                return Ok(exit);
            }
            let timeout = Duration::from_secs(*timeout);
            report::wait(&command.reading, &command.namespace, &wanted.name, timeout).await
        }
        Verb::List => report::list(&command.reading, &Folder::read(&command.folders.config_dir)?).await,
        Verb::Status { name } => {
            let folder = Folder::read(&command.folders.config_dir)?;
            report::status(&command.reading, &folder, &command.namespace, name).await
        }
        Verb::Delete { name, dry_run } => command.delete(name, *dry_run).await,
    }
}

impl Waypoint {
    /// Whether this process is to be an instance of a waypoint.
    pub(crate) fn is_process(&self) -> bool {
        self.verb.is_none()
    }

    async fn put(
        &self,
        wanted: &Wanted,
        enroll: bool,
        overwrite: bool,
        dry_run: bool,
    ) -> anyhow::Result<Exit> {
        let folder = Folder::read(&self.folders.config_dir)?;
        let mut changes = Vec::new();
        let text = manifest(&self.namespace, wanted);
        match folder.find("Gateway", &self.namespace, &wanted.name) {
            Some(found) if found.says(&text) => {}
            Some(found) if !overwrite => bail!(
                "{} has another waypoint {}/{}; add --overwrite to replace it",
                found.file,
                self.namespace,
                wanted.name
            ),
            Some(found) => changes.push(folder.replace(found, &text)),
            None => changes.push(Change {
                file: format!("waypoint-{}-{}.yaml", self.namespace, wanted.name),
                text: Some(text),
            }),
        }
        if enroll {
            folder.label(&self.namespace, Some(&wanted.name), &mut changes)?;
        }
        let message = format!("waypoint {}/{}", self.namespace, wanted.name);
        let mesh = self.folders.mesh.config(&self.reading.run_dir()).await;
        let shifts = self.shifts(&changes, &wanted.name, &mesh)?;
        let exit = self.write(&changes, &message, &mesh, dry_run)?;
        if exit == Exit::BadInput {
            return Ok(exit);
        }
        if self.reading.output() == Form::Table {
            let enrolled = if enroll {
                ", the namespace goes through it"
            } else {
                ""
            };
            let state = if changes.is_empty() {
                "unchanged"
            } else {
                "applied"
            };
            let state = if dry_run { "would be applied" } else { state };
            println!("waypoint {}/{} {state}{enrolled}", self.namespace, wanted.name);
        }
        enforced::print(self.reading.output(), "waypoint.apply", &shifts)?;
        Ok(exit)
    }

    async fn delete(&self, name: &str, dry_run: bool) -> anyhow::Result<Exit> {
        let folder = Folder::read(&self.folders.config_dir)?;
        let Some(found) = folder.find("Gateway", &self.namespace, name) else {
            bail!(
                "{} has no waypoint {}/{name}; `tulle waypoint list` shows them",
                self.folders.config_dir.display(),
                self.namespace
            );
        };
        let mut changes = vec![folder.remove(found)];
        if folder.enrolled(&self.namespace).as_deref() == Some(name) {
            folder.label(&self.namespace, None, &mut changes)?;
        }
        let message = format!("waypoint {}/{name} deleted", self.namespace);
        let mesh = self.folders.mesh.config(&self.reading.run_dir()).await;
        let shifts = self.shifts(&changes, name, &mesh)?;
        let exit = self.write(&changes, &message, &mesh, dry_run)?;
        if exit == Exit::BadInput {
            return Ok(exit);
        }
        if self.reading.output() == Form::Table {
            let done = if dry_run { "would be deleted" } else { "deleted" };
            println!("waypoint {}/{name} {done}", self.namespace);
        }
        enforced::print(self.reading.output(), "waypoint.delete", &shifts)?;
        Ok(exit)
    }

    /// What the changes mean for who enforces what, once the waypoint is ready.
    fn shifts(&self, changes: &[Change], name: &str, mesh: &MeshConfig) -> anyhow::Result<Vec<Shift>> {
        let changes: Vec<(Str, Option<&str>)> = changes
            .iter()
            .map(|change| (change.file.as_str().into(), change.text.as_deref()))
            .collect();
        let waypoint = NamespacedName::new(self.namespace.as_str(), name);
        enforcement(&self.folders.config_dir, &changes, &waypoint, mesh)
            .context("cannot tell who enforces what")
    }

    fn write(
        &self,
        changes: &[Change],
        message: &str,
        mesh: &MeshConfig,
        dry_run: bool,
    ) -> anyhow::Result<Exit> {
        let target = Target {
            config_dir: &self.folders.config_dir,
            state_dir: &self.folders.state_dir,
            mesh,
            form: self.reading.output(),
        };
        target.write(changes, message, dry_run)
    }
}

#[cfg(test)]
mod tests {
    use tulle_xds::analyze::apply;
    use tulle_xds::history::Writing;
    use tulle_xds::snapshot::Severity;

    use super::*;

    fn wanted(purpose: Purpose) -> Wanted {
        Wanted {
            name: "waypoint".to_owned(),
            purpose,
        }
    }

    #[test]
    fn a_manifest_is_a_gateway_that_the_control_plane_takes() {
        let folder = tempfile::tempdir().unwrap();
        let text = manifest("shop", &wanted(Purpose::All));
        let mesh = MeshConfig::default();
        let found = apply(folder.path(), &"w.yaml".into(), &text, &mesh, Writing::Dry).unwrap();
        assert!(
            !found.iter().any(|finding| finding.severity == Severity::Error),
            "{found:?}"
        );
        assert!(text.contains("istio.io/waypoint-for: all"));
    }

    #[test]
    fn names_cannot_lead_out_of_the_folder() {
        for name in ["", "..", "a/b", "-a", "a-", "A", "a b", &"x".repeat(64)] {
            assert!(check_name("the waypoint", name).is_err(), "{name}");
        }
        assert!(check_name("the waypoint", "way-1").is_ok());
    }
}
