//! Bytes of one idle tunnelled connection, in the two proxies together and in each; of an idle tunnel; and of futures.
//!
//! Prints what it measured; there is nothing to repeat, so criterion takes no part. An argument, `h2` or `own`, says
//! which framing: memory that one has used would be there for the next, so each is measured by a run of its own.
//!
//! With `waypoint`: bytes that a waypoint has allocated for an idle connection of HTTP/1.1, and for a call of HTTP/2 that
//! is open. It runs on one thread, whose allocations are counted.

use std::io::Write;

use tulle_benches::l7::idle;
use tulle_benches::{Path, Peers, resident, runtime};
use tulle_transport::hbone::Framing;

/// Connections that are measured, if there are descriptors for them: each has four sockets.
const CONNECTIONS: usize = 4_000;

/// Streams that share a tunnel, as in the pool.
const PER_TUNNEL: usize = 100;

/// Tunnels without a stream that are measured.
const TUNNELS: usize = 200;

fn main() {
    if std::env::args().any(|argument| argument == "waypoint") {
        return idle::measure(one_thread, &mut allocated, |row| {
            let _ = writeln!(std::io::stdout(), "{row}");
        });
    }
    let connections = CONNECTIONS.min(descriptors().saturating_sub(1_000) / 4);
    let runtime = runtime();
    let framing = std::env::args().find_map(|name| Framing::from_name(&name));
    let peers = framing.map_or_else(Peers::default, Peers::with);
    let (mut tunnels, mut paths) = (Vec::new(), Vec::new());
    // What is allocated once is there before anything is measured.
    paths.push(runtime.block_on(async { peers.tunnel().await.path().await }));

    let before = resident();
    for _ in 0..TUNNELS {
        tunnels.push(runtime.block_on(peers.tunnel()));
    }
    report("idle tunnel, both ends", resident() - before, TUNNELS);

    let before = resident();
    for n in 0..connections {
        let tunnel = &mut tunnels[n / PER_TUNNEL];
        let mut path: Path = runtime.block_on(tunnel.path());
        runtime.block_on(path.ping(1));
        paths.push(path);
    }
    let grown = resident() - before;
    report("idle connection, both proxies", grown, connections);
    report("idle connection, each proxy", grown / 2, connections);
    for (what, bytes) in runtime.block_on(sizes(&peers)) {
        let _ = writeln!(std::io::stdout(), "future of {what}: {bytes} bytes");
    }
}

fn one_thread() -> tokio::runtime::Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().expect("epoll is there")
}

/// Bytes that this thread has allocated since, and not freed.
fn allocated(run: &mut dyn FnMut()) -> i64 {
    allocation_counter::measure(run).bytes_current
}

/// What the futures of a connection's life take while they wait.
async fn sizes(peers: &Peers) -> [(&'static str, usize); 4] {
    let [connecting, accepting] = peers.handshake_sizes().await;
    let [opening, copying] = peers.tunnel().await.stream_sizes().await;
    [
        ("connecting a tunnel", connecting),
        ("accepting a tunnel", accepting),
        ("opening a stream", opening),
        ("copying between a stream and a socket", copying),
    ]
}

fn report(what: &str, bytes: u64, of: usize) {
    let each = bytes / of.max(1) as u64;
    let _ = writeln!(std::io::stdout(), "{what}: {each} bytes ({of} measured)");
}

/// Descriptors this process may have.
fn descriptors() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    soft.unwrap_or(1024)
}
