//! What one client, and all that come at once, may take.

use super::*;

#[tokio::test]
async fn n19_streams_that_send_nothing_are_bounded_too() {
    let server = Server::start().await;
    let (silent, other) = (
        server.tokens.create("n1").unwrap(),
        server.tokens.create("n2").unwrap(),
    );
    let open = async |token: &str| {
        let (requests, receiver) = mpsc::channel(1);
        let mut client = AggregatedDiscoveryServiceClient::new(server.channel(token));
        let stream = client
            .delta_aggregated_resources(ReceiverStream::new(receiver))
            .await;
        stream
            .map(|stream| (requests, stream))
            .map_err(|status| status.code())
    };
    let mut open_now = Vec::new();
    for _ in 0..crate::status::STREAMS_PER_CLIENT_MAX {
        open_now.push(open(&silent).await.unwrap());
    }
    assert_eq!(open(&silent).await.err(), Some(Code::ResourceExhausted));
    assert!(open(&other).await.is_ok(), "others have places of their own");
    // Who goes, and who says what it is, makes room.
    drop(open_now.pop());
    let (requests, _stream) = open_now.last().unwrap();
    requests.send(first("n1", ResourceType::Address)).await.unwrap();
    until(|| server.clients.len() == 1).await;
    let mut came = 0;
    timeout(PATIENCE, async {
        while came < 2 {
            match open(&silent).await {
                Ok(stream) => {
                    open_now.push(stream);
                    came += 1;
                }
                Err(code) => assert_eq!(code, Code::ResourceExhausted),
            }
        }
    })
    .await
    .expect("there is room in time");
    assert_eq!(open(&silent).await.err(), Some(Code::ResourceExhausted));
}
