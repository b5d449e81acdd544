//! A mesh in which one proxy hears of the mesh from an impostor, which repeats what the control plane says until it is told
//! otherwise.

use std::time::Duration;

use prost_types::Any;
use serde_json::Value;
use tulle_linux::NetNs;
use tulle_proto::ADDRESS_TYPE;
use tulle_proto::discovery::Resource;
use tulle_world::Component;

use super::stage::PORT;
use crate::TestMesh;
use crate::ads::{self, Stream};
use crate::impostor::Impostor;
use crate::load::{Load, Plan};
use crate::traffic::Echo;

/// Node whose proxy is told by us.
pub(super) const NODE: &str = "n2";

/// What the control plane tells a node of a type.
pub(super) async fn fetch(mesh: &TestMesh, from: &NetNs, type_url: &'static str) -> Vec<Resource> {
    let control = mesh.world.node(tulle_world::CONTROL).unwrap().ipv4();
    let folders = mesh.mesh.folders();
    let token = tulle_xds::token::create(&folders.state, NODE).unwrap();
    let channel_of = (
        format!("https://{control}:15012"),
        folders.state.join("ca/root-cert.pem"),
        token,
    );
    let fetch = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let config = ads::node_config(&channel_of.0, &channel_of.1, &channel_of.2);
            let mut stream = Stream::open(&config, &ads::first(NODE, type_url)).await.unwrap();
            // What fits into one response is the whole of so small a mesh.
            stream.next(usize::MAX).await.unwrap().decode().resources
        })
    };
    from.run_async(fetch).await.unwrap()
}

/// A mesh whose proxy on n2 hears of the mesh from an impostor, which repeats what the control plane says.
pub(super) struct Fed {
    pub load: Load,
    pub echo: Echo,
    pub impostor: Impostor,
    pub mesh: TestMesh,
    pub web: tulle_world::Pod,
}

impl Fed {
    pub(super) async fn start(mut mesh: TestMesh, plan: Plan) -> Self {
        let web = mesh.pod("n1", "web").await;
        let db = mesh.pod(NODE, "db").await;
        mesh.mesh.start_control(&mesh.world).await.unwrap();
        let impostor = Impostor::start(&mesh.world).await;
        let from = mesh.world.node("n1").unwrap().namespace().clone();
        impostor.hold(ADDRESS_TYPE, fetch(&mesh, &from, ADDRESS_TYPE).await);
        mesh.mesh
            .set_node_environment(NODE, "XDS_ADDRESS", &impostor.url());
        for node in ["n1", NODE] {
            mesh.start_node(node);
        }
        for node in ["n1", NODE] {
            mesh.mesh
                .wait_ready(&Component::Agent(node.into()))
                .await
                .unwrap();
            mesh.mesh
                .wait_ready(&Component::Ztunnel(node.into()))
                .await
                .unwrap();
        }
        mesh.captured(&[&web, &db]).await;
        let echo = Echo::start(db.namespace(), db.ipv4(), PORT).await;
        let load = Load::start(web.namespace(), &[echo.address()], plan).await;
        load.observe(Duration::from_secs(1)).await;
        Self {
            load,
            echo,
            impostor,
            mesh,
            web,
        }
    }

    pub(super) async fn dump(&self) -> Value {
        self.mesh
            .ask(&Component::Ztunnel(NODE.to_owned()), "/config_dump")
            .await
    }
}

/// A resource as it travels.
pub(super) fn resource(type_url: &str, name: &str, version: &str, body: Vec<u8>) -> Resource {
    Resource {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: Some(Any {
            type_url: type_url.to_owned(),
            value: body,
        }),
        ..Resource::default()
    }
}
