//! Waits until node proxies have heard that a waypoint is not in front of something any more, and says so to the engine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tulle_model::Str;

use crate::serve::admit::Kind;
use crate::snapshot::{ResourceType, Snapshot};
use crate::status::{ClientStatus, Clients};

/// A waypoint keeps at most this long what was taken from it.
pub const DRAIN_MAX: Duration = Duration::from_secs(60);
/// Time between two looks at the answers of node proxies.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Releases that wait for the engine.
pub const RELEASES_WAITING_MAX: usize = 64;

/// A waypoint, and the cut that took something from it last.
pub type Release = (Str, u64);

/// Runs until the engine is gone.
pub async fn run(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    clients: Clients,
    releases: mpsc::Sender<Release>,
) {
    let mut began: BTreeMap<Release, Instant> = BTreeMap::new();
    loop {
        let draining = snapshots.borrow_and_update().draining().clone();
        began.retain(|(waypoint, since), _| draining.get(waypoint) == Some(since));
        if draining.is_empty() {
            if snapshots.changed().await.is_err() {
                return;
            }
            continue;
        }
        let heard = heard(&clients.list(std::time::Instant::now()));
        for (waypoint, since) in draining.iter() {
            let begin = *began
                .entry((waypoint.clone(), *since))
                .or_insert_with(Instant::now);
            let is_over = heard.is_none_or(|cut| cut >= *since) || begin.elapsed() >= DRAIN_MAX;
            if is_over && releases.send((waypoint.clone(), *since)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            changed = snapshots.changed() => if changed.is_err() {
                return;
            }
        }
    }
}

/// The newest cut whose addresses every node proxy has taken; `None` without any.
fn heard(clients: &[ClientStatus]) -> Option<u64> {
    let proxies = clients.iter().filter(|client| client.kind == Kind::Ztunnel);
    let types = proxies.filter_map(|client| client.types.get(ResourceType::Address.type_url()));
    let heard = types.map(|ty| match (ty.behind, ty.unacked) {
        (0, 0) => ty.head,
        _ => ty.acked.unwrap_or_default(),
    });
    heard.min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::table::Resource;
    use crate::serve::session::{Request, Session};
    use crate::serve::viewer::{Features, Viewer};
    use crate::snapshot::{Order, Scope};
    use crate::status::Connected;

    fn cut(sequence: u64, draining: &[(&str, u64)]) -> Arc<Snapshot> {
        let draining = draining.iter().map(|(name, since)| ((*name).into(), *since));
        let mut snapshot = Snapshot {
            sequence,
            synced: true,
            draining: Arc::new(draining.collect()),
            ..Snapshot::default()
        };
        let service = Resource {
            name: "shop/web".into(),
            aliases: Vec::new(),
            body: bytes::Bytes::from_static(b"without its waypoint"),
            order: Order::Service,
            scope: Scope::Everyone,
        };
        assert!(snapshot.addresses.set(service, sequence));
        Arc::new(snapshot)
    }

    fn proxy(clients: &Clients, head: &Arc<Snapshot>) -> (Session<Arc<Snapshot>>, Connected) {
        let mut session = Session::new(1, Viewer::node("n1"), head.clone());
        let first = Request {
            type_url: ResourceType::Address.type_url().into(),
            ..Request::default()
        };
        session.on_request(&first, head).unwrap();
        let status = ClientStatus::new("n1".into(), Kind::Ztunnel, Features::default());
        let connected = clients.connect(status).unwrap();
        connected.update(&session, head);
        (session, connected)
    }

    fn start(clients: &Clients) -> (watch::Sender<Arc<Snapshot>>, mpsc::Receiver<Release>) {
        let (cuts, snapshots) = watch::channel(cut(1, &[]));
        let (releases, released) = mpsc::channel(RELEASES_WAITING_MAX);
        tulle_runtime::tasks::spawn("drains", run(snapshots, clients.clone(), releases));
        (cuts, released)
    }

    #[tokio::test(start_paused = true)]
    async fn without_node_proxies_nothing_is_waited_for() {
        let (cuts, mut released) = start(&Clients::default());
        cuts.send_replace(cut(2, &[("shop/way", 2)]));
        assert_eq!(released.recv().await, Some(("shop/way".into(), 2)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_waypoint_drains_until_every_proxy_has_answered() {
        let clients = Clients::default();
        let (cuts, mut released) = start(&clients);
        let head = cut(2, &[("shop/way", 2)]);
        let (mut session, connected) = proxy(&clients, &head);
        cuts.send_replace(head.clone());
        let waited = tokio::time::timeout(DRAIN_MAX / 4, released.recv()).await;
        assert!(waited.is_err(), "nothing was sent to the proxy yet");
        let response = session.poll_send(&head, std::time::Instant::now()).unwrap();
        connected.update(&session, &head);
        let waited = tokio::time::timeout(DRAIN_MAX / 4, released.recv()).await;
        assert!(waited.is_err(), "the proxy has not answered");
        let answer = Request {
            type_url: response.type_url,
            nonce: response.nonce,
            ..Request::default()
        };
        session.on_request(&answer, &head).unwrap();
        connected.update(&session, &head);
        assert_eq!(released.recv().await, Some(("shop/way".into(), 2)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_that_never_answers_is_waited_for_a_minute() {
        let clients = Clients::default();
        let (cuts, mut released) = start(&clients);
        let head = cut(2, &[("shop/way", 2)]);
        let _proxy = proxy(&clients, &head);
        let begin = Instant::now();
        cuts.send_replace(head);
        assert_eq!(released.recv().await, Some(("shop/way".into(), 2)));
        assert!(begin.elapsed() >= DRAIN_MAX && begin.elapsed() < DRAIN_MAX + 2 * LOOK_EVERY);
    }
}
