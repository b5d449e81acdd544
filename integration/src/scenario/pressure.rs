//! Files, memory and ports run short.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;
use tulle_world::Component;

use super::stage::{PORT, Stage};
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::TestMesh;
use crate::faults::{anonymous_bytes, limit_files, open_files, run};
use crate::load::{Load, Plan};
use crate::mesh::eventually;
use crate::traffic::{Echo, connect, gets_through, spawn};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "F13",
        90,
        "500 connections whose readers take a byte each second, beside others",
        f13,
    ),
    scenario(
        "F17",
        70,
        "the node proxy may open 20 files more, at 200 new connections/s",
        f17,
    ),
    scenario("F32", 40, "a pod runs out of local ports", f32),
];

/// What a stalled stream may cost a proxy: its window of 4 MiB, and 64 KiB.
const STALLED_KIB_MAX: f64 = 4096.0 + 64.0;

/// Readers that take a byte now and then, of what an echo has for them.
fn f13(scale: Scale) -> Run {
    Box::pin(async move {
        let stalled = scale.pick(100, 500);
        let mut stage = Stage::new(scale).await;
        // All nodes share one kernel here, and its one budget for the buffers of TCP. Those of so many stalled
        // applications would use it up, and then the kernel starves everybody, with or without a mesh.
        for pod in [&stage.web, &stage.db] {
            for buffers in ["tcp_rmem", "tcp_wmem"] {
                let least_usual_most = format!("net.ipv4.{buffers}=4096 65536 262144");
                run(pod.namespace(), "sysctl", &["-qw", &least_usual_most]);
            }
        }
        let [first, second] = stage.quiet().await;
        let proxies = ["n1", "n2"].map(|node| stage.process(&Component::Ztunnel(node.into())));
        let before = proxies.map(anonymous_bytes);
        let mut readers = Vec::new();
        let sent = Arc::new(AtomicU64::new(0));
        for _ in 0..stalled {
            let stream = connect(stage.web.namespace(), stage.echo.address())
                .await
                .unwrap();
            readers.push(spawn(read_slowly(stream, Arc::clone(&sent))));
        }
        // Filling the windows is a load of its own; what counts here is that they stand full.
        if let Err(last) = until_it_rests(&sent, stalled).await {
            let total = sent.load(Ordering::Relaxed) >> 20;
            panic!("the windows never fill: {total} MiB sent, and {last} bytes in the last second");
        }
        let under = stage.after().await;
        // The allocator gives back what was freed within ten seconds or so.
        tokio::time::sleep(scale.window()).await;
        let after = proxies.map(anonymous_bytes);
        let mut buffers = Vec::new();
        for node in ["n1", "n2"] {
            let bytes = stage.mesh.metric(node, &["tulle_buffer_bytes "]).await;
            buffers.push(bytes / stalled as f64 / 1024.0);
        }
        let each = |index: usize| after[index].saturating_sub(before[index]) as f64 / stalled as f64 / 1024.0;
        let figure = Figure::new("F13")
            .with("stalled", stalled)
            .losses(&stage.load, &[&first, &second, &under])
            .latency([&first, &second], &under)
            .kib("kib_per_stalled_sending", each(0), STALLED_KIB_MAX)
            .kib("kib_per_stalled_receiving", each(1), STALLED_KIB_MAX)
            .with("kib_in_buffers_sending", format!("{:.0}", buffers[0]))
            .with("kib_in_buffers_receiving", format!("{:.0}", buffers[1]));
        readers.iter().for_each(tokio::task::JoinHandle::abort);
        figure
    })
}

/// Sends until nothing more is taken, and reads one byte each second.
async fn read_slowly(stream: tokio::net::TcpStream, sent: Arc<AtomicU64>) {
    let (mut reading, mut writing) = stream.into_split();
    let chunk = vec![7; 64 * 1024];
    let flood = async {
        while let Ok(bytes) = writing.write(&chunk).await {
            sent.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    };
    let trickle = async {
        while reading.read_exact(&mut [0]).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::join!(flood, trickle);
}

/// Waits until almost nothing is sent any more, for two minutes at most; the error is how many bytes the last second saw.
async fn until_it_rests(sent: &AtomicU64, streams: u64) -> Result<(), u64> {
    // The kernel goes on to find room for some of a stream's bytes, a few segments each second.
    const RESTING_PER_STREAM: u64 = 16 * 1024;
    let mut last = 0;
    for _ in 0..120 {
        let before = sent.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(1)).await;
        last = sent.load(Ordering::Relaxed) - before;
        if last < RESTING_PER_STREAM * streams {
            return Ok(());
        }
    }
    Err(last)
}

fn f17(scale: Scale) -> Run {
    Box::pin(async move {
        let mut stage = Stage::new(scale).await;
        let proxy = stage.process(&Component::Ztunnel("n1".into()));
        limit_files(proxy, Some(open_files(proxy) + 20));
        let storm = Plan {
            connects_per_second: 200,
            requests_per_second: 0,
            pinned: 0,
            bulk_bytes_per_second: 0,
            ..Plan::l1()
        };
        // Slow callers hold what they open, so that the limit is really met.
        let mut held = Vec::new();
        for _ in 0..60 {
            if let Ok(stream) = connect(stage.web.namespace(), stage.echo.address()).await {
                held.push(stream);
            }
        }
        let flood = Load::start(stage.web.namespace(), &[stage.echo.address()], storm).await;
        let under = flood.observe(scale.window()).await;
        drop(held);
        drop(flood);
        limit_files(proxy, None);
        let relieved = Instant::now();
        let (from, to) = (stage.web.namespace(), stage.echo.address());
        assert!(
            eventually(async || gets_through(from, to).await).await,
            "{}",
            stage.mesh.logs()
        );
        let recovered = relieved.elapsed();
        let (established, lost) = stage.load.established();
        let shed = stage.mesh.metric("n1", &["tulle_denied_total", "T0515"]).await;
        Figure::new("F17")
            .with("new", under.connects.ok)
            .expect(
                "established_lost",
                format!("{lost}/{established}"),
                lost == 0,
                "0",
            )
            .with("refused_new", under.connects.failed)
            .expect("shed", shed, shed > 0.0, "> 0")
            .within("recovered", recovered, Duration::from_secs(1))
            .noting(stage.load.failures())
    })
}

/// Local ports that F32 leaves.
const PORTS: u32 = 10;

fn f32(scale: Scale) -> Run {
    Box::pin(async move {
        let (mesh, web, db) = TestMesh::pair().await;
        let echo = Echo::start(db.namespace(), db.ipv4(), PORT).await;
        let (from, to) = (web.namespace(), echo.address());
        assert!(gets_through(from, to).await, "{}", mesh.logs());
        // The proxy of db connects to the application from inside of db, under the caller's address: with no local
        // port left there, the connection cannot be made.
        run(
            db.namespace(),
            "sysctl",
            &[
                "-qw",
                &format!("net.ipv4.ip_local_port_range=40000 {}", 40_000 + PORTS - 1),
            ],
        );
        let mut held = Vec::new();
        let mut served = 0;
        for _ in 0..scale.pick(20, 40) {
            let Ok(mut stream) = connect(from, to).await else {
                continue;
            };
            let mut answer = [0];
            let asked = async {
                stream.write_all(b"x").await?;
                stream.read_exact(&mut answer).await
            };
            served += u32::from(asked.await.is_ok());
            held.push(stream);
        }
        let counted =
            eventually(async || mesh.metric("n2", &["tulle_denied_total", "T0522"]).await > 0.0).await;
        let logged = mesh
            .log(&Component::Ztunnel("n2".into()))
            .contains("ports_exhausted");
        let told = mesh
            .log(&Component::Ztunnel("n1".into()))
            .contains("ports_exhausted");
        run(
            db.namespace(),
            "sysctl",
            &["-qw", "net.ipv4.ip_local_port_range=32768 60999"],
        );
        let relieved = Instant::now();
        assert!(
            eventually(async || gets_through(from, to).await).await,
            "{}",
            mesh.logs()
        );
        let recovered = relieved.elapsed();
        let refused = held.len() - served as usize;
        drop(held);
        Figure::new("F32")
            .expect("served", served, served == PORTS, "one for each port")
            .with("refused", refused)
            .expect("counted", counted, counted, "T0522")
            .expect("logged", logged, logged, "ports_exhausted")
            .expect("callers_proxy_knows", told, told, "ports_exhausted")
            .within("recovered", recovered, Duration::from_secs(1))
    })
}
