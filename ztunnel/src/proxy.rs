//! The proxy of one workload: its listeners, for as long as it lives.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::net::{TcpListener, TcpStream};
use tulle_transport::socket::prepare_accepted;

use crate::accept::{Accepting, accept};
use crate::dns::sockets::DnsListeners;
use crate::pod::Pod;
use crate::sockets::{PodSockets, Traffic};
use crate::{carry, dns, inbound, outbound, same_node, socks5};

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
    let carries = pod.node.config.proxy;
    let (carried, refused) = match listeners.traffic {
        Some(traffic) if carries => (Some(traffic), None),
        held => (None, held),
    };
    let carrying = carried
        .map(|traffic| carry(pod, traffic, accepting))
        .transpose()?;
    let refusing = refused.map(|traffic| refuse(pod, traffic, accepting));
    Ok(async move {
        let carrying = async {
            if let Some(carrying) = carrying {
                carrying.await;
            }
        };
        let refusing = async {
            if let Some(refusing) = refusing {
                refusing.await;
            }
        };
        tokio::join!(names, carrying, refusing);
    })
}

/// Resets what was captured for a proxy that carries nothing: its callers are not to wait for ever.
fn refuse(
    pod: &Arc<Pod>,
    traffic: Traffic<TcpListener>,
    accepting: &Accepting,
) -> impl Future<Output = ()> + Send + 'static + use<> {
    let listeners = [traffic.outbound, traffic.inbound_plain, traffic.inbound_hbone];
    let all = listeners.map(|listener| {
        accept(
            listener,
            Arc::clone(pod),
            accepting.clone(),
            "refused-connection",
            turn_away,
        )
    });
    async move {
        join_all(all).await;
    }
}

async fn turn_away(pod: Arc<Pod>, stream: TcpStream, peer: SocketAddr) {
    tracing::debug!(workload = %pod.name, %peer, "refused: ENABLE_PROXY is off");
    carry::reset(stream);
}

/// Accepts connections.
fn carry(
    pod: &Arc<Pod>,
    traffic: Traffic<TcpListener>,
    accepting: &Accepting,
) -> io::Result<impl Future<Output = ()> + Send + 'static + use<>> {
    // Whatever ends a connection before it is carried, this process' death included, is no orderly end. Tunnels are not
    // set: they end with a goodbye, and have options of their own.
    for listener in [&traffic.outbound, &traffic.inbound_plain] {
        prepare_accepted(listener, &pod.node.socket_options())?;
    }
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
