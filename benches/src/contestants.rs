//! Who takes part in a comparison: what a tunnel is to be measured beside, and the tunnel in all its framings.

use tulle_transport::hbone::Framing;

use crate::bound::{bound, spliced};
use crate::{Path, Peers, direct, relayed};

/// All framings of a tunnel.
pub const FRAMINGS: [Framing; 3] = [Framing::H2, Framing::Own, Framing::Records];

/// Everyone, each with `streams` paths of its own: `direct` has nothing between the applications, `relay` our copy
/// without a tunnel (as passthrough and pods of one node have it), `splice` the least that such a relay can cost, `TLS`
/// two relays without HTTP/2, `bound` the least that records can cost. Then each framing, all streams on one tunnel.
pub async fn contestants(streams: usize) -> Vec<(String, Vec<Path>)> {
    let mut all = beside(streams).await;
    for framing in FRAMINGS {
        all.push((framing.to_string(), tunnelled(framing, streams, 1).await));
    }
    all
}

/// What a tunnel is measured beside.
pub async fn beside(streams: usize) -> Vec<(String, Vec<Path>)> {
    let names = ["direct", "relay", "splice", "TLS", "bound"];
    let mut all = names.map(|name| (name.to_owned(), Vec::new()));
    let peers = Peers::default();
    for _ in 0..streams {
        let paths = [
            direct().await,
            relayed().await,
            spliced().await,
            peers.tls_only().await,
            bound().await,
        ];
        for ((_, all), path) in all.iter_mut().zip(paths) {
            all.push(path);
        }
    }
    all.into()
}

/// Streams over so many tunnels, in turns.
pub async fn tunnelled(framing: Framing, streams: usize, tunnels: usize) -> Vec<Path> {
    let (peers, mut open) = (Peers::with(framing), Vec::new());
    for _ in 0..tunnels {
        open.push(peers.tunnel().await);
    }
    let mut paths = Vec::new();
    for stream in 0..streams {
        paths.push(open[stream % tunnels].path().await);
    }
    paths
}
