//! What peers say of where a request comes from: nobody believes it, and it does not reach the application.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ::http::Request;
use bytes::Bytes;
use http_body_util::Full;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tulle_identity::WorkloadCertificate;
use tulle_model::Identity;
use tulle_transport::hbone::ConnectRequest;
use tulle_transport::{Baggage, Forwarded};
use tulle_world::Pod;

use super::front::{Front, GATEWAY, identity};
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::hbone::{certificate, tunnel};
use crate::http::{self, Asker, Seen};
use crate::manifest;
use crate::mesh::eventually;
use crate::traffic::connect;

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "F34",
    60,
    "peers of every class say whom they speak for: in fields, on the tunnel and before it",
    f34,
)];

/// Stands in every forged value.
const FORGED: &str = "forged-a1b2c3";
/// Fields of requests that only the mesh, or a gateway that it trusts, may set.
const FIELDS: &[&str] = &[
    "x-forwarded-client-cert",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-tulle-original-source",
    "x-tulle-hops",
    "x-tulle-reason",
    "x-envoy-external-address",
    "x-envoy-internal",
    "x-envoy-attempt-count",
    "x-envoy-peer-metadata",
    "x-istio-attributes",
    "X-Forwarded-Client-Cert",
    "X-TULLE-ORIGINAL-SOURCE",
];

/// A request that claims to come from `admin`, in every field there is.
fn forged(path: &str, admin: &Pod) -> Request<Full<Bytes>> {
    let principal = identity("admin");
    let mut request = Request::builder().uri(path).header("host", "server");
    for name in FIELDS {
        let value = match *name {
            "x-forwarded-for" => admin.ipv4().to_string(),
            "forwarded" => format!("for=\"{}\";host={FORGED}", admin.ipv4()),
            name if name.eq_ignore_ascii_case("x-forwarded-client-cert") => {
                format!("Hash={FORGED};URI={principal}")
            }
            name if name.eq_ignore_ascii_case("x-tulle-original-source") => principal.to_string(),
            _ => FORGED.to_owned(),
        };
        request = request.header(*name, value);
    }
    request.body(Full::default()).unwrap()
}

/// A tunnel request that claims the same.
fn lying(authority: &str, admin: &Pod) -> ConnectRequest {
    ConnectRequest {
        authority: authority.to_owned(),
        baggage: Baggage {
            namespace: Some(manifest::NAMESPACE.to_owned()),
            service_name: Some("admin".to_owned()),
            ..Baggage::default()
        },
        forwarded: Some(Forwarded {
            client: SocketAddr::from((admin.ipv4(), 40_000)),
            host: Some(FORGED.to_owned()),
        }),
        original_source: Some(identity("admin")),
        ..ConnectRequest::default()
    }
}

/// Fields of a request whose value was forged: none, if the mesh does its work.
fn leaked(seen: &Seen, admin: &Pod) -> usize {
    let (ip, principal) = (admin.ipv4().to_string(), identity("admin").to_string());
    let values = seen
        .headers
        .values()
        .map(|value| String::from_utf8_lossy(value.as_bytes()));
    values
        .filter(|value| value.contains(FORGED) || value.contains(&ip) || value.contains(&principal))
        .count()
}

/// Who is allowed what: `/who` to the account, `/where` to the address, `/open` to everybody.
fn policies(admin: &Pod) -> String {
    let rules = format!(
        "  - from:\n    - source:\n        principals: [cluster.local/ns/{ns}/sa/admin]\n    to:\n    - operation:\n        \
         paths: [/who]\n  - from:\n    - source:\n        ipBlocks: [{ip}]\n    to:\n    - operation:\n        \
         paths: [/where]\n  - from:\n    - source:\n        remoteIpBlocks: [{ip}]\n    to:\n    - operation:\n        \
         paths: [/remote]\n  - to:\n    - operation:\n        paths: [/open]\n",
        ns = manifest::NAMESPACE,
        ip = admin.ipv4(),
    );
    manifest::service_policy("admin-only", "server", "ALLOW", &rules)
}

/// Everything of a run.
struct Liars {
    front: Front,
    admin: Pod,
    way: Pod,
    tried: u64,
}

impl Liars {
    /// Asks for every path on something that is open; what comes back is told by the application.
    async fn ask_all(&mut self, asker: &mut Asker) {
        for path in ["/who", "/where", "/remote", "/open"] {
            self.tried += 1;
            let _ = asker.ask(forged(path, &self.admin)).await;
        }
    }

    /// An ordinary caller, through its node proxy.
    async fn enrolled(&mut self) {
        let client = self.front.client.namespace().clone();
        for to in [self.front.service, self.front.app.address()] {
            if let Ok(mut asker) = Asker::open(&client, to).await {
                self.ask_all(&mut asker).await;
            }
        }
    }

    /// A peer with a certificate of its own that opens tunnels itself.
    async fn tunnelled(&mut self, own: &Arc<WorkloadCertificate>) {
        let caller = self.front.mesh.world.node("n1").unwrap().namespace().clone();
        let (service, direct) = (
            self.front.service.to_string(),
            self.front.app.address().to_string(),
        );
        let (way, server) = (self.way.ipv4(), self.front.server.ipv4());
        let doors: [(IpAddr, Identity, String); 2] = [
            (way.into(), identity(GATEWAY), service),
            (server.into(), identity("server"), direct),
        ];
        for (ip, expected, authority) in doors {
            self.tried += 1;
            let request = lying(&authority, &self.admin);
            let to = SocketAddr::new(ip, 15008);
            if let Ok((_tunnel, stream)) = tunnel(&caller, own, &expected, to, &request).await
                && let Ok(mut asker) = Asker::over(stream).await
            {
                self.ask_all(&mut asker).await;
            }
        }
    }

    /// Somebody without a certificate, who says a PROXY line first.
    async fn outsider(&mut self, from: &Pod) {
        let admin = self.admin.ipv4();
        for (ip, port) in [
            (self.way.ipv4(), 15008),
            (self.front.server.ipv4(), 15008),
            (self.front.server.ipv4(), 8080),
        ] {
            self.tried += 1;
            let Ok(mut stream) = connect(from.namespace(), (ip, port).into()).await else {
                continue;
            };
            let line = format!("PROXY TCP4 {admin} {ip} 40000 {port}\r\n");
            let request = "GET /who HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n";
            let _ = stream.write_all((line + request).as_bytes()).await;
            let _ = tokio::time::timeout(
                std::time::Duration::from_secs(2),
                stream.read_to_end(&mut Vec::new()),
            )
            .await;
        }
        let _ = http::ask(
            from.namespace(),
            self.front.app.address(),
            forged("/who", &self.admin),
        )
        .await;
    }
}

fn f34(_: Scale) -> Run {
    Box::pin(async move {
        let mut front = Front::new().await;
        let admin = front.mesh.pod("n1", "admin").await;
        let outsider = front.mesh.stranger("n1", "outsider").await;
        front.mesh.captured(&[&admin]).await;
        let way = front
            .mesh
            .start_waypoint("n2", manifest::NAMESPACE, GATEWAY)
            .await;
        front
            .mesh
            .start_waypoint("n1", manifest::NAMESPACE, "other")
            .await;
        front.mesh.apply("admin-only", &policies(&admin));
        front.until("/open", 200).await;
        front.until("/who", 403).await;
        // Who really is admin gets everything: the rules above can be met.
        let mut granted = 0;
        for path in ["/who", "/where", "/remote"] {
            let reached = eventually(async || {
                let answer = http::ask(admin.namespace(), front.service, http::get(path)).await;
                answer.is_ok_and(|answer| answer.status == 200)
            });
            granted += u64::from(reached.await);
        }
        let before = front.app.count();
        let mut liars = Liars {
            front,
            admin,
            way,
            tried: 0,
        };
        liars.enrolled().await;
        for (node, account) in [("n1", "client"), ("n1", "other"), ("n2", "server")] {
            let own = certificate(&liars.front.mesh, node, &identity(account)).unwrap();
            liars.tunnelled(&own).await;
        }
        liars.outsider(&outsider).await;
        let seen = liars.front.app.seen().split_off(before);
        let open = seen.iter().filter(|seen| seen.target == "/open").count();
        let forwarded = seen.iter().map(|seen| leaked(seen, &liars.admin)).sum::<usize>();
        Figure::new("F34")
            .with("tried", liars.tried)
            .expect("really_admin", format!("{granted}/3"), granted == 3, "3/3")
            .expect("open", open, open > 0, "> 0")
            .none("believed", (seen.len() - open) as u64)
            .none("forwarded", forwarded as u64)
            .noting(
                seen.iter()
                    .filter(|seen| seen.target != "/open" || leaked(seen, &liars.admin) > 0)
                    .map(|seen| format!("{seen:?}"))
                    .collect(),
            )
    })
}
