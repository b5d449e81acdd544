//! Sockets opened inside of a pod's network namespace, before they are needed.
//!
//! A thread has to enter the namespace to open one, and ends there. So they are opened a few at a time, more at a time
//! the faster they are used, and by somebody else than who needs one: as soon as the stock runs low. What is in stock
//! is closed with the pod: a socket keeps its namespace alive.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use socket2::{Domain, Socket};
use tokio::time::Instant;
use tulle_linux::NetNs;
use tulle_transport::socket::{SocketFactory, new_tcp};

use crate::dns::network::{PodNetwork, new_udp};

/// Sockets opened per visit of the namespace, at first.
const BATCH_MIN: usize = 8;

/// The same where many are used.
const BATCH_MAX: usize = 64;

/// Sockets that are kept: a batch that comes while half of the one before is left.
const KEPT_MAX: usize = BATCH_MAX + BATCH_MAX / 2;

/// A stock that is used up sooner is larger the next time, and smaller if it took longer.
const LASTS: Duration = Duration::from_secs(1);

/// Opens sockets in one namespace.
pub struct NetnsSockets {
    netns: NetNs,
    v4: Arc<Stock>,
    v6: Arc<Stock>,
    udp_v4: Arc<Stock>,
    udp_v6: Arc<Stock>,
}

/// Sockets of one kind.
struct Stock {
    open: fn() -> io::Result<Socket>,
    ready: Mutex<Ready>,
}

/// What is there, and what is being done about it.
struct Ready {
    sockets: Vec<Socket>,
    batch: usize,
    /// When it was last decided to open more.
    opened: Option<Instant>,
    /// Somebody is in the namespace to open more.
    on_the_way: bool,
}

impl Ready {
    /// A socket, and how many are to be opened beside, if any.
    fn take(&mut self, now: Instant) -> (Option<Socket>, Option<usize>) {
        let socket = self.sockets.pop();
        let low = self.sockets.len() < self.batch / 2;
        // The first one is waited for anyway; a pod that needs no more gets no more.
        let more = low && !self.on_the_way && socket.is_some();
        (socket, more.then(|| self.begin(now)))
    }

    /// How many to open now.
    fn begin(&mut self, now: Instant) -> usize {
        let before = self.opened.replace(now);
        let soon = before.is_some_and(|before| now.duration_since(before) < LASTS);
        let batch = if soon { self.batch * 2 } else { self.batch / 2 };
        self.batch = batch.clamp(BATCH_MIN, BATCH_MAX);
        self.on_the_way = true;
        self.batch
    }

    /// Takes in what was opened.
    fn arrived(&mut self, sockets: Vec<Socket>) {
        self.sockets.extend(sockets);
        // Several tasks may have found the stock empty at once.
        self.sockets.truncate(KEPT_MAX);
        self.on_the_way = false;
    }
}

impl Stock {
    fn new(open: fn() -> io::Result<Socket>) -> Arc<Self> {
        Arc::new(Self {
            open,
            ready: Mutex::new(Ready {
                sockets: Vec::new(),
                batch: BATCH_MIN,
                opened: None,
                on_the_way: false,
            }),
        })
    }

    /// Opens so many where it is called, or as many as there are descriptors for.
    fn open(&self, count: usize) -> io::Result<Vec<Socket>> {
        let mut opened = Vec::with_capacity(count);
        for _ in 0..count {
            match (self.open)() {
                Ok(socket) => opened.push(socket),
                Err(error) if opened.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(opened)
    }

    fn take(self: &Arc<Self>, netns: &NetNs) -> io::Result<Socket> {
        let now = Instant::now();
        let (socket, more) = self.ready.lock().take(now);
        if let Some(count) = more {
            self.fetch(netns, count);
        }
        if let Some(socket) = socket {
            return Ok(socket);
        }
        let count = self.ready.lock().begin(now);
        let stock = Arc::clone(self);
        let opened = netns.run(move || stock.open(count)).and_then(|opened| opened);
        let mut ready = self.ready.lock();
        let mut sockets = opened.inspect_err(|_| ready.on_the_way = false)?;
        let socket = sockets.pop().ok_or(io::ErrorKind::Other)?;
        ready.arrived(sockets);
        Ok(socket)
    }

    /// Opens more in a thread that nobody waits for. What fails will fail for who needs a socket, and be told there.
    fn fetch(self: &Arc<Self>, netns: &NetNs, count: usize) {
        let stock = Arc::clone(self);
        let begun = netns.run_beside(move || {
            let opened = stock.open(count).unwrap_or_default();
            stock.ready.lock().arrived(opened);
        });
        if begun.is_err() {
            self.ready.lock().on_the_way = false;
        }
    }
}

impl NetnsSockets {
    /// A factory for one namespace.
    #[must_use]
    pub fn new(netns: NetNs) -> Self {
        Self {
            netns,
            v4: Stock::new(|| new_tcp(Domain::IPV4)),
            v6: Stock::new(|| new_tcp(Domain::IPV6)),
            udp_v4: Stock::new(|| new_udp(Domain::IPV4)),
            udp_v6: Stock::new(|| new_udp(Domain::IPV6)),
        }
    }
}

impl SocketFactory for NetnsSockets {
    fn tcp_v4(&self) -> io::Result<Socket> {
        self.v4.take(&self.netns)
    }

    fn tcp_v6(&self) -> io::Result<Socket> {
        self.v6.take(&self.netns)
    }
}

impl PodNetwork for NetnsSockets {
    fn udp(&self, domain: Domain) -> io::Result<Socket> {
        if domain == Domain::IPV4 {
            self.udp_v4.take(&self.netns)
        } else {
            self.udp_v6.take(&self.netns)
        }
    }
}

impl fmt::Debug for NetnsSockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NetnsSockets").field(&self.netns).finish()
    }
}

#[cfg(test)]
mod tests {
    use tulle_transport::socket::{self, SocketOptions, SourcePorts};

    use super::*;

    fn ready(batch: usize, sockets: usize) -> Ready {
        let open = || new_tcp(Domain::IPV4).unwrap();
        Ready {
            sockets: std::iter::repeat_with(open).take(sockets).collect(),
            batch,
            opened: None,
            on_the_way: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn more_are_opened_before_the_last_is_used_and_more_at_a_time_the_faster_they_go() {
        let mut stock = ready(BATCH_MIN, BATCH_MIN);
        let mut asked = Vec::new();
        for _ in 0..BATCH_MIN {
            asked.extend(stock.take(Instant::now()).1);
        }
        assert_eq!(
            asked,
            [BATCH_MIN],
            "once, and nothing is known of how fast they go"
        );
        assert!(stock.take(Instant::now()).0.is_none());
        let mut batches = Vec::new();
        for _ in 0..4 {
            stock.arrived(Vec::new());
            batches.push(stock.begin(Instant::now()));
        }
        assert_eq!(batches, [16, 32, BATCH_MAX, BATCH_MAX]);
        tokio::time::advance(LASTS).await;
        assert_eq!(stock.begin(Instant::now()), BATCH_MAX / 2);
    }

    #[test]
    fn a_batch_that_was_asked_for_in_time_is_kept_and_no_more_than_that() {
        let mut stock = ready(BATCH_MAX, BATCH_MAX / 2);
        stock.arrived(ready(BATCH_MAX, BATCH_MAX).sockets);
        assert_eq!(stock.sockets.len(), KEPT_MAX, "none is opened to be closed");
        stock.arrived(ready(BATCH_MIN, BATCH_MIN).sockets);
        assert_eq!(stock.sockets.len(), KEPT_MAX);
    }

    #[tokio::test]
    async fn sockets_are_of_the_namespace_and_more_come_by_themselves() {
        let Ok(netns) = NetNs::create() else {
            eprintln!("skipped: network namespaces cannot be made here");
            return;
        };
        let sockets = NetnsSockets::new(netns.clone());
        let bound = sockets.tcp_v4().unwrap();
        bound
            .bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 15001)).into())
            .unwrap();
        bound.listen(1).unwrap();
        let taken = move || std::net::TcpListener::bind(("127.0.0.1", 15001)).is_err();
        assert!(netns.run(taken).unwrap(), "it is bound there");
        assert!(!taken(), "and not here");
        // Far more than are opened at a time, each from the stock or by a visit of its own.
        let held: Vec<_> = (0..500).map(|_| sockets.tcp_v4().unwrap()).collect();
        assert!(held.iter().all(|socket| socket.nonblocking().unwrap()));
    }

    /// A namespace with so many ports for local ends, the highest, half of which `bind` prefers; and a server in it.
    fn with_ports(count: u16) -> Option<(NetNs, std::net::TcpListener)> {
        let Ok(netns) = NetNs::create() else {
            eprintln!("skipped: network namespaces cannot be made here");
            return None;
        };
        let prepare = move || {
            let up = std::process::Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status();
            assert!(up.unwrap().success());
            let range = format!("{} {}", u16::MAX - (count - 1), u16::MAX);
            std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", range).unwrap();
            std::net::TcpListener::bind("127.0.0.1:8080").unwrap()
        };
        let listener = netns.run(prepare).unwrap();
        Some((netns, listener))
    }

    #[tokio::test]
    async fn f31_the_port_is_left_to_connect_before_the_search_for_one_gets_long() {
        const HALF: u16 = 24_000;
        let Some((netns, listener)) = with_ports(2 * HALF) else {
            return;
        };
        let to = listener.local_addr().unwrap();
        let (sockets, ports) = (NetnsSockets::new(netns), SourcePorts::default());
        let mut chosen = 0;
        loop {
            let source = ports.of([127, 0, 0, 9].into());
            let near = socket::connect(&sockets, to, Some(source), &SocketOptions::default())
                .await
                .unwrap();
            let far = listener.accept().unwrap();
            if near.local_addr().unwrap().port().is_multiple_of(2) {
                break;
            }
            chosen += 1;
            // Whoever closes first keeps the port for a minute.
            drop(near);
            drop(far);
        }
        assert!(chosen < HALF, "not only once all were searched in vain: {chosen}");
    }

    #[tokio::test]
    async fn f31_a_crowd_of_one_client_gets_every_port_there_is() {
        const PORTS: usize = 20;
        let Some((netns, listener)) = with_ports(20) else {
            return;
        };
        let to = listener.local_addr().unwrap();
        let (sockets, ports) = (NetnsSockets::new(netns), SourcePorts::default());
        let connect = async || {
            let source = ports.of([127, 0, 0, 9].into());
            socket::connect(&sockets, to, Some(source), &SocketOptions::default()).await
        };
        let mut held = Vec::new();
        for _ in 0..PORTS {
            held.push(connect().await.unwrap());
        }
        let used: std::collections::BTreeSet<_> = held
            .iter()
            .map(|stream| stream.local_addr().unwrap().port())
            .collect();
        assert_eq!(used.len(), PORTS);
        let first = held[..PORTS / 2]
            .iter()
            .map(|stream| stream.local_addr().unwrap().port() % 2);
        assert!(
            first.clone().all(|parity| parity == 1),
            "first those that connections of its own avoid"
        );
        assert!(socket::no_port_left(&connect().await.unwrap_err()));
        drop(held);
    }
}
