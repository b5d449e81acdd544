//! Two ends that know each other's keys, without a handshake.

use tokio::time::Instant;

use super::error::Fault;
use super::key::{Key, Suite};
use super::session::Session;

/// The first key of the end of this number.
pub(super) fn key(end: u8) -> Result<Key, Fault> {
    Key::of(Suite::Aes128Gcm, &[end; 32], 0)
}

/// The first key of each end.
pub(super) const FIRST: [u8; 2] = [0, 1];

/// Two ends whose keys seal as many records.
pub(crate) fn pair(records_per_key: u64, now: Instant) -> [Session; 2] {
    let end = |sealing, opening| {
        let key = |end| key(end).expect("a secret has this length");
        Session::with(key(sealing), key(opening), records_per_key, now)
    };
    [end(FIRST[0], FIRST[1]), end(FIRST[1], FIRST[0])]
}

/// Seals all of it, in buffers of `room` bytes.
pub(super) fn seal(session: &mut Session, parts: &[&[u8]], room: usize) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    let (mut records, mut out) = (Vec::new(), vec![0; room]);
    while !parts.is_empty() || session.owes() {
        let sealed = session
            .seal(parts.iter().copied(), &mut out)
            .expect("the keys are right");
        assert!(
            sealed.length > 0 || session.is_closed(),
            "there is room for something"
        );
        if session.is_closed() {
            parts.clear();
        }
        records.extend_from_slice(&out[..sealed.length]);
        let mut taken = sealed.taken;
        while let Some(first) = parts.first_mut() {
            let part = taken.min(first.len());
            *first = &first[part..];
            taken -= part;
            if !first.is_empty() {
                break;
            }
            parts.remove(0);
        }
    }
    records
}

/// Opens all of it, brought in parts of `cut` bytes; what was found.
#[cfg(test)]
pub(super) fn open(session: &mut Session, records: &[u8], cut: usize, now: Instant) -> Vec<u8> {
    let (mut waiting, mut found) = (Vec::new(), Vec::new());
    for part in records.chunks(cut) {
        waiting.extend_from_slice(part);
        let mut ranges = Vec::new();
        let opened = session.open(&mut waiting, now, |range| ranges.push(range));
        ranges
            .into_iter()
            .for_each(|range| found.extend_from_slice(&waiting[range]));
        waiting.drain(..opened);
        if session.end().is_some() {
            break;
        }
    }
    found
}
