//! The `tulle` binary that the tests start.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The binary of this very tree, built once per test run.
pub fn tulle() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(build).clone()
}

fn build() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--package", "tulle-cli"])
        .current_dir(&root)
        .status()
        .expect("cargo can be started");
    assert!(status.success(), "the tulle binary cannot be built");
    // A test runs from <target>/<profile>/deps.
    let own = std::env::current_exe().expect("a test has a path");
    let profile = own
        .parent()
        .and_then(|deps| deps.parent())
        .expect("tests are in <profile>/deps");
    profile.join("tulle")
}
