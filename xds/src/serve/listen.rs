//! The server on the TLS port: discovery, certificates and debug pages, for authenticated callers only.

use std::convert::Infallible;
use std::pin::pin;

use axum::Router;
use futures_util::StreamExt as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tonic::service::Routes;
use tulle_identity::Acceptor;
use tulle_proto::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use tulle_proto::node_ca::batch_certificate_service_server::BatchCertificateServiceServer;
use tulle_proto::node_ca::node_join_server::NodeJoinServer;
use tulle_runtime::drain::DrainWatcher;
use tulle_runtime::tasks;

use crate::ca::batch::BATCH_BYTES_MAX;
use crate::ca::join::JoinService;
use crate::ca::service::{CaService, REQUEST_BYTES_MAX as CA_REQUEST_BYTES_MAX};
use crate::serve::ads::Ads;
use crate::serve::connection;

/// Serves until the drain is over and every connection has ended. Failed handshakes and accept errors never end it.
pub async fn serve(
    listener: TcpListener,
    acceptor: Acceptor,
    ads: Ads,
    ca: CaService,
    join: JoinService,
    pages: Router,
    drain: DrainWatcher,
) {
    let (age_max, authenticator) = (ads.age_max(), ads.authenticator().clone());
    let routes = routes(ads, ca, join, pages);
    // Each connection holds one end; the other hears when the last is gone.
    let (held, mut left) = mpsc::channel::<Infallible>(1);
    {
        // Dropped with the block: who comes later is refused, and does not wait for the others to leave.
        let mut incoming = pin!(acceptor.incoming(listener));
        let mut over = pin!(drain.signaled());
        loop {
            let accepted = tokio::select! {
                accepted = incoming.next() => accepted,
                _ = &mut over => break,
            };
            let stream = match accepted {
                Some(Ok(stream)) => stream,
                Some(Err(_)) => continue,
                None => break,
            };
            let certificate = stream.peer().certificate.as_ref();
            let (authenticator, until) = (authenticator.clone(), certificate.map(|shown| shown.not_after));
            let (age, drain) = (connection::age(age_max), drain.clone());
            let over = async move {
                tokio::select! {
                    () = sleep(age) => {}
                    () = authenticator.ended(until) => {}
                    _ = drain.signaled() => {}
                }
            };
            let served = connection::serve(stream, routes.clone(), over);
            tasks::spawn_holding("xds connection", held.clone(), served);
        }
    }
    drop(held);
    left.recv().await;
}

fn routes(ads: Ads, ca: CaService, join: JoinService, pages: Router) -> Router {
    let batch = BatchCertificateServiceServer::new(ca.clone()).max_decoding_message_size(BATCH_BYTES_MAX);
    let join = NodeJoinServer::new(join).max_decoding_message_size(CA_REQUEST_BYTES_MAX);
    let ca = IstioCertificateServiceServer::new(ca).max_decoding_message_size(CA_REQUEST_BYTES_MAX);
    Routes::from(pages)
        .add_service(ads)
        .add_service(ca)
        .add_service(batch)
        .add_service(join)
        .prepare()
        .into_axum_router()
}
