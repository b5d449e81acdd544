//! Streams that are ended because they hold too much for their readers.

use super::super::wire::code;
use super::Core;

impl Core {
    /// Ends streams, those first that hold the most, until all together hold no more than `most`; says whether it came to
    /// that. A stream that has come to its end on both sides keeps what it holds: its reader would not hear of more.
    pub(in super::super) fn shed(&mut self, most: usize) -> bool {
        while self.credit.held > most {
            let open = self.streams.iter_mut().filter(|(_, stream)| !stream.over);
            let heaviest = open.max_by_key(|(id, stream)| (stream.held, **id));
            let Some((id, stream)) = heaviest.filter(|(_, stream)| stream.held > 0) else {
                return false;
            };
            stream.shed = true;
            let id = *id;
            self.reset_here(id, code::ENHANCE_YOUR_CALM);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::super::tests::{CX, Two, read, write};
    use super::*;
    use crate::hbone::own::core::Gone;

    static BULK: [u8; 100_000] = [7; 100_000];

    #[test]
    fn the_heaviest_stream_goes_and_its_neighbours_go_on() {
        let mut two = Two::new();
        let [light, heavy, heavier] = [(); 3].map(|()| two.stream());
        write(&mut two.client, light, b"light");
        write(&mut two.client, heavy, &BULK[..60_000]);
        write(&mut two.client, heavier, &BULK);
        two.exchange();
        assert!(two.server.shed(60_005), "it comes to that");
        assert_eq!(two.server.held(), 60_005);
        two.exchange();
        let ended = |core: &mut Core, gone| {
            assert_eq!(core.read(heavier, &CX), Poll::Ready(Some(Err(gone))));
        };
        ended(&mut two.server, Gone::Shed);
        ended(&mut two.client, Gone::Reset(code::ENHANCE_YOUR_CALM));
        assert_eq!(read(&mut two.server, light), b"light");
        assert_eq!(read(&mut two.server, heavy), BULK[..60_000]);
        write(&mut two.client, light, b" as before");
        two.exchange();
        assert_eq!(read(&mut two.server, light), b" as before");
    }

    #[test]
    fn who_loses_bytes_reads_no_orderly_end_behind_them() {
        let mut two = Two::new();
        let id = two.stream();
        write(&mut two.client, id, &BULK);
        two.client.finish(id).unwrap();
        two.exchange();
        assert!(two.server.shed(0));
        assert_eq!(two.server.read(id, &CX), Poll::Ready(Some(Err(Gone::Shed))));
        two.exchange();
    }

    #[test]
    fn what_has_ended_on_both_sides_keeps_its_bytes() {
        let mut two = Two::new();
        let id = two.stream();
        write(&mut two.client, id, &BULK);
        two.client.finish(id).unwrap();
        two.server.finish(id).unwrap();
        two.exchange();
        assert!(!two.server.shed(0), "there is nothing to end");
        assert_eq!(read(&mut two.server, id), BULK);
    }
}
