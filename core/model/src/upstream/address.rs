//! Which of its addresses a workload is reached by.

use std::net::IpAddr;

use crate::service::IpFamilies;
use crate::workload::Workload;

/// The requested address if the workload has it; else an allowed one, of the requested family first.
pub(super) fn choose(workload: &Workload, requested: IpAddr, families: IpFamilies) -> Option<IpAddr> {
    let own = || workload.addresses.iter().map(IpAddr::to_canonical);
    if own().any(|address| address == requested) {
        return Some(requested);
    }
    let mut allowed = own().filter(|address| allows(families, *address));
    let first = allowed.next()?;
    if first.is_ipv4() == requested.is_ipv4() {
        return Some(first);
    }
    allowed
        .find(|address| address.is_ipv4() == requested.is_ipv4())
        .or(Some(first))
}

pub(super) fn allows(families: IpFamilies, address: IpAddr) -> bool {
    match families {
        IpFamilies::Automatic | IpFamilies::Dual => true,
        IpFamilies::Ipv4Only => address.is_ipv4(),
        IpFamilies::Ipv6Only => address.is_ipv6(),
    }
}
