//! The server on the TLS port: discovery, certificates and debug pages, for authenticated callers only.

use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::transport::Server;
use tulle_identity::Acceptor;
use tulle_proto::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use tulle_proto::node_ca::batch_certificate_service_server::BatchCertificateServiceServer;
use tulle_proto::node_ca::node_join_server::NodeJoinServer;
use tulle_runtime::drain::DrainWatcher;

use crate::ca::batch::BATCH_BYTES_MAX;
use crate::ca::join::JoinService;
use crate::ca::service::{CaService, REQUEST_BYTES_MAX as CA_REQUEST_BYTES_MAX};
use crate::serve::ads::Ads;

/// Silence after which a client is asked whether it is alive.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long its answer may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams that one connection may open.
const STREAMS_PER_CONNECTION_MAX: u32 = 1000;
/// Bytes in flight per stream and per connection.
const WINDOW: u32 = 1 << 20;

/// Serves until the drain is over. Failed handshakes and accept errors never end it.
///
/// # Errors
/// The server cannot run at all.
pub async fn serve(
    listener: TcpListener,
    acceptor: Acceptor,
    ads: Ads,
    ca: CaService,
    join: JoinService,
    pages: Router,
    drain: DrainWatcher,
) -> Result<(), tonic::transport::Error> {
    let batch = BatchCertificateServiceServer::new(ca.clone()).max_decoding_message_size(BATCH_BYTES_MAX);
    let join = NodeJoinServer::new(join).max_decoding_message_size(CA_REQUEST_BYTES_MAX);
    let ca = IstioCertificateServiceServer::new(ca).max_decoding_message_size(CA_REQUEST_BYTES_MAX);
    let over = async move {
        drain.signaled().await;
    };
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .add_routes(Routes::from(pages))
        .add_service(ads)
        .add_service(ca)
        .add_service(batch)
        .add_service(join)
        .serve_with_incoming_shutdown(acceptor.incoming(listener), over)
        .await
}
