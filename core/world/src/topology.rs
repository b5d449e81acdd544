//! The world itself: the wire, the nodes on it and the pods behind them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use tulle_linux::NetNs;

use crate::links::Links;
use crate::pod::Pod;
use crate::process::{Process, ProcessError};
use crate::recorder::{Frames, Recorder, Sought};
use crate::services::{self, VirtualService};

/// Name of the node that runs no pods but the control plane.
pub const CONTROL: &str = "control";
/// Name of the bridge in the wire's namespace.
const BRIDGE: &str = "wire";
/// Pods per node; the last octet of a pod's address counts them.
const PODS_PER_NODE_MAX: u8 = 250;
/// What every pod routes through; each node's end of each pod's link answers for it.
const POD_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const POD_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Nodes, pods and the wire between them.
#[derive(Debug)]
pub struct World {
    folder: PathBuf,
    wire: NetNs,
    wire_links: Links,
    nodes: BTreeMap<String, Node>,
    pods: BTreeMap<String, Pod>,
}

/// One node of the world.
#[derive(Debug)]
pub struct Node {
    name: String,
    number: u8,
    namespace: NetNs,
    links: Links,
    pods_made: u8,
}

/// The world could not be built or changed.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// The kernel refused something.
    #[error("cannot {step}: {source}")]
    Io {
        /// What was tried.
        step: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused a change of interfaces, addresses or routes.
    #[error("cannot {step}: {source}")]
    Link {
        /// What was tried.
        step: String,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// There is no such node.
    #[error("the world has no node {0}")]
    NoSuchNode(String),
    /// There is no such pod.
    #[error("the world has no pod {0}")]
    NoSuchPod(String),
    /// A bound of the world is reached.
    #[error("node {0} holds no more pods")]
    NodeFull(String),
    /// Another pod has the address.
    #[error("pod {pod} has the address {address} already")]
    AddressTaken {
        /// The address.
        address: Ipv4Addr,
        /// Who has it.
        pod: String,
    },
}

fn io_step<T>(step: impl Into<String>, outcome: io::Result<T>) -> Result<T, WorldError> {
    outcome.map_err(|source| WorldError::Io {
        step: step.into(),
        source,
    })
}

fn link_step<T>(step: impl Into<String>, outcome: Result<T, rtnetlink::Error>) -> Result<T, WorldError> {
    outcome.map_err(|source| WorldError::Link {
        step: step.into(),
        source,
    })
}

impl Node {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    #[must_use]
    pub fn namespace(&self) -> &NetNs {
        &self.namespace
    }

    /// Its address on the wire.
    #[must_use]
    pub fn ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 10, 0, self.number)
    }

    /// Its IPv6 address on the wire.
    #[must_use]
    pub fn ipv6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, u16::from(self.number))
    }

    fn pod_ipv4(&self, pod: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 11, self.number, pod)
    }

    fn pod_ipv6(&self, pod: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x11, 0, u16::from(self.number), 0, 0, 0, u16::from(pod))
    }

    /// Starts a process on the node.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(&self, name: &str, command: Command) -> Result<Process, ProcessError> {
        Process::spawn(name, &self.namespace, command)
    }
}

impl World {
    /// Builds the wire and the nodes, [`CONTROL`] among them. `folder` gets links that name the namespaces.
    ///
    /// # Errors
    /// When this process may not make network namespaces, or the folder cannot be written.
    pub async fn create(folder: &Path, nodes: &[&str]) -> Result<Self, WorldError> {
        let netns_dir = folder.join("netns");
        io_step("make the world's folder", fs::create_dir_all(&netns_dir))?;
        io_step("clear the world's folder", clear_links(&netns_dir))?;
        let wire = io_step("make a network namespace", NetNs::create())?;
        let wire_links = io_step("open netlink", Links::open(&wire).await)?;
        link_step("make the wire", wire_links.add_bridge(BRIDGE).await)?;
        link_step("set the wire up", wire_links.up(BRIDGE).await)?;
        let mut world = Self {
            folder: folder.to_owned(),
            wire,
            wire_links,
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
        };
        for (name, number) in nodes.iter().chain([&CONTROL]).zip(1..=PODS_PER_NODE_MAX) {
            world.add_node(name, number).await?;
        }
        world.route_between_nodes().await?;
        Ok(world)
    }

    /// The folder whose entries name the namespaces of pods, as `/run/netns` does on a host.
    #[must_use]
    pub fn netns_dir(&self) -> PathBuf {
        self.folder.join("netns")
    }

    /// The folder of resolver settings: `<pod>/resolv.conf`, as `/etc/netns` has them on a host.
    #[must_use]
    pub fn resolver_dir(&self) -> PathBuf {
        self.folder.join("resolvers")
    }

    /// The namespace of the wire, whose bridge the nodes are ports of.
    #[must_use]
    pub fn wire(&self) -> &NetNs {
        &self.wire
    }

    /// A node by name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<&Node, WorldError> {
        self.nodes
            .get(name)
            .ok_or_else(|| WorldError::NoSuchNode(name.to_owned()))
    }

    /// A pod by name.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, name: &str) -> Result<&Pod, WorldError> {
        self.pods
            .get(name)
            .ok_or_else(|| WorldError::NoSuchPod(name.to_owned()))
    }

    /// Every pod, by name.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// Adds a pod to a node.
    ///
    /// # Errors
    /// When the node does not exist or is full, or the kernel refuses.
    pub async fn add_pod(&mut self, node: &str, name: &str) -> Result<Pod, WorldError> {
        loop {
            let host = self.next_host(node)?;
            let ipv4 = self.node(node)?.pod_ipv4(host);
            // Somebody may have chosen it.
            if self.who_has(ipv4).is_none() {
                return self.add_pod_at(node, name, host, ipv4).await;
            }
        }
    }

    /// Adds a pod to a node at an address of the caller's choice, wherever in the network that is.
    ///
    /// # Errors
    /// When the node does not exist or is full, the address is another pod's, or the kernel refuses.
    pub async fn add_pod_with(
        &mut self,
        node: &str,
        name: &str,
        address: Ipv4Addr,
    ) -> Result<Pod, WorldError> {
        if let Some(pod) = self.who_has(address) {
            let pod = pod.name.clone();
            return Err(WorldError::AddressTaken { address, pod });
        }
        let host = self.next_host(node)?;
        self.add_pod_at(node, name, host, address).await
    }

    fn next_host(&mut self, node: &str) -> Result<u8, WorldError> {
        let node = self
            .nodes
            .get_mut(node)
            .ok_or_else(|| WorldError::NoSuchNode(node.to_owned()))?;
        if node.pods_made >= PODS_PER_NODE_MAX {
            return Err(WorldError::NodeFull(node.name.clone()));
        }
        node.pods_made += 1;
        Ok(node.pods_made + 1)
    }

    fn who_has(&self, address: Ipv4Addr) -> Option<&Pod> {
        self.pods.values().find(|pod| pod.ipv4 == address)
    }

    /// The nodes that need a route of its own to a pod, and through where: those a pod is not on, if its address is none
    /// of its node's.
    fn elsewhere(&self, pod: &Pod) -> Result<Vec<(&Node, IpAddr)>, WorldError> {
        let node = self.node(&pod.node)?;
        if pod.ipv4 == node.pod_ipv4(pod.ipv4.octets()[3]) {
            return Ok(Vec::new());
        }
        let others = self.nodes.values().filter(|other| other.number != node.number);
        Ok(others.map(|other| (other, node.ipv4().into())).collect())
    }

    /// Removes a pod and adds another at its address.
    ///
    /// # Errors
    /// When there is no such pod, or the kernel refuses.
    pub async fn replace_pod(&mut self, old: &str, name: &str) -> Result<Pod, WorldError> {
        let (node, host, ipv4) = {
            let pod = self.pod(old)?;
            (pod.node.clone(), pod.host, pod.ipv4)
        };
        self.remove_pod(old).await?;
        self.add_pod_at(&node, name, host, ipv4).await
    }

    async fn add_pod_at(
        &mut self,
        node: &str,
        name: &str,
        host: u8,
        ipv4: Ipv4Addr,
    ) -> Result<Pod, WorldError> {
        let node = self.node(node)?;
        let pod = Pod {
            name: name.to_owned(),
            node: node.name.clone(),
            namespace: new_namespace().await?,
            host,
            ipv4,
            ipv6: node.pod_ipv6(host),
        };
        connect_pod(node, &pod, &pod.interface()).await?;
        io_step(
            format!("name the namespace of {name}"),
            pod.namespace.link_to(&self.netns_dir().join(name)),
        )?;
        for (other, gateway) in self.elsewhere(&pod)? {
            let step = format!("route from {} to pod {name}", other.name);
            let routed = other.links.add_route("eth0", pod.ipv4.into(), 32, Some(gateway));
            link_step(step, routed.await)?;
        }
        self.pods.insert(name.to_owned(), pod.clone());
        Ok(pod)
    }

    /// Removes a pod: its link goes at once, its namespace when the last process and socket in it is gone.
    ///
    /// # Errors
    /// When there is no such pod, or the kernel refuses.
    pub async fn remove_pod(&mut self, name: &str) -> Result<(), WorldError> {
        let pod = self
            .pods
            .remove(name)
            .ok_or_else(|| WorldError::NoSuchPod(name.to_owned()))?;
        io_step(
            "forget the namespace",
            fs::remove_file(self.netns_dir().join(name)),
        )?;
        for (other, gateway) in self.elsewhere(&pod)? {
            let step = format!("forget the route from {} to pod {name}", other.name);
            let forgotten = other
                .links
                .remove_route("eth0", pod.ipv4.into(), 32, Some(gateway));
            link_step(step, forgotten.await)?;
        }
        let node = self.node(&pod.node)?;
        link_step(
            format!("remove the link of {name}"),
            node.links.remove(&pod.interface()).await,
        )
    }

    /// Puts virtual services into force on every node, in place of those before.
    ///
    /// # Errors
    /// When `nft` is missing or refuses.
    pub fn set_services(&self, services: &[VirtualService]) -> Result<(), WorldError> {
        for node in self.nodes.values() {
            io_step(
                "put the services into force",
                services::apply(&node.namespace, services),
            )?;
        }
        Ok(())
    }

    /// Starts to look through every frame on the wire for a marker.
    ///
    /// # Errors
    /// When a packet socket is refused.
    pub async fn record(&self, marker: &[u8]) -> Result<Recorder, WorldError> {
        let bridge = link_step("find the wire", self.wire_links.index(BRIDGE).await)?;
        let (frames, sought) = (
            Frames::Entering { except: bridge },
            Sought::Marker(marker.to_vec()),
        );
        io_step("record the wire", Recorder::start(&self.wire, frames, &sought))
    }

    /// Starts to look through every frame on every interface of a node, its ends of the links of its pods among them. What
    /// passes through is read more than once.
    ///
    /// # Errors
    /// When there is no such node, or a packet socket is refused.
    pub fn record_node(&self, node: &str, sought: &Sought) -> Result<Recorder, WorldError> {
        let namespace = &self.node(node)?.namespace;
        io_step(
            format!("record node {node}"),
            Recorder::start(namespace, Frames::All, sought),
        )
    }

    /// Cuts a node off the wire, or lets it back.
    ///
    /// # Errors
    /// When there is no such node, or the kernel refuses.
    pub async fn set_connected(&self, node: &str, connected: bool) -> Result<(), WorldError> {
        let port = port_name(self.node(node)?.number);
        let outcome = if connected {
            self.wire_links.up(&port).await
        } else {
            self.wire_links.down(&port).await
        };
        link_step(format!("change the link of {node}"), outcome)
    }

    async fn add_node(&mut self, name: &str, number: u8) -> Result<(), WorldError> {
        let namespace = new_namespace().await?;
        io_step(
            "let the node forward",
            namespace.run_async(forward).await.and_then(|done| done),
        )?;
        let links = io_step("open netlink", Links::open(&namespace).await)?;
        let node = Node {
            name: name.to_owned(),
            number,
            namespace,
            links,
            pods_made: 0,
        };
        let port = port_name(number);
        let step = || format!("connect node {name} to the wire");
        link_step(
            step(),
            self.wire_links.add_pair(&port, "eth0", &node.namespace).await,
        )?;
        link_step(step(), self.wire_links.join_bridge(&port, BRIDGE).await)?;
        link_step(step(), self.wire_links.up(&port).await)?;
        link_step(
            step(),
            node.links.add_address("eth0", node.ipv4().into(), 24).await,
        )?;
        link_step(
            step(),
            node.links.add_address("eth0", node.ipv6().into(), 64).await,
        )?;
        link_step(step(), node.links.up("eth0").await)?;
        let path = self.netns_dir().join(format!("node-{name}"));
        io_step(
            format!("name the namespace of node {name}"),
            node.namespace.link_to(&path),
        )?;
        self.nodes.insert(name.to_owned(), node);
        Ok(())
    }

    async fn route_between_nodes(&self) -> Result<(), WorldError> {
        for node in self.nodes.values() {
            for other in self.nodes.values().filter(|other| other.number != node.number) {
                let step = || format!("route from {} to {}", node.name, other.name);
                for (prefix, length, gateway) in [
                    (IpAddr::V4(other.pod_ipv4(0)), 24, IpAddr::V4(other.ipv4())),
                    (IpAddr::V6(other.pod_ipv6(0)), 64, IpAddr::V6(other.ipv6())),
                ] {
                    link_step(
                        step(),
                        node.links.add_route("eth0", prefix, length, Some(gateway)).await,
                    )?;
                }
            }
        }
        Ok(())
    }
}

/// Forgets namespaces of a world that was in the folder before: they have ended with its process.
fn clear_links(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn port_name(number: u8) -> String {
    format!("node{number}")
}

/// A namespace whose loopback is up and whose IPv6 addresses can be used at once.
async fn new_namespace() -> Result<NetNs, WorldError> {
    let namespace = io_step("make a network namespace", NetNs::create())?;
    let quick = || {
        // Duplicate address detection would keep each address unusable for a second.
        for scope in ["all", "default"] {
            fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad"), "0")?;
            fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/accept_ra"), "0")?;
        }
        Ok(())
    };
    io_step(
        "prepare IPv6",
        namespace.run_async(quick).await.and_then(|done| done),
    )?;
    let links = io_step("open netlink", Links::open(&namespace).await)?;
    link_step("set loopback up", links.up("lo").await)?;
    Ok(namespace)
}

fn forward() -> io::Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
}

/// Connects a pod to its node, routed: each end has its addresses, and the pod's only way is the node.
async fn connect_pod(node: &Node, pod: &Pod, interface: &str) -> Result<(), WorldError> {
    let step = || format!("connect pod {} to {}", pod.name, node.name);
    let inside = io_step("open netlink", Links::open(&pod.namespace).await)?;
    let (v4, v6) = (IpAddr::V4(pod.ipv4), IpAddr::V6(pod.ipv6));
    let (gateway4, gateway6) = (IpAddr::V4(POD_GATEWAY_V4), IpAddr::V6(POD_GATEWAY_V6));
    link_step(
        step(),
        node.links.add_pair(interface, "eth0", &pod.namespace).await,
    )?;
    link_step(step(), node.links.up(interface).await)?;
    link_step(step(), node.links.add_address(interface, gateway4, 32).await)?;
    link_step(step(), node.links.add_address(interface, gateway6, 64).await)?;
    link_step(step(), inside.add_address("eth0", v4, 32).await)?;
    link_step(step(), inside.add_address("eth0", v6, 128).await)?;
    link_step(step(), inside.up("eth0").await)?;
    link_step(step(), node.links.add_route(interface, v4, 32, None).await)?;
    link_step(step(), node.links.add_route(interface, v6, 128, None).await)?;
    link_step(
        step(),
        inside
            .add_route("eth0", Ipv4Addr::UNSPECIFIED.into(), 0, Some(gateway4))
            .await,
    )?;
    link_step(
        step(),
        inside
            .add_route("eth0", Ipv6Addr::UNSPECIFIED.into(), 0, Some(gateway6))
            .await,
    )
}
