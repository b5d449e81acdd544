//! May this stream come in, and who is behind it? Decided on the CONNECT, before a byte of it is read.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use tulle_model::request::{Destination, Source};
use tulle_model::waypoint::{FrontOf, Settings};
use tulle_model::{Authority, Connection, Identity, NetworkAddress, Reason, Str, Verdict, Workload};
use tulle_transport::Baggage;
use tulle_transport::hbone::ConnectRequest;

use crate::snapshot::{FrontState, Snapshot};

/// Waypoints that a request may have passed when it arrives at one.
const HOPS_MAX: u8 = 1;

/// Who opened a tunnel, and where it came in.
#[derive(Debug, Clone)]
pub struct Tunnel {
    /// The identity the peer has proven.
    pub identity: Identity,
    /// Where it connects from.
    pub peer: SocketAddr,
    /// The address of ours that was connected to.
    pub local: SocketAddr,
}

/// A stream that was let in: what is fixed for everything in it.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Who asks.
    pub source: Source,
    /// The caller's address, as applications are told it.
    pub told_ip: HeaderValue,
    /// The identity the tunnel's peer has proven.
    pub peer: Identity,
    /// Where the peer connects from.
    pub peer_address: SocketAddr,
    /// The caller's workload, if it is known to be that of its identity.
    pub workload: Option<Arc<Workload>>,
    /// How the caller describes itself where nothing is known; telemetry only.
    pub baggage: Baggage,
    /// What is asked for.
    pub front: FrontOf,
    /// Address and port that were asked for.
    pub destination: Destination,
    /// Host name of the service that was asked for.
    pub host: Option<Str>,
    /// Whether what a client outside says through this peer about its own address is believed.
    pub is_gateway: bool,
    /// Waypoints passed before this one.
    pub hops: u8,
}

impl Arrival {
    /// Who asks for a request that names this address of a client outside of the mesh, if it may name one.
    #[must_use]
    pub fn source_of(&self, remote_ip: Option<IpAddr>) -> Cow<'_, Source> {
        match remote_ip {
            None => Cow::Borrowed(&self.source),
            Some(remote_ip) => Cow::Owned(Source {
                remote_ip,
                ..self.source.clone()
            }),
        }
    }
}

/// Whether what a peer says of its clients' addresses is believed. It is written with or without `spiffe://`.
#[must_use]
pub fn is_gateway(settings: &Settings, peer: &Identity) -> bool {
    const SCHEME: &str = "spiffe://";
    let peer = peer.to_string();
    let bare = peer.strip_prefix(SCHEME).unwrap_or(&peer);
    let named = |text: &Str| text.strip_prefix(SCHEME).unwrap_or(text) == bare;
    settings.gateway_identities.iter().any(named)
}

/// Why a stream is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Refused {
    /// The stable reason.
    pub reason: Reason,
    /// The policy that decided, if one did.
    pub policy: Option<Str>,
    /// For the log.
    pub detail: String,
}

impl Refused {
    pub(super) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            policy: None,
            detail: detail.into(),
        }
    }

    /// Status of the answer: 400 not for us, 401 policy, 503 not now.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self.reason {
            Reason::NotConnect
            | Reason::BadAuthority
            | Reason::NotFronted
            | Reason::SourceNotTrusted
            | Reason::LoopDetected => 400,
            Reason::NotVisible
            | Reason::PolicyPending
            | Reason::PolicyDenied
            | Reason::NoAllowMatched
            | Reason::PolicyUntranslatable
            | Reason::WaypointRequired => 401,
            _ => 503,
        }
    }
}

/// What was asked for, found.
#[derive(Debug)]
pub struct Found {
    /// The front.
    pub front: Arc<FrontState>,
    /// The stream, if it is let in.
    pub arrival: Arrival,
}

/// Judges a CONNECT.
///
/// # Errors
/// Why it is not let in. [`Reason::PolicyPending`] may pass once more has arrived.
pub fn judge(snapshot: &Snapshot, tunnel: &Tunnel, request: &ConnectRequest) -> Result<Found, Refused> {
    let authority: Authority = request
        .authority
        .parse()
        .map_err(|error| Refused::new(Reason::BadAuthority, format!("{}: {error}", request.authority)))?;
    let namespace = &tunnel.identity.namespace;
    let front = snapshot.resolve(namespace, &authority).map_err(|reason| {
        let detail = format!("{} asks for {authority}", tunnel.identity);
        Refused::new(reason, detail)
    })?;
    if let Some(policy) = front.missing.first() {
        return Err(Refused {
            policy: Some(policy.clone()),
            ..Refused::new(Reason::PolicyPending, format!("{policy} has not arrived"))
        });
    }
    authorize(snapshot, tunnel, &authority)?;
    let hops = hops(snapshot, tunnel, request)?;
    let arrival = arrival(snapshot, tunnel, request, &front, &authority, hops);
    Ok(Found { front, arrival })
}

/// What Authorizations say of the waypoint itself as a destination.
fn authorize(snapshot: &Snapshot, tunnel: &Tunnel, authority: &Authority) -> Result<(), Refused> {
    let destination = SocketAddr::new(tunnel.local.ip(), authority.port());
    let connection = Connection {
        peer: Some(tunnel.identity.clone()),
        original_source: None,
        source_ip: tunnel.peer.ip(),
        destination,
    };
    match snapshot.mesh.policies_for(&snapshot.own).check(&connection) {
        Verdict::Allow { .. } => Ok(()),
        Verdict::Deny { because } => Err(Refused {
            policy: because.policy().map(|policy| policy.to_string().into()),
            ..Refused::new(
                because.reason(),
                format!("{} may not use this waypoint", tunnel.identity),
            )
        }),
    }
}

/// Counted by waypoints only: nobody else may lower or raise the number.
fn hops(snapshot: &Snapshot, tunnel: &Tunnel, request: &ConnectRequest) -> Result<u8, Refused> {
    let address = NetworkAddress::new(snapshot.own.network.clone(), tunnel.peer.ip());
    let by_address = snapshot.mesh.workload_by_address(&address);
    // A waypoint shows its own certificate; a node proxy shows its pod's. Either way the number is of use only to
    // end a loop, so it counts for every peer but those that are known to be no waypoint: whose address and identity
    // are both those of a pod that takes no tunnels itself.
    let is_its_own = |workload: &Workload| workload.identity() == tunnel.identity;
    let ordinary = by_address.is_some_and(|workload| !workload.native_tunnel && is_its_own(&workload));
    let hops = if ordinary { 0 } else { request.hops };
    if hops > HOPS_MAX {
        return Err(Refused::new(
            Reason::LoopDetected,
            format!("{hops} waypoints were passed"),
        ));
    }
    Ok(hops)
}

fn arrival(
    snapshot: &Snapshot,
    tunnel: &Tunnel,
    request: &ConnectRequest,
    front: &FrontState,
    authority: &Authority,
    hops: u8,
) -> Arrival {
    let network = &snapshot.own.network;
    let owned = |ip| {
        let address = NetworkAddress::new(network.clone(), ip);
        let workload = snapshot.mesh.workload_by_address(&address)?;
        (workload.identity() == tunnel.identity).then_some((ip, workload))
    };
    let told = request.forwarded.as_ref().map(|forwarded| forwarded.client.ip());
    let believed = told.and_then(owned).or_else(|| owned(tunnel.peer.ip()));
    let (ip, workload) = match believed {
        Some((ip, workload)) => (ip, Some(workload)),
        None => (tunnel.peer.ip(), None),
    };
    let service = front.service();
    let vip = service.and_then(|service| service.addresses.first().map(|vip| vip.address));
    let address = match authority {
        Authority::Ip(address) => *address,
        Authority::Host { port, .. } => SocketAddr::new(vip.unwrap_or_else(|| tunnel.local.ip()), *port),
    };
    Arrival {
        source: Source {
            identity: Some(tunnel.identity.clone()),
            ip,
            remote_ip: ip,
        },
        told_ip: HeaderValue::from_maybe_shared(Bytes::from(ip.to_string()))
            .expect("an address is visible ASCII"),
        peer: tunnel.identity.clone(),
        peer_address: tunnel.peer,
        baggage: workload
            .as_deref()
            .map_or_else(|| request.baggage.clone(), Baggage::of),
        workload,
        front: front.key().clone(),
        destination: Destination { address },
        host: service.map(|service| service.hostname.clone()),
        is_gateway: is_gateway(&snapshot.settings, &tunnel.identity),
        hops,
    }
}
