//! Kernel settings of a namespace. `/proc/sys/net` shows the namespace of the thread that looks.

use std::fs;
use std::io;

use tulle_linux::NetNs;

use crate::conntrack;

const TCP_LOOSE: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_loose";
const TCP_MIGRATE: &str = "/proc/sys/net/ipv4/tcp_migrate_req";
const SOMAXCONN: &str = "/proc/sys/net/core/somaxconn";
const LOOPBACK_WITHOUT_IPV6: &str = "/proc/sys/net/ipv6/conf/lo/disable_ipv6";

/// Sets whether conntrack takes up connections in mid-stream.
///
/// With the kernel's default of 1 the first packet of a connection older than the capture looks new and is redirected
/// and reset; with 0 it is invalid, never translated, and the connection goes on.
///
/// # Errors
/// When the kernel has no conntrack, or refuses.
pub async fn set_tcp_loose(netns: &NetNs, loose: bool) -> io::Result<()> {
    let value = if loose { "1" } else { "0" };
    let write = move || match fs::write(TCP_LOOSE, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            conntrack::wake_here()?;
            fs::write(TCP_LOOSE, value)
        }
        written => written,
    };
    netns.run_async(write).await?
}

/// Whether conntrack takes up connections in mid-stream.
///
/// # Errors
/// When the kernel has no conntrack.
pub async fn tcp_loose(netns: &NetNs) -> io::Result<bool> {
    let text = netns.run_async(|| fs::read_to_string(TCP_LOOSE)).await??;
    Ok(text.trim() != "0")
}

/// Lets connections that wait at a closing listener move to another one at the same port, for proxies that bind their own.
///
/// # Errors
/// When the kernel refuses.
pub async fn let_requests_migrate(netns: &NetNs) -> io::Result<()> {
    netns.run_async(|| fs::write(TCP_MIGRATE, "1")).await?
}

/// Whether the calling thread's namespace routes IPv6 on its loopback interface.
pub(crate) fn has_ipv6_here() -> bool {
    fs::read_to_string(LOOPBACK_WITHOUT_IPV6).is_ok_and(|text| text.trim() == "0")
}

/// Raises the bound of accept queues in the calling thread's namespace to at least `backlog`.
pub(crate) fn raise_somaxconn_here(backlog: u32) -> io::Result<()> {
    let current: u32 = fs::read_to_string(SOMAXCONN)?
        .trim()
        .parse()
        .map_err(io::Error::other)?;
    if current < backlog {
        fs::write(SOMAXCONN, backlog.to_string())
    } else {
        Ok(())
    }
}
