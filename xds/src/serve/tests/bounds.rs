//! What one client, and all that come at once, may take.

use super::*;
use crate::serve::admission::Admission;

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

#[tokio::test]
async fn whatever_a_client_is_told_first_waits_for_its_bytes_and_no_change_does() {
    // What the first client is told takes minutes of it.
    let admission = Admission::new(1);
    let options = AdsOptions {
        admission: admission.clone(),
        ..AdsOptions::default()
    };
    let server = Server::start_with(options, HOLD_MAX_DEFAULT).await;
    let way = "spiffe://cluster.local/ns/shop/sa/way";
    server.place("n1", way);
    server.publish(|snapshot| {
        let fronts = crate::snapshot::Fronts {
            identity: way.parse().unwrap(),
            addresses: BTreeSet::new(),
            authorizations: BTreeSet::new(),
        };
        snapshot.fronted.set(&"shop/way".into(), Some(fronts));
    });
    server.set(ResourceType::Address, "a", b"one");
    let token = server.tokens.create("n1").unwrap();
    let mut open = server
        .connect(&token, first("n1", ResourceType::Address))
        .await
        .unwrap();
    open.expect(&[("a", b"one")], &[]).await;
    let held = |name: &str, value: &str| {
        let mut request = first("n1", ResourceType::Address);
        let held = [(name.to_owned(), value.to_owned())];
        request.initial_resource_versions = held.into();
        request
    };
    let waypoint = "waypoint~1.1.1.1~way.shop~shop.svc.cluster.local";
    let mut waiting = Vec::new();
    for (count, opening) in [
        first("n1", ResourceType::Authorization),
        held("a", "another"),
        held(tulle_proto::resume::Layout::Coarse.name(), "other digests"),
        compromise::claiming(waypoint, "shop", "way", ResourceType::Route),
    ]
    .into_iter()
    .enumerate()
    {
        waiting.push(server.connect(&token, opening).await.unwrap());
        until(|| admission.waiting() == count + 1).await;
    }
    server.set(ResourceType::Address, "b", b"one");
    open.expect(&[("b", b"one")], &[]).await;
    assert_eq!(admission.waiting(), waiting.len());
    for client in &mut waiting {
        let told = futures_util::FutureExt::now_or_never(client.responses.message());
        assert!(told.is_none(), "{told:?}");
    }
}
