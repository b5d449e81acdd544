//! Node proxies are killed, alone and with all that would start them again: some connections end, and nothing goes around
//! them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;
use tulle_linux::NetNs;
use tulle_world::{Component, Pod, Recorder, Sought};

use super::stage::{PORT, Stage};
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::TestMesh;
use crate::mesh::PATIENCE;
use crate::traffic::{Echo, connect, gets_through, spawn};
use crate::upgrade;

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("F06", 90, "the node proxy is killed and started again", f06),
    scenario(
        "F08",
        30,
        "supervisor, node proxy and agent of a node are all dead",
        f08,
    ),
];

/// Port of tunnels.
const HBONE: u16 = 15008;
/// Connections that only wait for their end.
const WAITING: usize = 20;

fn f06(scale: Scale) -> Run {
    Box::pin(async move {
        let mut stage = Stage::new(scale).await;
        let [first, second] = stage.quiet().await;
        let clear = [
            in_clear(&stage.mesh, &stage.web),
            in_clear(&stage.mesh, &stage.db),
        ];
        let waiting = Waiting::open(stage.web.namespace(), stage.echo.address()).await;
        let proxy = Component::Ztunnel("n1".into());
        let from = Instant::now();
        stage.mesh.mesh.kill(&proxy).unwrap();
        let reset = waiting.last_end(from).await;
        stage.mesh.mesh.start_ztunnel(&stage.mesh.world, "n1").unwrap();
        stage.mesh.mesh.wait_ready(&proxy).await.unwrap();
        let ready = from.elapsed();
        stage.after().await;
        let after = stage.load.report(from, Instant::now());
        let (established, lost) = stage.load.established();
        let failed = first.connects.failed + second.connects.failed + after.connects.failed;
        let leaked: u64 = clear.iter().map(|clear| clear.seen().marked_frames).sum();
        Figure::new("F06")
            .with("established_ended", format!("{lost}/{established}"))
            .within("reset_within", reset, Duration::from_secs(1))
            .none("refused_new", failed as u64)
            .within("ready_again", ready, Duration::from_secs(1))
            .within(
                "longest_wait",
                after.connects.max,
                ready + Duration::from_millis(300),
            )
            .none("packets_in_clear", leaked)
            .noting(stage.load.failures())
    })
}

/// Counts packets of TCP in clear on the link of a pod.
fn in_clear(mesh: &TestMesh, pod: &Pod) -> Recorder {
    let of: Vec<IpAddr> = vec![pod.ipv4().into(), pod.ipv6().into()];
    let sought = Sought::Streams { of, but: HBONE };
    mesh.world.record_node(pod.node(), &sought).unwrap()
}

/// Connections that wait for a byte that never comes.
struct Waiting(Vec<tokio::task::JoinHandle<Instant>>);

impl Waiting {
    async fn open(from: &NetNs, to: SocketAddr) -> Self {
        let mut tasks = Vec::new();
        for _ in 0..WAITING {
            let mut stream = connect(from, to).await.unwrap();
            stream.write_all(b"x").await.unwrap();
            stream.read_u8().await.unwrap();
            tasks.push(spawn(async move {
                // However it ends: what counts is when.
                let _ = stream.read_u8().await;
                Instant::now()
            }));
        }
        Self(tasks)
    }

    /// How long after a moment the last of them had heard of its end.
    async fn last_end(self, from: Instant) -> Duration {
        let mut last = Duration::ZERO;
        for task in self.0 {
            let ended = tokio::time::timeout(PATIENCE, task).await;
            last = last.max(ended.map_or(Duration::MAX, |ended| ended.unwrap() - from));
        }
        last
    }
}

fn f08(scale: Scale) -> Run {
    Box::pin(async move {
        let (mut mesh, web, _db) = upgrade::supervised_pair().await;
        let outside = mesh.stranger("n2", "outside").await;
        let theirs = Echo::start(outside.namespace(), outside.ipv4(), PORT).await;
        let ours = Echo::start(web.namespace(), web.ipv4(), PORT).await;
        let there = async || gets_through(web.namespace(), theirs.address()).await;
        let back = async || gets_through(outside.namespace(), ours.address()).await;
        let open = there().await && back().await;
        let before = theirs.peers().len() + ours.peers().len();
        end_all(&mut mesh, "n1").await;
        let tries = scale.pick(20, 200);
        let clear = in_clear(&mesh, &web);
        let mut through = 0;
        for _ in 0..tries {
            through += u64::from(there().await);
        }
        let left = clear.seen().marked_frames;
        for _ in 0..tries {
            through += u64::from(back().await);
        }
        // What comes from outside is in clear: where that is counted, the silence before meant something.
        let heard = clear.seen().marked_frames - left;
        let reached = theirs.peers().len() + ours.peers().len() - before;
        Figure::new("F08")
            .expect("open_before", open, open, "true")
            .with("tried", 2 * tries)
            .none("got_through", through)
            .none("reached_an_application", reached as u64)
            .none("packets_sent_in_clear", left)
            .expect("packets_heard_from_outside", heard, heard > 0, "> 0")
    })
}

/// Ends everything of a node that carries, or could start what carries.
async fn end_all(mesh: &mut TestMesh, node: &str) {
    let generations = mesh.mesh.generations(node).await;
    for component in [Component::Ztunnel(node.into()), Component::Agent(node.into())] {
        mesh.mesh.kill(&component).unwrap();
    }
    for pid in generations.iter().filter_map(|generation| generation.pid) {
        // Its supervisor has just said that it runs; one that noticed the end of that is gone already.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}
