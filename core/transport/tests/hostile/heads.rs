//! Heads that never end, or become much larger than they were.

use super::*;

/// R103: CONTINUATION without end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r103_a_head_without_end_is_cut() {
    for length in [0, 1, 1024, 16 * 1024] {
        let mut target = Target::new(Manner::Hold).await;
        let mut attacker = target.attacker().await;
        let (before, worked) = (resident(), cpu());
        attacker.send(&raw::frame(raw::HEADERS, 0, 1, raw::CONNECT)).await;
        // A literal header that goes on: the name `x`, then values.
        let part = [b"\x00\x01x\x7f\x80\x07".as_slice(), &vec![b'x'; 1024 * 16]].concat();
        let continuation = raw::frame(raw::CONTINUATION, 0, 1, &part[..length.min(part.len())]);
        repeat(&mut attacker, &continuation, 100_000).await;
        target.sent_away().await;
        grown_at_most(before, 8 * MIB);
        assert!(cpu() - worked < Duration::from_secs(5));
        target.neighbour_is_served().await;
    }
}

/// R105: a block of a few KiB that stands for megabytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r105_a_small_block_that_decodes_to_megabytes_is_refused() {
    let target = Target::new(Manner::Echo).await;
    let mut attacker = target.attacker().await;
    // One header of 4,000 bytes enters the table (literal with indexing), then is named by its index.
    let mut block = raw::CONNECT.to_vec();
    block.extend(b"\x40\x01a\x7f\xa1\x1e");
    block.extend(vec![b'v'; 4_000]);
    block.extend(vec![0xbe; 6_000]);
    let before = resident();
    attacker
        .send(&raw::frame(raw::HEADERS, raw::END_HEADERS, 1, &block))
        .await;
    let answer = timeout(PATIENCE, async {
        loop {
            let frame = attacker.next().await;
            if [raw::HEADERS, raw::RST_STREAM, raw::GOAWAY].contains(&frame.kind) {
                return frame;
            }
        }
    });
    let answer = answer.await.expect("an answer");
    // 431 with END_STREAM, a reset or a goodbye; never a tunnel.
    assert!(
        answer.kind != raw::HEADERS || answer.flags & raw::END_STREAM != 0,
        "{answer:?}"
    );
    grown_at_most(before, MIB);
    target.neighbour_is_served().await;
}
