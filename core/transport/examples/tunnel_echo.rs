//! Accepts tunnels without TLS on loopback and sends back what it gets, so that foreign HTTP/2 tools can be tried:
//! `cargo run -p tulle-transport --example tunnel_echo -- <port> [own|h2]`, then `tunnel_interop.py <port>` beside it.

use std::net::Ipv4Addr;

use tokio::io::{copy, split};
use tokio::net::{TcpListener, TcpStream};
use tulle_runtime::tasks;
use tulle_transport::hbone::{ConnectResponse, Framing, HboneStream, Settings, server};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().ok_or("which port?")?.parse()?;
    let name = arguments.next().unwrap_or_else(|| "own".to_owned());
    let framing = Framing::from_name(&name).ok_or("records, own or h2")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    loop {
        let (socket, _) = listener.accept().await?;
        tasks::spawn("connection", serve(socket, framing));
    }
}

async fn serve(socket: TcpStream, framing: Framing) {
    let settings = Settings {
        framing,
        ..Settings::server()
    };
    let Ok(mut connection) = server::handshake(socket, &settings).await else {
        return;
    };
    while let Some(incoming) = connection.accept().await {
        match incoming.request() {
            Ok(request) if request.authority.starts_with("10.0.0.") => {
                if let Ok(stream) = incoming.accept(&ConnectResponse::default()) {
                    tasks::spawn("echo", echo(stream));
                }
            }
            Ok(_) => incoming.reject(503, None),
            Err(_) => incoming.reject(400, None),
        }
    }
}

async fn echo(stream: HboneStream) {
    let (mut reader, mut writer) = split(stream);
    let _ = copy(&mut reader, &mut writer).await;
    let _ = tokio::io::AsyncWriteExt::shutdown(&mut writer).await;
}
