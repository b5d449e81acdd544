//! Sockets opened inside of a pod's network namespace.
//!
//! A thread has to enter the namespace to open one, so they are opened a few at a time. What is in stock is closed
//! with the pod: a socket keeps its namespace alive.

use std::fmt;
use std::io;

use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};
use tulle_linux::NetNs;
use tulle_transport::socket::SocketFactory;

use crate::dns::network::{PodNetwork, new_udp};

/// Sockets opened per visit of the namespace.
const BATCH: usize = 8;

/// Opens sockets in one namespace.
pub struct NetnsSockets {
    netns: NetNs,
    v4: Mutex<Vec<Socket>>,
    v6: Mutex<Vec<Socket>>,
    udp_v4: Mutex<Vec<Socket>>,
    udp_v6: Mutex<Vec<Socket>>,
}

impl NetnsSockets {
    /// A factory for one namespace.
    #[must_use]
    pub fn new(netns: NetNs) -> Self {
        Self {
            netns,
            v4: Mutex::default(),
            v6: Mutex::default(),
            udp_v4: Mutex::default(),
            udp_v6: Mutex::default(),
        }
    }

    fn take(&self, stock: &Mutex<Vec<Socket>>, open: impl Open) -> io::Result<Socket> {
        if let Some(socket) = stock.lock().pop() {
            return Ok(socket);
        }
        let mut opened = self.netns.run(move || open_batch(open))??;
        let socket = opened.pop().ok_or(io::ErrorKind::Other)?;
        let mut stock = stock.lock();
        stock.extend(opened);
        // Several tasks may have found the stock empty at once.
        stock.truncate(BATCH);
        Ok(socket)
    }
}

/// Opens one socket where it is called.
trait Open: Fn() -> io::Result<Socket> + Send + 'static {}

impl<F: Fn() -> io::Result<Socket> + Send + 'static> Open for F {}

fn open_batch(open: impl Open) -> io::Result<Vec<Socket>> {
    (0..BATCH).map(|_| open()).collect()
}

fn new_tcp(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::STREAM, Some(Protocol::TCP))
}

impl SocketFactory for NetnsSockets {
    fn tcp_v4(&self) -> io::Result<Socket> {
        self.take(&self.v4, || new_tcp(Domain::IPV4))
    }

    fn tcp_v6(&self) -> io::Result<Socket> {
        self.take(&self.v6, || new_tcp(Domain::IPV6))
    }
}

impl PodNetwork for NetnsSockets {
    fn udp(&self, domain: Domain) -> io::Result<Socket> {
        let stock = if domain == Domain::IPV4 {
            &self.udp_v4
        } else {
            &self.udp_v6
        };
        self.take(stock, move || new_udp(domain))
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

    #[test]
    fn a_stock_is_opened_once_and_used_up() {
        let Ok(netns) = NetNs::create() else {
            eprintln!("skipped: network namespaces cannot be made here");
            return;
        };
        let sockets = NetnsSockets::new(netns);
        for _ in 0..BATCH {
            sockets.tcp_v4().unwrap();
        }
        assert!(sockets.v4.lock().is_empty());
        sockets.tcp_v4().unwrap();
        assert_eq!(sockets.v4.lock().len(), BATCH - 1);
    }

    /// As many ports as there are for local ends, half of which `bind` prefers.
    const PORTS: usize = 20;

    #[tokio::test]
    async fn f31_a_crowd_of_one_client_gets_every_port_there_is() {
        let Ok(netns) = NetNs::create() else {
            eprintln!("skipped: network namespaces cannot be made here");
            return;
        };
        let prepare = || {
            let up = std::process::Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status();
            assert!(up.unwrap().success());
            let range = format!("40000 {}", 40_000 + PORTS - 1);
            std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", range).unwrap();
            std::net::TcpListener::bind("127.0.0.1:8080").unwrap()
        };
        let listener = netns.run(prepare).unwrap();
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
