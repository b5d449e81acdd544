//! Traffic that arrives at a local workload: tunnels of peers, and plaintext of everyone else.

mod asking;
mod asks;
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

pub(crate) use self::asking::{Asking, Handed};
pub(crate) use self::asks::Asks;
pub(crate) use self::connection::{claimed, serve as serve_stream};
pub(crate) use self::listener::Tunnel;
use crate::config::{Ports, SourceAddress};
use crate::error::Error;
use crate::pod::Pod;

/// How long the application may take to accept a connection.
const APPLICATION_CONNECT_MAX: Duration = Duration::from_secs(10);

/// First time after which a connect from the client's address is begun anew, doubling.
///
/// Until the packet rules of a pod that is just being captured are in place, the application's answers to such an
/// address leave the pod and are lost; the kernel would repeat itself only after a second.
const REDIAL_MIN: Duration = Duration::from_millis(100);

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

/// A source that equals the destination would make the kernel connect the socket to itself; and where nothing is
/// captured, replies to the client's address would leave the machine.
fn source_for(pod: &Pod, to: SocketAddr, client: Option<IpAddr>) -> Option<IpAddr> {
    let wanted = pod.node.config.source_address != SourceAddress::Off && !pod.is_process();
    client.filter(|client| wanted && *client != to.ip() && client.is_ipv4() == to.ip().is_ipv4())
}

async fn connect_from(pod: &Pod, to: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let Some(source) = source else {
        return dial(pod, to, None).await;
    };
    let mut patience = REDIAL_MIN;
    loop {
        match timeout(patience, dial(pod, to, Some(source))).await {
            Ok(Err(error)) if may_do_without(pod, &error) => return dial(pod, to, None).await,
            Ok(connected) => return connected,
            Err(_) => patience *= 2,
        }
    }
}

async fn dial(pod: &Pod, to: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let source = source.map(|address| pod.source_ports.of(address));
    let application = socket::connect(&*pod.sockets, to, source, &pod.node.socket_options()).await?;
    // Whatever ends it before it is carried, this process' death included, is no orderly end.
    let _ = socket::set_rst(&application);
    Ok(application)
}

/// Best effort: a process without CAP_NET_ADMIN cannot take another's address.
fn may_do_without(pod: &Pod, error: &io::Error) -> bool {
    let best_effort = pod.node.config.source_address == SourceAddress::BestEffort;
    best_effort && error.kind() == io::ErrorKind::PermissionDenied
}

/// Refuses a target that is a port of this proxy, where the connection would begin anew.
pub(crate) fn refuse_own_port(ports: &Ports, target: SocketAddr) -> Result<(), Error> {
    if ports.is_own(target.port()) {
        return Err(Error::SelfCall(target));
    }
    Ok(())
}
