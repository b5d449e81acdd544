//! nghttp2: its proxy as client and as server of tunnels, its client for what is no tunnel.
//!
//! That proxy carries no half-close from a tunnel of one version of HTTP to one of the other; what ends halves is tried with
//! other programs.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::timeout;
use tulle_runtime::tasks;
use tulle_transport::hbone::ConnectRequest;

use super::{FRAMINGS, Files, PATIENCE, Program, connect, is_there, pattern, serve};

const PROXY: &str = "/usr/sbin/nghttpx";
const CLIENT: &str = "/usr/bin/nghttp";

/// A port that nobody uses.
async fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    listener.local_addr().unwrap().port()
}

/// nghttp2's proxy in its forward mode, once it listens.
async fn proxy(front: &str, back: &str, files: &Files) -> (Program, u16) {
    let port = free_port().await;
    let front = format!("127.0.0.1,{port}{front}");
    let [chain, key, root] = ["chain", "key", "root"].map(|name| files.path(name));
    let mut command = Command::new(PROXY);
    command
        .args([
            "--http2-proxy",
            "--conf=/dev/null",
            "--workers=1",
            "--insecure",
            "--no-ocsp",
        ])
        .arg("--log-level=ERROR")
        .args([
            "--tls-min-proto-version=TLSv1.3",
            "--tls-max-proto-version=TLSv1.3",
        ])
        .arg(format!("--frontend={front}"))
        .arg(format!("--backend={back}"))
        .arg(format!("--client-cert-file={chain}"))
        .arg(format!("--client-private-key-file={key}"))
        .args([
            "--verify-client".to_owned(),
            format!("--verify-client-cacert={root}"),
        ])
        .args([&key, &chain]);
    let program = Program::start(&mut command);
    let listening = async {
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, listening).await.expect("it listens in time");
    (program, port)
}

/// Reads the head of a message of HTTP/1.1, byte by byte: what follows belongs to the tunnel.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// A forward proxy of HTTP/1.1 that leads everybody to an echo.
async fn echo_by_connect() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks::spawn("forward proxy", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tasks::spawn("tunnel", async move {
                let head = head(&mut stream).await;
                assert!(head.starts_with("CONNECT 10.0.0.1:80 "), "{head}");
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let (mut reader, mut writer) = stream.split();
                // A caller that resets its stream is the caller's affair.
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                let _ = writer.shutdown().await;
            });
        }
    });
    address
}

#[tokio::test]
async fn tunnels_of_ours_go_through_nghttp2() {
    if !is_there(PROXY) {
        return;
    }
    let back = echo_by_connect().await;
    let files = Files::of("reviews");
    let (_proxy, port) = proxy("", &format!("127.0.0.1,{}", back.port()), &files).await;
    for framing in FRAMINGS {
        let client = connect(port, framing).await;
        for size in [1, 1000, 300_000, 3 << 20] {
            let (stream, _) = client.open(&ConnectRequest::new("10.0.0.1:80")).await.unwrap();
            let message = pattern(size);
            let got = to_and_fro(stream, &message, size).await;
            assert!(got == message, "{framing}: {size} bytes there and back");
        }
    }
}

#[tokio::test]
async fn tunnels_of_nghttp2_are_ours_to_serve() {
    if !is_there(PROXY) {
        return;
    }
    for framing in FRAMINGS {
        let server = serve(framing).await;
        let files = Files::of("web");
        let back = format!("127.0.0.1,{};;proto=h2;tls", server.port());
        let (_proxy, port) = proxy(";no-tls", &back, &files).await;
        for (authority, sent, expected) in [
            ("10.0.0.1:80", pattern(2 << 20), pattern(2 << 20)),
            ("10.3.0.1:80", b"2097152\n".to_vec(), pattern(2 << 20)),
        ] {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
            let asked = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
            stream.write_all(asked.as_bytes()).await.unwrap();
            let head = timeout(PATIENCE, head(&mut stream)).await.unwrap();
            assert!(head.starts_with("HTTP/1.1 200"), "{framing}: {head}");
            let got = to_and_fro(stream, &sent, expected.len()).await;
            assert!(got == expected, "{framing}: {authority}, {} bytes", got.len());
        }
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let refused = b"CONNECT 10.1.0.1:80 HTTP/1.1\r\nHost: 10.1.0.1:80\r\n\r\n";
        stream.write_all(refused).await.unwrap();
        let head = timeout(PATIENCE, head(&mut stream)).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 503"), "{framing}: {head}");
    }
}

/// Sends and reads at the same time.
async fn to_and_fro(stream: impl AsyncRead + AsyncWrite + Unpin, sent: &[u8], expected: usize) -> Vec<u8> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sending = async {
        writer.write_all(sent).await.unwrap();
        writer.flush().await.unwrap();
    };
    let mut got = Vec::new();
    let reading = async { while got.len() < expected && reader.read_buf(&mut got).await.unwrap() > 0 {} };
    let late = timeout(PATIENCE, async { tokio::join!(sending, reading) }).await;
    assert!(
        late.is_ok(),
        "{} of {expected} bytes came back in time",
        got.len()
    );
    got
}

#[tokio::test]
async fn a_request_of_nghttp2_that_is_no_tunnel_is_refused() {
    if !is_there(CLIENT) {
        return;
    }
    for framing in FRAMINGS {
        let server = serve(framing).await;
        let files = Files::of("web");
        let url = format!("https://127.0.0.1:{}/", server.port());
        let mut command = Command::new(CLIENT);
        command
            .args(["-nv", "--no-verify-peer", "-m", "20"])
            .arg(format!("--cert={}", files.path("chain")))
            .arg(format!("--key={}", files.path("key")))
            .arg(url);
        let said = Program::start(&mut command).rest().await;
        let refused = said.iter().filter(|line| line.contains(":status: 400")).count();
        assert_eq!(refused, 20, "{framing}: {said:#?}");
    }
}
