//! The page of the command line: what `--help` says, of every command.

use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory as _};

use super::{cell, prose, table};
use crate::command::Tulle;

const HEAD: &str = "\
# Command line

<!-- Written by `tulle reference cli` from the commands' own help; edit that instead. -->

Every command says the same with `--help`. Where an option has a variable, the option wins over the variable.
";

pub(super) fn page() -> String {
    let mut root = Tulle::command();
    root.build();
    let mut page = HEAD.to_owned();
    command(&mut page, &mut root, "tulle").expect("writing to a string does not fail");
    page
}

fn command(page: &mut String, described: &mut Command, path: &str) -> std::fmt::Result {
    write!(page, "\n## {path}\n\n")?;
    if let Some(about) = described.get_long_about().or_else(|| described.get_about()) {
        write!(page, "{}\n\n", prose(&about.to_string()))?;
    }
    let usage = described.render_usage().to_string();
    writeln!(page, "```text\n{}\n```", usage.trim())?;
    arguments(page, described)?;
    if let Some(after) = described
        .get_after_long_help()
        .or_else(|| described.get_after_help())
    {
        write!(page, "\n```text\n{}\n```\n", after.to_string().trim())?;
    }
    for inner in described.get_subcommands_mut() {
        if !inner.is_hide_set() && inner.get_name() != "help" {
            let path = format!("{path} {}", inner.get_name());
            command(page, inner, &path)?;
        }
    }
    Ok(())
}

fn arguments(page: &mut String, described: &Command) -> std::fmt::Result {
    let shown = |arg: &&Arg| !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str());
    let (positionals, options): (Vec<_>, Vec<_>) = described
        .get_arguments()
        .filter(shown)
        .partition(|arg| arg.is_positional());
    if !positionals.is_empty() {
        let rows = positionals
            .iter()
            .map(|arg| vec![format!("`{arg}`"), presets(arg), meaning(arg)]);
        write!(page, "\n{}", table(&["Argument", "Default", "Meaning"], rows))?;
    }
    if !options.is_empty() {
        let head = ["Option", "Default", "Variable", "Meaning"];
        let rows = options
            .iter()
            .map(|arg| vec![spelling(arg), presets(arg), variable(arg), meaning(arg)]);
        write!(page, "\n{}", table(&head, rows))?;
    }
    Ok(())
}

/// `-o, --output <OUTPUT>`.
fn spelling(arg: &Arg) -> String {
    let short = arg
        .get_short()
        .map_or_else(String::new, |short| format!("-{short}, "));
    format!("`{short}{arg}`")
}

fn presets(arg: &Arg) -> String {
    // A switch is off unless it is given.
    if !arg.get_action().takes_values() || arg.get_default_values().is_empty() {
        return "–".to_owned();
    }
    let values = arg.get_default_values().iter();
    let values: Vec<_> = values
        .map(|value| format!("`{}`", value.to_string_lossy()))
        .collect();
    values.join(" ")
}

fn variable(arg: &Arg) -> String {
    arg.get_env()
        .map_or_else(|| "–".to_owned(), |name| format!("`{}`", name.to_string_lossy()))
}

fn meaning(arg: &Arg) -> String {
    let help = arg.get_long_help().or_else(|| arg.get_help());
    let help = help.map(|help| cell(&help.to_string())).unwrap_or_default();
    let values = arg.get_possible_values();
    let names: Vec<_> = values
        .iter()
        .filter(|value| !value.is_hide_set())
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if names.is_empty() || !arg.get_action().takes_values() {
        return help;
    }
    let separator = if help.is_empty() { "" } else { ": " };
    format!("{help}{separator}{}", names.join(", "))
}
