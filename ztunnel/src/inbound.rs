//! Traffic that arrives at a local workload: tunnels of peers, and plaintext of everyone else.

pub mod authorize;
mod connection;
pub mod listener;
pub mod passthrough;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tulle_transport::socket;

use crate::config::SourceAddress;
use crate::error::Error;
use crate::pod::Pod;

/// How long the application may take to accept a connection.
const APPLICATION_CONNECT_MAX: Duration = Duration::from_secs(10);

/// Connects to the application, from the client's address where that is wanted and possible.
async fn connect(pod: &Pod, to: SocketAddr, client: Option<IpAddr>) -> Result<TcpStream, Error> {
    let connecting = connect_from(pod, to, source_for(pod, to, client));
    let connected = timeout(APPLICATION_CONNECT_MAX, connecting).await;
    let late = |_| Error::ConnectTimeout {
        to,
        after: APPLICATION_CONNECT_MAX,
    };
    connected
        .map_err(late)?
        .map_err(|source| Error::Connect { to, source })
}

/// A source that equals the destination would make the kernel connect the socket to itself.
fn source_for(pod: &Pod, to: SocketAddr, client: Option<IpAddr>) -> Option<IpAddr> {
    let wanted = pod.node.config.source_address != SourceAddress::Off;
    client.filter(|client| wanted && *client != to.ip() && client.is_ipv4() == to.ip().is_ipv4())
}

async fn connect_from(pod: &Pod, to: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let options = pod.node.socket_options();
    let connected = socket::connect(&*pod.sockets, to, source, &options).await;
    match connected {
        Err(error) if may_do_without(pod, source, &error) => {
            socket::connect(&*pod.sockets, to, None, &options).await
        }
        connected => connected,
    }
}

/// Best effort: a process without CAP_NET_ADMIN cannot take another's address.
fn may_do_without(pod: &Pod, source: Option<IpAddr>, error: &io::Error) -> bool {
    let best_effort = pod.node.config.source_address == SourceAddress::BestEffort;
    source.is_some() && best_effort && error.kind() == io::ErrorKind::PermissionDenied
}

/// Refuses a target that is a port of this proxy, where the connection would begin anew.
fn refuse_own_port(pod: &Pod, target: SocketAddr) -> Result<(), Error> {
    if pod.node.config.ports.is_own(target.port()) {
        return Err(Error::SelfCall(target));
    }
    Ok(())
}
