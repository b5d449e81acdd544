//! How results are written: tables for people, JSON for programs.

use std::fmt;
use std::io::{self, Write};

use clap::ValueEnum;
use serde::Serialize;

/// As the one of the standard library, but a reader that has had enough (`tulle … | head`) is no fault of ours.
macro_rules! println {
    () => { $crate::output::say(format_args!("\n")) };
    ($($text:tt)*) => { $crate::output::say(format_args!("{}\n", format_args!($($text)*))) };
}

/// As [`println!`], without the end of the line.
macro_rules! print {
    ($($text:tt)*) => { $crate::output::say(format_args!($($text)*)) };
}

/// As the one of the standard library, but nobody has to listen.
macro_rules! eprintln {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        // There is nowhere else to complain.
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

/// Writes to standard output. A command goes on to its end, and to its own exit code, when nobody reads any more.
pub(crate) fn say(text: fmt::Arguments<'_>) {
    if let Err(error) = write(&mut io::stdout().lock(), text) {
        eprintln!("error: the result cannot be written: {error}");
        std::process::exit(tulle_runtime::exit::Exit::Failed.code().into());
    }
}

fn write(to: &mut impl Write, text: fmt::Arguments<'_>) -> io::Result<()> {
    match to.write_fmt(text).and_then(|()| to.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    struct Fails(io::ErrorKind);

    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_has_had_enough_is_no_error_and_a_full_disk_is_one() {
        assert!(write(&mut Fails(io::ErrorKind::BrokenPipe), format_args!("x")).is_ok());
        assert!(write(&mut Fails(io::ErrorKind::StorageFull), format_args!("x")).is_err());
    }
}
