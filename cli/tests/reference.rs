//! The pages of docs/reference say what the code says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
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
    let kept = read(format!("docs/reference/{page}.md"));
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

/// Names that are put together when they are written.
const ASSEMBLED: &[&str] = &[
    "citadel_server_root_cert_expiry_timestamp",
    "citadel_server_root_cert_expiry_seconds",
    "citadel_server_cert_chain_expiry_timestamp",
    "citadel_server_cert_chain_expiry_seconds",
];

/// Name and type of each metric on the page, by the file that defines it.
fn listed() -> BTreeMap<String, Vec<(String, String)>> {
    let mut listed = BTreeMap::<_, Vec<_>>::new();
    let mut file = String::new();
    for line in read("docs/reference/metrics.md").lines() {
        if let Some(rest) = line.strip_prefix("Defined in `") {
            file = rest.split('`').next().unwrap_or_default().to_owned();
        } else if let Some(rest) = line.strip_prefix("| `") {
            let mut cells = rest.split('|').map(|cell| cell.trim().trim_end_matches('`'));
            let mut cell = || cells.next().unwrap_or_default().to_owned();
            listed.entry(file.clone()).or_default().push((cell(), cell()));
        }
    }
    listed
}

/// The name as it is registered: the registry adds `_total` to counters.
fn stem<'a>(name: &'a str, kind: &str) -> &'a str {
    match kind {
        "counter" => name.strip_suffix("_total").unwrap_or(name),
        _ => name,
    }
}

/// The names given where a source registers or writes metrics.
fn registered(source: &str) -> Vec<&str> {
    let source = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let calls = [
        "register(",
        "register_with_unit(",
        "encode_descriptor(",
        "gauge(",
        "histograms(",
        "request_counter(",
        "stream_counter(",
    ];
    let after = calls.iter().flat_map(|call| source.split(call).skip(1));
    after.filter_map(first_literal).collect()
}

/// The literal that is the first argument, or follows the encoder.
fn first_literal(arguments: &str) -> Option<&str> {
    let mut rest = arguments.trim_start();
    for encoder in ["&mut encoder,", "encoder,"] {
        rest = rest.strip_prefix(encoder).unwrap_or(rest).trim_start();
    }
    rest.strip_prefix('"')?.split('"').next()
}

#[test]
fn each_metric_of_the_page_is_registered_where_it_says() {
    for (file, metrics) in listed() {
        let source = read(&file);
        let names = registered(&source);
        for (name, kind) in metrics {
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            let stem = stem(&name, &kind);
            let prefixed = |given: &&str| {
                let prefix = stem.strip_suffix(given).and_then(|rest| rest.strip_suffix('_'));
                prefix.is_some_and(|prefix| source.contains(&format!("with_prefix(\"{prefix}\"")))
            };
            let with_unit = |given: &&str| {
                ["_bytes", "_seconds"]
                    .iter()
                    .any(|unit| stem.strip_suffix(unit) == Some(given))
            };
            let found = names
                .iter()
                .any(|given| *given == stem || prefixed(given) || with_unit(given));
            assert!(
                found || ASSEMBLED.contains(&name.as_str()),
                "{name} is not registered in {file}"
            );
        }
    }
}

#[test]
fn each_metric_that_is_registered_is_on_the_page() {
    let listed = listed();
    for folder in ["core", "proto", "ztunnel", "waypoint", "xds", "agent"] {
        for file in sources(&root().join(folder)) {
            let source = std::fs::read_to_string(&file).expect("a listed file is readable");
            if !source.contains("use prometheus_client::") {
                continue;
            }
            let path = file
                .strip_prefix(root())
                .expect("below the root")
                .display()
                .to_string();
            let page = listed.get(&path).map(Vec::as_slice).unwrap_or_default();
            for given in registered(&source) {
                let found = page.iter().any(|(name, kind)| {
                    let stem = stem(name, kind);
                    stem == given || stem.ends_with(&format!("_{given}"))
                });
                assert!(found, "{given} of {path} is not in docs/reference/metrics.md");
            }
        }
    }
}

/// The sources of the crates below a folder, without tests.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).expect("a folder of the repository is readable");
        for path in entries.map(|entry| entry.expect("and can be listed").path()) {
            if path.is_dir() && !path.ends_with("tests") && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}
