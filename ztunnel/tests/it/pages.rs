//! What operators can ask.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tulle_model::NetworkAddress;

use crate::world::{SOON, World, assert_echoes};

/// One request over HTTP/1.1; the whole answer as text.
pub(crate) async fn request(
    mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin,
    head: &str,
    body: &str,
) -> String {
    let text = format!(
        "{head} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(SOON, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    answer
}

async fn admin(world: &World, head: &str, body: &str) -> String {
    let address = world.app.addresses().admin.unwrap();
    request(TcpStream::connect(address).await.unwrap(), head, body).await
}

#[tokio::test]
async fn f35_a_dump_shows_the_mesh_and_no_key() {
    let world = World::start("").await;
    let _open = world.ask_echo().await.unwrap();
    let dump = admin(&world, "GET /config_dump", "").await;
    for part in [
        "\"workloads\"",
        "\"web-1\"",
        "\"certificates\"",
        "spiffe://cluster.local/ns/shop/sa/web",
    ] {
        assert!(dump.contains(part), "{part} is missing in {dump}");
    }
    assert!(!dump.contains("PRIVATE KEY"));
}

#[tokio::test]
async fn open_connections_are_listed_while_they_are_open() {
    let world = World::start("").await;
    let (mut stream, _) = world.ask_echo().await.unwrap();
    assert_echoes(&mut stream, b"listed").await;
    let list = admin(&world, "GET /connections", "").await;
    assert!(
        list.contains("\"direction\":\"inbound\"") && list.contains("\"mutualTls\":true"),
        "{list}"
    );
    drop(stream);
    let gone = async {
        while !world.app.node().connections.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, gone)
        .await
        .expect("leaves the list with its end");
}

#[tokio::test]
async fn a_denial_is_explained_before_it_happens() {
    let world = World::start("").await;
    world.apply(
        "policies:\n- {name: deny-reviews, namespace: shop, scope: Namespace, action: Deny, \
         rules: [[[{principals: [{Exact: cluster.local/ns/shop/sa/reviews}]}]]]}\n",
    );
    let question = r#"{"direction":"inbound","identity":"spiffe://cluster.local/ns/shop/sa/reviews",
                       "destination":"127.0.0.1:80","source_ip":"127.0.0.2"}"#;
    let answer = admin(&world, "POST /explain", question).await;
    for part in ["\"verdict\":\"deny\"", "T0412 policy_denied", "shop/deny-reviews"] {
        assert!(answer.contains(part), "{part} is missing in {answer}");
    }
    let allowed = admin(
        &world,
        "POST /explain",
        &question.replace("sa/reviews", "sa/ratings"),
    )
    .await;
    assert!(allowed.contains("\"verdict\":\"allow\""), "{allowed}");
}

#[tokio::test]
async fn the_way_of_a_connection_is_explained() {
    let world = World::start("").await;
    let question = r#"{"source":{"namespace":"shop","name":"web-1","service_account":"web"},
                       "destination":"192.0.2.1:443"}"#;
    let answer = admin(&world, "POST /explain", question).await;
    assert!(answer.contains("\"kind\":\"passthrough\""), "{answer}");
    let unknown = question.replace("web-1", "nobody");
    assert!(
        admin(&world, "POST /explain", &unknown)
            .await
            .starts_with("HTTP/1.1 404")
    );
}

#[tokio::test]
async fn the_unix_socket_serves_pages_metrics_and_readiness() {
    let world = World::start("").await;
    let path = world.run_dir().join("ztunnel-local.sock");
    for (head, part) in [
        ("GET /healthz/ready", "200 OK"),
        ("GET /metrics", "istio_build"),
        ("GET /connections", "[]"),
        ("POST /quitquitquit", "shutdown now"),
    ] {
        let answer = request(UnixStream::connect(&path).await.unwrap(), head, "").await;
        assert!(answer.contains(part), "{head}: {answer}");
    }
    tokio::time::timeout(SOON, world.app.quit().notified())
        .await
        .expect("/quitquitquit asks to end");
}

#[tokio::test]
async fn opens_closes_and_refusals_are_told_as_they_happen() {
    let world = World::start("").await;
    let path = world.run_dir().join("ztunnel-local.sock");
    let mut watcher = UnixStream::connect(&path).await.unwrap();
    watcher
        .write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut told = String::new();
    until_told(&mut watcher, &mut told, "200 OK").await;
    let (stream, _) = world.ask_echo().await.unwrap();
    until_told(&mut watcher, &mut told, "\"event\":\"opened\"").await;
    drop(stream);
    until_told(&mut watcher, &mut told, "\"event\":\"failed\"").await;
    world.ask("10.9.9.9:80").await.unwrap_err();
    until_told(&mut watcher, &mut told, "\"event\":\"refused\"").await;
    assert!(
        told.contains("T0418") && told.contains("\"sourceNamespace\""),
        "{told}"
    );
}

/// What `/explain` says.
pub(crate) async fn explained(world: &World, question: &str) -> Explained {
    let answer = admin(world, "POST /explain", question).await;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

#[derive(Debug, serde::Deserialize)]
pub(crate) struct Explained {
    pub(crate) verdict: Option<String>,
    pub(crate) reason: Option<String>,
}

async fn assert_explained(world: &World, question: &str, reason: &str) {
    let explained = explained(world, question).await;
    assert_eq!(explained.verdict.as_deref(), Some("deny"), "{question}");
    assert_eq!(explained.reason.as_deref(), Some(reason), "{question}");
}

#[tokio::test]
async fn an_original_source_is_explained_as_it_is_believed() {
    let world = World::start("waypoint: {destination: /127.0.0.3}").await;
    world.apply(
        "workloads: [{uid: way, name: way-1, namespace: shop, serviceAccount: way, workloadIps: [127.0.0.3]}]",
    );
    let question = |account: &str, from: &str| {
        format!(
            r#"{{"direction":"inbound","destination":"127.0.0.1:80","source_ip":"{from}",
                "identity":"spiffe://cluster.local/ns/shop/sa/{account}",
                "original_source":"spiffe://cluster.local/ns/bank/sa/vault"}}"#
        )
    };
    let not_trusted = "T0422 source_not_trusted";
    assert_explained(&world, &question("reviews", "127.0.0.2"), not_trusted).await;
    assert_explained(&world, &question("way", "127.0.0.2"), not_trusted).await;
    let believed = explained(&world, &question("way", "127.0.0.3")).await;
    assert_eq!(believed.verdict.as_deref(), Some("allow"), "{believed:?}");
}

#[tokio::test]
async fn a_rejected_destination_is_explained_as_refused() {
    let world = World::start("").await;
    let address = NetworkAddress::new("", "10.9.9.9".parse().unwrap());
    world.app.node().mesh.reject("shop/odd", address);
    let question = r#"{"source":{"namespace":"shop","name":"web-1","service_account":"web"},
                       "destination":"10.9.9.9:80"}"#;
    assert_explained(&world, question, "T0201 resource_rejected").await;
}

#[tokio::test]
async fn a_port_of_the_proxy_itself_is_explained_as_refused_at_either_end() {
    let world = World::start("").await;
    for (direction, who) in [
        (
            "outbound",
            r#""source":{"namespace":"shop","name":"web-1","service_account":"web"}"#,
        ),
        (
            "inbound",
            r#""identity":"spiffe://cluster.local/ns/shop/sa/reviews""#,
        ),
    ] {
        let to = world.hbone;
        let question = format!(r#"{{"direction":"{direction}",{who},"destination":"{to}"}}"#);
        assert_explained(&world, &question, "T0421 self_call").await;
    }
}

/// Reads on until `told` contains `part`.
async fn until_told(watcher: &mut UnixStream, told: &mut String, part: &str) {
    let reading = async {
        while !told.contains(part) {
            let mut buffer = [0; 4096];
            let read = watcher.read(&mut buffer).await.unwrap();
            assert_ne!(read, 0, "the stream goes on");
            told.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
    };
    let read = tokio::time::timeout(SOON, reading).await;
    assert!(read.is_ok(), "{part} is missing in {told}");
}
