//! Frames that are cheap to send and make work.

use super::*;

/// R104, on a stream that is read: nothing piles up, however many empty frames there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r104_empty_data_on_a_stream_that_is_read_costs_nothing() {
    let target = Target::new(Manner::Echo).await;
    empty_data(&target).await;
}

/// R104, on a stream that nobody reads: flat, or the connection ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r104_empty_data_on_an_undrained_stream_stays_bounded() {
    for manner in [Manner::Hold, Manner::AcceptAndHold] {
        let target = Target::new(manner).await;
        empty_data(&target).await;
    }
}

async fn empty_data(target: &Target) {
    let mut attacker = target.attacker().await;
    attacker.send(&raw::connect(1)).await;
    let before = resident();
    repeat(
        &mut attacker,
        &raw::frame(raw::DATA, 0, 1, &[]).repeat(100),
        10_000,
    )
    .await;
    grown_at_most(before, 32 * MIB);
    target.neighbour_is_served().await;
}

/// R107
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r107_a_flood_of_pings_is_cut() {
    control_frames(&raw::frame(raw::PING, 0, 0, &[7; 8])).await;
}

/// R107
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r107_a_flood_of_settings_is_cut() {
    control_frames(&raw::frame(raw::SETTINGS, 0, 0, &[])).await;
    // HEADER_TABLE_SIZE, which makes the server answer with its next head as well.
    control_frames(&raw::frame(raw::SETTINGS, 0, 0, &[0, 1, 0, 0, 0x10, 0])).await;
}

/// R107: types that mean nothing, or nothing any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r107_a_flood_of_frames_without_meaning_is_cut() {
    const PRIORITY: u8 = 2;
    control_frames(&raw::frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1])).await;
    control_frames(&raw::frame(0xBA, 0, 0, &[])).await;
}

async fn control_frames(frame: &[u8]) {
    let mut target = Target::new(Manner::Hold).await;
    let mut attacker = target.attacker().await;
    let (before, worked) = (resident(), cpu());
    repeat(&mut attacker, &frame.repeat(100), 2_000).await;
    target.sent_away().await;
    grown_at_most(before, 8 * MIB);
    assert!(cpu() - worked < Duration::from_secs(5));
    target.neighbour_is_served().await;
}

/// WINDOW_UPDATE has no budget; it keeps nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn window_updates_keep_nothing() {
    let target = Target::new(Manner::AcceptAndHold).await;
    let mut attacker = target.attacker().await;
    attacker.send(&raw::connect(1)).await;
    let before = resident();
    repeat(
        &mut attacker,
        &raw::frame(raw::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]).repeat(100),
        2_000,
    )
    .await;
    grown_at_most(before, 4 * MIB);
    target.neighbour_is_served().await;
}

/// Small frames on a stream that is read are traffic, however many and however fast.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r114_tiny_frames_on_a_stream_that_is_read_are_traffic() {
    const FRAMES: usize = 300_000;
    let target = Target::new(Manner::Echo).await;
    let mut peer = target.attacker().await;
    peer.send(&raw::connect(1)).await;
    let before = resident();
    let sent = repeat(
        &mut peer,
        &raw::frame(raw::DATA, 0, 1, b"x").repeat(1000),
        FRAMES / 1000,
    )
    .await;
    assert_eq!(sent, FRAMES / 1000);
    peer.send(&raw::frame(raw::DATA, raw::END_STREAM, 1, b"")).await;
    let mut echoed = 0;
    while echoed < FRAMES {
        let frame = peer.next().await;
        assert_ne!(frame.kind, raw::GOAWAY);
        if frame.kind == raw::DATA {
            echoed += frame.payload.len();
            let credit = u32::try_from(frame.payload.len()).unwrap().to_be_bytes();
            peer.send(&raw::frame(raw::WINDOW_UPDATE, 0, 0, &credit)).await;
            peer.send(&raw::frame(raw::WINDOW_UPDATE, 0, 1, &credit)).await;
        }
    }
    grown_at_most(before, 32 * MIB);
    target.neighbour_is_served().await;
}

/// Small frames on a stream that nobody reads are bounded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiny_frames_on_an_undrained_stream_stay_bounded() {
    let mut target = Target::new(Manner::AcceptAndHold).await;
    let mut attacker = target.attacker().await;
    attacker.send(&raw::connect(1)).await;
    let before = resident();
    repeat(
        &mut attacker,
        &raw::frame(raw::DATA, 0, 1, b"x").repeat(1000),
        300,
    )
    .await;
    target.sent_away().await;
    grown_at_most(before, 32 * MIB);
    target.neighbour_is_served().await;
}
