//! Connections that are told to end: what comes next comes over another one.

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
