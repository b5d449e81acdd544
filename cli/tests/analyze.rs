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

#[test]
fn a_kind_that_is_not_read_is_told_and_fails_only_where_it_is_probably_a_mistake() {
    for (version, kind, code, severity) in [
        ("apps/v1", "Deployment", 0, "note"),
        ("networking.istio.io/v1", "VirtualService", 79, "warning"),
        ("gateway.networking.k8s.io/v1", "HttpRoute", 79, "warning"),
        ("security.istio.io/v1", "AuthorisationPolicy", 79, "error"),
    ] {
        let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n");
        let (ended, said) = analyze("a.yaml", &text, &[]);
        assert_eq!(ended, Some(code), "{said}");
        let told = format!("{severity}[T0207] a.yaml:1: {kind} default/a: {version} {kind} is not read");
        assert!(said.starts_with(&told), "{said}");
    }
}
