//! Two captured pods in network namespaces of their own, both served by one proxy in shared mode. Needs root, `ip`
//! and `nft`; says so where it has none.

use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tulle_linux::NetNs;
use tulle_runtime::tasks;

use crate::agent::{Agent, add, snapshot_sent};
use crate::world::{SOON, until_counted, updates};

pub(crate) const WEB: &str = "10.77.0.1";
pub(crate) const DB: &str = "10.77.0.2";
const DB_PORT: u16 = 8080;

/// The packet rules of a pod without capture of DNS.
const RULES: &str = r#"
table inet tulle {
    chain mangle-pre { type filter hook prerouting priority mangle; policy accept;
        iifname "lo" ct direction original meta mark & 0xfff == 0x539 ct mark set ct mark & 0xfffff000 | 0x111
        iifname "lo" accept
    }
    chain mangle-out { type route hook output priority mangle; policy accept;
        ct direction reply ct mark & 0xfff == 0x111 meta mark set meta mark & 0xfffff000 | 0x111
    }
    chain nat-pre { type nat hook prerouting priority dstnat; policy accept;
        meta l4proto != tcp accept
        iifname "lo" accept
        tcp dport 15008 accept
        ct mark set ct mark & 0xfffff000 | 0x222
        meta l4proto tcp redirect to :15006
    }
    chain nat-out { type nat hook output priority -100; policy accept;
        oifname "lo" accept
        meta mark & 0xfff == 0x539 accept
        meta l4proto != tcp accept
        ct mark set ct mark & 0xfffff000 | 0x222
        meta l4proto tcp redirect to :15001
    }
}
"#;

/// Two pods joined by a link.
pub(crate) struct Pods {
    pub(crate) web: NetNs,
    pub(crate) db: NetNs,
    /// Lives in the second namespace so that `ip` can name it.
    anchor: Child,
}

impl Drop for Pods {
    fn drop(&mut self) {
        let _ = self.anchor.kill();
        let _ = self.anchor.wait();
    }
}

pub(crate) fn run(netns: &NetNs, command: &str) -> Result<(), String> {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", command])
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let child = netns.spawn(shell).map_err(|error| error.to_string())?;
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr)))
}

impl Pods {
    pub(crate) fn make() -> Result<Self, String> {
        let (web, db) = (create()?, create()?);
        let mut sleep = Command::new("sleep");
        sleep.arg("600");
        let anchor = db.spawn(sleep).map_err(|error| error.to_string())?;
        let pods = Self { web, db, anchor };
        run(
            &pods.web,
            &format!(
                "ip link add eth0 type veth peer name eth0 netns {}",
                pods.anchor.id()
            ),
        )?;
        for (netns, address) in [(&pods.web, WEB), (&pods.db, DB)] {
            run(
                netns,
                &format!("ip addr add {address}/24 dev eth0 && ip link set eth0 up && ip link set lo up"),
            )?;
            run(netns, "ip route add 10.78.0.0/24 dev eth0")?;
            run(netns, "ip rule add fwmark 0x111/0xfff pref 32764 lookup 100")?;
            run(netns, "ip route replace local 0.0.0.0/0 dev lo table 100")?;
            run(netns, &format!("nft -f - <<'RULES'\n{RULES}\nRULES"))?;
        }
        Ok(pods)
    }

    /// A connection of an application in the first pod; with a mark it passes its own proxy by.
    async fn call(&self, to: &str, mark: Option<u32>) -> std::io::Result<TcpStream> {
        let to: SocketAddr = to.parse().unwrap();
        let connected = self.web.run_async(move || {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            if let Some(mark) = mark {
                socket.set_mark(mark)?;
            }
            socket.connect_timeout(&to.into(), SOON)?;
            socket.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(std::net::TcpStream::from(socket))
        });
        TcpStream::from_std(connected.await??)
    }

    /// An application in the second pod: it says who it thinks calls, then sends back what it gets.
    pub(crate) async fn application(&self) {
        let listener = self
            .db
            .run(|| std::net::TcpListener::bind(("0.0.0.0", DB_PORT)).unwrap())
            .unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        tasks::spawn("application", async move {
            while let Ok((mut socket, peer)) = listener.accept().await {
                tasks::spawn("application-connection", async move {
                    socket
                        .write_all(format!("{:>15}", peer.ip()).as_bytes())
                        .await
                        .unwrap();
                    let (mut read, mut write) = socket.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
    }
}

fn create() -> Result<NetNs, String> {
    NetNs::create().map_err(|error| error.to_string())
}

/// The address the application saw.
async fn caller(stream: &mut TcpStream) -> IpAddr {
    let mut seen = [0; 15];
    timeout(SOON, stream.read_exact(&mut seen))
        .await
        .unwrap()
        .unwrap();
    String::from_utf8_lossy(&seen).trim().parse().unwrap()
}

async fn assert_echoes(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
    let mut back = vec![0; text.len()];
    timeout(SOON, stream.read_exact(&mut back))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(back, text);
}

async fn assert_reset(stream: &mut TcpStream) {
    let mut buffer = [0; 16];
    let ended = timeout(Duration::from_secs(1), stream.read(&mut buffer))
        .await
        .expect("within a second");
    assert!(ended.is_err(), "a reset, not an orderly end");
}

/// The reset may come before connecting is done.
async fn assert_refused(connected: std::io::Result<TcpStream>) {
    if let Ok(mut stream) = connected {
        assert_reset(&mut stream).await;
    }
}

pub(crate) fn mesh() -> String {
    format!(
        "workloads:\n\
         - {{uid: web, name: web, namespace: shop, serviceAccount: web, workloadIps: [{WEB}], protocol: HBONE}}\n\
         - {{uid: db, name: db, namespace: shop, serviceAccount: db, workloadIps: [{DB}], protocol: HBONE, \
            services: {{shop/db.shop.svc.cluster.local: {{80: {DB_PORT}}}}}}}\n\
         services:\n\
         - {{name: db, namespace: shop, hostname: db.shop.svc.cluster.local, vips: [/10.78.0.1], ports: {{80: {DB_PORT}}}}}\n"
    )
}

const DENY_WEB: &str = "policies:\n\
    - {name: deny-web, namespace: shop, scope: Namespace, action: Deny, \
       rules: [[[{principals: [{Exact: cluster.local/ns/shop/sa/web}]}]]]}\n";

const STRICT: &str = "policies:\n\
    - {name: strict, namespace: shop, scope: Namespace, action: Deny, \
       rules: [[[{notPrincipals: [{Presence: []}]}]]]}\n";

/// Both pods, captured and served; nothing if this machine cannot.
async fn captured() -> Option<(Pods, Agent)> {
    let pods = match Pods::make() {
        Ok(pods) => pods,
        Err(error) => {
            eprintln!("skipped: captured pods cannot be made here: {error}");
            return None;
        }
    };
    let agent = Agent::start().await;
    agent.app.node().mesh.apply(updates(&mesh()));
    pods.application().await;
    agent.assert_done(add("web", &[]), &[pods.web.fd()]).await;
    agent.assert_done(add("db", &[]), &[pods.db.fd()]).await;
    agent.assert_done(snapshot_sent(), &[]).await;
    Some((pods, agent))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn captured_traffic_is_tunnelled_and_keeps_its_source_address() {
    let Some((pods, agent)) = captured().await else {
        return;
    };
    for destination in [format!("{DB}:{DB_PORT}"), "10.78.0.1:80".to_owned()] {
        let mut stream = pods.call(&destination, None).await.unwrap();
        assert_eq!(caller(&mut stream).await.to_string(), WEB, "at {destination}");
        assert_echoes(&mut stream, &vec![7; 300_000]).await;
    }
    agent.app.node().connections.pass_on();
    let metrics = agent.app.exposition().encode();
    let mutual =
        |line: &&str| line.starts_with("istio_tcp_connections_opened_total") && line.contains("mutual_tls");
    assert_eq!(
        metrics.lines().filter(mutual).count(),
        4,
        "two ways, two reporters: {metrics}"
    );
    assert!(
        !metrics.contains("connection_security_policy=\"unknown\""),
        "{metrics}"
    );
    assert!(
        metrics.contains("\ntulle_same_node_connections_total 2"),
        "both pods are served here, so no tunnel is needed: {metrics}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_ends_captured_connections_and_refuses_new_ones() {
    let Some((pods, agent)) = captured().await else {
        return;
    };
    let mut open = pods.call(&format!("{DB}:{DB_PORT}"), None).await.unwrap();
    caller(&mut open).await;
    agent.app.node().mesh.apply(updates(DENY_WEB));
    assert_reset(&mut open).await;
    assert_refused(pods.call(&format!("{DB}:{DB_PORT}"), None).await).await;
    until_counted(
        agent.app.exposition(),
        "tulle_refused_total{code=\"T0412\",reason=\"policy_denied\"} 1",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plaintext_passes_until_a_policy_asks_for_an_identity() {
    let Some((pods, agent)) = captured().await else {
        return;
    };
    let mut open = pods.call(&format!("{DB}:{DB_PORT}"), Some(0x539)).await.unwrap();
    assert_eq!(caller(&mut open).await.to_string(), WEB);
    assert_echoes(&mut open, b"in the clear").await;
    assert_eq!(agent.app.node().plaintext.list().len(), 1);
    agent.app.node().mesh.apply(updates(STRICT));
    assert_reset(&mut open).await;
    assert_refused(pods.call(&format!("{DB}:{DB_PORT}"), Some(0x539)).await).await;
    let mut tunnelled = pods.call(&format!("{DB}:{DB_PORT}"), None).await.unwrap();
    caller(&mut tunnelled).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f11_deleting_a_pod_resets_its_connections_within_a_second() {
    let Some((pods, agent)) = captured().await else {
        return;
    };
    let mut open = pods.call(&format!("{DB}:{DB_PORT}"), None).await.unwrap();
    caller(&mut open).await;
    agent.assert_done(crate::agent::del("db"), &[]).await;
    assert_reset(&mut open).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_into_a_pod_whose_rules_are_just_coming_waits_no_second() {
    let Some((pods, _agent)) = captured().await else {
        return;
    };
    // Without the route the application's answers leave the pod.
    run(&pods.db, "ip rule del fwmark 0x111/0xfff pref 32764 lookup 100").unwrap();
    let began = std::time::Instant::now();
    let mut stream = pods.call(&format!("{DB}:{DB_PORT}"), None).await.unwrap();
    let restored = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        run(&pods.db, "ip rule add fwmark 0x111/0xfff pref 32764 lookup 100").unwrap();
    };
    tokio::join!(caller(&mut stream), restored);
    assert!(
        began.elapsed() < Duration::from_millis(900),
        "{:?}",
        began.elapsed()
    );
}
