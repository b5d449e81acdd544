//! Rules of the legacy iptables modules: netlink neither shows nor removes them. All that can be told is that a
//! namespace has a table of theirs, which it gets with the first use of that table in it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::OnceLock;

use tulle_linux::NetNs;

/// The files that name the tables of the thread's namespace, one for each family.
const NAMES: [&str; 2] = [
    "/proc/thread-self/net/ip_tables_names",
    "/proc/thread-self/net/ip6_tables_names",
];

/// The table that redirects.
const NAT: &str = "nat";

/// Whether somebody redirects, or may, by legacy iptables inside of a namespace.
///
/// # Errors
/// When the namespace cannot be entered.
pub async fn redirects(netns: &NetNs) -> io::Result<bool> {
    let named = netns.run_async(tables_here).await?;
    let everywhere = EVERYWHERE.get_or_init(|| {
        let empty = NetNs::create().and_then(|netns| netns.run(tables_here));
        empty.unwrap_or_default()
    });
    Ok(named.contains(NAT) && !everywhere.contains(NAT))
}

/// Tables that every namespace has from the start, as those of older kernels did: they say nothing.
static EVERYWHERE: OnceLock<BTreeSet<String>> = OnceLock::new();

fn tables_here() -> BTreeSet<String> {
    // A kernel without the modules has no such file, and no such rules.
    let listed = NAMES.map(|file| fs::read_to_string(file).unwrap_or_default());
    listed
        .iter()
        .flat_map(|text| text.lines())
        .map(str::to_owned)
        .collect()
}
