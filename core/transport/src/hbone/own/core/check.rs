//! What must hold of a connection at any time.

use super::Core;

impl Core {
    /// Panics if the counts do not fit what they count.
    pub(in super::super) fn check(&self) {
        let streams = || self.streams.iter();
        let waiting: usize = streams().map(|(_, stream)| stream.sending.len()).sum();
        assert_eq!(self.queued, waiting, "payload that waits");
        let held: usize = streams().map(|(_, stream)| stream.held).sum();
        assert_eq!(self.credit.held, held, "payload that is held");
        assert!(self.credit.withheld <= held, "no more is withheld than is held");
        let open = streams().filter(|(_, stream)| !stream.over).count();
        assert_eq!((self.own_open + self.their_open) as usize, open, "open streams");
        for (id, stream) in streams() {
            let lists = self.fresh.iter().chain(&self.ready);
            let places = lists.filter(|listed| *listed == id).count();
            assert!(places <= 1, "stream {id} has {places} places");
            assert!(
                self.end.is_some() || !stream.has_something_to_send() || stream.listed,
                "stream {id} is forgotten"
            );
            assert!(!stream.listed || places == 1, "stream {id} is listed nowhere");
            assert!(
                !stream.over || stream.handle,
                "stream {id} is over and still there"
            );
            assert!(
                stream.receive_window <= i64::from(u32::MAX),
                "stream {id} was paid too much"
            );
        }
        assert!(self.accepted.len() <= self.streams.len());
    }
}
