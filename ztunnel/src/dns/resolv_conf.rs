//! Name servers and search list, as resolv.conf(5) has them.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// Name servers that are asked, as the C library does.
const SERVERS_MAX: usize = 3;

/// Search domains that are used, as Kubernetes bounds them.
const SEARCH_MAX: usize = 32;

const DNS_PORT: u16 = 53;

/// Where a stub resolver on loopback keeps the servers it asks itself.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";

const SYSTEM: &str = "/etc/resolv.conf";

/// Name servers and search list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Asked in this order.
    pub servers: Vec<SocketAddr>,
    /// Domains without dots at their ends, in lower case.
    pub search: Vec<String>,
}

impl ResolvConf {
    /// Reads the text of a file. What is not understood is skipped, as the C library does.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let (mut servers, mut search) = (Vec::new(), Vec::new());
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => servers.extend(words.next()),
                // The last of them counts.
                Some("search" | "domain") => search = words.collect(),
                _ => {}
            }
        }
        Self::of(servers, search)
    }

    fn of<'a>(servers: impl IntoIterator<Item = &'a str>, search: impl IntoIterator<Item = &'a str>) -> Self {
        let server = |text: &str| text.parse::<IpAddr>().ok();
        let domain = |text: &str| text.trim_matches('.').to_ascii_lowercase();
        let servers = servers.into_iter().filter_map(server).take(SERVERS_MAX);
        let search = search.into_iter().map(domain).take(SEARCH_MAX);
        Self {
            servers: servers.map(|ip| SocketAddr::new(ip, DNS_PORT)).collect(),
            search: search.filter(|domain| !domain.is_empty()).collect(),
        }
    }

    /// What the agent says of a pod; `None` if it names no server.
    #[must_use]
    pub fn of_pod(servers: &[String], search: &[String]) -> Option<Self> {
        let servers = servers.iter().map(String::as_str);
        let read = Self::of(servers, search.iter().map(String::as_str));
        (!read.servers.is_empty()).then_some(read)
    }

    /// This process's own, without what only works in its own network namespace if `elsewhere`.
    #[must_use]
    pub fn system(elsewhere: bool) -> Self {
        let own = Self::read(Path::new(SYSTEM));
        if elsewhere { own.without_loopback() } else { own }
    }

    /// A server on loopback is another one, or none, in a pod's namespace.
    fn without_loopback(mut self) -> Self {
        self.servers.retain(|server| !server.ip().is_loopback());
        if self.servers.is_empty() {
            self.servers = Self::read(Path::new(BEHIND_STUB)).servers;
            self.servers.retain(|server| !server.ip().is_loopback());
        }
        self
    }

    fn read(path: &Path) -> Self {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text),
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "no name servers");
                Self::default()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_the_last_search_list_are_read() {
        let read = ResolvConf::parse(
            "# comment\nsearch old.example\nnameserver 10.96.0.10\nnameserver ::1\noptions ndots:5\n\
             nameserver nonsense\nsearch shop.svc.cluster.local. SVC.cluster.local\n",
        );
        let servers: Vec<SocketAddr> = vec!["10.96.0.10:53".parse().unwrap(), "[::1]:53".parse().unwrap()];
        assert_eq!(read.servers, servers);
        assert_eq!(read.search, ["shop.svc.cluster.local", "svc.cluster.local"]);
    }

    #[test]
    fn no_more_servers_are_asked_than_the_c_library_asks() {
        let text = "nameserver 10.0.0.1\n".repeat(9);
        assert_eq!(ResolvConf::parse(&text).servers.len(), SERVERS_MAX);
    }

    #[test]
    fn a_pod_without_servers_has_no_settings_of_its_own() {
        assert_eq!(ResolvConf::of_pod(&[], &[]), None);
        let read = ResolvConf::of_pod(&["10.96.0.10".to_owned()], &["a.b".to_owned()]).unwrap();
        assert_eq!(
            (read.servers.len(), &read.search[..]),
            (1, &["a.b".to_owned()][..])
        );
    }

    #[test]
    fn a_server_on_loopback_is_none_for_a_pod() {
        let read = ResolvConf::parse("nameserver 127.0.0.53\nnameserver 10.0.0.1\n");
        let servers = read.without_loopback().servers;
        assert_eq!(servers, ["10.0.0.1:53".parse::<SocketAddr>().unwrap()]);
    }
}
