//! The contestants of a run: each a mesh of its own, or none, between a client's pod and a server's.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tulle_world::{Component, Pod, Process};

use crate::TestMesh;
use crate::mesh::eventually;
use crate::traffic::{Echo, gets_through};

/// Port of the echo server, and of iperf3.
const ECHO_PORT: u16 = 8080;
const IPERF_PORT: u16 = 5201;

/// What carries the traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing: two pods that no mesh knows.
    Direct,
    /// Our node proxy on both nodes, with one of its framings.
    Framing(&'static str),
    /// Our node proxy, both pods on its node.
    SameNode,
    /// Another make of node proxy on both nodes.
    Peer(String, PathBuf),
}

impl Kind {
    pub(super) fn name(&self) -> String {
        match self {
            Self::Direct => "no mesh".to_owned(),
            Self::Framing(framing) => format!("tulle {framing}"),
            Self::SameNode => "tulle same node".to_owned(),
            Self::Peer(name, _) => name.clone(),
        }
    }
}

/// One of them, ready to be measured.
#[derive(Debug)]
pub(super) struct Contestant {
    /// As the table calls it.
    pub name: String,
    /// The client's pod.
    pub client: Pod,
    /// Process ids of the proxies a byte from client to server passes, in this order.
    pub proxies: Vec<u32>,
    echo: Echo,
    _iperf: Process,
    _mesh: TestMesh,
}

impl Contestant {
    /// Builds its world and waits until bytes get through.
    pub(super) async fn enter(kind: &Kind) -> Self {
        let nodes: &[&str] = if *kind == Kind::SameNode {
            &["n1"]
        } else {
            &["n1", "n2"]
        };
        let servers_node = nodes[nodes.len() - 1];
        let mut mesh = TestMesh::new(nodes).await;
        mesh.environment("RUST_LOG", "info");
        if let Kind::Framing(framing) = kind {
            mesh.environment("TULLE_HBONE", framing);
        }
        let (client, server) = match kind {
            Kind::Direct => (
                mesh.stranger("n1", "client").await,
                mesh.stranger(servers_node, "server").await,
            ),
            _ => (
                mesh.pod("n1", "client").await,
                mesh.pod(servers_node, "server").await,
            ),
        };
        match kind {
            Kind::Direct => {}
            Kind::Peer(_, binary) => mesh.start_with_foreign_ztunnels(nodes, binary).await,
            Kind::Framing(_) | Kind::SameNode => mesh.start().await,
        }
        if *kind != Kind::Direct {
            mesh.captured(&[&client, &server]).await;
        }
        let proxies = nodes.iter().filter_map(|node| {
            let component = Component::Ztunnel((*node).to_owned());
            Some(mesh.mesh.process(&component)?.id())
        });
        let proxies = proxies.collect();
        let echo = Echo::start(server.namespace(), server.ipv4(), ECHO_PORT).await;
        let mut iperf = Command::new("iperf3");
        iperf.args(["--server", "--port", &IPERF_PORT.to_string()]);
        let iperf = server
            .spawn("iperf3", {
                iperf.stdout(Stdio::null()).stderr(Stdio::null());
                iperf
            })
            .unwrap_or_else(|error| panic!("{error}"));
        let this = Self {
            name: kind.name(),
            client,
            proxies,
            echo,
            _iperf: iperf,
            _mesh: mesh,
        };
        let open = eventually(async || gets_through(this.client.namespace(), this.echo()).await);
        assert!(open.await, "{}\n{}", this.name, this._mesh.logs());
        this
    }

    /// Where the echo server listens.
    pub(super) fn echo(&self) -> SocketAddr {
        self.echo.address()
    }

    /// Where iperf3 listens.
    pub(super) fn iperf(&self) -> SocketAddr {
        SocketAddr::new(self.echo().ip(), IPERF_PORT)
    }
}
