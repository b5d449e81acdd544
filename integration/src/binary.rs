//! The `tulle` binary that the tests start.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use tulle_runtime::config::{Env as _, ProcessEnv};

/// The binary of this very tree, built once per test run; `TULLE_BINARY` names a ready one instead.
pub fn tulle() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(build).clone()
}

fn build() -> PathBuf {
    if let Some(ready) = ProcessEnv.var("TULLE_BINARY") {
        return ready.into();
    }
    // A test runs from <target>/<profile>/deps, a program from <target>/<profile>.
    let own = std::env::current_exe().expect("a test has a path");
    let folder = own.parent().expect("it is in a folder");
    let folder = if folder.ends_with("deps") {
        folder.parent().expect("deps is in <profile>")
    } else {
        folder
    };
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        None | Some("debug") => "dev",
        Some(profile) => profile,
    };
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--package", "tulle-cli"])
        .args(["--profile", profile])
        .current_dir(&root)
        .status()
        .expect("cargo can be started");
    assert!(status.success(), "the tulle binary cannot be built");
    folder.join("tulle")
}
