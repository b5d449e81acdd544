//! `tulle config`: who changed what and when, who has accepted it, and the way back.

use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;
use tulle_k8s::translate::MeshConfig;
use tulle_runtime::exit::Exit;
use tulle_xds::analyze::apply;
use tulle_xds::history::{View, Writing};
use tulle_xds::snapshot::Severity;

use super::folder::Target;
use super::{ControlFolders, Reading, analyze};
use crate::output::{Form, table};
use crate::running::{Component, Kind};

mod delete;
mod wait;

/// Show, change and take back configuration
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tulle config apply -f deny-admin.yaml\n  \
    tulle config delete AuthorizationPolicy/shop/deny-admin\n  tulle config history\n  \
    tulle config diff 186 187 --effect\n  tulle config rollback 186 --message \"shop was down\"")]
pub(crate) struct Config {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    folders: ControlFolders,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the stored generations: who, when, what
    History,
    /// Print the objects of a generation
    Show {
        /// Number of the generation
        generation: u64,
    },
    /// Say what differs between two generations
    Diff {
        /// The older one
        from: u64,
        /// The newer one
        to: u64,
        /// Also which resources of proxies differ
        #[arg(long)]
        effect: bool,
    },
    /// Write the files of a generation back; that is a new generation
    Rollback {
        /// Number of the generation
        generation: u64,
        /// Why, for the history
        #[arg(long, value_name = "TEXT")]
        message: String,
        /// Only say what would be written
        #[arg(long)]
        dry_run: bool,
    },
    /// Say what became of the objects, and what is wrong with the folder
    ///
    /// Exit code 79 if something is.
    Status,
    /// Wait until every connected proxy has accepted what the configuration folder says now
    ///
    /// The folder is read once more first, so that what was just written is waited for. Exit codes: 0 every proxy has
    /// accepted it; 1 not in time; 79 every proxy has, but something of the folder is refused and not in force.
    Wait {
        /// What to wait for
        #[arg(long = "for", value_name = "STATE", default_value = "acked", value_parser = ["acked"])]
        state: String,
        /// How long, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 30)]
        timeout: u64,
    },
    /// Say that the empty configuration folder is meant so
    AcceptEmpty {
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Check a manifest and put it into the configuration folder
    Apply {
        /// The manifest; - for standard input
        #[arg(short, long = "file", value_name = "FILE")]
        file: PathBuf,
        /// Name of the file in the folder [default: that of the manifest]
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Why, for the history
        #[arg(long, value_name = "TEXT", default_value = "")]
        message: String,
        /// Only check
        #[arg(long)]
        dry_run: bool,
    },
    /// Take objects out of the configuration folder
    Delete(delete::Delete),
}

pub(crate) async fn run(config: Config) -> anyhow::Result<Exit> {
    let view = View::of(&config.folders.state_dir);
    let form = config.reading.output();
    let mesh = async || config.folders.mesh.config(&config.reading.run_dir()).await;
    match &config.action {
        Action::History => history(&view, form),
        Action::Show { generation } => show(&view, *generation, form),
        Action::Diff { from, to, effect } => {
            let mesh = if *effect { Some(mesh().await) } else { None };
            diff(&view, (*from, *to), mesh.as_ref(), form)
        }
        Action::Rollback {
            generation,
            message,
            dry_run,
        } => {
            let message = format!("rollback to {generation}: {message}");
            let (actor, folder) = (actor(), &config.folders.config_dir);
            let done = view.rollback(*generation, folder, (&actor, &message), writing(*dry_run))?;
            crate::output::print(form, "config.rollback", std::slice::from_ref(&done), || {
                let mut table = table(&["FILE", "CHANGE"]);
                done.written.iter().for_each(|file| {
                    table.add_row([&**file, "written"]);
                });
                done.removed.iter().for_each(|file| {
                    table.add_row([&**file, "removed"]);
                });
                done.kept.iter().for_each(|file| {
                    table.add_row([&**file, "left as it is: it holds a secret"]);
                });
                table
            })?;
            Ok(Exit::Ok)
        }
        Action::Status => status(&config.reading).await,
        Action::Wait { timeout, .. } => wait::run(&config.reading, Duration::from_secs(*timeout)).await,
        Action::AcceptEmpty { dry_run } => {
            if !dry_run {
                view.accept_empty(&config.folders.config_dir)?;
            }
            println!(
                "the empty folder {} is taken as it is",
                config.folders.config_dir.display()
            );
            Ok(Exit::Ok)
        }
        Action::Apply {
            file,
            name,
            message,
            dry_run,
        } => {
            let mesh = mesh().await;
            put(&config, &view, (file, name.as_deref()), message, &mesh, *dry_run)
        }
        Action::Delete(wanted) => {
            let mesh = mesh().await;
            let target = Target {
                config_dir: &config.folders.config_dir,
                state_dir: &config.folders.state_dir,
                mesh: &mesh,
                form,
            };
            delete::run(wanted, target)
        }
    }
}

pub(super) fn writing(dry_run: bool) -> Writing {
    if dry_run { Writing::Dry } else { Writing::Real }
}

/// The user's name, else the number.
pub(super) fn actor() -> String {
    let uid = nix::unistd::getuid();
    let user = nix::unistd::User::from_uid(uid).ok().flatten();
    user.map_or_else(|| format!("uid {uid}"), |user| user.name)
}

fn history(view: &View, form: Form) -> anyhow::Result<Exit> {
    let list = view.list();
    crate::output::print(form, "config.history", &list, || {
        let mut table = table(&["GENERATION", "TIME", "WHO", "CHANGES", "MESSAGE"]);
        for generation in list.iter().rev() {
            let marks = [
                ("+", &generation.added),
                ("~", &generation.changed),
                ("-", &generation.removed),
            ];
            let all = marks
                .iter()
                .flat_map(|(mark, names)| names.iter().map(move |name| format!("{mark}{name}")));
            let mut changes: Vec<String> = all.collect();
            let more = changes.len().saturating_sub(3);
            changes.truncate(3);
            if more > 0 {
                changes.push(format!("and {more} more"));
            }
            let actor = if generation.actor.is_empty() {
                "-"
            } else {
                &*generation.actor
            };
            table.add_row([
                generation.generation.to_string().as_str(),
                generation.time.to_string().as_str(),
                actor,
                changes.join(", ").as_str(),
                &*generation.message,
            ]);
        }
        table
    })?;
    Ok(Exit::Ok)
}

fn show(view: &View, generation: u64, form: Form) -> anyhow::Result<Exit> {
    let objects = view.show(generation)?;
    let values: Result<Vec<Value>, _> = objects.values().map(|text| serde_json::from_str(text)).collect();
    let values = values.context("a stored object is no JSON")?;
    match form {
        Form::Json => crate::output::print(Form::Json, "config.show", &values, || table(&[]))?,
        Form::Table => {
            for value in &values {
                println!("---\n{}", serde_saphyr::to_string(value)?.trim_end());
            }
        }
    }
    Ok(Exit::Ok)
}

/// The effect is told if it is known for which mesh.
fn diff(view: &View, (from, to): (u64, u64), mesh: Option<&MeshConfig>, form: Form) -> anyhow::Result<Exit> {
    let difference = view.diff(from, to, mesh)?;
    crate::output::print(form, "config.diff", std::slice::from_ref(&difference), || {
        let mut table = table(&["CHANGE", "WHAT"]);
        let marks = [
            ("added", &difference.added),
            ("changed", &difference.changed),
            ("removed", &difference.removed),
            ("effect", &difference.effect),
        ];
        for (mark, names) in marks {
            names.iter().for_each(|name| {
                table.add_row([mark, name]);
            });
        }
        table
    })?;
    Ok(Exit::Ok)
}

fn put(
    config: &Config,
    view: &View,
    (file, name): (&PathBuf, Option<&str>),
    message: &str,
    mesh: &MeshConfig,
    dry_run: bool,
) -> anyhow::Result<Exit> {
    let is_input = file.as_os_str() == "-";
    let mut text = String::new();
    if is_input {
        std::io::stdin()
            .read_to_string(&mut text)
            .context("standard input is no text")?;
    } else {
        text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    }
    let own = file
        .file_name()
        .and_then(|name| name.to_str())
        .filter(|_| !is_input);
    let Some(name) = name.or(own) else {
        bail!("a manifest from standard input needs a name; add --name NAME.yaml");
    };
    let folder = &config.folders.config_dir;
    let mut found = apply(folder, &name.into(), &text, mesh, Writing::Dry)?;
    let refused = found.iter().any(|finding| finding.severity == Severity::Error);
    if !dry_run && !refused {
        view.announce(&actor(), message, [(name.into(), Some(&*text))])?;
        found = apply(folder, &name.into(), &text, mesh, Writing::Real)?;
    }
    let form = config.reading.output();
    let exit = analyze::print(&found, form)?;
    if form == Form::Table && !refused {
        let done = if dry_run { "would be written" } else { "written" };
        println!("{done}: {}", config.folders.config_dir.join(name).display());
    }
    Ok(if refused { Exit::BadInput } else { exit })
}

/// The control plane of this machine.
fn control_plane(reading: &Reading) -> anyhow::Result<Component> {
    let found = reading.run_dir().of_kind(Kind::Control)?.into_iter().next();
    found.context("no control plane answers; is the mesh running?")
}

async fn status(reading: &Reading) -> anyhow::Result<Exit> {
    let page: Value = control_plane(reading)?.json("/status").await?;
    let source = &page["source"];
    let empty = Vec::new();
    let problems = source["problems"].as_array().unwrap_or(&empty);
    let objects = source["objects"].as_array().unwrap_or(&empty);
    let wrong: Vec<&Value> = objects.iter().filter(|object| is_wrong(object)).collect();
    match reading.output() {
        Form::Json => {
            crate::output::print(Form::Json, "config.status", std::slice::from_ref(source), || {
                table(&[])
            })?
        }
        Form::Table => {
            let more = |list: &str| page["more"][list].as_u64().unwrap_or(0);
            println!(
                "generation {}: {} objects, {} with findings, {} findings in files",
                source["generation"],
                objects.len() as u64 + more("objects"),
                wrong.len(),
                problems.len() as u64 + more("problems")
            );
            if let Some(degraded) = source["degraded"].as_str() {
                println!("degraded: {degraded}");
            }
            for problem in problems {
                let text = |name: &str| problem[name].as_str().unwrap_or_default();
                println!(
                    "{}:{}: {}: {}; {}",
                    text("file"),
                    problem["line"],
                    text("reason"),
                    text("cause"),
                    text("fix")
                );
            }
            for object in &wrong {
                print_object(object);
            }
            println!("{}", page["accepted"]["summary"].as_str().unwrap_or_default());
        }
    }
    let errors = problems.iter().any(|problem| problem["severity"] == "error");
    let found = errors || !wrong.is_empty() || source["degraded"].is_string();
    Ok(if found { Exit::Findings } else { Exit::Ok })
}

fn is_wrong(object: &Value) -> bool {
    let stale = object["staleSince"].is_number();
    let conditions = object["conditions"].as_array();
    stale || conditions.is_some_and(|all| all.iter().any(|condition| condition["status"] == "False"))
}

fn print_object(object: &Value) {
    let key = &object["key"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = format!(
        "{} {}/{}",
        text(&key["kind"]),
        text(&key["namespace"]),
        text(&key["name"])
    );
    if let Some(since) = object["staleSince"].as_u64() {
        println!("{name}: stale since generation {since}");
    }
    for condition in object["conditions"].as_array().into_iter().flatten() {
        if condition["status"] == "False" {
            let of = condition["of"]
                .as_str()
                .map(|of| format!(" ({of})"))
                .unwrap_or_default();
            println!(
                "{name}{of}: {}={}: {}",
                text(&condition["type"]),
                text(&condition["reason"]),
                text(&condition["message"])
            );
        }
    }
}
