//! Streams that are opened to be ended at once, by either side.

use super::*;

/// R101: rapid reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r101_a_flood_of_opened_and_cancelled_streams_is_cut() {
    let mut target = Target::new(Manner::AcceptAndHold).await;
    let mut attacker = target.attacker().await;
    let before = resident();
    let mut sent = 0u32;
    while sent < 200_000 {
        let batch: Vec<u8> = (sent..sent + 100)
            .flat_map(|n| [raw::connect(2 * n + 1), raw::cancel(2 * n + 1)].concat())
            .collect();
        if attacker.try_send(&batch).await.is_err() {
            break;
        }
        sent += 100;
    }
    target.sent_away().await;
    grown_at_most(before, 32 * MIB);
    target.neighbour_is_served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r101_a_flood_is_told_so() {
    let mut target = Target::new(Manner::Hold).await;
    let mut attacker = target.attacker().await;
    let batch: Vec<u8> = (0..100)
        .flat_map(|n| [raw::connect(2 * n + 1), raw::cancel(2 * n + 1)].concat())
        .collect();
    attacker.send(&batch).await;
    let goaway = attacker.next_of(raw::GOAWAY).await;
    assert_eq!(goaway.payload[4..8], 11u32.to_be_bytes(), "ENHANCE_YOUR_CALM");
    target.sent_away().await;
}

/// R101: who waits for the answer before cancelling is no flood, and costs nothing that stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r101_streams_that_are_cancelled_after_the_answer_leave_nothing() {
    let target = Target::new(Manner::Echo).await;
    let mut attacker = target.attacker().await;
    let mut before = 0;
    for n in 0..6_000u32 {
        let stream = 2 * n + 1;
        attacker.send(&raw::connect(stream)).await;
        attacker.next_of(raw::HEADERS).await;
        attacker.send(&raw::cancel(stream)).await;
        if n == 2_000 {
            before = resident();
        }
    }
    grown_at_most(before, MIB);
    target.neighbour_is_served().await;
}

/// R102: frames that force the server to reset, with a window of zero and nobody reading.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r102_resets_that_a_peer_forces_are_bounded() {
    let mut target = Target::new(Manner::AcceptAndHold).await;
    let mut attacker = target.attacker().await;
    // INITIAL_WINDOW_SIZE = 0
    attacker
        .send(&raw::frame(raw::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]))
        .await;
    let before = resident();
    for n in 0..200_000u32 {
        let stream = 2 * n + 1;
        let no_increment = raw::frame(raw::WINDOW_UPDATE, 0, stream, &[0; 4]);
        if attacker
            .try_send(&[raw::connect(stream), no_increment].concat())
            .await
            .is_err()
        {
            break;
        }
    }
    target.sent_away().await;
    grown_at_most(before, 32 * MIB);
    target.neighbour_is_served().await;
}

/// R106: refusals leave nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r106_refused_streams_leave_nothing() {
    let target = Target::new(Manner::Refuse).await;
    let mut attacker = target.attacker().await;
    let mut before = 0;
    for n in 0..20_000u32 {
        attacker.send(&raw::connect(2 * n + 1)).await;
        let answer = attacker.next_of(raw::HEADERS).await;
        assert_eq!(answer.flags & raw::END_STREAM, raw::END_STREAM);
        if n == 5_000 {
            before = resident();
        }
    }
    grown_at_most(before, MIB);
    target.neighbour_is_served().await;
}
