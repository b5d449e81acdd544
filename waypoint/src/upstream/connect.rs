//! Opens a stream of bytes to an endpoint: a tunnel where it takes one, a socket where it does not. Never a socket in
//! the place of a tunnel.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::time::timeout;
use tulle_model::waypoint::SourceIdentity;
use tulle_model::{Identity, Reason};
use tulle_transport::hbone::{ConnectRequest, HboneStream, TunnelKey};
use tulle_transport::{Baggage, Forwarded, OpenError, TraceParent};

use super::Upstreams;
use super::dial::Socket;
use super::endpoint::Endpoint;
use super::origination::{Origination, Secured};
use super::outcome::{Outcome, Unsent};
use super::pool::Version;
use crate::context::Waypoint;
use crate::listener::arrival::Arrival;
use crate::snapshot::Snapshot;

/// A stream of bytes to an endpoint.
#[derive(Debug)]
pub enum Opened {
    /// In a tunnel.
    Tunnel(HboneStream),
    /// A socket of its own.
    Plain(Socket),
    /// TLS over one, to who is outside of the mesh.
    Secured(Box<Secured>),
}

impl Opened {
    /// Our end of it, where it is a socket of its own. A tunnel has one for all of its streams.
    #[must_use]
    pub fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Tunnel(_) => None,
            Self::Plain(socket) => socket.local(),
            Self::Secured(stream) => stream.get_ref().0.local(),
        }
    }
}

/// On whose behalf a stream is opened, as far as the endpoint is told.
#[derive(Debug, Clone)]
pub struct Behalf {
    /// Where the caller is.
    pub client: SocketAddr,
    /// Who the caller is; `None` where endpoints are not told.
    pub source: Option<Identity>,
    /// How the caller's workload is described.
    pub baggage: Baggage,
    /// The service that is asked for.
    pub host: Option<String>,
    /// Waypoints passed so far, this one included.
    pub hops: u8,
}

impl Behalf {
    /// On behalf of whoever opened a stream of a tunnel here.
    #[must_use]
    pub fn of(arrival: &Arrival, snapshot: &Snapshot) -> Self {
        Self {
            client: SocketAddr::new(arrival.source.ip, arrival.peer_address.port()),
            source: told_source(arrival, snapshot),
            baggage: arrival.baggage.clone(),
            host: arrival.host.as_deref().map(str::to_owned),
            hops: hops(arrival),
        }
    }
}

/// Waypoints passed by what arrived here, this one included.
#[must_use]
pub fn hops(arrival: &Arrival) -> u8 {
    arrival.hops.saturating_add(1)
}

/// Who endpoints are told the caller is; `None` where they are not told.
#[must_use]
pub fn told_source(arrival: &Arrival, snapshot: &Snapshot) -> Option<Identity> {
    let told = snapshot.settings.source_identity == SourceIdentity::Forward;
    arrival.source.identity.clone().filter(|_| told)
}

/// Where a stream is opened to.
#[derive(Debug, Clone, Copy)]
pub struct To<'a> {
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// Its address.
    pub address: SocketAddr,
    /// TLS, if it has no tunnels and a policy wants it.
    pub tls: Option<&'a Origination>,
    /// What will be spoken; `None` is bytes.
    pub speaks: Option<Version>,
}

/// Opens a stream to an endpoint within this time: TCP, TLS and CONNECT.
///
/// # Errors
/// Why there is none. No byte has been sent then.
pub async fn open(
    waypoint: &Waypoint,
    to: To<'_>,
    behalf: &Behalf,
    within: Duration,
) -> Result<Opened, OpenError> {
    let To {
        endpoint, address, ..
    } = to;
    if let Some(via) = &endpoint.via {
        let late = |_| OpenError::ConnectTimeout {
            peer: address,
            after: within,
        };
        let opened = timeout(within, via.open(waypoint, behalf)).await;
        return opened.map_err(late)?.map(Opened::Tunnel);
    }
    let Upstreams { tunnels, network, .. } = &waypoint.upstreams;
    if !endpoint.is_tunnelled() {
        let late = |_| OpenError::ConnectTimeout {
            peer: address,
            after: within,
        };
        let connecting = async {
            let connected = network.connect(address).await;
            let socket = connected.map_err(|error| OpenError::connect(address, error))?;
            match to.tls {
                Some(tls) => tls
                    .secure(to.speaks, socket)
                    .await
                    .map(Box::new)
                    .map(Opened::Secured),
                None => Ok(Opened::Plain(socket)),
            }
        };
        let opened = timeout(within, connecting).await.map_err(late)??;
        if to.tls.is_none() {
            waypoint.metrics.plaintext_upstream.inc();
        }
        return Ok(opened);
    }
    let destination = SocketAddr::new(address.ip(), tulle_transport::hbone::PORT);
    let key = TunnelKey {
        source: waypoint.identity.clone(),
        expected: BTreeSet::clone(&endpoint.expected),
        destination,
        source_ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let request = ConnectRequest {
        authority: address.to_string(),
        baggage: behalf.baggage.clone(),
        forwarded: Some(Forwarded {
            client: behalf.client,
            host: behalf.host.clone(),
        }),
        traceparent: Some(TraceParent::random()),
        forwarded_network: None,
        original_source: behalf.source.clone(),
        hops: behalf.hops,
    };
    let late = |_| OpenError::ConnectTimeout {
        peer: destination,
        after: within,
    };
    let opened = timeout(within, tunnels.open(&key, &request)).await;
    let (stream, _) = opened.map_err(late)??;
    Ok(Opened::Tunnel(stream))
}

/// The reason a caller is told when no stream could be opened.
#[must_use]
pub fn reason(error: &OpenError) -> Reason {
    match error {
        OpenError::Refused(refusal) if refusal.reason() == Reason::LoopDetected => Reason::LoopDetected,
        // The endpoint decides who may reach it; what it said is for operators of the waypoint.
        OpenError::Refused(_) => Reason::ConnectFailed,
        OpenError::Tls { .. } | OpenError::Http2 { .. } | OpenError::Reset(_) => Reason::ConnectFailed,
        OpenError::PeerLost { .. } | OpenError::GoingAway => Reason::ConnectFailed,
        other => other.reason(),
    }
}

/// How a try that opened a stream of bytes ended.
pub(crate) fn outcome<T>(opened: &Result<T, OpenError>) -> Outcome {
    match opened {
        Ok(_) => Outcome::Connected,
        Err(error) => outcome_of(error),
    }
}

/// How a try ended that did not come as far as a stream. No byte can have reached the application.
#[must_use]
pub fn outcome_of(error: &OpenError) -> Outcome {
    match error {
        // The endpoint's proxy is there and cannot reach the application; whom it refuses it will refuse again.
        OpenError::Refused(refusal) if refusal.status == 503 => Outcome::Unsent(Unsent::Unavailable),
        OpenError::Refused(_) => Outcome::Refused,
        OpenError::Tls { .. } => Outcome::Unsent(Unsent::Tls),
        OpenError::Certificate { .. } | OpenError::PortsExhausted { .. } => Outcome::Unsent(Unsent::Own),
        OpenError::GoingAway => Outcome::Unsent(Unsent::GoAway),
        _ => Outcome::Unsent(Unsent::Connect),
    }
}
