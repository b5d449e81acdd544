//! `tulle workload`: plain processes and machines as members of the mesh.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use serde_json::{Value, json};
use tulle_k8s::translate::workload::{NODE_ANNOTATION, PROCESS_ANNOTATION};
use tulle_runtime::exit::Exit;

use super::folder::{Change, Folder, Target};
use super::{ControlFolders, Reading};
use crate::output::Form;

/// Make a process or a machine a member of the mesh
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tulle workload add db --namespace shop --node n1 --process unit:postgresql.service \
    --address 10.0.0.5 --label app=db\n  tulle config delete WorkloadEntry/shop/db"
)]
pub(crate) struct Workload {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    folders: ControlFolders,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write a WorkloadEntry into the configuration folder
    ///
    /// It is checked together with the rest of the folder first, and not written if it has an error. Exit codes: 65 it has
    /// one; 79 something else is to be known.
    Add(Add),
}

/// A workload as it is wanted.
#[derive(Debug, clap::Args)]
struct Add {
    /// Its name
    name: String,
    /// Its namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// The node it runs on: what the proxy and the agent there call NODE_NAME
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// How the agent of the node knows it: unit:UNIT of systemd, cgroup:PATH, netns:NAME, uid:NUMBER or pod:UID
    #[arg(long, value_name = "PROCESS", requires = "node", value_parser = process)]
    process: Option<String>,
    /// Where it is reached; one address of each family
    #[arg(long, value_name = "ADDRESS", required = true, num_args = 1)]
    address: Vec<IpAddr>,
    /// The account it runs as, which is the last part of its identity
    #[arg(long, value_name = "NAME", default_value = "default")]
    service_account: String,
    /// A label, by which services select it; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Replace a workload of this name that is there and differs
    #[arg(long)]
    overwrite: bool,
    /// Why, for the history
    #[arg(long, value_name = "TEXT", default_value = "")]
    message: String,
    /// Only check, and print what would be written
    #[arg(long)]
    dry_run: bool,
}

/// Ways in which an agent knows a process.
const PROCESSES: &[&str] = &["unit", "cgroup", "netns", "uid", "pod"];

fn process(text: &str) -> Result<String, String> {
    let known = text
        .split_once(':')
        .is_some_and(|(way, what)| PROCESSES.contains(&way) && !what.is_empty());
    let said = || format!("write it as one of {}, then `:` and which", PROCESSES.join(", "));
    known.then(|| text.to_owned()).ok_or_else(said)
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl Add {
    /// The object.
    fn manifest(&self) -> Value {
        let addresses: Vec<String> = self.address.iter().map(ToString::to_string).collect();
        let annotations: BTreeMap<&str, String> = [
            (NODE_ANNOTATION, self.node.clone()),
            (PROCESS_ANNOTATION, self.process.clone()),
            (
                "tulle.dev/addresses",
                (addresses.len() > 1).then(|| addresses.join(",")),
            ),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect();
        let labels: BTreeMap<&String, &String> =
            self.label.iter().map(|(name, value)| (name, value)).collect();
        let mut metadata = json!({"name": self.name, "namespace": self.namespace});
        if !annotations.is_empty() {
            metadata["annotations"] = json!(annotations);
        }
        let mut spec = json!({"address": addresses.first(), "serviceAccount": self.service_account});
        if !labels.is_empty() {
            spec["labels"] = json!(labels);
        }
        json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "WorkloadEntry",
            "metadata": metadata,
            "spec": spec,
        })
    }

    /// What the folder lacks of it.
    fn changes(&self, folder: &Folder, text: &str) -> anyhow::Result<Vec<Change>> {
        let found = folder.find("WorkloadEntry", &self.namespace, &self.name);
        Ok(match found {
            Some(found) if found.says(text) => Vec::new(),
            Some(found) if !self.overwrite => bail!(
                "{} has another WorkloadEntry {}/{}; add --overwrite to replace it",
                found.file,
                self.namespace,
                self.name
            ),
            Some(found) => vec![folder.replace(found, text)],
            None => vec![Change {
                file: format!("workload-{}-{}.yaml", self.namespace, self.name),
                text: Some(text.to_owned()),
            }],
        })
    }
}

pub(crate) async fn run(command: Workload) -> anyhow::Result<Exit> {
    let mesh = command.folders.mesh.config(&command.reading.run_dir()).await;
    let target = Target {
        config_dir: &command.folders.config_dir,
        state_dir: &command.folders.state_dir,
        mesh: &mesh,
        form: command.reading.output(),
    };
    let Verb::Add(add) = &command.verb;
    put(add, target)
}

fn put(add: &Add, target: Target<'_>) -> anyhow::Result<Exit> {
    let (namespace, name) = (&add.namespace, &add.name);
    super::waypoint::check_name("the namespace", namespace)?;
    super::waypoint::check_name("the workload", name)?;
    let text = serde_saphyr::to_string(&add.manifest()).context("the manifest cannot be written")?;
    let changes = add.changes(&Folder::read(target.config_dir)?, &text)?;
    let message = match &*add.message {
        "" => format!("workload {namespace}/{name}"),
        message => message.to_owned(),
    };
    let exit = target.write(&changes, &message, add.dry_run)?;
    if exit != Exit::BadInput && target.form == Form::Table {
        if add.dry_run {
            print!("{text}");
        }
        let state = match (changes.is_empty(), add.dry_run) {
            (true, _) => "unchanged",
            (false, true) => "would be added",
            (false, false) => "added",
        };
        println!("workload {namespace}/{name} {state}");
    }
    Ok(exit)
}

#[cfg(test)]
mod tests {
    use tulle_k8s::translate::MeshConfig;

    use super::*;

    fn add(changes: impl FnOnce(&mut Add)) -> Add {
        let mut add = Add {
            name: "db".to_owned(),
            namespace: "shop".to_owned(),
            node: Some("n1".to_owned()),
            process: Some("unit:postgresql.service".to_owned()),
            address: vec!["10.0.0.5".parse().unwrap()],
            service_account: "db".to_owned(),
            label: vec![("app".to_owned(), "db".to_owned())],
            overwrite: false,
            message: String::new(),
            dry_run: false,
        };
        changes(&mut add);
        add
    }

    struct Folders {
        config: tempfile::TempDir,
        state: tempfile::TempDir,
        mesh: MeshConfig,
    }

    impl Folders {
        fn new() -> Self {
            Self {
                config: tempfile::tempdir().unwrap(),
                state: tempfile::tempdir().unwrap(),
                mesh: MeshConfig::default(),
            }
        }

        fn put(&self, add: &Add) -> anyhow::Result<Exit> {
            let target = Target {
                config_dir: self.config.path(),
                state_dir: self.state.path(),
                mesh: &self.mesh,
                form: Form::Json,
            };
            put(add, target)
        }

        fn text(&self) -> Option<String> {
            std::fs::read_to_string(self.config.path().join("workload-shop-db.yaml")).ok()
        }
    }

    #[test]
    fn what_is_added_says_where_it_runs_and_how_it_is_known() {
        let folders = Folders::new();
        assert_eq!(folders.put(&add(|_| {})).unwrap(), Exit::Ok);
        let text = folders.text().unwrap();
        let written: Value = serde_saphyr::from_str(&text).unwrap();
        let annotations = &written["metadata"]["annotations"];
        assert_eq!(annotations["tulle.dev/node"], "n1");
        assert_eq!(annotations["tulle.dev/process"], "unit:postgresql.service");
        assert_eq!(written["spec"]["labels"]["app"], "db");
        assert_eq!(written["spec"]["address"], "10.0.0.5");
        assert_eq!(annotations["tulle.dev/addresses"], Value::Null);
        let both = add(|add| add.address.push("fd00::5".parse().unwrap())).manifest();
        assert_eq!(
            both["metadata"]["annotations"]["tulle.dev/addresses"],
            "10.0.0.5,fd00::5"
        );
    }

    #[test]
    fn a_dry_run_writes_nothing_and_another_workload_stays_unless_it_is_to_go() {
        let folders = Folders::new();
        assert_eq!(folders.put(&add(|add| add.dry_run = true)).unwrap(), Exit::Ok);
        assert_eq!(folders.text(), None);
        folders.put(&add(|_| {})).unwrap();
        let first = folders.text();
        let other = |overwrite| {
            add(|add| {
                add.node = Some("n2".to_owned());
                add.overwrite = overwrite;
            })
        };
        let refused = folders.put(&other(false)).unwrap_err().to_string();
        assert!(refused.contains("--overwrite"), "{refused}");
        assert_eq!(folders.text(), first);
        folders.put(&other(true)).unwrap();
        assert!(folders.text().unwrap().contains("n2"));
    }

    #[test]
    fn what_is_no_name_and_what_no_agent_would_recognise_is_refused() {
        let folders = Folders::new();
        assert!(process("pid:1").is_err() && process("unit:").is_err());
        assert_eq!(process("netns:db").as_deref(), Ok("netns:db"));
        assert!(folders.put(&add(|add| add.name = "../a".to_owned())).is_err());
        assert!(folders.put(&add(|add| add.namespace = "a/b".to_owned())).is_err());
        assert_eq!(std::fs::read_dir(folders.config.path()).unwrap().count(), 0);
    }
}
