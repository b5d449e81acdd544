//! A pod's resolver settings, for the proxy that answers its names: from the file that its containers would read, or
//! from what their runtime will write into it.

use std::fs;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Bytes of a file that are read.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Name servers that are told, as the C library asks.
const SERVERS_MAX: usize = 3;
/// Search domains that are told, as Kubernetes bounds them.
const SEARCH_MAX: usize = 32;
/// Bytes of a domain that is searched, as of any name of the DNS.
const DOMAIN_BYTES_MAX: usize = 253;

/// What a pod's C library would be told.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resolver {
    /// Addresses of name servers, in the order in which they are asked.
    pub nameservers: Vec<String>,
    /// Domains that short names are tried in.
    pub search: Vec<String>,
    /// Dots from which on a name is tried as it is first; 0 if nothing was said.
    pub ndots: u32,
}

/// Settings as a container runtime has them (`DNSConfig` of the container runtime interface): the lines of a resolv.conf(5)
/// in three lists. containerd hands them to plugins under names with capitals.
#[derive(Debug, Default, Deserialize)]
pub struct Lists {
    #[serde(default, alias = "Servers")]
    servers: Option<Vec<String>>,
    #[serde(default, alias = "Searches")]
    searches: Option<Vec<String>>,
    #[serde(default, alias = "Options")]
    options: Option<Vec<String>>,
}

impl From<Lists> for Option<Resolver> {
    /// Nothing if they name no server: the node's own count then.
    fn from(lists: Lists) -> Self {
        let mut settings = Resolver {
            nameservers: lists.servers.unwrap_or_default(),
            search: lists.searches.unwrap_or_default(),
            ndots: 0,
        };
        settings.heed(lists.options.unwrap_or_default().iter().map(String::as_str));
        settings.bounded()
    }
}

impl Resolver {
    /// Takes over what options say; the last of them counts.
    fn heed<'a>(&mut self, options: impl Iterator<Item = &'a str>) {
        let ndots = options.filter_map(|word| word.strip_prefix("ndots:")?.parse().ok());
        self.ndots = ndots.last().unwrap_or(self.ndots);
    }

    /// What of it can be used, if it names a server.
    fn bounded(mut self) -> Option<Self> {
        self.nameservers.retain(|server| server.parse::<IpAddr>().is_ok());
        self.nameservers.truncate(SERVERS_MAX);
        self.search.retain(|domain| domain.len() <= DOMAIN_BYTES_MAX);
        self.search.truncate(SEARCH_MAX);
        (!self.nameservers.is_empty()).then_some(self)
    }
}

/// The settings of a namespace with a name: `<folder>/<name>/resolv.conf`, as `ip netns` has them. Nothing if there is no
/// such file, or it names no server.
#[must_use]
pub fn of_namespace(folder: &Path, name: &str) -> Option<Resolver> {
    let mut text = String::new();
    let file = fs::File::open(folder.join(name).join("resolv.conf")).ok()?;
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    parse(&text)
}

/// Reads resolv.conf(5). What is not understood is skipped, as the C library does.
fn parse(text: &str) -> Option<Resolver> {
    let mut settings = Resolver::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => settings.nameservers.extend(words.next().map(str::to_owned)),
            // The last of them counts.
            Some("search" | "domain") => settings.search = words.map(str::to_owned).collect(),
            Some("options") => settings.heed(words),
            _ => {}
        }
    }
    settings.bounded()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_search_list_and_dots_are_read() {
        let text = "# by hand\nnameserver 10.0.0.10\nnameserver bad\nsearch a.example b.example\noptions edns0 ndots:5\n";
        let settings = parse(text).unwrap();
        assert_eq!(settings.nameservers, ["10.0.0.10"]);
        assert_eq!(settings.search, ["a.example", "b.example"]);
        assert_eq!(settings.ndots, 5);
    }

    fn listed(text: &str) -> Option<Resolver> {
        serde_json::from_str::<Lists>(text).unwrap().into()
    }

    #[test]
    fn what_a_runtime_lists_is_what_its_file_would_say() {
        let file = parse("nameserver 10.0.0.10\nnameserver bad\nsearch a.example\noptions edns0 ndots:5\n");
        assert!(file.is_some());
        for text in [
            r#"{"servers": ["10.0.0.10", "bad"], "searches": ["a.example"], "options": ["edns0", "ndots:5"]}"#,
            r#"{"Servers": ["10.0.0.10", "bad"], "Searches": ["a.example"], "Options": ["edns0", "ndots:5"]}"#,
        ] {
            assert_eq!(listed(text), file, "{text}");
        }
    }

    #[test]
    fn lists_are_bounded_and_may_be_missing() {
        for text in ["{}", r#"{"Servers": null}"#, r#"{"searches": ["a.example"]}"#] {
            assert_eq!(listed(text), None, "{text}");
        }
        let long = "x".repeat(DOMAIN_BYTES_MAX + 1);
        let many = vec!["10.0.0.10"; SERVERS_MAX + 1];
        let text = serde_json::json!({"servers": many, "searches": [long, "a.example"], "Options": null});
        let settings = listed(&text.to_string()).unwrap();
        assert_eq!(settings.nameservers.len(), SERVERS_MAX);
        assert_eq!(settings.search, ["a.example"]);
    }

    #[test]
    fn without_a_server_there_are_no_settings() {
        assert_eq!(parse("search a.example\n"), None);
        assert_eq!(of_namespace(Path::new("/nonexistent"), "web"), None);
    }
}
