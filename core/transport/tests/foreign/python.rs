//! The `h2` package of Python.

use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tulle_transport::hbone::{ConnectRequest, OpenError, ResetCode};

use super::{FRAMINGS, Files, Program, connect, exchange, id, is_there, pattern, serve};

const PYTHON: &str = "/usr/bin/python3";
const PACKAGE: &str = "/usr/lib/python3/dist-packages/h2/__init__.py";

/// What the client tries, in its words.
const TRIED: [&str; 8] = [
    "connect, echo, half-close, padding, HPACK table: ok",
    "upload of 6 MiB: ok",
    "download of 6 MiB, our half still open: ok",
    "refusal, GET is told 400: ok",
    "resets, PING: ok",
    "60 streams at once: ok",
    "a window of ten bytes, of none, below none, and wide again: ok",
    "all: ok",
];

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/foreign")
        .join(name)
}

fn python(name: &str, arguments: &[String]) -> Program {
    let mut command = Command::new(PYTHON);
    // No compiled copies beside the sources.
    command.arg("-B").arg(script(name)).args(arguments);
    Program::start(&mut command)
}

#[tokio::test]
async fn a_client_of_pythons_h2_gets_what_it_asks_for() {
    if !is_there(PACKAGE) {
        return;
    }
    for framing in FRAMINGS {
        let address = serve(framing).await;
        let files = Files::of("web");
        let [chain, key, root] = ["chain", "key", "root"].map(|name| files.path(name));
        let client = python("client.py", &[address.port().to_string(), chain, key, root]);
        assert_eq!(client.rest().await, TRIED, "{framing}");
    }
}

#[tokio::test]
async fn a_server_of_pythons_h2_is_understood() {
    if !is_there(PACKAGE) {
        return;
    }
    let files = Files::of("reviews");
    let mut server = python(
        "server.py",
        &["chain", "key", "root"].map(|name| files.path(name)),
    );
    let port: u16 = server.says("port").await.parse().unwrap();
    for framing in FRAMINGS {
        let client = connect(port, framing).await;
        assert_eq!(server.says("caller").await, id("web").to_string());
        let open = async |authority: &str| client.open(&ConnectRequest::new(authority)).await;

        for turn in 1..4 {
            let (stream, _) = open("10.0.0.1:80").await.unwrap();
            let message = pattern(turn * 100_000);
            assert!(exchange(stream, &message).await == message, "{framing}: echo");
        }
        let (stream, _) = open("10.2.0.1:80").await.unwrap();
        let counted = exchange(stream, &pattern(6 << 20)).await;
        assert_eq!(counted, (6 << 20).to_string().as_bytes(), "{framing}: upload");
        let (mut stream, _) = open("10.3.0.1:80").await.unwrap();
        stream.write_all(b"6291456\n").await.unwrap();
        let mut fed = Vec::new();
        stream.read_to_end(&mut fed).await.unwrap();
        assert!(fed == pattern(6 << 20), "{framing}: download, our half open");
        drop(stream);
        let (stream, _) = open("10.6.0.1:80").await.unwrap();
        let message = pattern(1 << 20);
        assert!(
            exchange(stream, &message).await == message,
            "{framing}: room in pieces"
        );

        let refused = open("10.1.0.1:80").await.unwrap_err();
        assert!(matches!(refused, OpenError::Refused(_)), "{framing}: {refused:?}");
        let instead = open("10.5.0.1:80").await.unwrap_err();
        assert!(
            matches!(instead, OpenError::Reset(_) | OpenError::GoingAway),
            "{framing}: {instead:?}"
        );
        let (mut stream, _) = open("10.4.0.1:80").await.unwrap();
        let cut = stream.read(&mut [0]).await.unwrap_err();
        assert_eq!(
            cut.kind(),
            std::io::ErrorKind::ConnectionReset,
            "{framing}: {cut}"
        );
        let (mut stream, _) = open("10.0.0.2:80").await.unwrap();
        stream.write_all(b"to be cut").await.unwrap();
        stream.reset(ResetCode::Cancel);
        assert_eq!(server.says("reset 0").await, "8", "{framing}: CANCEL");

        let (stream, _) = open("10.7.0.1:80").await.unwrap();
        let message = pattern(50_000);
        assert!(
            exchange(stream, &message).await == message,
            "{framing}: after GOAWAY"
        );
        let late = open("10.0.0.1:80").await.unwrap_err();
        assert!(
            matches!(late, OpenError::GoingAway | OpenError::PeerLost { .. }),
            "{framing}: {late:?}"
        );
        drop(client);
        server.says("closed").await;
    }
}
