//! `tulle analyze` as a command: for which mesh it judges, and how it ends.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

/// Runs the command on a folder with one file; its exit code, and what it says.
fn analyze(file: &str, text: &str, flags: &[&str]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let manifests = folder.path().join("config");
    std::fs::create_dir(&manifests).unwrap();
    std::fs::write(manifests.join(file), text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_tulle"))
        .arg("analyze")
        .arg(&manifests)
        .args(flags)
        .env("TULLE_RUN_DIR", folder.path().join("run"))
        .env_remove("TRUST_DOMAIN")
        .env_remove("CLUSTER_ID")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), said)
}

#[test]
fn manifests_are_judged_for_the_mesh_that_the_flags_name() {
    let mesh = "trustDomain: td\nrootNamespace: root\n";
    let (code, said) = analyze("mesh.yaml", mesh, &[]);
    assert_eq!(code, Some(79), "{said}");
    assert!(said.contains("trustDomain is cluster.local"), "{said}");
    let flags = ["--trust-domain", "td", "--root-namespace", "root"];
    assert_eq!(
        analyze("mesh.yaml", mesh, &flags),
        (Some(0), "nothing found\n".to_owned())
    );
}
