//! Connections that are told to end: what comes next comes over another one.

use tulle_identity::Clock;

use super::join::certificate;
use super::*;

/// Tries while the client finds out that its connection has ended.
const TRIES: usize = 5;

impl Server {
    /// Opens a stream over a channel, and says from where its client comes once it was answered.
    async fn opened_over(
        &self,
        channel: &AuthenticatedChannel,
    ) -> Result<(Client, std::net::SocketAddr), Status> {
        let (requests, receiver) = mpsc::channel(16);
        requests
            .send(first("n1", ResourceType::Address))
            .await
            .expect("there is room");
        let mut client = AggregatedDiscoveryServiceClient::new(channel.clone());
        let stream = client
            .delta_aggregated_resources(ReceiverStream::new(receiver))
            .await?;
        let mut client = Client {
            requests,
            encoding: None,
            responses: stream.into_inner(),
        };
        client.expect(&[], &[]).await;
        let status = self.clients.list(std::time::Instant::now()).remove(0);
        Ok((client, status.address.expect("it came over TCP")))
    }
}

#[tokio::test]
async fn a_connection_of_age_is_ended_and_its_client_comes_over_another() {
    let options = AdsOptions {
        age_max: Some(Duration::from_secs(1)),
        ..AdsOptions::default()
    };
    let server = Server::start_with(options, HOLD_MAX_DEFAULT).await;
    let channel = server.channel(&server.tokens.create("n1").unwrap());
    let mut from = BTreeSet::new();
    while from.len() < 2 {
        let mut tried = 0;
        let (mut client, address) = loop {
            tried += 1;
            match server.opened_over(&channel).await {
                Ok(opened) => break opened,
                Err(error) => assert!(tried < TRIES, "{error}"),
            }
        };
        assert!(from.insert(address), "each stream has a connection of its own");
        let end = timeout(PATIENCE, client.responses.message())
            .await
            .expect("an end in time");
        assert!(matches!(end, Ok(None)), "{end:?}");
    }
}

#[tokio::test]
async fn without_an_age_streams_share_a_connection() {
    let options = AdsOptions {
        age_max: None,
        ..AdsOptions::default()
    };
    let server = Server::start_with(options, HOLD_MAX_DEFAULT).await;
    let channel = server.channel(&server.tokens.create("n1").unwrap());
    let (one, first) = server.opened_over(&channel).await.unwrap();
    let (two, second) = server.opened_over(&channel).await.unwrap();
    assert_eq!(first, second);
    drop((one, two));
}

#[tokio::test]
async fn a_request_under_way_is_answered_although_its_connection_ends() {
    let options = AdsOptions {
        age_max: Some(Duration::from_secs(1)),
        ..AdsOptions::default()
    };
    let server = Server::start_with(options, HOLD_MAX_DEFAULT).await;
    let token = server.tokens.create("n1").unwrap();
    let channel = server.channel(&token);
    let (mut client, _) = server.opened_over(&channel).await.unwrap();
    let mut authority = IstioCertificateServiceClient::new(channel.clone());
    let asking = authority.create_certificate(certificate_request(WEB));
    let placing = async {
        until(|| server.metrics.held.get() == 1).await;
        // The stream ends because the connection does; the request is held meanwhile.
        assert!(matches!(client.responses.message().await, Ok(None)));
        server.place("n1", WEB);
    };
    let (reply, ()) = tokio::join!(asking, placing);
    assert_eq!(reply.unwrap().into_inner().cert_chain.len(), 2);
}

#[tokio::test]
async fn what_a_client_has_shown_ends_on_an_open_connection_too() {
    let ahead = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let told = ahead.clone();
    let clock = Clock::from_fn(move || {
        let ahead = told.load(std::sync::atomic::Ordering::Relaxed);
        std::time::SystemTime::now() + Duration::from_secs(ahead)
    });
    let server = Server::start_believing(AdsOptions::default(), HOLD_MAX_DEFAULT, |authenticator, _| {
        authenticator.with_clock(clock)
    })
    .await;
    server.place("n1", WEB);
    let folder = server.join(&server.join_token("n1")).await.unwrap();
    let config = server.channel_config(&folder);
    let channel = authenticated(&config).unwrap();
    let (mut client, _) = server.opened_over(&channel).await.unwrap();
    let mut authority = IstioCertificateServiceClient::new(channel);
    authority
        .create_certificate(certificate_request(WEB))
        .await
        .unwrap();
    // The node's certificate is good for a day.
    ahead.store(24 * 3600, std::sync::atomic::Ordering::Relaxed);
    let refused = authority.create_certificate(certificate_request(WEB)).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(
        certificate(&config, WEB).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    let ended = client.receive().await.unwrap_err();
    assert_eq!(ended.code(), Code::Unauthenticated);
    assert!(ended.message().contains("has ended"), "{ended}");
}
