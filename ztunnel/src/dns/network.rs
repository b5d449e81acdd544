//! Sockets of a workload's network namespace, datagrams included.

use std::fmt::Debug;
use std::io;

use socket2::{Domain, Protocol, Socket, Type};
use tulle_transport::socket::{CurrentNamespace, SocketFactory};

/// Opens sockets where a workload lives.
pub trait PodNetwork: SocketFactory + Debug {
    /// A new UDP socket.
    ///
    /// # Errors
    /// What the kernel says.
    fn udp(&self, domain: Domain) -> io::Result<Socket>;
}

impl PodNetwork for CurrentNamespace {
    fn udp(&self, domain: Domain) -> io::Result<Socket> {
        new_udp(domain)
    }
}

/// A UDP socket of the calling thread's namespace.
///
/// # Errors
/// What the kernel says.
pub fn new_udp(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))
}
