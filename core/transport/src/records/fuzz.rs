//! Foreign bytes against records, for the fuzzers.

use tokio::time::Instant;

use super::format::{HEADER, OVERHEAD};
use super::session::RECORDS_PER_KEY;
use super::testing::{FIRST, key, pair, seal};

/// One byte says how records are cut; then come records: a byte for how they are made, one for their length, and their
/// content. Nothing panics, what is found lies in what was brought, an end is final, and what a peer makes us say is
/// bounded by what it said.
pub(crate) fn records(data: &[u8]) {
    let Some((cut, data)) = data.split_first() else {
        return;
    };
    let records = made(data);
    let now = Instant::now();
    let [_, mut session] = pair(RECORDS_PER_KEY, now);
    let (mut waiting, mut said, mut found) = (Vec::new(), 0, 0);
    for part in records.chunks(usize::from(*cut) + 1) {
        waiting.extend_from_slice(part);
        let (length, mut last) = (waiting.len(), 0);
        let over = session.end().cloned();
        let opened = session.open(&mut waiting, now, |range| {
            assert!(
                range.start >= last + HEADER && range.start < range.end,
                "in order, and apart"
            );
            assert!(range.end < length, "inside");
            found += range.len();
            last = range.end;
        });
        assert!(opened <= length && last <= opened);
        if let Some(over) = over {
            assert_eq!((session.end(), opened), (Some(&over), 0), "an end is final");
        }
        waiting.drain(..opened);
        if session.owes() {
            said += seal(&mut session, &[], 1024).len();
        }
    }
    assert!(found <= records.len());
    assert!(
        said <= (OVERHEAD + 5) * (records.len() / OVERHEAD + 1),
        "it made us say {said} bytes"
    );
}

/// Sealed records with these contents, and bytes as they are.
fn made(mut data: &[u8]) -> Vec<u8> {
    let mut records = Vec::new();
    let Ok(mut sealing) = key(FIRST[0]) else {
        return records;
    };
    while let Some((&[how, length], rest)) = data.split_first_chunk() {
        let (content, rest) = rest.split_at(usize::from(length).min(rest.len()));
        data = rest;
        match how % 8 {
            // As they are.
            0 => records.extend_from_slice(content),
            // The next key, whether or not that was announced.
            1 => sealing = sealing.next().unwrap_or(sealing),
            _ => {
                let mut out = vec![0; content.len() + OVERHEAD];
                if let Ok(length) = sealing.seal(&[], content, &mut out) {
                    records.extend_from_slice(&out[..length]);
                }
            }
        }
    }
    records
}
