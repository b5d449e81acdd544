//! No harm: a pod joins and leaves again and again while it is called without pause, and no call fails.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use tulle_agent::capture::Capture;
use tulle_agent::netns::Located;
use tulle_agent::rules::Backend;
use tulle_agent::rules::plan::{self, ProxyMark, Variant};
use tulle_agent::sockets::Listeners;
use tulle_agent::variant::Existing;
use tulle_linux::NetNs;

use crate::backends::with_each_backend;
use crate::pod::{PATIENCE, POD, World, assert_alive};

with_each_backend! {
    f30_no_call_fails_while_a_pod_joins_and_leaves,
}

const PORT: u16 = 8080;
const CALLERS: usize = 4;
const CYCLES: usize = 5;

/// Answers each caller with what it said.
fn echo(listener: TcpListener) {
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            thread::spawn(move || {
                let mut four = [0; 4];
                while stream.read_exact(&mut four).is_ok() && stream.write_all(&four).is_ok() {}
            });
        }
    });
}

/// Calls again and again until told to stop.
struct Callers {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<Vec<std::io::Error>>>,
    calls: Arc<AtomicUsize>,
}

impl Callers {
    fn start(outside: &NetNs) -> Self {
        let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = (0..CALLERS).map(|_| {
            let (outside, stop, calls) = (outside.clone(), Arc::clone(&stop), Arc::clone(&calls));
            thread::spawn(move || {
                outside
                    .run(move || {
                        let mut failures = Vec::new();
                        while !stop.load(Ordering::Relaxed) {
                            failures.extend(call().err());
                            calls.fetch_add(1, Ordering::Relaxed);
                        }
                        failures
                    })
                    .unwrap()
            })
        });
        Self {
            threads: threads.collect(),
            stop,
            calls,
        }
    }

    fn stop(self) -> (usize, Vec<std::io::Error>) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self
            .threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect();
        (self.calls.load(Ordering::Relaxed), failures)
    }
}

fn call() -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((POD, PORT)), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"ping")?;
    let mut four = [0; 4];
    stream.read_exact(&mut four)
}

/// A proxy for inbound connections: relays each to the application.
struct Relay {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<usize>,
}

impl Relay {
    fn start(pod: &NetNs, inbound: OwnedFd) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, pod) = (Arc::clone(&stop), pod.clone());
        let thread = thread::spawn(move || {
            let listener = TcpListener::from(inbound);
            let mut relayed = 0;
            loop {
                match listener.accept() {
                    Ok((caller, _)) => {
                        relayed += 1;
                        relay(&pod, caller);
                    }
                    Err(_) if stopped.load(Ordering::Relaxed) => return relayed,
                    Err(_) => thread::yield_now(),
                }
            }
        });
        Self { stop, thread }
    }

    /// Accepts what waits, then closes.
    fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn relay(pod: &NetNs, mut caller: TcpStream) {
    let pod = pod.clone();
    thread::spawn(move || {
        caller.set_nonblocking(false).unwrap();
        let mut server = pod.run(|| TcpStream::connect((POD, PORT))).unwrap().unwrap();
        let mut four = [0; 4];
        while caller.read_exact(&mut four).is_ok() {
            server.write_all(&four).unwrap();
            server.read_exact(&mut four).unwrap();
            caller.write_all(&four).unwrap();
        }
    });
}

async fn cycle(world: &World, pod: &Located, capture: &Capture) -> usize {
    let listeners = Listeners::open(&pod.netns, false, ProxyMark::WellKnown)
        .await
        .unwrap();
    let inbound = listeners.fds()[1].try_clone_to_owned().unwrap();
    let relay = Relay::start(&world.pod, inbound);
    capture
        .install(pod, &plan::capture(&Variant::default()), Existing::Keep)
        .await
        .unwrap();
    for _ in 0..3 {
        capture
            .repair_rules(pod, &plan::capture(&Variant::default()))
            .await
            .unwrap();
    }
    capture.drain(pod).await.unwrap();
    capture.wait_for_queues_to_empty(pod).await.unwrap();
    let relayed = relay.stop();
    drop(listeners);
    assert_eq!(capture.wait_for_proxy_to_leave(pod).await.unwrap(), 0);
    capture.remove(pod).await.unwrap();
    relayed
}

async fn f30_no_call_fails_while_a_pod_joins_and_leaves(backend: Backend) {
    let Some(world) = World::new("no_call_fails_while_a_pod_joins_and_leaves") else {
        return;
    };
    let server = world.serve(PORT);
    let mut old = world.dial(PORT).unwrap();
    let (mut old_server, _) = server.accept().unwrap();
    echo(server);
    let pod = world.located().await;
    let capture = Capture::new(backend.rules(), ProxyMark::WellKnown);
    let callers = Callers::start(&world.outside);
    let mut relayed = 0;
    for _ in 0..CYCLES {
        relayed += cycle(&world, &pod, &capture).await;
        assert_alive(&mut old, &mut old_server);
    }
    let (calls, failures) = callers.stop();
    assert!(
        failures.is_empty(),
        "{} of {calls} calls failed: {:?}",
        failures.len(),
        failures.first()
    );
    eprintln!("{calls} calls, {relayed} of them captured, none failed");
    assert!(
        relayed > 0 && relayed < calls,
        "{relayed} of {calls} calls were captured"
    );
    assert_eq!(world.output("nft", "list ruleset"), "");
}
