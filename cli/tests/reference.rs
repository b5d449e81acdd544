//! The pages of docs/reference say what the code says.

use std::path::Path;
use std::process::Command;

fn read(page: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = root.join(format!("docs/reference/{page}.md"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Compares a page with what the command prints.
fn check(page: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_tulle"))
        .args(["reference", page])
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).expect("a page is text");
    let kept = read(page);
    let first = kept
        .lines()
        .zip(printed.lines())
        .find(|(kept, printed)| kept != printed);
    assert!(
        kept == printed,
        "docs/reference/{page}.md is not what the code says (first difference: {first:?}); run\n\
         cargo run -p tulle-cli -- reference {page} > docs/reference/{page}.md"
    );
}

#[test]
fn the_page_of_errors_is_current() {
    check("errors");
}

#[test]
fn the_page_of_commands_is_current() {
    check("cli");
}

#[test]
fn the_page_of_variables_is_current() {
    check("config");
}

#[test]
fn the_page_of_metrics_is_current() {
    check("metrics");
}
