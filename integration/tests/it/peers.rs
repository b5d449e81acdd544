//! Real clients and servers through the mesh: curl, nginx, redis, iperf3.

use std::net::IpAddr;

use tulle_integration::programs::{nginx, output_of, serve};
use tulle_integration::traffic::gets_through;
use tulle_integration::{TestMesh, manifest};
use tulle_world::Pod;

async fn pair() -> (TestMesh, Pod, Pod) {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let client = mesh.pod("n1", "client").await;
    let server = mesh.pod("n2", "server").await;
    let address: IpAddr = "10.96.0.60".parse().unwrap();
    let ports = [(80, 8080), (6379, 6379), (5201, 5201)];
    mesh.apply("server-service", &manifest::service("server", &[address], &ports));
    mesh.start().await;
    mesh.captured(&[&client, &server]).await;
    (mesh, client, server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_reads_from_nginx() {
    let (mesh, client, server) = pair().await;
    let folder = mesh.folder().join("nginx");
    std::fs::create_dir_all(folder.join("html")).unwrap();
    let body: String = (0..200_000).map(|line| format!("line {line}\n")).collect();
    std::fs::write(folder.join("html/body.txt"), &body).unwrap();
    let files = format!("listen 8080; root {};", folder.join("html").display());
    let _nginx = nginx(&server, &folder, 8080, &files).await;
    let url = "http://10.96.0.60/body.txt";
    let answer = output_of(
        &client,
        "curl",
        &["--silent", "--show-error", "--fail", "--max-time", "20", url, url],
    );
    assert!(
        answer == body.repeat(2),
        "{} bytes of {}",
        answer.len(),
        2 * body.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_keeps_a_connection_and_pipelines() {
    let (mesh, client, server) = pair().await;
    let folder = mesh.folder().display().to_string();
    let arguments = [
        "--port",
        "6379",
        "--save",
        "",
        "--dir",
        &folder,
        "--protected-mode",
        "no",
    ];
    let _redis = serve(&server, "redis-server", &arguments, 6379).await;
    assert_eq!(
        output_of(&client, "redis-cli", &["-h", "10.96.0.60", "set", "key", "value"]).trim(),
        "OK"
    );
    assert_eq!(
        output_of(&client, "redis-cli", &["-h", "10.96.0.60", "get", "key"]).trim(),
        "value"
    );
    let load = [
        "-h",
        "10.96.0.60",
        "-n",
        "5000",
        "-c",
        "20",
        "-P",
        "8",
        "-t",
        "set,get",
        "-q",
    ];
    let report = output_of(&client, "redis-benchmark", &load);
    assert!(report.contains("SET:") && report.contains("GET:"), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn iperf3_moves_bulk_both_ways() {
    let (_mesh, client, server) = pair().await;
    let _iperf3 = serve(&server, "iperf3", &["--server"], 5201).await;
    for direction in [&[][..], &["--reverse"][..]] {
        let base = [
            "--client",
            "10.96.0.60",
            "--bytes",
            "64M",
            "--parallel",
            "2",
            "--json",
        ];
        let arguments: Vec<&str> = base.iter().chain(direction).copied().collect();
        let report: serde_json::Value =
            serde_json::from_str(&output_of(&client, "iperf3", &arguments)).unwrap();
        let sent = report["end"]["sum_sent"]["bytes"].as_u64().unwrap();
        let received = report["end"]["sum_received"]["bytes"].as_u64().unwrap();
        assert!(sent >= 64 * 1024 * 1024, "{sent} bytes sent");
        // The receiver stops to count when the sender is done, with up to a window of each tunnel under way.
        assert!(received >= 32 * 1024 * 1024, "{received} bytes received");
    }
    assert!(!gets_through(client.namespace(), "10.96.0.60:9".parse().unwrap()).await);
}
