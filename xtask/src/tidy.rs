//! The rules of ARCHITECTURE.md that a machine can check: which crate may import which, and what may be named where.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What each crate of ours may import of ours. The level is the length of the longest way down.
const ARROWS: &[(&str, &[&str])] = &[
    ("tulle-model", &[]),
    ("tulle-runtime", &[]),
    ("tulle-linux", &[]),
    ("tulle-proto", &["tulle-model"]),
    ("tulle-k8s", &["tulle-model"]),
    ("tulle-world", &["tulle-linux", "tulle-runtime"]),
    ("tulle-identity", &["tulle-model", "tulle-proto", "tulle-runtime"]),
    (
        "tulle-xds-client",
        &["tulle-model", "tulle-proto", "tulle-runtime"],
    ),
    (
        "tulle-transport",
        &["tulle-model", "tulle-identity", "tulle-runtime"],
    ),
    (
        "tulle-ztunnel",
        &[
            "tulle-model",
            "tulle-runtime",
            "tulle-linux",
            "tulle-identity",
            "tulle-transport",
            "tulle-xds-client",
            "tulle-proto",
        ],
    ),
    (
        "tulle-waypoint",
        &[
            "tulle-model",
            "tulle-runtime",
            "tulle-identity",
            "tulle-transport",
            "tulle-xds-client",
            "tulle-proto",
        ],
    ),
    (
        "tulle-xds",
        &[
            "tulle-model",
            "tulle-runtime",
            "tulle-proto",
            "tulle-k8s",
            "tulle-identity",
        ],
    ),
    (
        "tulle-agent",
        &[
            "tulle-model",
            "tulle-runtime",
            "tulle-linux",
            "tulle-proto",
            "tulle-k8s",
            "tulle-xds-client",
            "tulle-identity",
        ],
    ),
    (
        "tulle-cli",
        &[
            "tulle-model",
            "tulle-k8s",
            "tulle-linux",
            "tulle-world",
            "tulle-runtime",
            "tulle-ztunnel",
            "tulle-waypoint",
            "tulle-xds",
            "tulle-agent",
        ],
    ),
    ("tulle-integration", ANY),
    ("tulle-benches", ANY),
    ("xtask", &[]),
];

/// A crate that may import every library.
const ANY: &[&str] = &["*"];

/// Foreign crates that only some of ours may name in their dependencies (development excepted).
const ONLY: &[(&str, &[&str])] = &[
    ("rustls", &["tulle-identity", "tulle-transport"]),
    ("tokio-rustls", &["tulle-identity", "tulle-transport"]),
    // The waypoint reads in hyper's errors whether a request was refused unseen.
    ("h2", &["tulle-transport", "tulle-waypoint"]),
    ("hyper", &["tulle-runtime", "tulle-waypoint"]),
    ("kube", &[]),
    ("k8s-openapi", &[]),
    ("rcgen", &["tulle-identity", "tulle-xds"]),
    (
        "tonic",
        &[
            "tulle-proto",
            "tulle-identity",
            "tulle-xds-client",
            "tulle-waypoint",
            "tulle-xds",
            "tulle-agent",
        ],
    ),
    (
        "prost",
        &[
            "tulle-proto",
            // The format of profiles is one of messages.
            "tulle-runtime",
            "tulle-xds-client",
            "tulle-xds",
            "tulle-ztunnel",
            "tulle-waypoint",
            "tulle-agent",
        ],
    ),
];

/// What decides must not know: I/O, clocks, randomness, wire formats, logging.
const NEVER_IN_MODEL: &[&str] = &[
    "tokio", "tonic", "prost", "rustls", "kube", "tracing", "rand", "hyper",
];

/// Texts that must not stand in some sources: (folder, text, why).
const BANNED_TEXTS: &[(&str, &str, &str)] = &[
    (
        "core/model/src",
        "Instant::now",
        "the model takes `now` as a value",
    ),
    (
        "core/model/src",
        "SystemTime::now",
        "the model takes `now` as a value",
    ),
    (
        "xds/src/serve",
        "crate::source",
        "serving and sources meet at the snapshot",
    ),
    (
        "xds/src/source",
        "crate::serve",
        "serving and sources meet at the snapshot",
    ),
];

/// Where wire messages may be named, besides `proto/`: gRPC drivers and files of the in-pod protocol, among them those
/// of the sockets that it hands over by kind.
const PROTO_NAMED_IN: &[&str] = &[
    "core/identity/",
    "core/xds-client/",
    "xds/",
    "ztunnel/src/inpod",
    "ztunnel/src/record/otlp",
    "waypoint/src/policy/",
    "waypoint/tests/",
    "waypoint/src/telemetry/",
    "ztunnel/tests/",
    "agent/src/locate/cri.rs",
    "agent/src/zds",
    "agent/src/sockets.rs",
    "agent/tests/",
    "benches/",
    "integration/",
    "xtask/",
];

/// Checks every rule and reports every break.
pub(crate) fn run(root: &Path) -> Result<(), String> {
    let manifests = manifests(root)?;
    let mut breaks = Vec::new();
    for manifest in &manifests {
        check_arrows(manifest, &mut breaks);
        check_foreign(manifest, &mut breaks);
    }
    check_complete(&manifests, &mut breaks);
    check_sources(root, &mut breaks)?;
    if breaks.is_empty() {
        println!("tidy: {} crates keep the arrows", manifests.len());
        return Ok(());
    }
    Err(format!(
        "tidy: {} rules broken:\n  {}",
        breaks.len(),
        breaks.join("\n  ")
    ))
}

/// A crate's name and what it depends on in earnest; development dependencies do not count.
#[derive(Debug, PartialEq, Eq)]
struct Manifest {
    package: String,
    dependencies: Vec<String>,
    /// Features of ours that its dependencies switch on in earnest.
    testing: Vec<String>,
}

fn manifests(root: &Path) -> Result<Vec<Manifest>, String> {
    let text = read(&root.join("Cargo.toml"))?;
    let members = text
        .split_once("members = [")
        .and_then(|(_, rest)| rest.split_once(']'));
    let members = members.ok_or("Cargo.toml has no members")?.0;
    let folders = members
        .split(',')
        .map(|member| member.trim().trim_matches('"'))
        .filter(|member| !member.is_empty());
    folders
        .map(|folder| read(&root.join(folder).join("Cargo.toml")).map(|text| parse(&text)))
        .collect()
}

/// Reads what the rules need out of a manifest; our manifests have one dependency a line.
fn parse(text: &str) -> Manifest {
    let mut manifest = Manifest {
        package: String::new(),
        dependencies: Vec::new(),
        testing: Vec::new(),
    };
    let mut section = "";
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        let key = key.trim();
        if section == "[package]" && key == "name" {
            value.trim().trim_matches('"').clone_into(&mut manifest.package);
        }
        let earnest = section == "[dependencies]"
            || (section.starts_with("[target") && section.ends_with(".dependencies]"));
        if earnest && !key.starts_with('#') {
            let name = key.split('.').next().unwrap_or(key).to_owned();
            if value.contains("\"testing\"") {
                manifest.testing.push(name.clone());
            }
            manifest.dependencies.push(name);
        }
    }
    manifest
}

fn check_arrows(manifest: &Manifest, breaks: &mut Vec<String>) {
    let package = &manifest.package;
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| name == package) else {
        breaks.push(format!(
            "{package} has no arrows: add it to xtask/src/tidy.rs and ARCHITECTURE.md"
        ));
        return;
    };
    let ours = manifest
        .dependencies
        .iter()
        .filter(|name| name.starts_with("tulle-"));
    for dependency in ours.filter(|name| *allowed != ANY && !allowed.contains(&name.as_str())) {
        breaks.push(format!(
            "{package} must not import {dependency}; what two need goes down a level"
        ));
    }
    if *allowed != ANY {
        for dependency in &manifest.testing {
            breaks.push(format!(
                "{package} switches on `testing` of {dependency} outside of dev-dependencies"
            ));
        }
    }
}

fn check_foreign(manifest: &Manifest, breaks: &mut Vec<String>) {
    let package = manifest.package.as_str();
    let of_tests = ["tulle-integration", "tulle-benches"].contains(&package);
    for dependency in manifest.dependencies.iter().map(String::as_str) {
        let only = ONLY.iter().find(|(name, _)| *name == dependency);
        if let Some((_, allowed)) = only
            && !allowed.contains(&package)
            && !of_tests
        {
            breaks.push(format!(
                "{package} must not name {dependency}; only {allowed:?} may"
            ));
        }
        if package == "tulle-model" && NEVER_IN_MODEL.contains(&dependency) {
            breaks.push(format!(
                "tulle-model must not see {dependency}: it decides on values"
            ));
        }
    }
}

fn check_complete(manifests: &[Manifest], breaks: &mut Vec<String>) {
    let present: BTreeMap<_, _> = manifests
        .iter()
        .map(|manifest| (manifest.package.as_str(), ()))
        .collect();
    for (package, _) in ARROWS
        .iter()
        .filter(|(package, _)| !present.contains_key(package))
    {
        breaks.push(format!("{package} is in the arrows but not in the workspace"));
    }
}

fn check_sources(root: &Path, breaks: &mut Vec<String>) -> Result<(), String> {
    for folder in [
        "core",
        "proto",
        "ztunnel",
        "waypoint",
        "xds",
        "agent",
        "cli",
        "integration",
        "benches",
        "xtask",
    ] {
        for file in rust_files(&root.join(folder))? {
            let text = read(&file)?;
            let place = file.strip_prefix(root).unwrap_or(&file).display().to_string();
            check_source(&place, &text, breaks);
        }
    }
    Ok(())
}

fn check_source(place: &str, text: &str, breaks: &mut Vec<String>) {
    let beside_its_subject = place.ends_with("/tests.rs");
    if !text.starts_with("//!") && !beside_its_subject {
        breaks.push(format!("{place}: the first line says the file's idea (//! …)"));
    }
    for (folder, banned, why) in BANNED_TEXTS {
        if place.starts_with(folder) && text.contains(banned) {
            breaks.push(format!("{place}: {banned} must not stand here: {why}"));
        }
    }
    let names_messages = text.contains("tulle_proto::") && !place.starts_with("proto/");
    if names_messages && !PROTO_NAMED_IN.iter().any(|folder| place.starts_with(folder)) {
        breaks.push(format!(
            "{place}: wire messages are named in proto/, gRPC drivers and zds files only"
        ));
    }
}

fn rust_files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        for entry in entries {
            let path = entry.map_err(|error| error.to_string())?.path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_keeps_the_arrows() {
        run(&crate::root()).unwrap();
    }

    #[test]
    fn development_dependencies_do_not_count() {
        let manifest = parse(
            "[package]\nname = \"tulle-model\"\n[dependencies]\nserde.workspace = true\n\
             [dev-dependencies]\ntokio.workspace = true\n",
        );
        assert_eq!(manifest.dependencies, ["serde"]);
    }

    #[test]
    fn an_arrow_upwards_is_found() {
        let mut breaks = Vec::new();
        let upwards =
            parse("[package]\nname = \"tulle-model\"\n[dependencies]\ntulle-proto.workspace = true\n");
        check_arrows(&upwards, &mut breaks);
        assert_eq!(breaks.len(), 1, "{breaks:?}");
    }

    #[test]
    fn a_foreign_crate_in_the_wrong_place_is_found() {
        let mut breaks = Vec::new();
        check_foreign(
            &parse("[package]\nname = \"tulle-xds\"\n[dependencies]\nrustls.workspace = true\n"),
            &mut breaks,
        );
        check_foreign(
            &parse("[package]\nname = \"tulle-model\"\n[dependencies]\ntokio.workspace = true\n"),
            &mut breaks,
        );
        assert_eq!(breaks.len(), 2, "{breaks:?}");
    }

    #[test]
    fn a_wire_message_in_the_wrong_place_is_found() {
        let mut breaks = Vec::new();
        check_source(
            "ztunnel/src/outbound.rs",
            "//! x\nuse tulle_proto::zds;",
            &mut breaks,
        );
        check_source("core/model/src/mesh.rs", "//! x\nInstant::now()", &mut breaks);
        check_source("core/model/src/name.rs", "use std::fmt;", &mut breaks);
        assert_eq!(breaks.len(), 3, "{breaks:?}");
    }
}
