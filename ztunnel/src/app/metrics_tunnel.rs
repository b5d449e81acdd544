//! Metrics behind mutual TLS: the tunnel port of this process' own pod, under the pod's own identity. Its tunnels lead to
//! the metrics port and nowhere else; policies of the pod hold for them.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tulle_runtime::admin::AdminError;
use tulle_runtime::drain::DrainWatcher;
use tulle_transport::socket::CurrentNamespace;

use super::{Error, SpawnNamed};
use crate::accept::{Accepting, accept};
use crate::config::{Config, ProxyMode, WorkloadName};
use crate::inbound;
use crate::pod::{Node, Pod};

/// The pod of this process, if it is told which it is. In dedicated mode the tunnel port is the workload's.
pub(super) fn process_pod(config: &Config) -> Option<WorkloadName> {
    let own = &config.process;
    let name = [&own.pod_namespace, &own.pod_name, &own.service_account];
    let told = name.iter().all(|part| !part.is_empty());
    let tunnels = config.mode == ProxyMode::Shared && config.proxy;
    (told && tunnels).then(|| WorkloadName {
        namespace: own.pod_namespace.as_str().into(),
        name: own.pod_name.as_str().into(),
        service_account: own.service_account.as_str().into(),
    })
}

/// The listener and whom it is for.
#[derive(Debug)]
pub(super) struct MetricsTunnel {
    listener: TcpListener,
    pod: Arc<Pod>,
}

impl MetricsTunnel {
    /// Binds the tunnel port here; what it carries is carried on `workers`.
    pub(super) async fn open(
        node: &Arc<Node>,
        name: WorkloadName,
        stats_port: u16,
        drain: &DrainWatcher,
        workers: &Handle,
    ) -> Result<Self, Error> {
        let (node, drain) = (Arc::clone(node), drain.clone());
        let opening = workers.spawn_named("bind-metrics-tunnel", async move {
            let listener = bind(node.config.ipv6, node.config.ports.inbound_hbone).await?;
            let pod = Pod::new(name, node, Arc::new(CurrentNamespace), None, drain);
            Ok::<_, AdminError>(Self {
                listener,
                pod: Arc::new(pod.of_process(stats_port)),
            })
        });
        Ok(opening.await.map_err(|_| Error::Panicked)??)
    }

    /// Where it listens.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Accepts until the process drains, with a certificate that is kept fresh meanwhile.
    pub(super) fn serve(self, workers: &Handle) -> JoinHandle<()> {
        workers.spawn_named("metrics-certificate", Arc::clone(&self.pod).keep_certificate());
        workers.spawn_named("metrics-tunnel", async move {
            // Held, so that nothing is ever handed over.
            let (_handed_over, receiver) = watch::channel(false);
            let accepting = Accepting::new(receiver, true);
            let serve = inbound::listener::serve;
            accept(
                self.listener,
                self.pod,
                accepting,
                "metrics-tunnel-connection",
                serve,
            )
            .await;
        })
    }
}

/// A dual-stack wildcard, or IPv4 alone where the kernel has no other.
async fn bind(ipv6: bool, port: u16) -> Result<TcpListener, AdminError> {
    if ipv6 && let Ok(listener) = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        return Ok(listener);
    }
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let failed = |source: io::Error| AdminError::Tcp { address, source };
    TcpListener::bind(address).await.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tulle_runtime::config::MapEnv;

    fn told(more: &[(&str, &str)]) -> Option<WorkloadName> {
        let mut env = MapEnv::from([("POD_NAME", "zt-1"), ("POD_NAMESPACE", "mesh")]);
        for (name, value) in more {
            env = env.with(name, value);
        }
        process_pod(&Config::from_env(&env).unwrap())
    }

    #[test]
    fn the_pod_of_the_process_is_known_by_all_three_names() {
        let own = told(&[("SERVICE_ACCOUNT", "zt")]).unwrap();
        assert_eq!(own.to_string(), "mesh/zt-1/zt");
        assert_eq!(told(&[]), None);
    }

    #[test]
    fn a_dedicated_proxy_leaves_the_port_to_its_workload() {
        let dedicated = [
            ("SERVICE_ACCOUNT", "zt"),
            ("PROXY_MODE", "dedicated"),
            ("PROXY_WORKLOAD_INFO", "shop/web/web"),
        ];
        assert_eq!(told(&dedicated), None);
        assert_eq!(
            told(&[("SERVICE_ACCOUNT", "zt"), ("ENABLE_PROXY", "false")]),
            None
        );
    }
}
