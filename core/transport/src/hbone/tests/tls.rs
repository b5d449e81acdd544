//! Mutual TLS under a tunnel connection, and tunnels inside of tunnels.

use super::*;

#[tokio::test]
async fn both_sides_prove_who_they_are() {
    let (near, far) = sockets().await;
    let (web, reviews) = (certificate(&id("web")), certificate(&id("reviews")));
    let (client, server) = tokio::join!(
        client::connect(near, web.client_config(&[id("reviews")]), &CLIENT),
        server::accept(far, reviews.server_config(), &SERVER),
    );
    let (client, server) = (client.unwrap(), server.unwrap());
    assert_eq!(server.identity, id("web"));
    let (_handle, mut incoming) = serve(server.connection);
    let request = ConnectRequest::new("10.0.0.1:80");
    let (opened, mut accepted) = tokio::join!(client.open(&request), async {
        incoming
            .recv()
            .await
            .unwrap()
            .accept(&ConnectResponse::default())
            .unwrap()
    });
    let mut opened = opened.unwrap().0;
    opened.write_all(b"over TLS").await.unwrap();
    opened.shutdown().await.unwrap();
    assert_eq!(read_all(&mut accepted).await, b"over TLS");
}

#[tokio::test]
async fn another_identity_than_expected_is_final() {
    let (near, far) = sockets().await;
    let (web, reviews) = (certificate(&id("web")), certificate(&id("reviews")));
    let (client, server) = tokio::join!(
        client::connect(near, web.client_config(&[id("ratings")]), &CLIENT),
        server::accept(far, reviews.server_config(), &SERVER),
    );
    let error = client.unwrap_err();
    assert_eq!(
        (error.reason(), error.retry()),
        (Reason::PeerIdentityMismatch, Retry::Never),
        "{error}"
    );
    assert!(server.is_err());
}

#[tokio::test]
async fn a_client_that_the_server_does_not_trust_hears_it_when_it_opens() {
    let (near, far) = sockets().await;
    let reviews = certificate(&id("reviews"));
    let stranger = TestCa::new().certificate(&id("web"));
    // Both roots differ, so either side may be the first to refuse; both say it is TLS.
    let (client, server) = tokio::join!(
        client::connect(near, stranger.client_config(&[id("reviews")]), &CLIENT),
        server::accept(far, reviews.server_config(), &SERVER),
    );
    assert_eq!(client.unwrap_err().reason(), Reason::TlsFailed);
    assert_eq!(server.unwrap_err().reason(), Reason::TlsFailed);
}

#[tokio::test]
async fn a_foreign_trust_domain_is_told_when_it_opens() {
    let (near, far) = sockets().await;
    let foreign = Identity::new("elsewhere.local", "shop", "web");
    let (web, reviews) = (certificate(&foreign), certificate(&id("reviews")));
    let (client, server) = tokio::join!(
        client::connect(near, web.client_config(&[id("reviews")]), &CLIENT),
        server::accept(far, reviews.server_config(), &SERVER),
    );
    assert!(server.is_err());
    // A TLS 1.3 client has finished before the server judged it.
    let error = match client {
        Ok(connection) => connection
            .open(&ConnectRequest::new("10.0.0.1:80"))
            .await
            .unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.reason(), Reason::TlsFailed, "{error}");
}

#[tokio::test]
async fn a_peer_that_speaks_no_http2_is_named() {
    let (near, mut far) = duplex(4096);
    let client = client::handshake(near, &CLIENT).await.unwrap();
    far.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let error = client
        .open(&ConnectRequest::new("10.0.0.1:80"))
        .await
        .unwrap_err();
    assert_eq!(
        (error.reason(), error.retry()),
        (Reason::Http2Failed, Retry::OtherEndpoint),
        "{error}"
    );
}

/// Across networks the gateway relays an inner session that it never opens.
#[tokio::test]
async fn a_tunnel_inside_of_a_tunnel_ends_at_the_inner_server_only() {
    let mut outer = Pair::new().await;
    let (near, far) = outer.tunnel().await;
    let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    let (web, reviews) = (certificate(&id("web")), certificate(&id("reviews")));
    let (client, server) = tokio::join!(
        client::connect_over(near, peer, web.client_config(&[id("reviews")]), &CLIENT),
        server::accept_over(far, peer, reviews.server_config(), &SERVER),
    );
    let (client, server) = (client.unwrap(), server.unwrap());
    assert_eq!(server.identity, id("web"));
    let (handle, incoming) = serve(server.connection);
    let mut inner = Pair {
        client,
        incoming,
        server: handle,
    };
    let (mut opened, mut accepted) = inner.tunnel().await;
    drop(inner);
    opened.write_all(&[7; 300_000]).await.unwrap();
    opened.shutdown().await.unwrap();
    assert_eq!(read_all(&mut accepted).await.len(), 300_000);
    accepted.shutdown().await.unwrap();
    assert_eq!(read_all(&mut opened).await, b"");
    drop((opened, accepted));
    // The inner session was of one use only, and gives the outer stream back.
    while outer.client.active() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn another_identity_inside_of_the_tunnel_is_final() {
    let mut outer = Pair::new().await;
    let (near, far) = outer.tunnel().await;
    let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    let (web, reviews) = (certificate(&id("web")), certificate(&id("reviews")));
    let (client, server) = tokio::join!(
        client::connect_over(near, peer, web.client_config(&[id("ratings")]), &CLIENT),
        server::accept_over(far, peer, reviews.server_config(), &SERVER),
    );
    assert_eq!(client.unwrap_err().reason(), Reason::PeerIdentityMismatch);
    assert!(server.is_err());
}

#[tokio::test]
async fn either_side_can_cut_a_connection_and_its_streams_say_why() {
    for server_cuts in [false, true] {
        let (near, far) = sockets().await;
        let (web, reviews) = (certificate(&id("web")), certificate(&id("reviews")));
        let (client, server) = tokio::join!(
            client::connect(near, web.client_config(&[id("reviews")]), &CLIENT),
            server::accept(far, reviews.server_config(), &SERVER),
        );
        let (client, server) = (client.unwrap(), server.unwrap());
        assert_eq!(client.peer(), Some(reviews.proof()));
        assert_eq!(&server.peer, web.proof());
        let (handle, mut incoming) = serve(server.connection);
        let request = ConnectRequest::new("10.0.0.1:80");
        let accepting = async {
            incoming
                .recv()
                .await
                .unwrap()
                .accept(&ConnectResponse::default())
                .unwrap()
        };
        let (opened, accepted) = tokio::join!(client.open(&request), accepting);
        let ((mut near, _), (mut far, _)) = (opened.unwrap().0.split(), accepted.split());
        if server_cuts {
            handle.cut(Reason::CertRevoked);
        } else {
            client.cut(Reason::CertRevoked);
        }
        client.over().await;
        let (near, far) = tokio::join!(near.read_chunk(), far.read_chunk());
        let (own, other) = if server_cuts { (far, near) } else { (near, far) };
        assert_eq!(own.unwrap().unwrap_err(), StreamError::Cut(Reason::CertRevoked));
        assert!(other.unwrap().is_err(), "not an orderly end");
        assert!(client.open(&request).await.is_err());
    }
}
