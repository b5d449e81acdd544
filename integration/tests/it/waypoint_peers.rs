//! Real clients and servers through a waypoint: h2load, wrk, gRPC and WebSockets for Python, redis, SMTP and MySQL, whose
//! servers speak first, and servers that fail.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use tulle_integration::http::{self, Answer, App, get};
use tulle_integration::mesh::eventually;
use tulle_integration::programs::{run, serve};
use tulle_integration::{TestMesh, manifest};
use tulle_world::Pod;

/// Where the service is: one pod with many ports.
const SERVICE: &str = "10.96.0.80";

/// The service with every protocol, behind the waypoint.
fn service() -> String {
    let address: IpAddr = SERVICE.parse().unwrap();
    let ports = [
        (80, 8080),
        (50051, 50051),
        (6379, 6379),
        (25, 2525),
        (81, 8081),
        (82, 8082),
        (3306, 33060),
        (3307, 33060),
    ];
    manifest::service("server", &[address], &ports)
        .replacen(
            "  name: server\n",
            "  name: server\n  labels:\n    istio.io/use-waypoint: way\n",
            1,
        )
        .replace("name: tcp-80\n", "name: http\n")
        .replace("name: tcp-50051\n", "name: grpc\n")
        .replace("name: tcp-25\n", "name: mail\n")
        .replace("name: tcp-81\n", "name: http-chat\n")
        .replace("name: tcp-82\n", "name: http-failing\n")
        // A port nobody has declared, and none that is known to belong to a server that speaks first.
        .replace("name: tcp-3307\n", "name: db\n")
}

fn script(name: &str) -> String {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/peers"));
    folder.join(name).display().to_string()
}

/// Every answer is a good one, whoever asks how.
fn load(client: &Pod, mesh: &TestMesh) {
    let url = format!("http://{SERVICE}/");
    for arguments in [&["-n400", "-c4", "-m10"][..], &["-n400", "-c4", "--h1"]] {
        let arguments = [arguments, &[url.as_str()]].concat();
        let (_, said) = run(client, "h2load", &arguments);
        assert!(
            said.contains("400 succeeded, 0 failed") && said.contains("status codes: 400 2xx"),
            "{said}\n{}",
            mesh.logs()
        );
    }
    let (_, said) = run(client, "wrk", &["-t1", "-c8", "-d2s", &url]);
    let complains = said.contains("Non-2xx") || said.contains("Socket errors");
    assert!(
        said.contains("requests in") && !complains,
        "{said}\n{}",
        mesh.logs()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_peers_notice_nothing_of_the_waypoint_between_them() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let client = mesh.pod("n1", "client").await;
    let server = mesh.pod("n2", "server").await;
    mesh.apply("server-service", &service());
    mesh.start().await;
    mesh.captured(&[&client, &server]).await;
    mesh.start_waypoint("n2", manifest::NAMESPACE, "way").await;
    let app = App::start(&server, 8080).await;
    let to = SocketAddr::new(SERVICE.parse().unwrap(), 80);
    let through = eventually(async || {
        let answer = http::ask(client.namespace(), to, get("/")).await;
        let through = app
            .seen()
            .last()
            .is_some_and(|seen| seen.headers.contains_key("x-request-id"));
        answer.is_ok_and(|answer| answer.status == 200) && through
    });
    assert!(through.await, "{}", mesh.logs());
    load(&client, &mesh);

    let python = "/usr/bin/python3";
    let _grpc = serve(&server, python, &[&script("grpc_server.py"), "50051"], 50051).await;
    let address = format!("{SERVICE}:50051");
    let (well, said) = run(&client, python, &[&script("grpc_client.py"), &address]);
    assert!(well && said.contains("ok"), "{said}\n{}", mesh.logs());
    // A rule that tries again what gRPC calls unavailable: the server really fails the first time.
    mesh.apply("again", RETRYING);
    let mut said = String::new();
    let mut round = 0;
    let again = eventually(async || {
        round += 1;
        let mark = round.to_string();
        let (well, text) = run(&client, python, &[&script("grpc_client.py"), &address, &mark]);
        said = text;
        well
    });
    assert!(again.await, "{said}\n{}", mesh.logs());

    let _chat = serve(&server, python, &[&script("websocket_server.py"), "8081"], 8081).await;
    let url = format!("ws://{SERVICE}:81/chat");
    let (well, said) = run(&client, python, &[&script("websocket_client.py"), &url]);
    assert!(well && said.contains("ok"), "{said}\n{}", mesh.logs());

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
    for (arguments, expected) in [(&["set", "key", "value"][..], "OK"), (&["get", "key"], "value")] {
        let (_, said) = run(&client, "redis-cli", &[&["-h", SERVICE], arguments].concat());
        assert_eq!(said.trim(), expected, "{}", mesh.logs());
    }
    let many = [
        "-h", SERVICE, "-n", "2000", "-c", "10", "-P", "8", "-t", "set,get", "-q",
    ];
    let (well, said) = run(&client, "redis-benchmark", &many);
    assert!(well && said.contains("GET:"), "{said}");

    let _mail = serve(
        &server,
        python,
        &["-m", "aiosmtpd", "-n", "-l", "0.0.0.0:2525"],
        2525,
    )
    .await;
    let (well, said) = run(&client, python, &[&script("smtp_client.py"), SERVICE, "25"]);
    assert!(well && said.contains("ok"), "{said}\n{}", mesh.logs());

    mysql(&client, &server, &mesh).await;
}

/// A server that speaks first, on a port that is known for it and on one that nobody has declared.
async fn mysql(client: &Pod, server: &Pod, mesh: &TestMesh) {
    let python = "/usr/bin/python3";
    let _mysql = serve(server, python, &[&script("mysql_server.py"), "33060"], 33060).await;
    for port in ["3306", "3307"] {
        let (well, said) = run(client, python, &[&script("mysql_client.py"), SERVICE, port]);
        assert!(well && said.contains("ok"), "{port}: {said}\n{}", mesh.logs());
    }
}

/// Asks the server that fails.
async fn failing(client: &Pod, path: &str) -> Answer {
    let to = SocketAddr::new(SERVICE.parse().unwrap(), 82);
    let answer = http::ask(client.namespace(), to, get(path)).await;
    answer.unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_fail_are_waited_for_and_tried_again_as_routes_say() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let client = mesh.pod("n1", "client").await;
    let server = mesh.pod("n2", "server").await;
    mesh.apply("server-service", &service());
    mesh.apply("failing", FAILING);
    mesh.start().await;
    mesh.captured(&[&client, &server]).await;
    mesh.start_waypoint("n2", manifest::NAMESPACE, "way").await;
    let python = "/usr/bin/python3";
    let _server = serve(&server, python, &[&script("failing_server.py"), "8082"], 8082).await;
    let ready = eventually(async || {
        let to = SocketAddr::new(SERVICE.parse().unwrap(), 82);
        let answer = http::ask(client.namespace(), to, get("/ready")).await;
        answer.is_ok_and(|answer| answer.status == 200 && answer.headers.contains_key("x-through"))
    });
    assert!(ready.await, "{}", mesh.logs());
    let slow = failing(&client, "/slow").await;
    assert_eq!(slow.status, 504, "{}", mesh.logs());
    let reason = |answer: &Answer| format!("{:?}", answer.headers.get("x-tulle-reason"));
    assert!(reason(&slow).contains("request_timeout"), "{}", reason(&slow));
    assert_eq!(failing(&client, "/flaky/a").await.status, 200, "{}", mesh.logs());
    assert_eq!(failing(&client, "/hits/flaky/a").await.body, "2");
    let dead = failing(&client, "/dead/a").await;
    assert_eq!(dead.status, 503, "{}", mesh.logs());
    assert_eq!(
        failing(&client, "/hits/dead/a").await.body,
        "3",
        "the first try and two more"
    );
}

/// What is slow is given up, what fails is tried again, and every answer says that a route was taken.
const FAILING: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: failing
  namespace: app
spec:
  parentRefs:
  - {kind: Service, group: \"\", name: server, port: 82}
  rules:
  - matches: [{path: {value: /slow}}]
    timeouts: {request: 1s}
    backendRefs:
    - {name: server, port: 82}
  - retry: {attempts: 2, backoff: 10ms, codes: [503]}
    filters:
    - type: ResponseHeaderModifier
      responseHeaderModifier:
        set: [{name: x-through, value: \"yes\"}]
    backendRefs:
    - {name: server, port: 82}
";

const RETRYING: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: again
  namespace: app
spec:
  parentRefs:
  - {kind: Service, group: \"\", name: server, port: 50051}
  rules:
  - retry: {attempts: 2, backoff: 10ms}
    backendRefs:
    - {name: server, port: 50051}
";
