//! Answers other than 200, and what they make the caller do.

use super::*;

#[tokio::test]
async fn a_refusal_arrives_with_its_reason() {
    let mut pair = Pair::new().await;
    let request = ConnectRequest::new("10.0.0.1:80");
    let (refused, ()) = tokio::join!(pair.client.open(&request), async {
        let incoming = pair.incoming.recv().await.unwrap();
        let reason = ReasonHeader::new(Reason::PolicyDenied).policy("shop/deny-dev");
        incoming.reject(401, Some(reason));
    });
    let error = refused.unwrap_err();
    assert_eq!(
        (error.reason(), error.retry(), error.blame()),
        (Reason::PolicyDenied, Retry::Never, Blame::Downstream)
    );
    let OpenError::Refused(Refusal {
        status: 401,
        header: Some(header),
    }) = error
    else {
        panic!("{error}")
    };
    assert_eq!(header.policy.as_deref(), Some("shop/deny-dev"));
    assert_eq!(pair.client.active(), 0);
}

#[tokio::test]
async fn a_refusal_may_keep_its_reason_to_itself() {
    let mut pair = Pair::new().await;
    let request = ConnectRequest::new("10.0.0.1:80");
    let (refused, ()) = tokio::join!(pair.client.open(&request), async {
        pair.incoming.recv().await.unwrap().reject(401, None);
    });
    let error = refused.unwrap_err();
    assert_eq!(error.reason(), Reason::PolicyDenied, "as far as its status tells");
    let silent = Refusal {
        status: 401,
        header: None,
    };
    assert!(
        matches!(&error, OpenError::Refused(refusal) if *refusal == silent),
        "{error}"
    );
}

#[tokio::test]
async fn only_a_503_sends_the_caller_to_another_endpoint() {
    let mut pair = Pair::new().await;
    for (status, retry) in [
        (400, Retry::Never),
        (401, Retry::Never),
        (503, Retry::OtherEndpoint),
    ] {
        let request = ConnectRequest::new("10.0.0.1:80");
        let (refused, ()) = tokio::join!(pair.client.open(&request), async {
            pair.incoming
                .recv()
                .await
                .unwrap()
                .reject(status, Some(Reason::ConnectFailed.into()));
        });
        assert_eq!(refused.unwrap_err().retry(), retry, "{status}");
    }
}

#[tokio::test]
async fn what_is_no_connect_is_told_so() {
    let (near, far) = duplex(1024 * 1024);
    let (server, handshake) = tokio::join!(
        server::handshake(far, &SERVER),
        ::h2::client::Builder::new().handshake::<_, Bytes>(near),
    );
    let (_handle, mut incoming) = serve(server.unwrap());
    let (mut sender, connection) = handshake.unwrap();
    tasks::spawn("raw client", connection);
    let get = http::Request::get("http://10.0.0.1/").body(()).unwrap();
    let (response, _) = sender.send_request(get, true).unwrap();
    let stream = incoming.recv().await.unwrap();
    let error = stream.request().unwrap_err();
    assert_eq!(error, MalformedConnect::NotConnect);
    stream.reject(400, Some(error.reason().into()));
    let response = response.await.unwrap();
    assert_eq!(response.status(), 400);
    assert_eq!(response.headers()["x-tulle-reason"], "T0419; not_connect");
}
