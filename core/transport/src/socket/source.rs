//! Sending from an address that need not be our own, and the ports that takes.
//!
//! The port is chosen by `bind`, before the destination is known, and not with it: a kernel takes ports of one parity
//! for `bind` and of the other for `connect`, in every namespace in the same order. The client whose address this is may
//! have open connections to the same destination that pass no proxy, and a SYN from the port of one of them would end it.
//!
//! The fewer ports of that half are free, the longer `bind` searches; once none is, it searches all of it in vain, each
//! time, before it turns to the other half: some milliseconds, and many where others want the processor, to which it is
//! offered at each port. So for a while after a long search the port is left to `connect` (`IP_BIND_ADDRESS_NO_PORT`), which
//! also shares ports between destinations.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use socket2::Socket;
use tokio::time::Instant;

/// How long the port is left to `connect` after `bind` searched long, or found its own half taken.
const CROWDED: Duration = Duration::from_secs(1);

/// `bind` takes microseconds of the processor where ports are free; this is about a thousand of them that were not.
const SEARCH_MAX: Duration = Duration::from_micros(300);

const UNKNOWN: u8 = 2;

/// What is known of the ports of one namespace.
#[derive(Debug)]
pub struct SourcePorts {
    /// The parity that `bind` prefers: that of the first port it chose.
    preferred: AtomicU8,
    crowded_until: Mutex<Option<Instant>>,
}

impl Default for SourcePorts {
    fn default() -> Self {
        Self {
            preferred: AtomicU8::new(UNKNOWN),
            crowded_until: Mutex::default(),
        }
    }
}

/// An address to send from, and the ports of the namespace it is used in.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    address: IpAddr,
    ports: &'a SourcePorts,
}

impl SourcePorts {
    /// An address of this namespace's clients.
    #[must_use]
    pub fn of(&self, address: IpAddr) -> Source<'_> {
        Source {
            address: address.to_canonical(),
            ports: self,
        }
    }

    fn are_crowded(&self) -> bool {
        let now = Instant::now();
        self.crowded_until.lock().is_some_and(|until| now < until)
    }

    /// `bind` chose a port after it had searched for so long.
    fn chosen(&self, port: u16, search: Duration) {
        let parity = u8::from(port % 2 == 1);
        let first = self
            .preferred
            .compare_exchange(UNKNOWN, parity, Ordering::Relaxed, Ordering::Relaxed);
        if search > SEARCH_MAX || first.is_err_and(|preferred| preferred != parity) {
            *self.crowded_until.lock() = Some(Instant::now() + CROWDED);
        }
    }
}

/// What this thread has had of the processor. Time that passed would count waits for the processor as well, and these say
/// nothing of ports.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

impl Source<'_> {
    /// Binds an unconnected socket to the address.
    ///
    /// # Errors
    /// When the families differ, no port is left, or CAP_NET_ADMIN is missing.
    pub(super) fn bind(self, socket: &Socket, destination: SocketAddr) -> io::Result<()> {
        // A transparent socket is bound to any address; IP_FREEBIND would say the same again.
        let address = match (destination, self.address) {
            (SocketAddr::V4(_), IpAddr::V4(address)) => {
                socket.set_ip_transparent_v4(true)?;
                SocketAddr::V4(SocketAddrV4::new(address, 0))
            }
            (SocketAddr::V6(_), IpAddr::V6(address)) => {
                socket.set_ip_transparent_v6(true)?;
                SocketAddr::V6(SocketAddrV6::new(address, 0, 0, 0))
            }
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "source and destination differ in family",
                ));
            }
        };
        if self.ports.are_crowded() {
            setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
            return socket.bind(&address.into());
        }
        let before = processor_time();
        socket.bind(&address.into())?;
        let search = processor_time().saturating_sub(before);
        if let Some(bound) = socket.local_addr()?.as_socket() {
            self.ports.chosen(bound.port(), search);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long a search takes where ports are free.
    const FOUND: Duration = Duration::from_micros(4);

    #[tokio::test(start_paused = true)]
    async fn ports_are_crowded_for_a_while_after_one_of_the_other_half_was_chosen() {
        let ports = SourcePorts::default();
        for port in [40001, 40003] {
            ports.chosen(port, FOUND);
            assert!(!ports.are_crowded(), "{port}");
        }
        ports.chosen(40002, FOUND);
        assert!(ports.are_crowded());
        tokio::time::advance(CROWDED).await;
        assert!(!ports.are_crowded(), "it is looked at again");
        ports.chosen(40005, FOUND);
        assert!(!ports.are_crowded());
    }

    #[tokio::test(start_paused = true)]
    async fn ports_are_crowded_for_a_while_after_a_long_search() {
        let ports = SourcePorts::default();
        ports.chosen(40001, SEARCH_MAX);
        assert!(!ports.are_crowded());
        ports.chosen(40003, SEARCH_MAX * 2);
        assert!(ports.are_crowded(), "though one of its own half was found");
        tokio::time::advance(CROWDED).await;
        assert!(!ports.are_crowded(), "it is looked at again");
    }
}
