//! Payload that comes before the answer.

use super::*;

/// R201: held until the stream is accepted, then handed on whole.
#[tokio::test]
async fn r201_early_payload_is_held_until_the_answer() {
    let target = Target::new(Manner::Echo).await;
    let mut peer = target.attacker().await;
    let early = [
        raw::connect(1),
        raw::frame(raw::DATA, 0, 1, b"before "),
        raw::frame(raw::DATA, raw::END_STREAM, 1, b"the answer"),
    ];
    peer.send(&early.concat()).await;
    assert_eq!(peer.next_of(raw::HEADERS).await.stream, 1);
    let mut echoed = Vec::new();
    while echoed.len() < 17 {
        echoed.extend(peer.next_of(raw::DATA).await.payload);
    }
    assert_eq!(echoed, b"before the answer");
}

/// R201: a refusal drops it, and the connection goes on.
#[tokio::test]
async fn r201_early_payload_of_a_refused_stream_goes_nowhere() {
    let target = Target::new(Manner::Refuse).await;
    let mut peer = target.attacker().await;
    for n in 0..100 {
        let early = raw::frame(raw::DATA, 0, 2 * n + 1, &[7; 10_000]);
        peer.send(&[raw::connect(2 * n + 1), early].concat()).await;
        let answer = peer.next_of(raw::HEADERS).await;
        assert_eq!(answer.flags & raw::END_STREAM, raw::END_STREAM);
    }
    target.neighbour_is_served().await;
}
