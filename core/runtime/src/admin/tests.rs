//! The servers as a client meets them, over real loopback and unix sockets.

use std::os::unix::fs::PermissionsExt;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::*;
use crate::drain;
use crate::metrics::Registry;
use crate::ready::Ready;
use crate::tasks;

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn request(method: &str, path: &str, headers: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n")
}

async fn tcp() -> (Listener, std::net::SocketAddr) {
    let listener = Listener::bind(&Listen::Tcp(([127, 0, 0, 1], 0).into()))
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn ask(address: std::net::SocketAddr, method: &str, path: &str, headers: &str) -> String {
    exchange(
        TcpStream::connect(address).await.unwrap(),
        &request(method, path, headers),
    )
    .await
}

#[tokio::test]
async fn readiness_names_what_is_pending_and_nothing_else_is_served() {
    let ready = Ready::new();
    let pending = ready.register("configuration");
    let (_trigger, watcher) = drain::new();
    let (listener, address) = tcp().await;
    tasks::spawn("readiness", serve_open(listener, readiness(&ready), watcher));

    let answer = ask(address, "GET", "/healthz/ready", "Host: pod\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    assert!(answer.contains("configuration"), "{answer}");
    let same = ask(address, "GET", "/readyz", "Host: pod\r\n").await;
    assert!(
        same.starts_with("HTTP/1.1 500") && same.contains("configuration"),
        "{same}"
    );
    let alive = ask(address, "GET", "/healthz", "Host: pod\r\n").await;
    assert!(alive.starts_with("HTTP/1.1 200"), "{alive}");
    drop(pending);
    let answer = ask(address, "GET", "/healthz/ready", "Host: pod\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("ready\n"), "{answer}");
    let same = ask(address, "GET", "/readyz", "Host: pod\r\n").await;
    assert!(same.starts_with("HTTP/1.1 200"), "{same}");
    assert!(
        ask(address, "GET", "/other", "Host: pod\r\n")
            .await
            .starts_with("HTTP/1.1 404")
    );
    assert!(
        ask(address, "POST", "/healthz/ready", "Host: pod\r\n")
            .await
            .starts_with("HTTP/1.1 405")
    );
}

#[tokio::test]
async fn metrics_come_in_the_format_asked_for() {
    let (_trigger, watcher) = drain::new();
    let (listener, address) = tcp().await;
    tasks::spawn(
        "metrics",
        serve_open(listener, metrics(&Registry::for_process("test").seal()), watcher),
    );

    let text = ask(address, "GET", "/metrics", "Host: pod\r\n").await;
    assert!(text.contains("text/plain; version=0.0.4"), "{text}");
    assert!(!text.contains("# EOF"), "{text}");
    let accept = "Host: pod\r\nAccept: application/openmetrics-text; version=1.0.0\r\n";
    let open = ask(address, "GET", "/stats/prometheus", accept).await;
    assert!(open.contains("application/openmetrics-text"), "{open}");
    assert!(open.contains("# EOF"), "{open}");
}

#[tokio::test]
async fn guarded_pages_refuse_a_foreign_host_on_tcp() {
    let (_trigger, watcher) = drain::new();
    let (listener, address) = tcp().await;
    tasks::spawn("admin", serve(listener, readiness(&Ready::new()), watcher));

    assert!(
        ask(address, "GET", "/healthz/ready", "Host: localhost\r\n")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(
        ask(address, "GET", "/healthz/ready", "Host: evil.example\r\n")
            .await
            .starts_with("HTTP/1.1 403")
    );
}

#[tokio::test]
async fn a_unix_socket_is_for_its_owner_replaces_a_stale_one_and_goes_with_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/admin.sock");
    std::fs::create_dir(folder.path().join("run")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());

    let listener = Listener::bind(&Listen::Unix(path.clone())).await.unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (trigger, watcher) = drain::new();
    let server = tasks::spawn("admin", serve(listener, readiness(&Ready::new()), watcher));
    let stream = UnixStream::connect(&path).await.unwrap();
    let answer = exchange(stream, &request("GET", "/healthz/ready", "Host: tulle\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    trigger.drain_and_wait(Duration::ZERO).await;
    server.await.unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn a_page_knows_the_user_at_the_socket_and_nobody_over_tcp() {
    let page = || {
        let told = async |caller: Caller| caller.saying("alice");
        Router::new().route("/who", axum::routing::get(told))
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let (_trigger, watcher) = drain::new();
    let listener = Listener::bind(&Listen::Unix(path.clone())).await.unwrap();
    tasks::spawn("admin", serve(listener, page(), watcher.clone()));
    let own = std::fs::metadata(&path).map(|file| std::os::unix::fs::MetadataExt::uid(&file));
    let stream = UnixStream::connect(&path).await.unwrap();
    let answer = exchange(stream, &request("GET", "/who", "Host: tulle\r\n")).await;
    let expected = format!("uid {} (alice)", own.unwrap());
    assert!(answer.ends_with(&expected), "{answer}");
    let (listener, address) = tcp().await;
    tasks::spawn("admin", serve(listener, page(), watcher));
    let answer = ask(address, "GET", "/who", "Host: localhost\r\n").await;
    assert!(answer.ends_with("unknown user (alice)"), "{answer}");
}

#[tokio::test]
async fn a_socket_of_a_newer_process_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let old = Listener::bind(&Listen::Unix(path.clone())).await.unwrap();
    let newer = Listener::bind(&Listen::Unix(path.clone())).await.unwrap();
    drop(old);
    assert!(path.exists());
    drop(newer);
    assert!(!path.exists());
}

#[tokio::test]
async fn metrics_are_compressed_for_who_takes_that() {
    let (listener, address) = tcp().await;
    let (trigger, watcher) = drain::new();
    let pages = metrics(&Registry::for_process("test").seal());
    let serving = tasks::spawn("pages", serve_open(listener, pages, watcher));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let asked = request("GET", "/metrics", "Host: other\r\nAccept-Encoding: gzip\r\n");
    stream.write_all(asked.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let head_end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..head_end].to_vec()).unwrap();
    assert!(
        head.to_ascii_lowercase().contains("content-encoding: gzip"),
        "{head}"
    );
    assert!(
        !answer.windows(11).any(|part| part == b"istio_build"),
        "it is not plain text"
    );
    let plain = ask(address, "GET", "/metrics", "Host: other\r\n").await;
    assert!(
        plain.contains("istio_build") && !plain.contains("gzip"),
        "{plain}"
    );
    trigger.drain_and_wait(Duration::ZERO).await;
    serving.await.unwrap();
}
