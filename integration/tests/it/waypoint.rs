//! A waypoint in front of a service, between real node proxies.

use std::net::IpAddr;
use std::process::{Command, Stdio};

use tulle_integration::mesh::eventually;
use tulle_integration::{TestMesh, manifest, programs};
use tulle_world::{Component, Pod, Process};

/// Where the service is.
const SERVICE: &str = "10.96.0.70";

/// A request of curl: the status, or why there is none, and the body.
fn curl(pod: &Pod, arguments: &[&str]) -> (String, String) {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--max-time", "10", "--write-out", "\n%{http_code}"])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let child = pod.namespace().spawn(command).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or(("", ""));
    (status.to_owned(), body.to_owned())
}

/// nginx in a pod, which says what it was asked for.
async fn nginx(mesh: &TestMesh, pod: &Pod) -> Process {
    let server = "listen 8080; location / { return 200 \
                  \"$request_uri attempt=$http_x_envoy_attempt_count source=$http_x_forwarded_for \
                  identity=$http_x_tulle_original_source\"; }";
    programs::nginx(pod, &mesh.folder().join("nginx"), 8080, server).await
}

/// The service `server`, bound to the waypoint `way`.
fn service() -> String {
    let address: IpAddr = SERVICE.parse().unwrap();
    manifest::service("server", &[address], &[(80, 8080)])
        .replace(
            "  name: server\n",
            "  name: server\n  labels:\n    istio.io/use-waypoint: way\n",
        )
        .replace("name: tcp-80", "name: http")
}

/// The destination's node proxy is told who asked, and believes it of this waypoint.
async fn assert_judged_by_original_source(mesh: &TestMesh, client: &Pod, url: &str) {
    let only = |account: &str| {
        let from = manifest::from_account(account);
        manifest::policy("only-client", "server", "ALLOW", &from)
    };
    mesh.apply("only-client", &only("client"));
    let still = eventually(async || curl(client, &[url]).0 == "200");
    assert!(still.await, "the original source is allowed\n{}", mesh.logs());
    mesh.apply("only-client", &only("nobody"));
    let refused = eventually(async || curl(client, &[url]).0 == "503");
    assert!(refused.await, "another original source is not\n{}", mesh.logs());
    mesh.remove("only-client");
    let again = eventually(async || curl(client, &[url]).0 == "200");
    assert!(again.await, "{}", mesh.logs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_proxies_that_ask_for_addresses_one_by_one_believe_a_waypoint_and_whom_it_speaks_for() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    mesh.environment("XDS_ON_DEMAND", "true");
    let client = mesh.pod("n1", "client").await;
    let server = mesh.pod("n2", "server").await;
    mesh.apply("server-service", &service());
    mesh.start().await;
    mesh.captured(&[&client, &server]).await;
    let _nginx = nginx(&mesh, &server).await;
    mesh.start_waypoint("n2", manifest::NAMESPACE, "way").await;

    let url = format!("http://{SERVICE}/page");
    let answered = eventually(async || curl(&client, &[&url]).0 == "200");
    assert!(answered.await, "{}", mesh.logs());
    assert_judged_by_original_source(&mesh, &client, &url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_go_through_the_waypoint_and_never_around_it() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let client = mesh.pod("n1", "client").await;
    let server = mesh.pod("n2", "server").await;
    mesh.apply("server-service", &service());
    mesh.start().await;
    mesh.captured(&[&client, &server]).await;
    let _nginx = nginx(&mesh, &server).await;
    mesh.start_waypoint("n2", manifest::NAMESPACE, "way").await;
    let running = Component::waypoint(manifest::NAMESPACE, "way");

    let url = format!("http://{SERVICE}/page?x=1");
    let mut answer = (String::new(), String::new());
    let answered = eventually(async || {
        answer = curl(&client, &[&url]);
        answer.0 == "200"
    });
    assert!(answered.await, "{answer:?}\n{}", mesh.logs());
    let client_ip = client.ipv4();
    assert_eq!(
        answer.1,
        format!("/page?x=1 attempt=1 source={client_ip} identity="),
        "the application sees the waypoint's work, and never the identity that the node proxy was told"
    );

    assert_judged_by_original_source(&mesh, &client, &url).await;

    // Without a waypoint there is no way, rather than one around it.
    mesh.mesh.kill(&running).unwrap();
    for _ in 0..5 {
        let (status, body) = curl(&client, &[&url]);
        assert_eq!((status.as_str(), body.as_str()), ("000", ""), "{}", mesh.logs());
    }
    let started = mesh
        .mesh
        .start_waypoint(&mesh.world, "way-1", manifest::NAMESPACE, "way");
    started.unwrap();
    mesh.mesh.wait_ready(&running).await.unwrap();
    let back = eventually(async || curl(&client, &[&url]).0 == "200");
    assert!(back.await, "{}", mesh.logs());
}
