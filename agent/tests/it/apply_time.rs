//! Measurements, run by name: how long it takes to put the rules into a namespace that has none, and what it costs to
//! look at captured pods.
//!
//! `cargo test -p tulle-agent --test it -- --ignored --nocapture apply_time`

use std::time::{Duration, Instant};

use tulle_agent::capture::Capture;
use tulle_agent::netns::Located;
use tulle_agent::rules::plan::{self, ProxyMark, Variant};
use tulle_agent::rules::{Backend, Comparison};
use tulle_agent::sockets::Listeners;
use tulle_agent::variant::Existing;
use tulle_linux::NetNs;
use tulle_runtime::usage;

const NAMESPACES: usize = 20;

/// Smallest, middle and largest.
fn spread(mut times: Vec<Duration>) -> [Duration; 3] {
    times.sort();
    [times[0], times[times.len() / 2], times[times.len() - 1]]
}

#[tokio::test]
#[ignore = "a measurement, for a machine that does nothing else"]
async fn apply_time_of_each_backend_on_fresh_namespaces() {
    let table = plan::capture(&Variant {
        dns: true,
        ..Variant::default()
    });
    for backend in [Backend::Netlink, Backend::Nft] {
        let rules = backend.rules();
        let [mut first, mut again, mut compared] = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..NAMESPACES {
            let netns = NetNs::create().expect("namespaces can be made");
            let start = Instant::now();
            rules.apply(&netns, &table).await.unwrap();
            first.push(start.elapsed());
            let start = Instant::now();
            rules.apply(&netns, &table).await.unwrap();
            again.push(start.elapsed());
            let start = Instant::now();
            assert_eq!(rules.compare(&netns, &table).await.unwrap(), Comparison::Equal);
            compared.push(start.elapsed());
        }
        for (what, times) in [("apply", first), ("apply again", again), ("compare", compared)] {
            let [least, middle, most] = spread(times);
            eprintln!("{backend:?} {what}: median {middle:.1?} ({least:.1?} to {most:.1?})");
        }
    }
}

/// What it costs to look at captured pods: processor time per look, and as a share of a core for a full node.
///
/// `cargo test -p tulle-agent --release --test it -- --ignored --nocapture verify_cost`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, for a machine that does nothing else"]
async fn verify_cost_of_captured_pods() {
    const LOOKS: usize = 5;
    const PODS_OF_A_FULL_NODE: f64 = 250.0;
    const INTERVAL_SECONDS: f64 = 30.0;
    let table = plan::capture(&Variant {
        dns: true,
        ..Variant::default()
    });
    let capture = Capture::new(Backend::Netlink.rules(), ProxyMark::WellKnown);
    let mut pods = Vec::new();
    let before = resident_bytes();
    for _ in 0..NAMESPACES {
        let netns = NetNs::create().unwrap();
        let mut up = std::process::Command::new("/usr/sbin/ip");
        up.args(["link", "set", "lo", "up"]);
        assert!(netns.spawn(up).unwrap().wait().unwrap().success());
        let listeners = Listeners::open(&netns, true, ProxyMark::WellKnown).await.unwrap();
        let pod = Located {
            netns,
            ipv6: true,
            path: std::path::PathBuf::new(),
        };
        capture.install(&pod, &table, Existing::Keep).await.unwrap();
        pods.push((pod, listeners));
    }
    let held = resident_bytes().saturating_sub(before) / NAMESPACES;
    let started = (Instant::now(), processor_time());
    for _ in 0..LOOKS {
        for (pod, _) in &pods {
            assert_eq!(
                capture.observe(pod, &table).await.unwrap().rules,
                Comparison::Equal
            );
        }
    }
    let looks = (LOOKS * NAMESPACES) as f64;
    let (wall, cpu) = (started.0.elapsed(), processor_time() - started.1);
    let each = cpu.as_secs_f64() / looks;
    eprintln!(
        "a look: {:.2} ms of processor time, {:.2} ms in all; {PODS_OF_A_FULL_NODE} pods every {INTERVAL_SECONDS} s: \
         {:.2} % of a core; {held} bytes resident per pod",
        each * 1e3,
        wall.as_secs_f64() / looks * 1e3,
        each * PODS_OF_A_FULL_NODE / INTERVAL_SECONDS * 1e2,
    );
}

/// Time of this process on processors, its own and the kernel's for it.
fn processor_time() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let duration = |time: nix::sys::time::TimeVal| {
        Duration::from_micros(u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap())
    };
    duration(usage.user_time()) + duration(usage.system_time())
}

fn resident_bytes() -> usize {
    let bytes = usage::memory(usage::Process::Own, usage::Memory::Resident).unwrap();
    usize::try_from(bytes).unwrap()
}
