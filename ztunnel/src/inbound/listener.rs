//! One tunnel connection of a peer: TLS, then a task for each stream in it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::net::TcpStream;
use tulle_identity::Clock;
use tulle_model::Identity;
use tulle_runtime::tasks;
use tulle_transport::hbone::ServerConnection;
use tulle_transport::hbone::server::{self, Accepted};
use tulle_transport::socket::SocketOptions;

use super::asking::Asking;
use super::connection;
use crate::dial::server_settings;
use crate::error::Error;
use crate::metrics::labels::Direction;
use crate::pod::Pod;
use crate::record::Story;
use crate::revocation::Proofs;

/// Who is at the other end of a tunnel, and which of our addresses it came to.
#[derive(Debug, Clone)]
pub(crate) struct Tunnel {
    /// The identity the peer has proven.
    pub(crate) identity: Identity,
    /// The peer's address.
    pub(crate) peer: SocketAddr,
    /// The address of ours that was connected to.
    pub(crate) local: SocketAddr,
}

impl Tunnel {
    pub(super) fn peer_ip(&self) -> IpAddr {
        self.peer.ip()
    }
}

/// Serves one tunnel connection until it ends.
pub async fn serve(pod: Arc<Pod>, socket: TcpStream, peer: SocketAddr) {
    let local = socket.local_addr().map_or(peer, tulle_model::network::canonical);
    let admitted = match pod.admit() {
        // Boxed: what a handshake needs is given back before the tunnel is served.
        Ok(load) => Box::pin(establish(&pod, socket))
            .await
            .map(|accepted| (accepted, load)),
        Err(error) => Err(error),
    };
    match admitted {
        Ok(((accepted, proofs), _load)) => {
            let _counted = pod.node.metrics.tunnel();
            let tunnel = Tunnel {
                identity: accepted.identity,
                peer: accepted.address,
                local,
            };
            streams(&pod, accepted.connection, tunnel, &proofs).await;
        }
        Err(error) => Story::begin(Direction::Inbound, peer, local).fail(&pod.node.metrics, &error),
    }
}

async fn establish(pod: &Pod, socket: TcpStream) -> Result<(Accepted, Proofs), Error> {
    let _handshake = pod
        .handshakes
        .try_acquire()
        .map_err(|_| Error::Overload("too many handshakes at once"))?;
    let _place = pod.node.shedder.handshake()?;
    let options = SocketOptions {
        // PING tells whether the peer lives.
        keepalive: None,
        ..pod.node.socket_options()
    };
    // A socket that cannot take its options is already dead; the handshake will find out.
    let _ = options.apply(&socket);
    let workload = pod.workload().await?;
    let certificate = pod.certificate(&workload).await?;
    let accepted = server::accept(socket, certificate.server_config(), &server_settings(&pod.node)).await?;
    let proofs = Proofs::new(
        &pod.node,
        &certificate,
        accepted.peer.clone(),
        accepted.address.ip(),
    );
    proofs.judge(&pod.node)?;
    Ok((accepted, proofs))
}

/// Accepts streams until the connection ends. Frames move only while `accept` is awaited.
async fn streams(pod: &Arc<Pod>, mut connection: ServerConnection, tunnel: Tunnel, proofs: &Proofs) {
    let handle = connection.handle();
    let goodbye = async {
        tokio::select! {
            () = pod.retiring() => handle.drain(),
            () = handle.retire_after(proofs.not_after(), Clock::system()) => {}
        }
        pod.drain.urgent().await;
        handle.close();
        std::future::pending::<()>().await;
    };
    let revoked = async {
        let why = proofs.broken(&pod.node, Direction::Inbound).await;
        handle.cut(why.reason());
        std::future::pending::<()>().await;
    };
    let accepting = async {
        while let Some(incoming) = connection.accept().await {
            let guard = pod.drain.guard();
            let serving = connection::serve(Arc::clone(pod), Asking::Tunnelled(incoming), tunnel.clone());
            tasks::spawn_holding("inbound-stream", guard, serving);
        }
    };
    tokio::select! {
        () = accepting => {}
        () = goodbye => {}
        () = revoked => {}
    }
}
