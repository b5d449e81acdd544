//! How old the oldest change is that a client has not accepted. Nobody looks at a clock here.

use std::time::{Duration, Instant};

use tulle_xds::serve::session::UNACKED_RESPONSES_MAX;
use tulle_xds::snapshot::ResourceType::{self, Address, Authorization};

use crate::peer::{Peer, peer};
use crate::store::set;

/// A client that has accepted all there is, and the time at which it asked.
fn settled() -> (Peer, Instant) {
    let (mut peer, begin) = (
        peer([set(Address, "a@0"), set(Authorization, "p@0")]),
        Instant::now(),
    );
    for ty in [Address, Authorization] {
        peer.subscribe(ty, &[], &[]);
        peer.drain(begin);
    }
    (peer, begin)
}

impl Peer {
    /// Accepts everything that is sent at this time.
    fn drain(&mut self, now: Instant) {
        while let Some(response) = self.session.poll_send(&self.cut, now) {
            self.ack(&response);
        }
    }

    fn since(&self, ty: ResourceType) -> Option<Instant> {
        self.session.behind(ty, &self.cut).since
    }
}

#[test]
fn a_change_ages_from_its_publication_on_whether_it_is_sent_or_not() {
    let (mut peer, begin) = settled();
    assert_eq!((peer.since(Address), peer.since(Authorization)), (None, None));
    let at = |seconds| begin + Duration::from_secs(seconds);
    peer.cut.edit_at(at(1), [set(Address, "a@1")]);
    peer.session.look(&peer.cut, at(2));
    // Nothing of it is on its way yet, and the next one is no younger lack.
    assert_eq!(peer.since(Address), Some(at(1)));
    peer.cut.edit_at(at(3), [set(Address, "a@2")]);
    peer.session.look(&peer.cut, at(3));
    assert_eq!(
        (peer.since(Address), peer.since(Authorization)),
        (Some(at(1)), None)
    );
    let response = peer.session.poll_send(&peer.cut, at(9)).expect("both as one");
    assert_eq!(
        peer.since(Address),
        Some(at(1)),
        "on its way since then, and owed for longer"
    );
    peer.ack(&response);
    assert_eq!(peer.since(Address), None);
}

#[test]
fn what_waits_behind_a_full_window_is_as_old_as_its_cut() {
    let (mut peer, begin) = settled();
    let at = |seconds| begin + Duration::from_secs(seconds);
    let mut sent = Vec::new();
    for number in 1..=6 {
        peer.cut
            .edit_at(at(number), [set(Address, &format!("a@{number}"))]);
        sent.extend(peer.session.poll_send(&peer.cut, at(number)));
    }
    assert_eq!(
        (sent.len(), peer.since(Address)),
        (UNACKED_RESPONSES_MAX, Some(at(1)))
    );
    for (answered, response) in sent.iter().enumerate() {
        peer.ack(response);
        assert_eq!(peer.since(Address), Some(at(answered as u64 + 2)));
    }
    assert!(
        peer.session.behind(Address, &peer.cut).changes > 0,
        "nothing is on its way"
    );
    peer.drain(at(20));
    assert_eq!(peer.since(Address), None);
}

#[test]
fn what_is_asked_for_is_owed_since_then_however_old_it_is() {
    let (mut peer, begin) = settled();
    let asked = begin + Duration::from_secs(9);
    peer.subscribe(Address, &["a"], &[]);
    peer.session.look(&peer.cut, asked);
    assert_eq!(peer.since(Address), Some(asked));
    peer.drain(asked);
    assert_eq!(peer.since(Address), None);
}
