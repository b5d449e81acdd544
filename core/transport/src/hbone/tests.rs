//! Two peers over an in-memory stream or loopback TLS: what tunnels promise, whoever makes their frames.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tulle_identity::testing::{Clock, TestCa, certificate};
use tulle_model::{Identity, Reason};
use tulle_runtime::tasks;

use super::*;
use crate::{Baggage, ReasonHeader};

#[path = "tests/crowds.rs"]
mod crowds;
#[path = "tests/liveness.rs"]
mod liveness;
#[path = "tests/refusals.rs"]
mod refusals;
#[path = "tests/retirement.rs"]
mod retirement;
#[path = "tests/sizes.rs"]
mod sizes;
#[path = "tests/streams.rs"]
mod streams;
#[path = "tests/tls.rs"]
mod tls;

/// The tests stand three times in this crate, once for each framing.
const FRAMING: Framing = match module_path!().as_bytes() {
    b"tulle_transport::hbone::tests" => Framing::H2,
    b"tulle_transport::hbone::tests_own" => Framing::Own,
    _ => Framing::Records,
};

const CLIENT: Settings = client_settings();
const SERVER: Settings = server_settings();

const fn client_settings() -> Settings {
    Settings {
        framing: FRAMING,
        ..Settings::client()
    }
}

const fn server_settings() -> Settings {
    Settings {
        framing: FRAMING,
        ..Settings::server()
    }
}

/// A client and a server that talk to each other over memory.
pub(crate) struct Pair {
    pub(crate) client: ClientConnection,
    pub(crate) incoming: mpsc::Receiver<Incoming>,
    pub(crate) server: ServerHandle,
}

impl Pair {
    pub(crate) async fn new() -> Self {
        Self::with(client_settings(), server_settings()).await
    }

    pub(crate) async fn with(client: Settings, server: Settings) -> Self {
        let (near, far) = duplex(1024 * 1024);
        Self::over(near, far, client, server).await
    }

    async fn over(near: DuplexStream, far: DuplexStream, client: Settings, server: Settings) -> Self {
        if client.framing == Framing::Records {
            return Self::over_tls(near, far, client, server).await;
        }
        let (client, connection) =
            tokio::join!(client::handshake(near, &client), server::handshake(far, &server));
        let (server, incoming) = serve(connection.unwrap());
        Self {
            client: client.unwrap(),
            incoming,
            server,
        }
    }

    /// There are no records without TLS.
    async fn over_tls(near: DuplexStream, far: DuplexStream, client: Settings, server: Settings) -> Self {
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let (web, reviews) = (certificate(&id("web")), certificate(&id("reviews")));
        let (client, accepted) = tokio::join!(
            client::connect_over(near, peer, web.client_config(&[id("reviews")]), &client),
            server::accept_over(far, peer, reviews.server_config(), &server),
        );
        let (server, incoming) = serve(accepted.unwrap().connection);
        Self {
            client: client.unwrap(),
            incoming,
            server,
        }
    }

    /// An open tunnel, both ends.
    pub(crate) async fn tunnel(&mut self) -> (HboneStream, HboneStream) {
        let request = ConnectRequest::new("10.0.0.1:80");
        let (opened, accepted) = tokio::join!(self.client.open(&request), async {
            let incoming = self.incoming.recv().await.unwrap();
            incoming.accept(&ConnectResponse::default()).unwrap()
        });
        (opened.unwrap().0, accepted)
    }
}

/// Drives a server connection; its streams come out of the channel.
pub(crate) fn serve(mut connection: ServerConnection) -> (ServerHandle, mpsc::Receiver<Incoming>) {
    let handle = connection.handle();
    let (sender, receiver) = mpsc::channel(1024);
    tasks::spawn("test server", async move {
        while let Some(incoming) = connection.accept().await {
            let _ = sender.send(incoming).await;
        }
    });
    (handle, receiver)
}

async fn read_all(stream: &mut HboneStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

fn id(name: &str) -> Identity {
    Identity::new("cluster.local", "shop", name)
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (near, far) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (near.unwrap(), far.unwrap().0)
}

impl Pair {
    /// A pair whose two sides can be cut apart without either being told.
    async fn blackholed() -> Cut {
        let (near, mut near_end) = duplex(1024 * 1024);
        let (far, mut far_end) = duplex(1024 * 1024);
        let (cut, mut wait) = mpsc::channel::<()>(1);
        tasks::spawn("test link", async move {
            // What is said while it is cut arrives once it is not.
            loop {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near_end, &mut far_end) => break,
                    _ = wait.recv() => {}
                }
                if wait.recv().await.is_none() {
                    break;
                }
            }
            std::future::pending::<()>().await;
            drop((near_end, far_end));
        });
        Cut {
            pair: Self::over(near, far, client_settings(), server_settings()).await,
            cut,
        }
    }
}

struct Cut {
    pair: Pair,
    cut: mpsc::Sender<()>,
}

impl Cut {
    fn cut(&self) {
        self.cut.try_send(()).unwrap();
    }

    fn mend(&self) {
        self.cut.try_send(()).unwrap();
    }
}

impl std::ops::Deref for Cut {
    type Target = Pair;
    fn deref(&self) -> &Pair {
        &self.pair
    }
}

impl std::ops::DerefMut for Cut {
    fn deref_mut(&mut self) -> &mut Pair {
        &mut self.pair
    }
}
