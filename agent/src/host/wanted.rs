//! What pods want of the node's tables: pure. An address belongs to whoever claims it; a pod that goes takes only its
//! own claims along, never those of a pod that has its address now.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tulle_model::Str;

use crate::rules::ranges::Range;

/// The claims of every pod.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// Pods that probes reach.
    captured: BTreeMap<Str, BTreeSet<IpAddr>>,
    /// Addresses that probes reached in an earlier run, until everyone has been looked at.
    captured_before: BTreeSet<IpAddr>,
    /// Pods that are mute.
    waiting: BTreeMap<Str, BTreeSet<IpAddr>>,
    /// Pods that may speak although their range is mute.
    passing: BTreeMap<Str, BTreeSet<IpAddr>>,
    /// Ranges that are mute until everyone has been looked at.
    ranges: Vec<Range>,
    /// Something is or was guarded, so there is a table.
    guards: bool,
}

impl Wanted {
    /// What an earlier run left.
    pub(super) fn after(captured: Vec<Range>, waiting: Vec<Range>) -> Self {
        Self {
            captured_before: captured.iter().map(Range::first).collect(),
            guards: !waiting.is_empty(),
            ranges: waiting,
            ..Self::default()
        }
    }

    pub(super) fn guard_ranges(&mut self, ranges: Vec<Range>) {
        self.guards |= !ranges.is_empty();
        self.ranges = ranges;
    }

    pub(super) fn guards_ranges(&self) -> bool {
        !self.ranges.is_empty()
    }

    pub(super) fn wait(&mut self, uid: &Str, addresses: &[IpAddr]) {
        self.passing.remove(uid);
        self.waiting.insert(uid.clone(), canonical(addresses));
        self.guards = true;
    }

    pub(super) fn pass(&mut self, uid: &Str, addresses: &[IpAddr]) {
        self.waiting.remove(uid);
        self.passing.insert(uid.clone(), canonical(addresses));
    }

    pub(super) fn claim(&mut self, uid: &Str, addresses: &[IpAddr]) {
        let addresses = canonical(addresses);
        // A description that has no address yet takes none away.
        if !addresses.is_empty() {
            self.captured.insert(uid.clone(), addresses);
        }
    }

    pub(super) fn release(&mut self, uid: &Str) {
        if let Some(released) = self.captured.remove(uid) {
            self.captured_before.retain(|address| !released.contains(address));
        }
    }

    pub(super) fn forget(&mut self, uid: &Str) {
        self.release(uid);
        self.waiting.remove(uid);
        self.passing.remove(uid);
    }

    pub(super) fn first_look_is_done(&mut self) {
        self.captured_before.clear();
        self.ranges.clear();
    }

    pub(super) fn captured(&self) -> BTreeSet<IpAddr> {
        self.captured
            .values()
            .flatten()
            .chain(&self.captured_before)
            .copied()
            .collect()
    }

    /// What is mute and what passes; nothing if nothing has ever been guarded.
    pub(super) fn guarded(&self) -> Option<(Vec<Range>, BTreeSet<IpAddr>)> {
        if !self.guards {
            return None;
        }
        let waiting: BTreeSet<_> = self.waiting.values().flatten().copied().collect();
        let mut mute = self.ranges.clone();
        mute.extend(waiting.iter().copied().map(Range::from));
        // A pod that waits under an address passes under none that it shares with one that has left it.
        let passing = self.passing.values().flatten().copied();
        let passing = passing.filter(|address| {
            !waiting.contains(address) && self.ranges.iter().any(|range| range.contains(*address))
        });
        let passing = passing.collect();
        Some((mute, passing))
    }
}

fn canonical(addresses: &[IpAddr]) -> BTreeSet<IpAddr> {
    addresses.iter().map(IpAddr::to_canonical).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn old() -> Str {
        "old".into()
    }

    fn new() -> Str {
        "new".into()
    }

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn a_pod_that_goes_never_takes_the_address_of_the_pod_that_has_it_now() {
        let mut wanted = Wanted::default();
        wanted.claim(&old(), &[address(7)]);
        wanted.claim(&new(), &[address(7)]);
        wanted.release(&old());
        assert_eq!(wanted.captured(), [address(7)].into());
        wanted.forget(&new());
        assert!(wanted.captured().is_empty());
        wanted.release(&new());
    }

    #[test]
    fn what_an_earlier_run_left_stays_until_everyone_was_looked_at() {
        let mut wanted = Wanted::after(vec![address(7).into(), address(8).into()], Vec::new());
        wanted.claim(&new(), &[address(7)]);
        assert_eq!(wanted.captured().len(), 2);
        wanted.first_look_is_done();
        assert_eq!(wanted.captured(), [address(7)].into());
        assert_eq!(wanted.guarded(), None);
    }

    #[test]
    fn a_description_without_an_address_keeps_the_claim() {
        let mut wanted = Wanted::default();
        wanted.claim(&new(), &[address(7)]);
        wanted.claim(&new(), &[]);
        assert_eq!(wanted.captured(), [address(7)].into());
        wanted.claim(&new(), &[address(9)]);
        assert_eq!(wanted.captured(), [address(9)].into());
    }

    #[test]
    fn ranges_give_way_to_the_pods_that_wait() {
        let mut wanted = Wanted::default();
        wanted.guard_ranges(vec!["10.0.0.0/24".parse().unwrap()]);
        wanted.wait(&old(), &[address(7)]);
        wanted.pass(&new(), &[address(8)]);
        let (mute, passing) = wanted.guarded().unwrap();
        assert_eq!((mute.len(), passing), (2, [address(8)].into()));
        wanted.first_look_is_done();
        let (mute, passing) = wanted.guarded().unwrap();
        assert_eq!(mute, [address(7).into()]);
        assert!(passing.is_empty());
        wanted.pass(&old(), &[address(7)]);
        assert_eq!(
            wanted.guarded().unwrap().0,
            [],
            "the table stays, with nothing in it"
        );
    }

    #[test]
    fn an_address_that_waits_under_a_new_pod_does_not_pass_under_an_old_one() {
        let mut wanted = Wanted::default();
        wanted.guard_ranges(vec!["10.0.0.0/24".parse().unwrap()]);
        wanted.pass(&old(), &[address(7)]);
        wanted.wait(&new(), &[address(7)]);
        assert!(wanted.guarded().unwrap().1.is_empty());
    }
}
