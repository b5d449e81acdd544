//! Certificates of workloads, asked for over the real port.

use super::*;

#[tokio::test]
async fn a_placed_identity_gets_its_certificate() {
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    server.place("n1", WEB);
    let reply = server.certificate(&token, WEB).await.unwrap();
    assert_eq!(reply.cert_chain.len(), 2);
    assert_eq!(reply.cert_chain[1], server.root);
    let (_, pem) = x509_parser::pem::parse_x509_pem(reply.cert_chain[0].as_bytes()).unwrap();
    let leaf = pem.parse_x509().unwrap();
    let names = leaf.subject_alternative_name().unwrap().expect("names").value;
    assert_eq!(
        names.general_names,
        [x509_parser::extensions::GeneralName::URI(WEB)]
    );
}

#[tokio::test]
async fn our_own_ca_client_accepts_the_answer() {
    use tulle_identity::CaClient as _;
    use tulle_identity::ca::{GrpcCa, GrpcCaOptions};
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    server.place("n1", WEB);
    let client = GrpcCa::new(server.channel(&token), GrpcCaOptions::default());
    let issued = client.fetch(&WEB.parse().unwrap()).await.unwrap();
    assert_eq!((issued.chain.len(), issued.roots.len()), (1, 1));
}

#[tokio::test]
async fn a_late_placement_is_waited_for() {
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    let asking = server.certificate(&token, WEB);
    let placing = async {
        until(|| server.metrics.held.get() == 1).await;
        server.place("n1", WEB);
    };
    let (reply, ()) = tokio::join!(asking, placing);
    assert_eq!(reply.unwrap().cert_chain.len(), 2);
}

#[tokio::test]
async fn an_identity_of_another_node_or_domain_is_refused_with_its_reason() {
    let server = Server::start_with(AdsOptions::default(), Duration::from_millis(1)).await;
    let token = server.tokens.create("n2").unwrap();
    server.place("n1", WEB);
    for (identity, reason) in [
        (WEB, "POD_NOT_ON_NODE"),
        ("spiffe://cluster.local/ns/shop/sa/nobody", "POD_NOT_ON_NODE"),
        ("spiffe://other/ns/shop/sa/web", "TRUST_DOMAIN_MISMATCH"),
        ("web", "IDENTITY_DENIED"),
    ] {
        let refused = server.certificate(&token, identity).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{identity}");
        assert!(refused.message().starts_with(reason), "{}", refused.message());
        assert!(String::from_utf8_lossy(refused.details()).contains(reason));
    }
}

#[test]
fn names_are_shared_text() {
    // `Str` crosses threads with the tasks of streams.
    fn shared<T: Send + Sync>() {}
    shared::<Str>();
    shared::<Ads>();
    shared::<CaService>();
}
