//! Streams between two workloads of this process: handed over without a tunnel, and judged as in one.
//!
//! Both ends are known here, so nothing has to be encrypted. All else is what it would be on the wire: the same two
//! certificates meet in a handshake (over memory, once a second at most), the same code judges, connects, re-judges
//! and drains the receiving end, and each end writes its line and counts its series.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tulle_identity::{HandshakeError, WorkloadCertificate, tls};
use tulle_model::gateway::HBONE_PORT;
use tulle_model::upstream::Endpoint;
use tulle_model::workload::TunnelProtocol;
use tulle_model::{Identity, Workload};
use tulle_runtime::metrics::Registry;
use tulle_runtime::tasks;
use tulle_transport::OpenError;
use tulle_transport::hbone::{AcceptError, ConnectRequest, ConnectResponse, HboneStream};

use crate::config::{SameNode, WorkloadName};
use crate::error::Error;
use crate::inbound::{Asking, Handed, Tunnel, serve_stream};
use crate::metrics::SECTION;
use crate::metrics::labels::Direction;
use crate::pod::Pod;
use crate::record::Story;
use crate::revocation::Proofs;

/// How long a handshake speaks for further streams of the same two certificates. What is revoked meanwhile is
/// refused after it.
const HANDSHAKE_HOLDS: Duration = Duration::from_secs(1);

/// Handshakes that are remembered; beyond that all are forgotten.
const HANDSHAKES_MAX: usize = 4096;

/// Bytes of a handshake that may be on their way.
const HANDSHAKE_BUFFER: usize = 16 * 1024;

/// The workloads that this process serves now.
#[derive(Debug, Default)]
pub struct Locals {
    pods: Mutex<HashMap<WorkloadName, Vec<Weak<Pod>>>>,
    met: Mutex<HashMap<Meeting, Instant>>,
    /// `tulle_same_node_connections_total`
    handed_over: Counter,
}

/// Two certificates, and whom the client expects.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Meeting {
    client: u64,
    server: u64,
    expected: BTreeSet<Identity>,
}

/// A workload is among [`Locals`] as long as this lives.
#[derive(Debug)]
pub struct Present {
    pod: Arc<Pod>,
}

impl Locals {
    /// Makes it and registers what it counts.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let locals = Self::default();
        registry.section(&SECTION).register(
            "tulle_same_node_connections",
            "Connections that were handed over to another workload of the same proxy without a tunnel; they count as mutual \
             TLS everywhere else",
            locals.handed_over.clone(),
        );
        locals
    }

    /// The newest proxy of a workload that still takes connections.
    fn find(&self, workload: &Workload) -> Option<Arc<Pod>> {
        let name = WorkloadName {
            namespace: Arc::clone(&workload.namespace),
            name: Arc::clone(&workload.name),
            service_account: Arc::clone(&workload.service_account),
        };
        let pods = self.pods.lock();
        let mut newest_first = pods.get(&name)?.iter().rev().filter_map(Weak::upgrade);
        newest_first.find(|pod| !pod.drain.is_draining())
    }

    fn leave(&self, pod: &Arc<Pod>) {
        let mut pods = self.pods.lock();
        let Some(same) = pods.get_mut(&pod.name) else {
            return;
        };
        same.retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(pod)));
        if same.is_empty() {
            pods.remove(&pod.name);
        }
    }

    fn has_met(&self, meeting: &Meeting) -> bool {
        let met = self.met.lock();
        met.get(meeting).is_some_and(|until| Instant::now() < *until)
    }

    fn remember(&self, meeting: Meeting) {
        let now = Instant::now();
        let mut met = self.met.lock();
        if met.len() >= HANDSHAKES_MAX {
            met.retain(|_, until| now < *until);
        }
        if met.len() >= HANDSHAKES_MAX {
            met.clear();
        }
        met.insert(meeting, now + HANDSHAKE_HOLDS);
    }
}

/// Lets other workloads of this process find a pod, until the guard is dropped.
#[must_use]
pub fn enter(pod: &Arc<Pod>) -> Present {
    let mut pods = pod.node.locals.pods.lock();
    pods.entry(pod.name.clone())
        .or_default()
        .push(Arc::downgrade(pod));
    Present { pod: Arc::clone(pod) }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.pod.node.locals.leave(&self.pod);
    }
}

/// A next hop that is served by this process.
#[derive(Debug)]
pub struct Neighbour {
    pod: Arc<Pod>,
    /// Where the peer would be seen to come from.
    peer: SocketAddr,
}

/// The neighbour that a connection leads to, if it leads to one. The address must really be the pod's own, as a
/// description may be older than the pod.
#[must_use]
pub fn neighbour(
    from: &Pod,
    source: &Workload,
    client: SocketAddr,
    endpoint: &Endpoint,
) -> Option<Neighbour> {
    let dial = endpoint.dial;
    let tunnelled = endpoint.protocol == TunnelProtocol::Hbone && dial.port() == HBONE_PORT;
    let here = from.node.config.same_node == SameNode::InProcess;
    if !here || !tunnelled || endpoint.workload.native_tunnel {
        return None;
    }
    let peer = SocketAddr::new(address_towards(source, client.ip(), dial.ip())?, client.port());
    let pod = from.node.locals.find(&endpoint.workload)?;
    pod.owns(dial.ip()).then_some(Neighbour { pod, peer })
}

/// The address of the source that a peer at `towards` would see: the one the client used, if it is one of its
/// workload and of the right family, else the workload's first of that family.
fn address_towards(source: &Workload, client: IpAddr, towards: IpAddr) -> Option<IpAddr> {
    let own = || source.addresses.iter().map(IpAddr::to_canonical);
    let fits = |address: &IpAddr| address.is_ipv4() == towards.is_ipv4();
    own()
        .filter(fits)
        .find(|address| *address == client)
        .or_else(|| own().find(fits))
}

/// Opens a stream to a neighbour.
///
/// # Errors
/// What a tunnel would have failed with.
pub async fn open(
    from: &Pod,
    source: &Workload,
    endpoint: &Endpoint,
    neighbour: Neighbour,
    request: ConnectRequest,
) -> Result<(HboneStream, ConnectResponse), Error> {
    let Neighbour { pod, peer } = neighbour;
    let client = from.certificate(source).await?;
    let tunnel = Tunnel {
        identity: client.identity().clone(),
        peer,
        local: endpoint.dial,
    };
    if let Err(Failed { here, there }) = meet(&pod, &client, endpoint).await {
        let story = Story::begin(Direction::Inbound, tunnel.peer, tunnel.local);
        story.fail(&pod.node.metrics, &there);
        return Err(here);
    }
    let (answer, answered) = oneshot::channel();
    let guard = pod.drain.guard();
    let asking = Asking::Neighbour(Handed { request, answer });
    tasks::spawn_holding("same-node-stream", guard, serve_stream(pod, asking, tunnel));
    match answered.await {
        Ok(Ok(opened)) => {
            from.node.locals.handed_over.inc();
            Ok(opened)
        }
        Ok(Err(refusal)) => Err(OpenError::Refused(refusal).into()),
        Err(_) => {
            let detail = "the workload's proxy ended".into();
            Err(OpenError::PeerLost { detail }.into())
        }
    }
}

/// A handshake that failed, as each end sees it.
struct Failed {
    here: Error,
    there: Error,
}

impl Failed {
    fn new(here: HandshakeError, there: Error) -> Self {
        let here = OpenError::Tls {
            source: Arc::new(here),
        };
        Self {
            here: here.into(),
            there,
        }
    }

    /// The other end says nothing and is gone.
    fn there(there: Error) -> Self {
        Self::new(HandshakeError::Io(io::ErrorKind::ConnectionReset.into()), there)
    }
}

/// The handshake that a tunnel would begin with.
async fn meet(pod: &Pod, client: &Arc<WorkloadCertificate>, endpoint: &Endpoint) -> Result<(), Failed> {
    let server = pod.certificate(&endpoint.workload).await.map_err(Failed::there)?;
    // What is no longer believed is refused at once, however fresh the last handshake.
    let proofs = Proofs::new(&pod.node, client, server.proof().clone(), endpoint.dial.ip());
    proofs.judge(&pod.node).map_err(|why| Failed {
        here: Error::Distrusted(why.clone()),
        there: Error::Distrusted(why),
    })?;
    let meeting = Meeting {
        client: client.version(),
        server: server.version(),
        expected: endpoint.expected.iter().cloned().collect(),
    };
    let locals = &pod.node.locals;
    if locals.has_met(&meeting) {
        return Ok(());
    }
    let place = pod.handshakes.try_acquire();
    let _place = place.map_err(|_| Failed::there(Error::Overload("too many handshakes at once")))?;
    shake_hands(client, &server, &endpoint.expected).await?;
    locals.remember(meeting);
    Ok(())
}

async fn shake_hands(
    client: &WorkloadCertificate,
    server: &WorkloadCertificate,
    expected: &[Identity],
) -> Result<(), Failed> {
    let (near, far) = tokio::io::duplex(HANDSHAKE_BUFFER);
    let connecting = tls::connect(client.client_config(expected), near);
    let accepting = tls::accept(server.server_config(), far);
    let refused = |error| Error::Accept(AcceptError::Tls(error));
    match tokio::join!(connecting, accepting) {
        (Ok(_), Ok(_)) => Ok(()),
        (Err(here), Err(there)) => Err(Failed::new(here, refused(there))),
        // A client is done before the server has judged its certificate; the alert comes later.
        (Ok(mut stream), Err(there)) => {
            let read = stream.read_u8().await;
            let alert = read
                .err()
                .unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
            Err(Failed::new(alert.into(), refused(there)))
        }
        (Err(here), Ok(_)) => {
            let gone = HandshakeError::Io(io::ErrorKind::ConnectionReset.into());
            Err(Failed::new(here, refused(gone)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tulle_identity::testing::TestCa;
    use tulle_model::Reason;
    use tulle_model::testing::workload;

    fn identity(name: &str) -> Identity {
        Identity::new("cluster.local", "shop", name)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_source_is_seen_at_an_address_of_its_own() {
        let web = workload("shop/web")
            .ip("10.0.0.1")
            .ip("10.0.0.9")
            .ip("fd00::1")
            .build();
        for (client, towards, seen) in [
            ("10.0.0.9", "10.0.0.2", Some("10.0.0.9")),
            ("192.0.2.1", "10.0.0.2", Some("10.0.0.1")),
            ("10.0.0.9", "fd00::2", Some("fd00::1")),
        ] {
            let address = address_towards(&web, ip(client), ip(towards));
            assert_eq!(address, seen.map(ip), "{client} towards {towards}");
        }
        let v4 = workload("shop/web").ip("10.0.0.1").build();
        assert_eq!(address_towards(&v4, ip("10.0.0.1"), ip("fd00::2")), None);
    }

    #[tokio::test]
    async fn certificates_that_would_meet_on_the_wire_meet_here() {
        let ca = TestCa::new();
        let (web, db) = (ca.certificate(&identity("web")), ca.certificate(&identity("db")));
        assert!(shake_hands(&web, &db, &[identity("db")]).await.is_ok());
    }

    #[tokio::test]
    async fn another_identity_than_expected_is_a_mismatch_here_and_an_alert_there() {
        let ca = TestCa::new();
        let (web, db) = (ca.certificate(&identity("web")), ca.certificate(&identity("db")));
        let failed = shake_hands(&web, &db, &[identity("other")]).await.unwrap_err();
        assert_eq!(failed.here.reason(), Some(Reason::PeerIdentityMismatch));
        assert!(matches!(
            failed.there,
            Error::Accept(AcceptError::Tls(HandshakeError::Refused(_)))
        ));
    }

    #[tokio::test]
    async fn a_client_that_the_server_refuses_sees_an_alert() {
        let ca = TestCa::new();
        let foreign = ca.certificate(&Identity::new("other.example", "shop", "web"));
        let db = ca.certificate(&identity("db"));
        let failed = shake_hands(&foreign, &db, &[identity("db")]).await.unwrap_err();
        let Error::Open(OpenError::Tls { source }) = failed.here else {
            panic!("{:?}", failed.here);
        };
        assert!(matches!(*source, HandshakeError::Refused(_)), "{source:?}");
        assert_eq!(failed.there.reason(), Some(Reason::PeerIdentityMismatch));
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_speaks_for_others_for_a_second_only() {
        let locals = Locals::default();
        let meeting = |server| Meeting {
            client: 1,
            server,
            expected: BTreeSet::new(),
        };
        locals.remember(meeting(2));
        assert!(locals.has_met(&meeting(2)) && !locals.has_met(&meeting(3)));
        tokio::time::advance(HANDSHAKE_HOLDS).await;
        assert!(!locals.has_met(&meeting(2)));
    }
}
