//! One tunnel connection: TLS, then a task for each stream in it: *judge → answer 200 → detect → serve*.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tulle_identity::{CertificateError, Clock, PeerProof, Priority, WorkloadCertificate};
use tulle_model::{NetworkAddress, Reason};
use tulle_runtime::tasks;
use tulle_transport::hbone::server::{self, Accepted};
use tulle_transport::hbone::{
    AcceptError, ConnectRequest, ConnectResponse, Incoming, MalformedConnect, ServerConnection, Settings,
};
use tulle_transport::{Baggage, ReasonHeader, socket};

use super::arrival::{Found, Refused, Tunnel, is_gateway, judge};
use super::limits::{StreamPlace, TunnelPlace};
use crate::buffers;
use crate::config::ReasonDetail;
use crate::context::Waypoint;
use crate::detect::{self, Serving};
use crate::metrics::Counted;
use crate::telemetry::request_id::fresh;

/// How long a tunnel without streams is kept: its peers are node proxies, which close what they do not need much sooner,
/// and gateways, which come back to the same few waypoints for a long time.
const TUNNEL_IDLE_MAX: Duration = Duration::from_secs(3_600);

/// Why a tunnel connection is not served.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("too many tunnels are open")]
    Overload,
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Accept(#[from] AcceptError),
    #[error("the peer is not believed: {0}")]
    Distrust(#[from] tulle_identity::Distrust),
}

/// Serves one tunnel connection over a socket until it ends.
pub async fn serve(waypoint: Arc<Waypoint>, socket: TcpStream, peer: SocketAddr) {
    let peer = socket::canonical(peer);
    let local = socket.local_addr().map_or(peer, socket::canonical);
    // A socket that cannot take its options is already dead; the handshake will find out.
    let _ = socket.set_nodelay(true);
    let _ = socket::keep_queue_short(&socket);
    serve_over(waypoint, socket, peer, local).await;
}

/// Serves one tunnel connection over any stream of bytes from `peer` until it ends.
pub async fn serve_over<S>(waypoint: Arc<Waypoint>, stream: S, peer: SocketAddr, local: SocketAddr)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    match establish(&waypoint, stream, peer).await {
        Ok((accepted, own, _place)) => {
            let _counted = Counted::new(&waypoint.metrics.tunnels);
            let tunnel = Tunnel {
                identity: accepted.identity,
                peer,
                local,
            };
            streams(&waypoint, accepted.connection, tunnel, &accepted.peer, &own).await;
        }
        Err(error) => tracing::info!(%peer, %error, "tunnel connection refused"),
    }
}

async fn establish<S>(
    waypoint: &Waypoint,
    stream: S,
    peer: SocketAddr,
) -> Result<(Accepted, Arc<WorkloadCertificate>, TunnelPlace), Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let max = waypoint.view.load().settings.limits.tunnels;
    let place = waypoint.limits.tunnel(max).ok_or(Error::Overload)?;
    let own = waypoint
        .secrets
        .fetch(&waypoint.identity, Priority::Waiting)
        .await?;
    let usual = Settings {
        idle_timeout: TUNNEL_IDLE_MAX,
        ..Settings::server()
    };
    let settings = buffers::tunnel(usual, waypoint.config.stream_window);
    let accepted = server::accept_over(stream, peer, own.server_config(), &settings).await?;
    waypoint.trust.judge(&accepted.peer, None)?;
    Ok((accepted, own, place))
}

/// Accepts streams until the connection ends. Frames move only while `accept` is awaited.
async fn streams(
    waypoint: &Arc<Waypoint>,
    mut connection: ServerConnection,
    tunnel: Tunnel,
    peer: &PeerProof,
    own: &WorkloadCertificate,
) {
    let handle = connection.handle();
    let not_after = own.not_after().min(peer.not_after());
    let goodbye = async {
        tokio::select! {
            _ = waypoint.drain.signaled() => handle.drain(),
            () = handle.retire_after(not_after, Clock::system()) => {}
        }
        waypoint.drain.urgent().await;
        handle.close();
        std::future::pending::<()>().await;
    };
    let revoked = async {
        let why = tokio::select! {
            why = waypoint.trust.distrusted(peer, None) => why,
            why = waypoint.trust.distrusted(own.proof(), None) => why,
        };
        tracing::warn!(peer = %tunnel.identity, %why, "closing a tunnel");
        handle.cut(why.reason());
        std::future::pending::<()>().await;
    };
    let accepting = async {
        while let Some(incoming) = connection.accept().await {
            let guard = waypoint.drain.guard();
            let serving = stream(Arc::clone(waypoint), incoming, tunnel.clone());
            drop(tasks::spawn("stream", async move {
                let _guard = guard;
                serving.await;
            }));
        }
    };
    tokio::select! {
        () = accepting => {}
        () = goodbye => {}
        () = revoked => {}
    }
}

/// One stream, from its CONNECT to its end.
async fn stream(waypoint: Arc<Waypoint>, incoming: Incoming, tunnel: Tunnel) {
    // Boxed: what was needed to decide is given back before bytes are carried.
    if let Some((serving, _held)) = Box::pin(begin(waypoint, incoming, tunnel)).await {
        serving.await;
    }
}

/// What a stream is counted by while it lives.
type Held = (StreamPlace, Counted);

/// What serves a stream, if it is let in.
async fn begin(waypoint: Arc<Waypoint>, mut incoming: Incoming, tunnel: Tunnel) -> Option<(Serving, Held)> {
    let request = incoming.request().cloned();
    let admitted = tokio::select! {
        admitted = admit(&waypoint, &tunnel, request) => admitted,
        () = incoming.cancelled() => return None,
        () = waypoint.drain.urgent() => return None,
    };
    let (found, place) = match admitted {
        Ok(admitted) => admitted,
        Err(refused) => {
            refuse(&waypoint, incoming, &tunnel, &refused);
            return None;
        }
    };
    let held = (place, Counted::new(&waypoint.metrics.streams));
    let own = Baggage::of(&waypoint.view.load().own);
    match incoming.accept(&ConnectResponse { baggage: own }) {
        Ok(stream) => Some((detect::detect(waypoint, stream, found).await?, held)),
        Err(error) => {
            tracing::debug!(%error, "the caller was gone before it was answered");
            None
        }
    }
}

/// Judges a stream. It is held while a policy that its front needs has not arrived, for at most the configured wait.
async fn admit(
    waypoint: &Waypoint,
    tunnel: &Tunnel,
    request: Result<ConnectRequest, MalformedConnect>,
) -> Result<(Found, StreamPlace), Refused> {
    let request = request.map_err(|error| Refused::new(error.reason(), error.to_string()))?;
    let mut moved = waypoint.view.subscribe();
    let look = || judge(&waypoint.view.load(), tunnel, &request);
    let settled = async {
        loop {
            moved.mark_unchanged();
            match look() {
                Err(refused) if refused.reason == Reason::PolicyPending => {}
                outcome => return outcome,
            }
            if moved.changed().await.is_err() {
                return look();
            }
        }
    };
    let outcome = timeout(waypoint.config.policy_wait, settled).await;
    let found = outcome.unwrap_or_else(|_| look())?;
    ask_who_called(waypoint, &request, &found);
    if buffers::is_short() {
        let why = "too much waits for slow readers";
        return Err(Refused::new(Reason::Overload, why));
    }
    let max = waypoint.view.load().settings.limits.streams;
    let place = waypoint.limits.stream(&tunnel.identity, max).ok_or_else(|| {
        Refused::new(
            Reason::Overload,
            format!("too many streams of {} or in all", tunnel.identity),
        )
    })?;
    Ok((found, place))
}

/// A caller that is not known is asked for, so that its later streams tell whose they are. This one does not wait.
fn ask_who_called(waypoint: &Waypoint, request: &ConnectRequest, found: &Found) {
    if found.arrival.workload.is_some() {
        return;
    }
    let network = &waypoint.view.load().own.network;
    let told = request.forwarded.as_ref().map(|forwarded| forwarded.client.ip());
    for ip in told.into_iter().chain([found.arrival.peer_address.ip()]) {
        waypoint.mesh.want(&NetworkAddress::new(network.clone(), ip));
    }
}

fn refuse(waypoint: &Waypoint, incoming: Incoming, tunnel: &Tunnel, refused: &Refused) {
    let (status, id) = (refused.status(), fresh(rand::random()));
    // What stands in the answer is found again in the log.
    let id = id.to_str().unwrap_or_default();
    waypoint.metrics.replied(refused.reason);
    tracing::info!(
        id,
        source = %tunnel.identity,
        peer = %tunnel.peer,
        code = refused.reason.code(),
        status,
        detail = refused.detail,
        "stream refused"
    );
    let header = ReasonHeader::new(refused.reason).id(id);
    let is_gateway = is_gateway(&waypoint.view.load().settings, &tunnel.identity);
    let detail = waypoint.detail_for(&tunnel.identity, is_gateway);
    let header = match (detail, &refused.policy) {
        (ReasonDetail::None, _) => None,
        (ReasonDetail::Full, Some(policy)) => Some(header.policy(policy)),
        _ => Some(header),
    };
    incoming.reject(status, header);
}
