//! Virtual service addresses on plain nodes: what kube-proxy does in a cluster, as nftables rules.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};

use tulle_linux::NetNs;

/// A virtual address and port, and where its connections go.
#[derive(Debug, Clone)]
pub struct VirtualService {
    /// Virtual address and service port.
    pub address: SocketAddr,
    /// The endpoints, chosen evenly at random.
    pub backends: Vec<Backend>,
}

/// An endpoint: pod address and target port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend(pub SocketAddr);

/// The rules of all services, as one table that replaces its former self.
fn table(services: &[VirtualService]) -> String {
    let mut text = String::from("table inet world\ndelete table inet world\ntable inet world {\n");
    for (chain, hook, priority) in [("pre", "prerouting", "dstnat"), ("out", "output", "-100")] {
        let _ = writeln!(
            text,
            "chain {chain} {{ type nat hook {hook} priority {priority}; policy accept;"
        );
        for service in services {
            write_rules(&mut text, service);
        }
        text.push_str("}\n");
    }
    text.push_str("}\n");
    text
}

fn write_rules(text: &mut String, service: &VirtualService) {
    let family = if service.address.is_ipv4() { "ip" } else { "ip6" };
    let matching = |backend: &&Backend| backend.0.is_ipv4() == service.address.is_ipv4();
    let backends: Vec<_> = service.backends.iter().filter(matching).collect();
    for (index, backend) in backends.iter().enumerate() {
        let left = backends.len() - index;
        let (address, port) = (service.address.ip(), service.address.port());
        let to = match backend.0.ip() {
            IpAddr::V4(ip) => format!("{ip}:{}", backend.0.port()),
            IpAddr::V6(ip) => format!("[{ip}]:{}", backend.0.port()),
        };
        let chance = if left > 1 {
            format!("numgen random mod {left} == 0 ")
        } else {
            String::new()
        };
        let _ = writeln!(
            text,
            "{family} daddr {address} tcp dport {port} {chance}dnat {family} to {to}"
        );
    }
}

/// Where Debian keeps the program; it is not on the path of every user.
fn nft() -> &'static str {
    let debian = "/usr/sbin/nft";
    if std::path::Path::new(debian).exists() {
        debian
    } else {
        "nft"
    }
}

/// Puts the services into force on a node.
pub(crate) fn apply(node: &NetNs, services: &[VirtualService]) -> io::Result<()> {
    let mut command = Command::new(nft());
    command
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = node.spawn(command)?;
    child
        .stdin
        .take()
        .expect("stdin is piped")
        .write_all(table(services).as_bytes())?;
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "nft refused the services: {}",
        String::from_utf8_lossy(&output.stderr)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_backend_gets_an_even_chance() {
        let backend = |text: &str| Backend(text.parse().unwrap());
        let service = VirtualService {
            address: "10.96.0.1:80".parse().unwrap(),
            backends: vec![
                backend("10.1.0.2:8080"),
                backend("[fd00::2]:8080"),
                backend("10.1.0.3:8080"),
            ],
        };
        let mut text = String::new();
        write_rules(&mut text, &service);
        assert_eq!(
            text,
            "ip daddr 10.96.0.1 tcp dport 80 numgen random mod 2 == 0 dnat ip to 10.1.0.2:8080\n\
             ip daddr 10.96.0.1 tcp dport 80 dnat ip to 10.1.0.3:8080\n"
        );
    }
}
