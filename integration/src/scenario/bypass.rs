//! What only a waypoint can check reaches the application through it or not at all.

use std::net::SocketAddr;

use tulle_transport::hbone::ConnectRequest;
use tulle_world::Pod;

use super::front::{Front, GATEWAY, identity};
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::hbone::{certificate, tunnel};
use crate::http::{self, Asker, get};
use crate::manifest;
use crate::mesh::eventually;

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "F25",
    60,
    "the waypoint is missing, never ready, dead or somebody else, and the pod is addressed directly",
    f25,
)];

/// A policy that only somebody who reads requests can enforce.
fn no_admin() -> String {
    let rules = "  - to:\n    - operation:\n        paths: [\"/admin*\"]\n";
    manifest::service_policy("no-admin", "server", "DENY", rules)
}

/// Every way to the application, tried a few times. Nobody cares what comes back: the application says what got through.
struct Ways {
    outsider: Pod,
    tries: usize,
}

impl Ways {
    async fn try_all(&self, front: &Front, paths: &[&str]) {
        let direct = front.app.address();
        for path in paths {
            for _ in 0..self.tries {
                front.status(front.service, path).await;
                front.status(direct, path).await;
                let _ = http::ask(self.outsider.namespace(), direct, get(path)).await;
            }
            self.tunnelled(front, path).await;
        }
    }

    /// A tunnel to the server's node proxy, with a certificate that is good and not the waypoint's.
    async fn tunnelled(&self, front: &Front, path: &str) {
        let caller = front.mesh.world.node("n1").unwrap().namespace().clone();
        let own = certificate(&front.mesh, "n1", &identity("client")).unwrap();
        let to = SocketAddr::from((front.server.ipv4(), 15008));
        let request = ConnectRequest {
            authority: front.app.address().to_string(),
            ..ConnectRequest::default()
        };
        if let Ok((_tunnel, stream)) = tunnel(&caller, &own, &identity("server"), to, &request).await
            && let Ok(mut asker) = Asker::over(stream).await
        {
            let _ = asker.ask(get(path)).await;
        }
    }
}

fn f25(scale: Scale) -> Run {
    Box::pin(async move {
        let mut front = Front::new().await;
        let ways = Ways {
            outsider: front.mesh.stranger("n1", "outsider").await,
            tries: scale.pick(2, 20),
        };
        let both = ["/admin", "/page"];
        // Without a policy the pod may be addressed directly: what is counted below can be seen.
        front.until("/page", 200).await;
        ways.try_all(&front, &["/page"]).await;
        let control = front.app.count();
        front.mesh.apply("no-admin", &no_admin());
        let refused = eventually(async || front.status(front.service, "/page").await.is_none());
        assert!(
            refused.await,
            "the policy never came into force\n{}",
            front.mesh.logs()
        );

        let missing = reached(&front, &ways, &both).await;
        front
            .mesh
            .apply("gateway", &manifest::gateway(manifest::NAMESPACE, GATEWAY));
        settle(&front).await;
        let never_ready = reached(&front, &ways, &both).await;
        let pod = front.mesh.world.add_pod("n2", "way-1").await.unwrap();
        front.mesh.apply(
            "instance",
            &manifest::instance(manifest::NAMESPACE, GATEWAY, &pod),
        );
        let mut process = front.serve(&pod, GATEWAY).await;
        front.until("/page", 200).await;
        front.until("/admin", 403).await;
        let before = front.app.seen().len();
        ways.try_all(&front, &both).await;
        let during = front.app.seen().split_off(before);
        let unchecked = during.iter().filter(|seen| seen.target != "/page").count();
        // The client's own requests of /page to the service are those that were checked and may pass.
        let around = (during.len() - unchecked).abs_diff(ways.tries);
        process.kill().unwrap();
        drop(process);
        let crashed = reached(&front, &ways, &both).await;
        let impostor = impostor(&front, &pod, &ways, &both).await;
        Figure::new("F25")
            .with("reached_without_policy", control)
            .expect("control", control > 0, control > 0, "true")
            .none("missing", missing)
            .none("never_ready", never_ready)
            .none("denied_path", unchecked as u64)
            .none("around_the_waypoint", around as u64)
            .none("crashed", crashed)
            .none("wrong_identity", impostor)
    })
}

/// Requests that reached the application while nobody could check them.
async fn reached(front: &Front, ways: &Ways, paths: &[&str]) -> u64 {
    let before = front.app.count();
    ways.try_all(front, paths).await;
    (front.app.count() - before) as u64
}

/// Waits until the control plane has said something of the gateway.
async fn settle(front: &Front) {
    let told = eventually(async || {
        let page = front.mesh.text(&tulle_world::Component::Control, "/status").await;
        page.contains("\"AddressNotAssigned\"")
    });
    assert!(told.await, "{}", front.mesh.logs());
}

/// Another waypoint answers at the address, under its own identity.
async fn impostor(front: &Front, pod: &Pod, ways: &Ways, paths: &[&str]) -> u64 {
    // The node may have that certificate: another pod of it has the account.
    let other = manifest::instance(manifest::NAMESPACE, "other", pod)
        .replace("  name: way-1\n", "  name: other-1\n")
        .replace(&pod.ipv4().to_string(), "10.99.0.1")
        .replace(&pod.ipv6().to_string(), "fd99::1")
        .replace("netns:way-1", "netns:other-1");
    front.mesh.apply(
        "other",
        &(manifest::gateway(manifest::NAMESPACE, "other") + &other),
    );
    let _process = front.serve(pod, "other").await;
    reached(front, ways, paths).await
}
