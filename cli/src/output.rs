//! How results are written: tables for people, JSON for programs.

use clap::ValueEnum;
use serde::Serialize;

/// Form of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Form {
    /// A table.
    #[default]
    Table,
    /// One JSON object: `{"schema": "tulle.<command>/v1", "items": […]}`.
    Json,
}

/// An empty table in the house's form: a header, columns apart by spaces, no lines.
pub(crate) fn table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header.iter().copied());
    table
}

/// Writes items in the form asked for. Fields are added to a schema, never renamed inside of a version.
pub(crate) fn print<T: Serialize>(
    form: Form,
    schema: &str,
    items: &[T],
    table: impl FnOnce() -> comfy_table::Table,
) -> anyhow::Result<()> {
    match form {
        Form::Table => println!("{}", table()),
        Form::Json => {
            let value = serde_json::json!({"schema": format!("tulle.{schema}/v1"), "items": items});
            println!("{}", serde_json::to_string_pretty(&value)?);
        }
    }
    Ok(())
}
