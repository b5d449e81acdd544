//! Thousands of idle connections, and new ones beside them.

use std::net::SocketAddr;
use std::time::Duration;

use tulle_world::{Component, Pod};

use super::stage::PORT;
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::TestMesh;
use crate::crowd::{Called, Member, SLOW};
use crate::faults::{anonymous_bytes, run};
use crate::load::pauses::Pauses;

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "F31",
    300,
    "20,000 idle connections over two pairs of node proxies, and new ones beside them",
    f31,
)];

/// Pairs of nodes. A process may open 20,000 files where this was written, and a proxy refuses above nine tenths of that.
const PAIRS: usize = 2;
/// What a connection that is idle may cost a proxy.
const IDLE_KIB_MAX: f64 = 12.0;
/// How long a new connection may take, its request and answer included.
const ACCEPT_MAX: Duration = SLOW;
/// New connections per second in all, tried one after the other up to the first that a machine does not carry; the last is
/// what is wanted.
const RATES: [u32; 6] = [250, 500, 750, 1_000, 1_500, ROW];
const ROW: u32 = 2_000;
/// Of the processors, in percent, so much is idle before the next rate is tried, or so many seconds were waited for it.
const RESTED: u64 = 80;
const REST_MAX: usize = 30;
/// Ports that servers listen at: the local ports of clients are used anew for each.
const PORTS: u16 = 8;

/// A client, a server and the proxies between them.
struct Pair {
    client: Member,
    _server: Member,
    first: SocketAddr,
    proxies: [u32; 2],
    used: Vec<[u64; 2]>,
}

impl Pair {
    async fn new(from: &Pod, to: &Pod, proxies: [u32; 2]) -> Self {
        for pod in [from, to] {
            // A kernel takes ports of one parity first. Once those are used up, by what is held and by what has just ended,
            // each further connect searches them all in vain, and the clients of this load take the CPU for that.
            let range = "net.ipv4.ip_local_port_range=16000 65535";
            run(
                pod.namespace(),
                "sysctl",
                &["-qw", range, "net.ipv4.tcp_tw_reuse=1"],
            );
        }
        let first = SocketAddr::new(to.ipv4().into(), PORT);
        let mut this = Self {
            _server: Member::serve(to.namespace(), first, PORTS).await,
            client: Member::start(from.namespace()),
            first,
            proxies,
            used: Vec::new(),
        };
        this.look();
        this
    }

    fn look(&mut self) {
        self.used.push(self.proxies.map(anonymous_bytes));
    }

    /// KiB for each connection that a proxy was given between two looks.
    fn kib(&self, proxy: usize, from: usize, to: usize, connections: u64) -> f64 {
        let grown = self.used[to][proxy].saturating_sub(self.used[from][proxy]);
        grown as f64 / connections as f64 / 1024.0
    }
}

fn f31(scale: Scale) -> Run {
    Box::pin(async move {
        let each = scale.pick(2_000, 10_000);
        let (mut mesh, mut pairs) = meshed().await;
        let mut unopened = 0;
        // The first half also fills the tables and the allocator's pages that any number of connections needs.
        for _ in 0..2 {
            for pair in &mut pairs {
                unopened += pair.client.hold(pair.first, each / 2).await;
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
            pairs.iter_mut().for_each(Pair::look);
        }
        let worst = |proxy, from, to, connections| {
            let kib = pairs.iter().map(|pair| pair.kib(proxy, from, to, connections));
            kib.fold(0.0, f64::max)
        };
        let figure = Figure::new("F31")
            .with("idle", each * PAIRS as u64)
            .none("unopened", unopened)
            .kib("kib_per_sending_end", worst(0, 0, 2, each), IDLE_KIB_MAX)
            .kib("kib_per_receiving_end", worst(1, 0, 2, each), IDLE_KIB_MAX)
            .with("further_sending", format!("{:.1}", worst(0, 1, 2, each / 2)))
            .with("further_receiving", format!("{:.1}", worst(1, 1, 2, each / 2)));
        // Without a mesh first, from pods and to pods that it knows nothing of: what the machine itself carries.
        let mut bare = strangers(&mut mesh).await;
        let (alone, idle) = beside(&mut bare, ROW, scale.window()).await;
        let figure = figure
            .with("without_a_mesh", told(ROW, &alone))
            .with("processors_idle_then", idle);
        drop(bare);
        let rates = scale.pick(&RATES[..2], &RATES[..]);
        let figure = highest(figure, &mut pairs, rates, scale.window()).await;
        let mut lost = 0;
        for pair in &mut pairs {
            lost += pair.client.lost().await;
        }
        figure.none("idle_lost", lost).noting(mesh.endings())
    })
}

/// Tries one rate after the other, and judges the highest that is carried.
async fn highest(mut figure: Figure, pairs: &mut [Pair], rates: &[u32], time: Duration) -> Figure {
    let mut carried = None;
    for (index, rate) in rates.iter().enumerate() {
        // What one rate leaves to be done is not to be borne by the next.
        rested().await;
        let (called, idle) = beside(pairs, *rate, time).await;
        if called.failed == 0 && called.p99 <= ACCEPT_MAX {
            carried = Some((*rate, called, idle));
            continue;
        }
        figure = figure
            .with("not_carried", told(*rate, &called))
            .with("processors_idle", &idle);
        if index == 0 {
            carried = Some((*rate, called, idle));
        }
        if *rate != ROW && rates.contains(&ROW) {
            rested().await;
            let (called, idle) = beside(pairs, ROW, time).await;
            figure = figure
                .with("as_wanted", told(ROW, &called))
                .with("processors_idle_there", idle);
        }
        break;
    }
    let Some((rate, called, idle)) = carried else {
        return figure;
    };
    figure
        .with("new_per_s", rate)
        .expect("new", called.good, called.good > 0, "> 0")
        .none("failed_new", called.failed)
        .within("accept_p99", called.p99, ACCEPT_MAX)
        .with_time("accept_p50", called.p50)
        .with("processors_idle_beside", idle)
}

/// Waits until the processors have little to do.
async fn rested() {
    for _ in 0..REST_MAX {
        let before = processors();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let after = processors();
        if (after[0] - before[0]) * 100 >= RESTED * (after[1] - before[1]) {
            return;
        }
    }
}

fn told(rate: u32, called: &Called) -> String {
    format!("{rate}/s:{:.0}ms", called.p99.as_secs_f64() * 1e3)
}

/// A running mesh with a client and a server on each pair of its nodes.
async fn meshed() -> (TestMesh, Vec<Pair>) {
    let nodes: Vec<String> = (1..=2 * PAIRS).map(|number| format!("n{number}")).collect();
    let mut mesh = TestMesh::new(&nodes.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut pods = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let role = ["web", "db"][index % 2];
        pods.push(mesh.pod(node, &format!("{role}{}", index / 2)).await);
    }
    mesh.start().await;
    mesh.captured(&pods.iter().collect::<Vec<_>>()).await;
    let mut pairs = Vec::new();
    for pods in pods.chunks(2) {
        let proxies = [&pods[0], &pods[1]].map(|pod| {
            let component = Component::Ztunnel(pod.node().to_owned());
            mesh.mesh.process(&component).expect("it runs").id()
        });
        let mut pair = Pair::new(&pods[0], &pods[1], proxies).await;
        // The first tunnel and its certificates are no part of any figure.
        let warm = pair
            .client
            .call(pair.first, PORTS, 20, Duration::from_secs(1))
            .await;
        assert!(warm.failed == 0, "{warm:?}\n{}", mesh.logs());
        pair.used.clear();
        pair.look();
        pairs.push(pair);
    }
    (mesh, pairs)
}

/// As many pairs that have nothing between them.
async fn strangers(mesh: &mut TestMesh) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for pair in 0..PAIRS {
        let from = mesh
            .stranger(&format!("n{}", 2 * pair + 1), &format!("from{pair}"))
            .await;
        let to = mesh
            .stranger(&format!("n{}", 2 * pair + 2), &format!("to{pair}"))
            .await;
        // No proxies are between them; the numbers are those of nobody.
        pairs.push(Pair::new(&from, &to, [0; 2]).await);
    }
    pairs
}

/// New connections of all pairs at once, and how much of the processors nobody wanted meanwhile.
async fn beside(pairs: &mut [Pair], rate: u32, time: Duration) -> (Called, String) {
    let each = rate / u32::try_from(pairs.len()).expect("few");
    let (pauses, began) = (Pauses::watch(), tokio::time::Instant::now());
    let (before, faults) = (processors(), faults_from_disk());
    let calls = pairs
        .iter_mut()
        .map(|pair| pair.client.call(pair.first, PORTS, each, time));
    let all = together(calls.collect()).await;
    let after = processors();
    let [idle, total] = [after[0] - before[0], (after[1] - before[1]).max(1)];
    let slowest = |time: fn(&Called) -> Duration| all.iter().map(time).max().unwrap_or(Duration::MAX);
    for called in all.iter().filter(|called| called.slow.0 > 0) {
        let (count, [first, last]) = called.slow;
        eprintln!(
            "at {each}/s, {count} took longer than {SLOW:?}, due {first:?} to {last:?} after the beginning"
        );
    }
    let faults = faults_from_disk() - faults;
    if faults > 0 {
        eprintln!("{faults} pages were read back from disk meanwhile");
    }
    for pause in pauses.seen() {
        eprintln!(
            "a processor was away for {:?}, {:?} after the beginning",
            pause.to - pause.from,
            pause.from - began
        );
    }
    let sum = Called {
        good: all.iter().map(|called| called.good).sum(),
        failed: all.iter().map(|called| called.failed).sum(),
        p50: slowest(|called| called.p50),
        p99: slowest(|called| called.p99),
        slow: Default::default(),
    };
    (sum, format!("{}%", idle * 100 / total))
}

/// Waits for all of them, side by side.
async fn together<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = futures.into_iter().map(|future| Some(Box::pin(future))).collect();
    let mut done: Vec<_> = waiting.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (future, done) in waiting.iter_mut().zip(&mut done) {
            if let Some(pending) = future
                && let std::task::Poll::Ready(output) = pending.as_mut().poll(cx)
            {
                *done = Some(output);
                *future = None;
            }
        }
        if waiting.iter().all(Option::is_none) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// Pages that somebody wanted and that were only on disk, since the machine started: a stall that no processor shows.
fn faults_from_disk() -> u64 {
    let all = std::fs::read_to_string("/proc/vmstat").unwrap();
    let line = all.lines().find_map(|line| line.strip_prefix("pgmajfault "));
    line.and_then(|number| number.parse().ok())
        .expect("the kernel counts them")
}

/// Time that the processors had nothing to do, and all of it, in ticks.
fn processors() -> [u64; 2] {
    let stat = std::fs::read_to_string("/proc/stat").unwrap();
    let line = stat.lines().next().expect("the first line is of all processors");
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        // Guests are counted as users already.
        .take(8)
        .map(|ticks| ticks.parse().unwrap())
        .collect();
    [ticks[3], ticks.iter().sum()]
}
