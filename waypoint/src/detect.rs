//! What a stream speaks: by what its port declares, by what applies to it, and by its first bytes where neither says.

pub mod first;
pub mod sni;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep, timeout_at};
use tulle_model::route::Routes;
use tulle_model::service::AppProtocol;
use tulle_transport::hbone::{HboneStream, ResetCode};

use crate::context::Waypoint;
use crate::http::{farewell, pace, server};
use crate::listener::arrival::Found;
use crate::snapshot::PortState;
use crate::tcp;
use first::First;

/// How long a stream whose protocol nobody declared may be silent before it is bytes to us: servers that speak first
/// would wait for ever for a client that waits for them.
const SILENCE_MAX: Duration = Duration::from_millis(100);
/// How long the first bytes may take to be complete once they began.
const FIRST_BYTES_MAX: Duration = Duration::from_secs(10);
/// How long a ClientHello may take.
const CLIENT_HELLO_MAX: Duration = Duration::from_secs(5);
/// Ports of protocols whose servers speak first: FTP, SSH, Telnet, SMTP, POP3, IMAP, submission, MySQL.
const SERVER_FIRST: [u16; 8] = [21, 22, 23, 25, 110, 143, 587, 3306];

/// What is known of a stream before its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Declared {
    /// Requests; the version is told by the first bytes.
    Http,
    /// Bytes; not one is waited for.
    Tcp,
    /// TLS, which is not opened.
    Tls,
    /// Nothing: the first bytes tell, or their absence.
    Unknown,
}

/// What a client says first on a port where that is looked at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Greeting {
    /// It is a ClientHello.
    pub is_tls: bool,
    /// The server name in it.
    pub server_name: Option<String>,
}

/// Reads what the port says. What reads requests must see them all, so that waiting is no way around it; and where
/// routes of TLS decide, the client speaks first.
#[must_use]
pub fn declared(state: &PortState, port: u16, namespace: Option<&str>) -> Declared {
    let by_name = matches!(state.rules.of(namespace), Routes::Tls(_));
    match state.protocol {
        AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc => Declared::Http,
        AppProtocol::Unknown if state.is_http => Declared::Http,
        AppProtocol::Tls => Declared::Tls,
        AppProtocol::Tcp | AppProtocol::Unknown if by_name => Declared::Tls,
        AppProtocol::Tcp => Declared::Tcp,
        AppProtocol::Unknown if SERVER_FIRST.contains(&port) => Declared::Tcp,
        AppProtocol::Unknown => Declared::Unknown,
    }
}

/// Serves a stream to its end. Boxed by itself, so that what was needed to find out takes no place beside it.
pub type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What serves a stream that was let in, as what it turns out to be; `None` if that is nothing.
pub async fn detect(waypoint: Arc<Waypoint>, mut stream: HboneStream, found: Found) -> Option<Serving> {
    let Found { front, arrival } = found;
    let port = arrival.destination.address.port();
    let Some(state) = front.port(port).cloned() else {
        stream.reset(ResetCode::Connect);
        return None;
    };
    drop(front);
    let namespace = arrival
        .source
        .identity
        .as_ref()
        .map(|identity| &*identity.namespace);
    let first = match declared(&state, port, namespace) {
        Declared::Tcp => First::Bytes,
        Declared::Tls => First::Tls,
        Declared::Http => {
            if !speaks(&waypoint, &mut stream).await {
                return None;
            }
            match first_bytes(&mut stream, None).await {
                Some(First::Http2) => First::Http2,
                // What is no request is answered as one that cannot be read.
                Some(_) => First::Http1,
                None => {
                    stream.reset(ResetCode::Cancel);
                    return None;
                }
            }
        }
        Declared::Unknown => {
            let seen = first_bytes(&mut stream, Some(SILENCE_MAX)).await;
            seen.unwrap_or(First::Bytes)
        }
    };
    let greeting = match first {
        First::Http1 => return Some(Box::pin(server::http1(waypoint, arrival, stream))),
        First::Http2 => return Some(Box::pin(server::http2(waypoint, arrival, stream))),
        First::Tls => greeting(&mut stream).await,
        First::Bytes | First::More => Greeting::default(),
    };
    Some(Box::pin(async move {
        tcp::forward(&waypoint, &arrival, &state, stream, greeting).await;
    }))
}

/// Waits for the first byte of a request as long as an idle connection waits for the next one, and ends the stream if there
/// is none.
async fn speaks(waypoint: &Waypoint, stream: &mut HboneStream) -> bool {
    tokio::select! {
        biased;
        begun = stream.peek(0) => return begun.is_ok(),
        () = waypoint.drain.urgent() => return false,
        () = farewell::due(&waypoint.drain) => {}
        () = sleep(pace::IDLE_MAX) => {}
    }
    // The end that a connection has which was idle for too long. A peer that does not take it is gone.
    let _ = stream.shutdown().await;
    false
}

/// What the first bytes look like; `None` if there was none in time, or the stream broke.
async fn first_bytes(stream: &mut HboneStream, silence: Option<Duration>) -> Option<First> {
    let begun = match silence {
        Some(silence) => tokio::time::timeout(silence, stream.peek(0)).await.ok()?,
        None => stream.peek(0).await,
    };
    let mut known = begun.ok()?.len();
    let deadline = Instant::now() + FIRST_BYTES_MAX;
    loop {
        let bytes = stream.peek(known.saturating_sub(1)).await.ok()?;
        let seen = first::look(bytes);
        if seen != First::More {
            return Some(seen);
        }
        match timeout_at(deadline, stream.peek(known)).await {
            Ok(Ok(more)) if more.len() > known => known = more.len(),
            // The peer finished, or stopped in the middle: it will not become more.
            Ok(Ok(_)) | Err(_) => return Some(First::More),
            Ok(Err(_)) => return None,
        }
    }
}

/// Whether it is a ClientHello, and for whom.
async fn greeting(stream: &mut HboneStream) -> Greeting {
    let deadline = Instant::now() + CLIENT_HELLO_MAX;
    let mut known = 0;
    loop {
        let Ok(Ok(bytes)) = timeout_at(deadline, stream.peek(known)).await else {
            return Greeting::default();
        };
        let grown = bytes.len() > known;
        known = bytes.len();
        let server_name = match sni::read(bytes) {
            sni::Hello::Named(name) => Some(name),
            sni::Hello::Unnamed => None,
            sni::Hello::More if grown => continue,
            sni::Hello::More | sni::Hello::NotTls => return Greeting::default(),
        };
        return Greeting {
            is_tls: true,
            server_name,
        };
    }
}
