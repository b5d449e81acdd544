//! The proxy of one workload: its three listeners, for as long as it lives.

use std::io;
use std::sync::Arc;

use crate::accept::{Accepting, accept};
use crate::pod::Pod;
use crate::sockets::PodSockets;
use crate::{inbound, outbound};

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
    let out = accept(
        listeners.outbound,
        Arc::clone(pod),
        accepting.clone(),
        "outbound-connection",
        outbound::serve,
    );
    let plain = accept(
        listeners.inbound_plain,
        Arc::clone(pod),
        accepting.clone(),
        "inbound-plain-connection",
        inbound::passthrough::serve,
    );
    let hbone = accept(
        listeners.inbound_hbone,
        Arc::clone(pod),
        accepting.clone(),
        "inbound-tunnel",
        inbound::listener::serve,
    );
    let certificate = Arc::clone(pod);
    Ok(async move {
        let keeping = async {
            let _kept = certificate.keep_certificate().await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = async { tokio::join!(out, plain, hbone) } => {}
            () = keeping => {}
        }
    })
}
