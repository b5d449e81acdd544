//! `tulle ztunnel-config`: what the node proxies know and do, in istioctl's columns.

mod columns;
mod log;

use clap::{Subcommand, ValueEnum};
use serde_json::Value;
use tulle_runtime::exit::Exit;

use self::columns::Width;
use self::log::Log;
use super::Place;
use crate::output::Form;
use crate::running::{Component, Kind};

/// Show what the node proxies know and do: workloads, services, policies, certificates, connections
///
/// Tables have the columns of `istioctl ztunnel-config`, so that what reads those reads these; `-o wide` adds ours behind
/// them.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tulle ztunnel-config workloads\n  tulle ztunnel-config connections -o wide\n  \
                  tulle ztunnel-config certificates --node n1 -o json\n  \
                  tulle ztunnel-config log --node n1 --level dns:debug,info"
)]
pub(crate) struct ZtunnelConfig {
    #[command(subcommand)]
    what: Command,
    /// Only this node [default: every node; what all nodes share is taken from the first]
    #[arg(long, global = true)]
    node: Option<String>,
    #[command(flatten)]
    place: Place,
    /// Form of the output
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Output,
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Output {
    /// A table with istioctl's columns
    #[default]
    Table,
    /// The same, by istioctl's word for it
    Short,
    /// A table with further columns behind those
    Wide,
    /// One JSON object
    Json,
}

impl Output {
    fn form(self) -> Form {
        match self {
            Self::Table | Self::Short | Self::Wide => Form::Table,
            Self::Json => Form::Json,
        }
    }

    fn width(self) -> Width {
        match self {
            Self::Wide => Width::Wide,
            Self::Table | Self::Short | Self::Json => Width::Usual,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
enum Command {
    /// Workloads the proxies know
    #[command(alias = "workload")]
    Workloads,
    /// Services the proxies know
    #[command(alias = "service")]
    Services,
    /// Authorization policies in force
    #[command(alias = "policy")]
    Policies,
    /// Certificates held, per node
    #[command(alias = "certificate")]
    Certificates,
    /// Open connections, per node
    #[command(alias = "connection")]
    Connections,
    /// All of these, one table after the other
    All,
    Log(Log),
}

/// What is asked of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Workloads,
    Services,
    Policies,
    Certificates,
    Connections,
}

impl What {
    const EACH: [Self; 5] = [
        Self::Workloads,
        Self::Services,
        Self::Policies,
        Self::Certificates,
        Self::Connections,
    ];

    fn schema(self) -> &'static str {
        match self {
            Self::Workloads => "ztunnel-config.workloads",
            Self::Services => "ztunnel-config.services",
            Self::Policies => "ztunnel-config.policies",
            Self::Certificates => "ztunnel-config.certificates",
            Self::Connections => "ztunnel-config.connections",
        }
    }

    /// Whether every node proxy has the same, so that one answer is enough.
    fn is_shared(self) -> bool {
        matches!(self, Self::Workloads | Self::Services)
    }

    /// Page of the admin socket, and the field of it.
    fn page(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Workloads => ("/config_dump", Some("workloads")),
            Self::Services => ("/config_dump", Some("services")),
            Self::Policies => ("/config_dump", Some("policies")),
            Self::Certificates => ("/config_dump", Some("certificates")),
            Self::Connections => ("/connections", None),
        }
    }
}

pub(crate) async fn run(config: ZtunnelConfig) -> anyhow::Result<Exit> {
    let components = config.place.run_dir().of_kind(Kind::Ztunnel)?;
    let wanted = |component: &Component| config.node.as_ref().is_none_or(|node| *node == component.node);
    let components: Vec<_> = components.into_iter().filter(wanted).collect();
    anyhow::ensure!(
        !components.is_empty(),
        "no node proxy answers{}",
        match &config.node {
            Some(node) => format!(" for node {node}"),
            None => String::new(),
        }
    );
    let asked = match &config.what {
        Command::Workloads => &[What::Workloads][..],
        Command::Services => &[What::Services],
        Command::Policies => &[What::Policies],
        Command::Certificates => &[What::Certificates],
        Command::Connections => &[What::Connections],
        Command::All => &What::EACH,
        Command::Log(log) => return log.run(&components, config.output.form()).await,
    };
    for (number, what) in asked.iter().enumerate() {
        if number > 0 && config.output.form() == Form::Table {
            println!();
        }
        show(*what, &components, config.output).await?;
    }
    Ok(Exit::Ok)
}

async fn show(what: What, components: &[Component], output: Output) -> anyhow::Result<()> {
    let asked = if what.is_shared() {
        &components[..1]
    } else {
        components
    };
    let mut items = Vec::new();
    for component in asked {
        items.extend(fetch(component, what).await?);
    }
    crate::output::print(output.form(), what.schema(), &items, || {
        columns::table(what, output.width(), &items)
    })
}

/// The items of one node, each with the node it is from.
async fn fetch(component: &Component, what: What) -> anyhow::Result<Vec<Value>> {
    let (page, field) = what.page();
    let mut answer: Value = component.json(page).await?;
    let items = match field {
        Some(field) => answer[field].take(),
        None => answer,
    };
    let Value::Array(mut items) = items else {
        anyhow::bail!("{page} of node {} is no list", component.node)
    };
    for item in items.iter_mut().filter_map(Value::as_object_mut) {
        item.insert("onNode".to_owned(), component.node.clone().into());
    }
    Ok(items)
}
