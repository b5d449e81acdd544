//! Finding a pod's network namespace, and proving that it is the pod's.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tulle_linux::NetNs;

use crate::error::CaptureError;
use crate::sysctl;

/// The name of a namespace in the folder of named namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NetnsName(String);

/// Text that names no namespace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be `netns:` and a name without slashes")]
pub struct InvalidNetnsName;

impl FromStr for NetnsName {
    type Err = InvalidNetnsName;

    /// Reads `netns:<name>`, the value of the `tulle.dev/process` extension.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const NAME_BYTES_MAX: usize = 255;
        let name = text.strip_prefix("netns:").ok_or(InvalidNetnsName)?;
        let fits = (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains(['/', '\0']);
        // A name is one step down a folder, never a way out of it.
        if fits && !matches!(name, "." | "..") {
            Ok(Self(name.to_owned()))
        } else {
            Err(InvalidNetnsName)
        }
    }
}

impl NetnsName {
    /// Where the namespace is, given the folder of named namespaces.
    #[must_use]
    pub fn within(&self, folder: &Path) -> PathBuf {
        folder.join(&self.0)
    }
}

impl fmt::Display for NetnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A namespace that was proven to be the pod's.
#[derive(Debug, Clone)]
pub struct Located {
    /// The namespace.
    pub netns: NetNs,
    /// Whether it has IPv6, as far as was seen: it may get it later.
    pub ipv6: bool,
    /// Where it was found.
    pub path: PathBuf,
}

impl Located {
    /// Whether the path still leads to this namespace.
    #[must_use]
    pub fn is_still_there(&self) -> bool {
        NetNs::open(&self.path).is_ok_and(|found| found == self.netns)
    }

    /// Whether it has IPv6 by now.
    ///
    /// # Errors
    /// When it cannot be entered.
    pub async fn has_ipv6(&self) -> io::Result<bool> {
        self.netns.run_async(sysctl::has_ipv6_here).await
    }
}

/// Opens the namespace at `path` once and proves it: it is not the node's own and holds one of the pod's addresses.
///
/// # Errors
/// When it cannot be opened or is not the pod's.
pub async fn locate(path: PathBuf, described: &[IpAddr], host_inode: u64) -> Result<Located, CaptureError> {
    let not_found = |source| CaptureError::NetnsNotFound {
        path: path.clone(),
        source,
    };
    let netns = NetNs::open(&path).map_err(not_found)?;
    let seen = netns.run_async(|| addresses_here().map(|present| (present, sysctl::has_ipv6_here())));
    let (present, ipv6) = seen.await.and_then(|seen| seen).map_err(not_found)?;
    prove(&path, netns.inode(), host_inode, &present, described)?;
    Ok(Located { netns, ipv6, path })
}

/// Whether a namespace with these addresses is the pod's.
fn prove(
    path: &Path,
    inode: u64,
    host_inode: u64,
    present: &[IpAddr],
    described: &[IpAddr],
) -> Result<(), CaptureError> {
    if inode == host_inode {
        return Err(CaptureError::NetnsIsHost {
            path: path.to_owned(),
        });
    }
    if described
        .iter()
        .any(|address| present.contains(&address.to_canonical()))
    {
        return Ok(());
    }
    Err(CaptureError::NetnsMismatch {
        path: path.to_owned(),
        present: present.to_vec(),
        described: described.to_vec(),
    })
}

/// Addresses of the calling thread's namespace, loopback left out.
fn addresses_here() -> io::Result<Vec<IpAddr>> {
    let addresses: BTreeSet<IpAddr> = nix::ifaddrs::getifaddrs()?
        .filter_map(|interface| interface.address)
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .filter(|address| !address.is_loopback())
        .collect();
    Ok(addresses.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 7));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 8));

    fn check(inode: u64, present: &[IpAddr], described: &[IpAddr]) -> Result<(), CaptureError> {
        prove(Path::new("/run/netns/web"), inode, 1, present, described)
    }

    #[test]
    fn a_namespace_with_one_of_the_pods_addresses_is_its_own() {
        assert!(check(2, &[OTHER, POD], &[POD]).is_ok());
    }

    #[test]
    fn the_nodes_own_namespace_is_never_a_pods() {
        assert!(matches!(
            check(1, &[POD], &[POD]),
            Err(CaptureError::NetnsIsHost { .. })
        ));
    }

    #[test]
    fn a_namespace_of_another_pod_is_refused() {
        assert!(matches!(
            check(2, &[OTHER], &[POD]),
            Err(CaptureError::NetnsMismatch { .. })
        ));
        assert!(matches!(
            check(2, &[OTHER], &[]),
            Err(CaptureError::NetnsMismatch { .. })
        ));
    }

    #[test]
    fn a_name_stays_in_its_folder() {
        let name: NetnsName = "netns:web-1".parse().unwrap();
        assert_eq!(
            name.within(Path::new("/run/netns")),
            Path::new("/run/netns/web-1")
        );
        for text in [
            "web",
            "netns:",
            "netns:../x",
            "netns:..",
            "netns:/proc/1/ns/net",
            "pid:7",
        ] {
            assert_eq!(text.parse::<NetnsName>(), Err(InvalidNetnsName), "{text}");
        }
    }
}
