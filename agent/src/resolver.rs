//! A pod's resolver settings, for the proxy that answers its names: from the file that its containers would read.

use std::fs;
use std::io::Read as _;
use std::path::Path;

/// Bytes of a file that are read.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Name servers that are told, as the C library asks.
const SERVERS_MAX: usize = 3;
/// Search domains that are told, as Kubernetes bounds them.
const SEARCH_MAX: usize = 32;

/// What a pod's C library would be told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resolver {
    /// Addresses of name servers, in the order in which they are asked.
    pub nameservers: Vec<String>,
    /// Domains that short names are tried in.
    pub search: Vec<String>,
    /// Dots from which on a name is tried as it is first; 0 if nothing was said.
    pub ndots: u32,
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
            Some("options") => {
                let ndots = words
                    .filter_map(|word| word.strip_prefix("ndots:")?.parse().ok())
                    .next_back();
                settings.ndots = ndots.unwrap_or(settings.ndots);
            }
            _ => {}
        }
    }
    settings
        .nameservers
        .retain(|server| server.parse::<std::net::IpAddr>().is_ok());
    settings.nameservers.truncate(SERVERS_MAX);
    settings.search.truncate(SEARCH_MAX);
    (!settings.nameservers.is_empty()).then_some(settings)
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

    #[test]
    fn without_a_server_there_are_no_settings() {
        assert_eq!(parse("search a.example\n"), None);
        assert_eq!(of_namespace(Path::new("/nonexistent"), "web"), None);
    }
}
