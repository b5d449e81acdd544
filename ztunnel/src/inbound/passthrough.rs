//! Captured inbound plaintext: callers outside the mesh, who pass unless a policy asks for an identity.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tulle_model::NetworkAddress;
use tulle_transport::copy::Endpoint;
use tulle_transport::socket;

use super::authorize::{Permitted, authorize, plaintext};
use super::{connect, refuse_own_port};
use crate::carry;
use crate::error::Error;
use crate::metrics::labels::Direction;
use crate::pod::{Place, Pod};
use crate::record::Story;

/// Serves one plaintext connection to its end. Its socket has the options of its listener.
pub async fn serve(pod: Arc<Pod>, client: TcpStream, peer: SocketAddr) {
    let _socket = pod.node.metrics.socket(Direction::Inbound);
    let target = identify(&pod, &client);
    // Boxed: what it needs, the story included, is given back before the connection is carried.
    let established = Box::pin(async {
        let mut story = Story::begin(Direction::Inbound, peer, *target.as_ref().unwrap_or(&peer));
        let established = match target {
            Ok(target) => establish(&pod, peer, target, &mut story).await,
            Err(error) => Err(error),
        };
        match established {
            Ok((permitted, application, place)) => {
                pod.node.plaintext.note(&story);
                let tracked = carry::track(&pod, story, Some(permitted.judged));
                Some((tracked, application, place))
            }
            Err(error) => {
                story.fail(&pod.node.metrics, &error);
                None
            }
        }
    });
    match established.await {
        Some((tracked, application, _place)) => {
            carry::run(&pod, application, Endpoint::resetting(client), tracked).await;
        }
        None => carry::reset(client),
    }
}

/// What the client wanted to reach.
fn identify(pod: &Pod, client: &TcpStream) -> Result<SocketAddr, Error> {
    let target = socket::original_destination(client).map_err(Error::OriginalDestination)?;
    refuse_own_port(&pod.node.config.ports, target)?;
    Ok(target)
}

async fn establish(
    pod: &Pod,
    peer: SocketAddr,
    target: SocketAddr,
    story: &mut Story,
) -> Result<(Permitted, TcpStream, Place), Error> {
    let place = pod.place()?;
    let workload = pod.workload().await?;
    story.destination_is(&pod.node.metrics, &workload);
    let address = NetworkAddress::new(Arc::clone(&pod.node.config.network), peer.ip());
    if let Some(source) = pod.node.mesh.snapshot().workload_by_address(&address) {
        story.source_is(&pod.node.metrics, &source);
    }
    story.planned = true;
    let permitted = authorize(pod, plaintext(peer.ip(), target)).await?;
    story.generation = permitted.judged.generation;
    story.policy.clone_from(&permitted.policy);
    let application = connect(pod, target, Some(peer.ip())).await?;
    Ok((permitted, application, place))
}
