//! Two control planes over one folder: the same versions, and a proxy that goes from one to the other.

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener as TokioListener, TcpStream};
use tokio::sync::watch;

use super::*;

/// Waits for something, and says where it was waited for if it does not come.
async fn reach(line: u32, mut what: impl AsyncFnMut() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !what().await {
            tokio::task::yield_now().await;
        }
    });
    assert!(waited.await.is_ok(), "what line {line} waits for");
}

/// Objects whose resources hold what only the owner of the state folder decides: the time of creation of a rule, and
/// addresses of services that name none.
const DECIDED: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: way, namespace: shop}
spec: {gatewayClassName: tulle-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {addresses: [{value: 10.96.0.9}]}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop, labels: {istio.io/use-waypoint: way}}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: all, namespace: shop}
spec: {parentRefs: [{group: '', kind: Service, name: api}], rules: [{backendRefs: [{name: api, port: 80}]}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: out, namespace: shop}
spec: {hosts: [out.example], resolution: DNS, ports: [{number: 443, name: tls}]}
";

impl Process {
    /// A second process beside this one, that owns nothing.
    fn replica(&self) -> Self {
        let own = tempfile::tempdir().unwrap();
        let shared = |name: &str| self.folder.path().join(name).display().to_string();
        Self::run_with(
            &own.path().join("run").display().to_string(),
            &[
                "--config-dir",
                &shared("config"),
                "--state-dir",
                &shared("state"),
                "--replica",
            ],
            own,
        )
    }

    /// Names and versions of everything served.
    async fn versions(&self) -> Option<Value> {
        let page: Value = serde_json::from_str(&self.get("/debug/resources").await?).ok()?;
        Some(page["resources"].clone())
    }

    async fn metric(&self, line: &str) -> f64 {
        let metrics = self.get("/metrics").await.unwrap_or_default();
        let value = metrics
            .lines()
            .filter_map(|known| known.strip_prefix(line)?.trim().parse::<f64>().ok());
        value.sum()
    }
}

async fn serve_the_same(one: &Process, other: &Process) {
    reach(line!(), async || {
        let versions = one.versions().await;
        versions.is_some() && versions == other.versions().await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_of_a_replica_is_over_once_the_owner_has_decided() {
    let owner = Process::start();
    owner.write("namespace.yaml", NAMESPACE);
    owner.ready().await;
    let replica = owner.replica();
    replica.ready().await;
    for number in 1..=3 {
        owner.write(
            &format!("web-{number}.yaml"),
            &entry(&format!("web-{number}"), "n1", "10.0.0.1"),
        );
        looked(&replica).await;
        let world = replica.get("/debug/world").await.expect("a page");
        assert!(world.contains(&format!("web-{number}.yaml")), "{world}");
    }
    // Nothing is new: it is over all the same.
    looked(&replica).await;
    replica.stop().await;
    owner.stop().await;
}

/// A port that leads to whichever server is named; what is open is cut off when that changes.
struct Switch {
    port: u16,
    to: watch::Sender<SocketAddr>,
}

impl Switch {
    async fn to(first: SocketAddr) -> Self {
        let listener = TokioListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (to, target) = watch::channel(first);
        tasks::spawn("switch", async move {
            while let Ok((mut inbound, _)) = listener.accept().await {
                let mut target = target.clone();
                let server = *target.borrow_and_update();
                tasks::spawn("switched", async move {
                    if let Ok(mut outbound) = TcpStream::connect(server).await {
                        tokio::select! {
                            _ = copy_bidirectional(&mut inbound, &mut outbound) => {}
                            _ = target.changed() => {}
                        }
                    }
                });
            }
        });
        Self { port, to }
    }

    fn turn_to(&self, process: &Process) {
        self.to.send_replace(process.address);
    }
}

/// Responses that told a client what it did not hold yet, by how it began.
async fn begun(process: &Process, outcome: &str) -> f64 {
    process
        .metric(&format!("tulle_xds_resume_total{{outcome=\"{outcome}\"}}"))
        .await
}

/// Types that clients began with what they held already.
async fn came_back(process: &Process) -> f64 {
    begun(process, "equal").await + begun(process, "versions").await + begun(process, "buckets").await
}

fn many(process: &Process) {
    let entries: Vec<String> = (0..160)
        .map(|number| entry(&format!("w{number}"), "n1", &format!("10.1.0.{number}")))
        .collect();
    process.write("many.yaml", &entries.join("---"));
}

/// Bytes that it told clients.
async fn bytes(process: &Process) -> f64 {
    let of = async |encoding: &str| {
        let name = format!("tulle_xds_response_bytes_total{{encoding=\"{encoding}\"}}");
        process.metric(&name).await
    };
    of("identity").await + of("gzip").await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_serve_the_same_versions_and_a_proxy_moves_for_the_price_of_the_differences() {
    let owner = Process::start();
    owner.write("namespace.yaml", NAMESPACE);
    owner.write("web.yaml", &entry("web", "n1", "10.0.0.1"));
    owner.write("decided.yaml", DECIDED);
    owner.write("deny.yaml", DENY);
    many(&owner);
    owner.ready().await;
    let replica = owner.replica();
    replica.ready().await;
    serve_the_same(&owner, &replica).await;
    owner.write("service.yaml", SERVICE);
    owner.write("broken.yaml", "kind: [");
    reach(line!(), async || {
        owner
            .versions()
            .await
            .is_some_and(|all| all.to_string().contains("shop/web.shop"))
    })
    .await;
    serve_the_same(&owner, &replica).await;

    let token = tulle_xds::token::create(&owner.state(), "n1").unwrap();
    let switch = Switch::to(owner.address).await;
    let through = SocketAddr::from(([127, 0, 0, 1], switch.port));
    let (state, _client) = follow_over(owner.channel_to(through, &token), "n1", false);
    reach(line!(), async || {
        state.synced() && state.snapshot().workloads().count() >= 161
    })
    .await;
    reach(line!(), async || begun(&owner, "fresh").await >= 3.0).await;

    // The same content: nothing is told again.
    switch.turn_to(&replica);
    // Roots, policies and addresses, each as digests or as a list of versions.
    reach(line!(), async || came_back(&replica).await >= 3.0).await;
    let status = replica.status().await.expect("a status");
    let (client, this) = (&status["clients"][0], &status["replicas"][0]["name"]);
    assert_eq!(
        (&client["replica"], &client["identity"]),
        (this, &"spiffe://cluster.local/node/n1".into())
    );
    assert_eq!(begun(&replica, "fresh").await, 0.0);
    assert_eq!(begun(&replica, "buckets").await, 0.0);
    let (all, told) = (bytes(&owner).await, bytes(&replica).await);
    assert!(told * 4.0 < all, "{told} of {all} bytes for nothing new");

    // What changes now is told by the replica, though the owner alone writes it down.
    owner.write("db.yaml", &entry("db", "n2", "10.0.0.2"));
    reach(line!(), async || held(&state).contains(&"db".to_owned())).await;
    serve_the_same(&owner, &replica).await;
    let channel = owner.channel_to(replica.address, &token);
    let refused = GrpcCa::new(channel, GrpcCaOptions::default())
        .fetch(&"spiffe://cluster.local/ns/shop/sa/web".parse().unwrap())
        .await;
    let Err(CaError::Status { message, .. }) = refused else {
        panic!("a replica signs nothing: {refused:?}");
    };
    assert!(message.contains("read-only replica"), "{message}");

    // And back, with what it heard from the other one.
    switch.turn_to(&owner);
    reach(line!(), async || came_back(&owner).await >= 3.0).await;
    assert_eq!(begun(&owner, "fresh").await, 3.0, "only at first");
    drop(state);
    replica.stop().await;
    owner.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_serves_on_and_takes_edits_while_nobody_owns_the_folder() {
    let owner = Process::start();
    owner.write("namespace.yaml", NAMESPACE);
    owner.write("web.yaml", &entry("web", "n1", "10.0.0.1"));
    owner.write("decided.yaml", DECIDED);
    owner.ready().await;
    let replica = owner.replica();
    replica.ready().await;
    serve_the_same(&owner, &replica).await;
    let before = replica.versions().await;
    let servers = async |process: &Process| process.status().await.expect("a status")["replicas"].clone();
    let (told, own) = (servers(&replica).await, servers(&owner).await);
    assert_eq!((&told[0]["role"], &told[1]), (&"replica".into(), &own[0]));
    assert_eq!(
        (&own[0]["role"], own.as_array().map(Vec::len)),
        (&"owner".into(), Some(1))
    );
    let folder = owner.stop().await;
    assert_eq!(
        servers(&replica).await,
        json!([told[0]]),
        "nobody owns the folder now"
    );
    assert_eq!(
        replica.versions().await,
        before,
        "nothing changes with the owner's end"
    );
    write(
        &folder.path().join("config"),
        "db.yaml",
        &entry("db", "n2", "10.0.0.2"),
    );
    reach(line!(), async || {
        let all = replica.versions().await;
        all.is_some_and(|all| all.to_string().contains("WorkloadEntry/shop/db"))
    })
    .await;
    let history: Vec<_> = fs::read_dir(folder.path().join("state/history"))
        .unwrap()
        .collect();
    let owner = Process::start_in(folder);
    owner.ready().await;
    serve_the_same(&owner, &replica).await;
    let after: Vec<_> = fs::read_dir(owner.state().join("history")).unwrap().collect();
    assert!(
        after.len() > history.len(),
        "the owner writes down what happened meanwhile"
    );
    replica.stop().await;
    owner.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_denied_is_denied_by_both_and_a_rotation_reaches_both() {
    let owner = Process::start();
    owner.write("namespace.yaml", NAMESPACE);
    owner.write("web.yaml", &entry("web", "n1", "10.0.0.1"));
    owner.ready().await;
    let replica = owner.replica();
    replica.ready().await;
    let token = tulle_xds::token::create(&owner.state(), "n1").unwrap();
    // A certificate whose workload leaves is denied by serial; both say so in the same words.
    GrpcCa::new(owner.channel(&token), GrpcCaOptions::default())
        .fetch(&"spiffe://cluster.local/ns/shop/sa/web".parse().unwrap())
        .await
        .unwrap();
    fs::remove_file(owner.folder.path().join("config/web.yaml")).unwrap();
    let denied = async |process: &Process| {
        process
            .status()
            .await
            .map(|status| status["ca"]["denied"].clone())
    };
    reach(line!(), async || denied(&owner).await == Some(1.into())).await;
    reach(line!(), async || denied(&replica).await == Some(1.into())).await;
    serve_the_same(&owner, &replica).await;
    let posted = owner.post("/ca/rotate", "{}").await.expect("an answer");
    assert!(posted.starts_with("HTTP/1.1 20"), "{posted}");
    let generation = async |process: &Process| {
        process
            .status()
            .await
            .map(|status| status["ca"]["generation"].clone())
    };
    reach(line!(), async || generation(&owner).await == Some(2.into())).await;
    reach(line!(), async || generation(&replica).await == Some(2.into())).await;
    serve_the_same(&owner, &replica).await;
    let refused = replica.post("/ca/rotate", "{}").await.expect("an answer");
    assert!(refused.starts_with("HTTP/1.1 404"), "{refused}");
    replica.stop().await;
    owner.stop().await;
}
