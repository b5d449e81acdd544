//! One workload that is served: what its listeners and connections share.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use socket2::Domain;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tulle_identity::{SecretManager, TrustStore, WorkloadCertificate};
use tulle_model::mesh::Snapshot;
use tulle_model::{Identity, NetworkAddress, Workload};
use tulle_runtime::drain::DrainWatcher;
use tulle_transport::HbonePool;
use tulle_transport::socket::{self, SocketFactory, SocketOptions, SourcePorts};
use tulle_xds_client::MeshState;

use crate::config::{Config, WorkloadName};
use crate::connections::Connections;
use crate::dial::Dialer;
use crate::dns::Dns;
use crate::dns::network::PodNetwork;
use crate::dns::resolv_conf::ResolvConf;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::outbound::RecentFailures;
use crate::outbound::names::Names;
use crate::plaintext::Plaintext;
use crate::same_node::Locals;
use crate::shed::{Load, Shedder, Weight};

/// How long a connection waits for the description of its own workload.
pub const WORKLOAD_WAIT: Duration = Duration::from_secs(5);

/// Inbound handshakes of one workload at once, so that one pod cannot starve the rest.
pub const HANDSHAKES_MAX: usize = 1024;

/// The mark of this process' packets: configured, or, where the agent owns the listeners, what it gave them. Its rules
/// know no other.
#[derive(Debug, Default)]
pub struct PacketMark {
    /// 0: nothing was given.
    given: AtomicU32,
}

impl PacketMark {
    /// Takes over the mark of listeners that were handed over.
    pub fn adopt(&self, mark: u32) {
        self.given.store(mark, Ordering::Relaxed);
    }

    fn or(&self, configured: Option<u32>) -> Option<u32> {
        match self.given.load(Ordering::Relaxed) {
            0 => configured,
            given => Some(given),
        }
    }
}

/// What all workloads of this process share.
#[derive(Debug)]
pub struct Node {
    /// Configuration of the process.
    pub config: Config,
    /// The mark of its packets, as far as the agent says.
    pub mark: PacketMark,
    /// What is known of the mesh.
    pub mesh: MeshState,
    /// Certificates of local workloads.
    pub secrets: SecretManager,
    /// What peers are judged by, beside their certificates.
    pub trust: TrustStore,
    /// What is counted.
    pub metrics: Metrics,
    /// Open connections.
    pub connections: Connections,
    /// Callers without the mesh.
    pub plaintext: Plaintext,
    /// Who is refused while descriptors are scarce.
    pub shedder: Shedder,
    /// Workloads that are served here now.
    pub locals: Locals,
}

impl Node {
    /// The mark of packets that must not be captured.
    #[must_use]
    pub fn packet_mark(&self) -> Option<u32> {
        self.mark.or(self.config.packet_mark)
    }

    /// An address whose newest description was rejected must not be taken for an unknown one and passed through.
    ///
    /// # Errors
    /// `resource_rejected`.
    pub fn refuse_rejected(&self, destination: SocketAddr) -> Result<(), Error> {
        let address = NetworkAddress::new(Arc::clone(&self.config.network), destination.ip());
        match self.mesh.refused(&address) {
            Some(resource) => Err(Error::Rejected {
                destination,
                resource,
            }),
            None => Ok(()),
        }
    }

    /// Options of a socket towards a peer or an application.
    #[must_use]
    pub fn socket_options(&self) -> SocketOptions {
        let keepalive = self.config.keepalive;
        SocketOptions {
            nodelay: true,
            mark: self.packet_mark(),
            keepalive: keepalive.map(|keepalive| socket::Keepalive {
                idle: keepalive.time,
                interval: keepalive.interval,
                retries: keepalive.retries,
            }),
            user_timeout: keepalive.is_some_and(|keepalive| keepalive.user_timeout),
        }
    }
}

/// One workload that is served. Its identity is that of the namespace its sockets live in, never of an address.
#[derive(Debug)]
pub struct Pod {
    /// What the agent, or the configuration, calls it.
    pub name: WorkloadName,
    /// What all workloads share.
    pub node: Arc<Node>,
    /// Opens sockets where the workload lives.
    pub sockets: Arc<dyn SocketFactory>,
    /// Its tunnels; never shared with another workload.
    pub pool: HbonePool,
    /// When to end.
    pub drain: DrainWatcher,
    /// Places for handshakes that are under way.
    pub handshakes: Semaphore,
    /// Answers its questions for names.
    pub dns: Dns,
    /// Turns true when another generation accepts for it: tunnels of peers say goodbye then, streams live on.
    pub handed_over: watch::Sender<bool>,
    /// Endpoints that failed a moment ago.
    pub failures: RecentFailures,
    /// Host names of endpoints.
    pub names: Names,
    /// Ports from which its application is connected to under its clients' addresses.
    pub source_ports: SourcePorts,
    /// Places for open connections, where they are bounded.
    places: Option<Arc<Semaphore>>,
    /// What it holds of the process.
    weight: Arc<Weight>,
    /// The only port its tunnels lead to, where it is the pod of this process.
    process_port: Option<u16>,
    /// Where it lives.
    network: Arc<dyn PodNetwork>,
    /// Addresses that were found to be its own; an address of a namespace stays.
    addresses: Mutex<HashSet<IpAddr>>,
}

/// A place for one open connection.
#[derive(Debug)]
pub struct Place(
    #[expect(dead_code, reason = "held, not read")] Load,
    #[expect(dead_code, reason = "held, not read")] Option<OwnedSemaphorePermit>,
);

impl Pod {
    /// Makes the shared state of one workload; `resolver` is what the agent says of its name servers.
    #[must_use]
    pub fn new(
        name: WorkloadName,
        node: Arc<Node>,
        network: Arc<dyn PodNetwork>,
        resolver: Option<ResolvConf>,
        drain: DrainWatcher,
    ) -> Self {
        let sockets: Arc<dyn SocketFactory> = Arc::clone(&network) as Arc<dyn SocketFactory>;
        let dialer = Dialer::new(Arc::clone(&node), Arc::clone(&sockets));
        Self {
            pool: dialer.into_pool(&drain),
            places: node.config.connections_max.map(Semaphore::new).map(Arc::new),
            weight: node.shedder.enter(name.clone()),
            dns: Dns::new(&node.config, Arc::clone(&network), resolver).marked(node.packet_mark()),
            process_port: None,
            network,
            addresses: Mutex::default(),
            name,
            node,
            sockets,
            drain,
            handshakes: Semaphore::new(HANDSHAKES_MAX),
            handed_over: watch::Sender::new(false),
            failures: RecentFailures::default(),
            names: Names::default(),
            source_ports: SourcePorts::default(),
        }
    }

    /// The same as the pod of this process: its tunnels lead to one port, and nothing there is captured.
    #[must_use]
    pub fn of_process(mut self, port: u16) -> Self {
        self.process_port = Some(port);
        self
    }

    /// Whether it is the pod of this process.
    #[must_use]
    pub fn is_process(&self) -> bool {
        self.process_port.is_some()
    }

    /// Whether its tunnels may lead to a port.
    #[must_use]
    pub fn leads_to(&self, port: u16) -> bool {
        self.process_port.is_none_or(|only| only == port)
    }

    /// A place for one more open connection.
    ///
    /// # Errors
    /// `overload` when all are taken, or this workload is the heaviest while descriptors are scarce.
    pub fn place(&self) -> Result<Place, Error> {
        let load = self.admit()?;
        let Some(places) = &self.places else {
            return Ok(Place(load, None));
        };
        let permit = Arc::clone(places).try_acquire_owned();
        let permit = permit.map_err(|_| Error::Overload("the workload has too many open connections"))?;
        Ok(Place(load, Some(permit)))
    }

    /// A place at the receiving end: a call of the workload to itself has one already, at its calling end.
    ///
    /// # Errors
    /// As [`Self::place`].
    pub fn place_for(&self, caller: &Identity, address: IpAddr) -> Result<Place, Error> {
        let own = self.find(&self.node.mesh.snapshot());
        let itself = own.is_some_and(|own| own.identity() == *caller) && self.owns(address);
        if itself {
            return Ok(Place(self.admit()?, None));
        }
        self.place()
    }

    /// Lets a peer's tunnel in, which holds a descriptor but is no connection of the workload yet.
    ///
    /// # Errors
    /// `overload` when this workload is the heaviest while descriptors are scarce.
    pub fn admit(&self) -> Result<Load, Error> {
        self.node.shedder.admit(&self.weight)
    }

    /// Whether an address is one of its namespace: the kernel would reach it from itself.
    #[must_use]
    pub fn owns(&self, address: IpAddr) -> bool {
        if self.addresses.lock().contains(&address) {
            return true;
        }
        let domain = if address.is_ipv4() {
            Domain::IPV4
        } else {
            Domain::IPV6
        };
        // Choosing a route sends nothing.
        let route = self.network.udp(domain).and_then(|socket| {
            socket.connect(&SocketAddr::new(address, 1).into())?;
            socket.local_addr()
        });
        let from = route.ok().and_then(|from| from.as_socket());
        let own = from.is_some_and(|from| from.ip() == address);
        if own {
            self.addresses.lock().insert(address);
        }
        own
    }

    /// Its description in a snapshot.
    #[must_use]
    pub fn find(&self, snapshot: &Snapshot) -> Option<Arc<Workload>> {
        let WorkloadName {
            namespace,
            name,
            service_account,
        } = &self.name;
        snapshot.workload_by_name(namespace, name, service_account)
    }

    /// Its description; waits for it, and for the first answer of the control plane, so that an empty table is
    /// never read as "pass through".
    ///
    /// # Errors
    /// `workload_unknown` after [`WORKLOAD_WAIT`].
    pub async fn workload(&self) -> Result<Arc<Workload>, Error> {
        self.workload_within(WORKLOAD_WAIT).await
    }

    /// As [`Self::workload`], with another bound.
    ///
    /// # Errors
    /// `workload_unknown` when the bound passed.
    pub async fn workload_within(&self, wait: Duration) -> Result<Arc<Workload>, Error> {
        let mesh = &self.node.mesh;
        let found = mesh.wait_for(wait, |snapshot| {
            mesh.synced().then(|| self.find(snapshot)).flatten()
        });
        found.await.ok_or_else(|| self.unknown())
    }

    /// The error of a workload that is not described.
    #[must_use]
    pub fn unknown(&self) -> Error {
        Error::WorkloadUnknown {
            namespace: self.name.namespace.to_string(),
            name: self.name.name.to_string(),
        }
    }

    /// The certificate it presents now.
    ///
    /// # Errors
    /// When there is none that is valid.
    pub async fn certificate(&self, workload: &Workload) -> Result<Arc<WorkloadCertificate>, Error> {
        let priority = tulle_identity::Priority::Waiting;
        Ok(self.node.secrets.fetch(&workload.identity(), priority).await?)
    }

    /// Keeps its certificate fresh, from when it is described until its drain is over: also for the connections of a
    /// pod that another generation accepts for.
    pub async fn keep_certificate(self: Arc<Self>) {
        let kept = async {
            let workload = loop {
                if let Ok(workload) = self.workload().await {
                    break workload;
                }
            };
            let _retained = Retained::new(&self.node.secrets, workload.identity());
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = self.drain.over() => {}
            () = kept => {}
        }
    }

    /// Waits until its tunnels take no more streams: it drains, or was handed over.
    pub async fn retiring(&self) {
        let mut handed_over = self.handed_over.subscribe();
        tokio::select! {
            _ = self.drain.signaled() => {}
            // The pod itself holds the sender, so the channel is open.
            _ = handed_over.wait_for(|handed_over| *handed_over) => {}
        }
    }
}

/// Keeps a certificate fresh as long as it lives.
#[derive(Debug)]
struct Retained {
    secrets: SecretManager,
    identity: Identity,
}

impl Retained {
    fn new(secrets: &SecretManager, identity: Identity) -> Self {
        secrets.retain(&identity);
        Self {
            secrets: secrets.clone(),
            identity,
        }
    }
}

impl Drop for Retained {
    fn drop(&mut self) {
        self.secrets.release(&self.identity);
    }
}
