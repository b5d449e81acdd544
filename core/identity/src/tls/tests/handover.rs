//! Handshakes that end with their keys handed over.

use super::*;

#[tokio::test]
async fn the_peer_is_known_however_the_handshake_is_cut() {
    for room in [16, 100, 1000, 64 * 1024] {
        let (web, reviews) = (certificate(&id(WEB)), certificate(&id(REVIEWS)));
        let (near, far) = duplex(room);
        let (client, server) = tokio::join!(
            connect_and_hand_over(web.client_config(&[id(REVIEWS)]), near),
            accept_and_hand_over(reviews.server_config(), far),
        );
        let (client, server) = (client.unwrap(), server.unwrap());
        assert_eq!((&client.peer, &server.peer), (reviews.proof(), web.proof()));
        assert!(client.received.is_empty() && server.received.is_empty());
        assert_eq!(
            (client.secrets.tx.0, server.secrets.rx.0),
            (0, 0),
            "no record was sealed with these keys"
        );
    }
}

#[tokio::test]
async fn who_is_not_expected_is_refused_and_told() {
    let (web, reviews) = (certificate(&id(WEB)), certificate(&id(REVIEWS)));
    let (near, far) = duplex(64 * 1024);
    let (client, server) = tokio::join!(
        connect_and_hand_over(web.client_config(&[id(WEB)]), near),
        accept_and_hand_over(reviews.server_config(), far),
    );
    assert_eq!(client.unwrap_err().reason(), Reason::PeerIdentityMismatch);
    let error = server.unwrap_err();
    assert!(matches!(error, HandshakeError::Refused(_)), "{error}");
}

#[tokio::test]
async fn what_is_no_handshake_is_refused() {
    let server = certificate(&id(REVIEWS)).server_config();
    let endless = [22, 3, 1, 0x40, 0]
        .into_iter()
        .chain([1; 0x4000])
        .cycle()
        .take(1 << 20);
    for first in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x00\x02\x01\x00".to_vec(),
        vec![21, 3, 3, 0, 2, 1, 0],
        vec![0xff; 64],
        vec![],
        endless.collect(),
    ] {
        let (mut near, far) = duplex(4096);
        let send = async {
            // The server may close before it has read everything.
            let _ = near.write_all(&first).await;
            let _ = near.shutdown().await;
        };
        let (accepted, ()) = tokio::join!(accept_and_hand_over(Arc::clone(&server), far), send);
        assert_eq!(accepted.unwrap_err().reason(), Reason::TlsFailed);
    }
}
