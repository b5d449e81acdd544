//! The stage of scenarios with a waypoint: a client on one node, an application on the other, a service in front of it.

use std::net::{IpAddr, SocketAddr};

use tulle_model::Identity;
use tulle_world::{Pod, Process};

use crate::http::{self, App, get};
use crate::mesh::eventually;
use crate::{TestMesh, manifest};

/// Name of the gateway.
pub(super) const GATEWAY: &str = "way";

/// Client, application, service.
#[derive(Debug)]
pub(super) struct Front {
    pub app: App,
    pub mesh: TestMesh,
    pub client: Pod,
    pub server: Pod,
    /// Where the service is.
    pub service: SocketAddr,
}

impl Front {
    /// A running mesh; the service names a waypoint that is not there yet.
    pub(super) async fn new() -> Self {
        let mut mesh = TestMesh::new(&["n1", "n2"]).await;
        let client = mesh.pod("n1", "client").await;
        let server = mesh.pod("n2", "server").await;
        let address: IpAddr = [10, 96, 0, 70].into();
        mesh.apply("server-service", &manifest::fronted("server", address, GATEWAY));
        mesh.start().await;
        mesh.captured(&[&client, &server]).await;
        Self {
            app: App::start(&server, 8080).await,
            mesh,
            client,
            server,
            service: (address, 80).into(),
        }
    }

    /// The status of a request of the client; `None` if there was no answer.
    pub(super) async fn status(&self, to: SocketAddr, path: &str) -> Option<u16> {
        let answer = http::ask(self.client.namespace(), to, get(path)).await;
        answer.ok().map(|answer| answer.status.as_u16())
    }

    /// Waits until a request of the client gets this status.
    pub(super) async fn until(&self, path: &str, status: u16) {
        let reached = eventually(async || self.status(self.service, path).await == Some(status));
        assert!(reached.await, "{path} never got {status}\n{}", self.mesh.logs());
    }

    /// Starts a waypoint process in a pod, and waits until it says that it is ready.
    pub(super) async fn serve(&self, pod: &Pod, account: &str) -> Process {
        let folder = self.mesh.folder().join(format!("run-{}", pod.name()));
        std::fs::create_dir_all(&folder).unwrap();
        let environment = [("TULLE_RUN_DIR", folder.to_str().unwrap())];
        let (mesh, world) = (&self.mesh.mesh, &self.mesh.world);
        let process = mesh.spawn_waypoint(world, pod.name(), manifest::NAMESPACE, account, &environment);
        let process = process.unwrap();
        let page = SocketAddr::from(([127, 0, 0, 1], 15021));
        let ready = eventually(async || {
            let answer = http::ask(pod.namespace(), page, get("/healthz/ready")).await;
            answer.is_ok_and(|answer| answer.status == 200)
        });
        assert!(ready.await, "{} is not ready\n{}", pod.name(), self.mesh.logs());
        process
    }
}

/// An identity of the test's namespace.
pub(super) fn identity(account: &str) -> Identity {
    crate::hbone::identity(account)
}
