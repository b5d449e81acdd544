//! A control plane for some namespaces only, as a process.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_out_of_scope_comes_with_the_label_of_its_namespace_and_goes_with_it() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("config")).unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (config, state, run) = (path("config"), path("state"), path("run"));
    let folders = ["--config-dir", &config, "--state-dir", &state];
    let arguments = [&folders[..], &["--scope", "mesh=next"]].concat();
    let process = Process::run_with(&run, &arguments, folder);
    let elsewhere = entry("db", "n1", "10.0.0.2").replace("namespace: shop", "namespace: other");
    process.write("namespace.yaml", NAMESPACE);
    process.write("web.yaml", &entry("web", "n1", "10.0.0.1"));
    process.write("db.yaml", &elsewhere);
    process.write("other.yaml", &labelled("other"));
    process.ready().await;
    let token = tulle_xds::token::create(&process.state(), "n1").unwrap();
    let (state, _client) = follow(&process, "n1", &token);
    let names = || -> Vec<String> {
        let snapshot = state.snapshot();
        let names = snapshot.workloads().map(|workload| workload.name.to_string());
        names.collect()
    };
    until(async || names() == ["db"]).await;
    process.write("namespace.yaml", &labelled("shop"));
    until(async || names().len() == 2).await;
    process.write("namespace.yaml", NAMESPACE);
    until(async || names() == ["db"]).await;
    process.stop().await;
}

fn labelled(namespace: &str) -> String {
    NAMESPACE
        .replace("name: shop", &format!("name: {namespace}"))
        .replace("labels:", "labels:\n    mesh: next")
}
