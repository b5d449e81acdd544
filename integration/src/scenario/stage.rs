//! The usual stage of a scenario: two nodes, a client and a server pod, and a load between them.

use std::time::Duration;

use tulle_world::{Component, Pod};

use super::Scale;
use crate::TestMesh;
use crate::load::{Load, Plan, Report};
use crate::traffic::Echo;

/// Port of the echo servers.
pub(super) const PORT: u16 = 8080;

/// A running mesh with a load on it.
#[derive(Debug)]
pub(super) struct Stage {
    /// The load; declared first, so that it ends before the mesh does.
    pub load: Load,
    /// What the clients talk to.
    pub echo: Echo,
    /// Its components and world.
    pub mesh: TestMesh,
    /// The client's pod, on n1.
    pub web: Pod,
    /// The server's pod, on n2.
    pub db: Pod,
    scale: Scale,
}

impl Stage {
    /// Builds the mesh, starts the load, and lets it run warm.
    pub(super) async fn new(scale: Scale) -> Self {
        Self::with(scale, &["n1", "n2"], scale.pick(Plan::light(), Plan::l1())).await
    }

    /// As [`Self::new`], with further nodes or another load.
    pub(super) async fn with(scale: Scale, nodes: &[&str], plan: Plan) -> Self {
        Self::of(TestMesh::new(nodes).await, scale, plan).await
    }

    /// As [`Self::with`], in a mesh that was made ready for it.
    pub(super) async fn of(mut mesh: TestMesh, scale: Scale, plan: Plan) -> Self {
        let web = mesh.pod("n1", "web").await;
        let db = mesh.pod("n2", "db").await;
        mesh.start().await;
        mesh.captured(&[&web, &db]).await;
        let echo = Echo::start(db.namespace(), db.ipv4(), PORT).await;
        let load = Load::start(web.namespace(), &[echo.address()], plan).await;
        // The first tunnel, its certificates and the caches are no part of any figure.
        load.observe(Duration::from_secs(1)).await;
        Self {
            load,
            echo,
            mesh,
            web,
            db,
            scale,
        }
    }

    /// Starts the load anew, after something that ended its connections on purpose.
    pub(super) async fn restart_load(&mut self) {
        let plan = self.scale.pick(Plan::light(), Plan::l1());
        self.load = Load::start(self.web.namespace(), &[self.echo.address()], plan).await;
        self.load.observe(Duration::from_secs(1)).await;
    }

    /// The two quiet halves before a fault: their difference is the band of the run.
    pub(super) async fn quiet(&self) -> [Report; 2] {
        let half = self.scale.window() / 2;
        [self.load.observe(half).await, self.load.observe(half).await]
    }

    /// The window after a fault.
    pub(super) async fn after(&self) -> Report {
        self.load.observe(self.scale.window()).await
    }

    /// Process id of a component.
    pub(super) fn process(&mut self, component: &Component) -> u32 {
        let process = self.mesh.mesh.process(component);
        process.expect("the component runs").id()
    }
}
