//! The proxy of one workload: its listeners, for as long as it lives.

use std::io;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::net::TcpListener;

use crate::accept::{Accepting, accept};
use crate::dns::sockets::DnsListeners;
use crate::pod::Pod;
use crate::sockets::{PodSockets, Traffic};
use crate::{dns, inbound, outbound, same_node, socks5};

/// Accepts for one workload until accepting stops. Connections live on, and hold guards of the pod's drain.
///
/// # Errors
/// When the listeners cannot be used.
pub fn start(
    pod: &Arc<Pod>,
    sockets: &PodSockets,
    accepting: &Accepting,
) -> io::Result<impl Future<Output = ()> + Send + 'static + use<>> {
    let listeners = sockets.listeners()?;
    let names = questions(pod, listeners.dns, accepting);
    // Sockets of the agent are there whether this proxy carries or not.
    let traffic = listeners.traffic.filter(|_| pod.node.config.proxy);
    let carrying = traffic
        .map(|traffic| carry(pod, traffic, accepting))
        .transpose()?;
    Ok(async move {
        let carrying = async {
            if let Some(carrying) = carrying {
                carrying.await;
            }
        };
        tokio::join!(names, carrying);
    })
}

/// Accepts connections.
fn carry(
    pod: &Arc<Pod>,
    traffic: Traffic<TcpListener>,
    accepting: &Accepting,
) -> io::Result<impl Future<Output = ()> + Send + 'static + use<>> {
    let out = accept(
        traffic.outbound,
        Arc::clone(pod),
        accepting.clone(),
        "outbound-connection",
        outbound::serve,
    );
    let plain = accept(
        traffic.inbound_plain,
        Arc::clone(pod),
        accepting.clone(),
        "inbound-plain-connection",
        inbound::passthrough::serve,
    );
    let hbone = accept(
        traffic.inbound_hbone,
        Arc::clone(pod),
        accepting.clone(),
        "inbound-tunnel",
        inbound::listener::serve,
    );
    let clients = socks5_clients(pod, accepting)?;
    let present = same_node::enter(pod);
    Ok(async move {
        let _present = present;
        tokio::join!(out, plain, hbone, clients);
    })
}

/// Serves applications that ask for a proxy, where that is switched on.
fn socks5_clients(
    pod: &Arc<Pod>,
    accepting: &Accepting,
) -> io::Result<impl Future<Output = ()> + Send + 'static + use<>> {
    let port = pod.node.config.ports.socks5;
    let listener = port.map(|port| socks5::listen(pod, port)).transpose()?;
    let (pod, accepting) = (Arc::clone(pod), accepting.clone());
    Ok(async move {
        if let Some(listener) = listener {
            accept(listener, pod, accepting, "socks5-connection", socks5::serve).await;
        }
    })
}

/// Answers questions for names, where they are captured and answering them is not switched off.
fn questions(
    pod: &Arc<Pod>,
    listeners: DnsListeners,
    accepting: &Accepting,
) -> impl Future<Output = ()> + Send + 'static + use<> {
    let on = pod.node.config.dns.listen.is_some();
    let listeners = if on { listeners } else { DnsListeners::default() };
    let datagrams = listeners
        .datagrams
        .into_iter()
        .map(|socket| dns::server::serve_datagrams(socket, Arc::clone(pod), accepting.clone()));
    let streams = listeners.streams.into_iter().map(|listener| {
        accept(
            listener,
            Arc::clone(pod),
            accepting.clone(),
            "dns-connection",
            dns::server::serve_stream,
        )
    });
    let all = (
        join_all(datagrams.collect::<Vec<_>>()),
        join_all(streams.collect::<Vec<_>>()),
    );
    async move {
        tokio::join!(all.0, all.1);
    }
}
