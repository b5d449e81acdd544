//! One tunnelled stream: *authenticate → authorize → connect → reply 200 → copy → record*.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tulle_model::workload::{ApplicationProtocol, ApplicationTunnel};
use tulle_model::{Authority, Connection, NetworkAddress, Reason, Service, Snapshot, Workload};
use tulle_transport::hbone::{ConnectRequest, ConnectResponse, HboneStream};
use tulle_transport::{Baggage, ReasonHeader, proxy_protocol};

use super::asking::Asking;
use super::asks::Asks;
use super::authorize::{Permitted, authorize};
use super::listener::Tunnel;
use super::{connect, refuse_own_port};
use crate::carry;
use crate::config::ReasonDetail;
use crate::connections::Tracked;
use crate::error::Error;
use crate::metrics::labels::{Direction, Party};
use crate::on_demand;
use crate::pod::{Place, Pod};
use crate::record::{Story, TraceId};

/// What was asked for, understood.
struct Asked {
    workload: Arc<Workload>,
    service: Option<Arc<Service>>,
    target: SocketAddr,
    connection: Connection,
}

/// A stream whose application is connected.
struct Established {
    asked: Asked,
    permitted: Permitted,
    application: TcpStream,
    place: Place,
}

/// A stream that was let in, about to be carried.
struct Answered {
    application: TcpStream,
    stream: HboneStream,
    tracked: Tracked,
    place: Place,
}

/// Serves one stream to its end.
pub(crate) async fn serve(pod: Arc<Pod>, asking: Asking, tunnel: Tunnel) {
    let _socket = pod.node.metrics.socket(Direction::Inbound);
    // Boxed: what it needs, the story included, is given back before the stream is carried.
    if let Some(answered) = Box::pin(answer(&pod, asking, tunnel)).await {
        let Answered {
            application,
            stream,
            tracked,
            place: _held,
        } = answered;
        carry::run(&pod, application, stream.into(), tracked).await;
    }
}

/// Everything up to the answer; nothing if it was a refusal.
async fn answer(pod: &Pod, mut asking: Asking, tunnel: Tunnel) -> Option<Answered> {
    let mut story = Story::begin(Direction::Inbound, tunnel.peer, tunnel.local);
    story.mutual_tls = true;
    story.source_proved(tunnel.identity.clone());
    let request = asking.request();
    let told = request.as_ref().ok().and_then(|request| request.traceparent);
    story.trace = Some(TraceId::of(told));
    let established = tokio::select! {
        established = establish(pod, &tunnel, request, &mut story) => established,
        () = asking.cancelled() => return None,
        () = pod.drain.urgent() => Err(Error::Drained),
    };
    match established {
        Ok(established) => open(pod, established, asking, story),
        Err(error) => {
            refuse(pod, asking, &story, &error);
            None
        }
    }
}

/// Everything before the answer.
async fn establish(
    pod: &Pod,
    tunnel: &Tunnel,
    request: Result<ConnectRequest, tulle_transport::hbone::MalformedConnect>,
    story: &mut Story,
) -> Result<Established, Error> {
    let place = pod.place_for(&tunnel.identity, tunnel.peer_ip())?;
    let request = request.map_err(|malformed| bad(malformed.to_string(), malformed.reason()))?;
    story.authority = Some(request.authority.clone());
    let workload = pod.workload().await?;
    // One that cannot be read is refused below.
    let authority = request.authority.parse::<Authority>().ok();
    let speaks_for_others = request.original_source.as_ref();
    let said = on_demand::Said {
        authority: authority.as_ref().map(|authority| (authority, tunnel.local)),
        speaks_for_others: speaks_for_others.map(|_| (&tunnel.identity, tunnel.peer_ip())),
    };
    on_demand::learn_own(&pod.node, &workload, said).await;
    let asked = understand(pod, tunnel, &request, workload)?;
    describe(pod, tunnel, &request, &asked, story);
    let permitted = authorize(pod, asked.connection.clone()).await?;
    story.generation = permitted.judged.generation;
    story.policy.clone_from(&permitted.policy);
    let application = connect_application(pod, tunnel, &request, &asked).await?;
    Ok(Established {
        asked,
        permitted,
        application,
        place,
    })
}

fn bad(detail: String, reason: Reason) -> Error {
    Error::BadRequest { detail, reason }
}

/// Reads what is asked for against what is known here.
fn understand(
    pod: &Pod,
    tunnel: &Tunnel,
    request: &ConnectRequest,
    workload: Arc<Workload>,
) -> Result<Asked, Error> {
    let authority: Authority = request
        .authority
        .parse()
        .map_err(|error| bad(format!("{}: {error}", request.authority), Reason::BadAuthority))?;
    let snapshot = pod.node.mesh.snapshot();
    let asks = Asks {
        workload: &workload,
        local: tunnel.local,
        peer: Some(&tunnel.identity),
        peer_ip: tunnel.peer_ip(),
        original_source: request.original_source.as_ref(),
    };
    let target = asks.target(&snapshot, &authority)?;
    refuse_own_port(&pod.node.config.ports, target)?;
    if !pod.leads_to(target.port()) {
        let detail = format!("{authority} is not the port of the metrics of {}", pod.name);
        return Err(bad(detail, Reason::WrongDestination));
    }
    asks.refuse_untrusted_source(&snapshot)?;
    Ok(Asked {
        service: service_asked_for(&snapshot, &workload, request, &authority),
        connection: Connection {
            peer: Some(tunnel.identity.clone()),
            original_source: request.original_source.clone(),
            source_ip: tunnel.peer_ip(),
            destination: target,
        },
        target,
        workload,
    })
}

/// The service for telemetry: only one that this workload really serves.
fn service_asked_for(
    snapshot: &Snapshot,
    workload: &Workload,
    request: &ConnectRequest,
    authority: &Authority,
) -> Option<Arc<Service>> {
    let told = request
        .forwarded
        .as_ref()
        .and_then(|forwarded| forwarded.host.as_deref());
    let named = match authority {
        Authority::Host { hostname, .. } => Some(&**hostname),
        Authority::Ip(_) => None,
    };
    let host = named.or(told)?;
    let key = workload.services.keys().find(|key| &*key.hostname == host)?;
    snapshot.service(key).cloned()
}

/// Writes into the story who both ends are. What the peer says of itself counts only where nothing is known.
fn describe(pod: &Pod, tunnel: &Tunnel, request: &ConnectRequest, asked: &Asked, story: &mut Story) {
    let own_network = &pod.node.config.network;
    let foreign = request
        .forwarded_network
        .as_deref()
        .is_some_and(|network| *network != **own_network);
    let address = NetworkAddress::new(Arc::clone(own_network), tunnel.peer_ip());
    let known = pod.node.mesh.snapshot().workload_by_address(&address);
    let known = known.filter(|workload| !foreign && workload.identity() == tunnel.identity);
    let described = &pod.node.metrics.described;
    let proven = Some(tunnel.identity.clone());
    story.source = match known {
        Some(workload) => described.party(&workload, proven),
        None => claimed(&request.baggage).proven(proven).into(),
    };
    story.destination = described.party(&asked.workload, Some(asked.workload.identity()));
    story.destination_address = asked.target;
    if let Some(service) = &asked.service {
        story.service_is(&pod.node.metrics, service);
    }
    story.planned = true;
}

/// Who a peer says it is.
pub(crate) fn claimed(baggage: &Baggage) -> Party {
    let text = |text: &Option<String>| text.as_deref().map(Into::into);
    Party {
        pod: None,
        workload: baggage.workload.as_ref().map(|(_, name)| name.as_str().into()),
        canonical_service: text(&baggage.service_name),
        canonical_revision: text(&baggage.service_version),
        namespace: text(&baggage.namespace),
        principal: None,
        cluster: text(&baggage.cluster),
        region: text(&baggage.region),
        zone: text(&baggage.zone),
    }
}

/// Connects, and tells an application that wants it who its client is.
async fn connect_application(
    pod: &Pod,
    tunnel: &Tunnel,
    request: &ConnectRequest,
    asked: &Asked,
) -> Result<TcpStream, Error> {
    let wants_header = matches!(
        asked.workload.application_tunnel,
        Some(ApplicationTunnel {
            protocol: ApplicationProtocol::Proxy,
            ..
        })
    );
    if !wants_header {
        return connect(pod, asked.target, Some(tunnel.peer_ip())).await;
    }
    let (to, from) = if pod.node.config.localhost_app_tunnel {
        (
            SocketAddr::new(loopback(asked.target.ip()), asked.target.port()),
            None,
        )
    } else {
        (asked.target, Some(tunnel.peer_ip()))
    };
    let mut application = connect(pod, to, from).await?;
    let header = proxy_header(pod, tunnel, request, asked).encode();
    let written = application.write_all(&header).await;
    written.map_err(|source| Error::Connect { to, source })?;
    Ok(application)
}

fn loopback(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// The real client, and the address it asked for; for a host name the service's own.
fn proxy_header(
    pod: &Pod,
    tunnel: &Tunnel,
    request: &ConnectRequest,
    asked: &Asked,
) -> proxy_protocol::Header {
    let client = client_told(pod, tunnel, request, asked).unwrap_or(tunnel.peer);
    let destination = match request.authority.parse() {
        Ok(Authority::Ip(address)) => address,
        Ok(Authority::Host { port, .. }) => vip(asked, port),
        Err(_) => asked.target,
    };
    let identity = asked
        .connection
        .original_source
        .as_ref()
        .unwrap_or(&tunnel.identity);
    let header = proxy_protocol::Header::new(client, destination).identity(identity);
    match &asked.service {
        Some(service) => header.service(&service.hostname),
        None => header,
    }
}

/// The client that the peer tells, if it may: one of its own workloads, or anyone where it is the waypoint of this one.
fn client_told(pod: &Pod, tunnel: &Tunnel, request: &ConnectRequest, asked: &Asked) -> Option<SocketAddr> {
    let client = request.forwarded.as_ref()?.client;
    let snapshot = pod.node.mesh.snapshot();
    // Which network it names makes no difference to whom it may speak for.
    let network = request
        .forwarded_network
        .as_deref()
        .unwrap_or(&pod.node.config.network);
    let address = NetworkAddress::new(Arc::from(network), client.ip());
    let own = snapshot
        .workload_by_address(&address)
        .is_some_and(|workload| workload.identity() == tunnel.identity);
    let may = own || snapshot.is_waypoint_of(&asked.workload, &tunnel.identity, tunnel.peer_ip());
    may.then_some(client)
}

fn vip(asked: &Asked, port: u16) -> SocketAddr {
    let addresses = asked.service.iter().flat_map(|service| &service.addresses);
    let rank = |address: &&NetworkAddress| {
        (
            address.network != asked.workload.network,
            address.address.is_ipv6(),
        )
    };
    addresses
        .min_by_key(rank)
        .map_or(asked.target, |vip| SocketAddr::new(vip.address, port))
}

/// Answers 200.
fn open(pod: &Pod, established: Established, asking: Asking, story: Story) -> Option<Answered> {
    let Established {
        asked,
        permitted,
        application,
        place,
    } = established;
    let baggage = if pod.node.config.response_baggage {
        Baggage::of(&asked.workload)
    } else {
        Baggage::default()
    };
    match asking.accept(ConnectResponse { baggage }) {
        Ok(stream) => Some(Answered {
            application,
            stream,
            tracked: carry::track(pod, story, Some(permitted.judged)),
            place,
        }),
        Err(error) => {
            carry::reset(application);
            story.fail(
                &pod.node.metrics,
                &tulle_transport::CopyError::Tunnel(error).into(),
            );
            None
        }
    }
}

fn refuse(pod: &Pod, asking: Asking, story: &Story, error: &Error) {
    story.fail(&pod.node.metrics, error);
    asking.reject(error.status(), told(pod, story, error));
}

/// How much of the reason the peer learns. Only peers of our trust domain get this far.
fn told(pod: &Pod, story: &Story, error: &Error) -> Option<ReasonHeader> {
    let reason = ReasonHeader::new(error.reason().unwrap_or(Reason::ConnectFailed));
    match pod.node.config.reason_detail {
        ReasonDetail::None => None,
        ReasonDetail::Code => Some(reason),
        ReasonDetail::Full => {
            let reason = reason.id(story.id);
            Some(match error.policy() {
                Some(policy) => reason.policy(policy),
                None => reason,
            })
        }
    }
}
