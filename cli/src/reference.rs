//! `tulle reference`: the pages of docs/reference that are written from the code.

mod commands;
mod errors;
mod metrics;
mod variables;

use clap::ValueEnum;
use tulle_runtime::exit::Exit;

/// Print a page of the reference, as docs/reference holds it
#[derive(Debug, clap::Args)]
pub(crate) struct Reference {
    page: Page,
}

/// A page.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Page {
    /// Error codes
    Errors,
    /// Commands and their options
    Cli,
    /// Environment variables of the node proxy
    Config,
    /// Metrics of all components
    Metrics,
}

pub(crate) fn run(reference: &Reference) -> Exit {
    let text = match reference.page {
        Page::Errors => errors::page(),
        Page::Cli => commands::page(),
        Page::Config => variables::page(),
        Page::Metrics => metrics::page(),
    };
    print!("{text}");
    Exit::Ok
}

/// Text that stands for itself in a table's cell.
fn cell(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    prose(&text).replace('|', "\\|")
}

/// Text whose placeholders are no tags; between backticks they are none anyhow.
fn prose(text: &str) -> String {
    let parts = text.trim().split('`').enumerate();
    let parts: Vec<_> = parts
        .map(|(index, part)| match index % 2 {
            0 => part.replace('<', "\\<"),
            _ => part.to_owned(),
        })
        .collect();
    parts.join("`")
}

/// A table of Markdown.
fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let rule = format!("|{}\n", "---|".repeat(head.len()));
    let rows = rows.into_iter().map(|row| line(&row));
    [line(&head), rule].into_iter().chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_stays_a_cell() {
        assert_eq!(cell("a|b\n  <c> `<d>|`"), "a\\|b \\<c> `<d>\\|`");
    }
}
