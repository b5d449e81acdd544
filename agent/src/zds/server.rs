//! Accepts proxies and feeds each of them: its snapshot first, then what comes.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tulle_linux::seqpacket::{SeqPacket, SeqPacketListener};
use tulle_proto::convert::zds::Request;
use tulle_runtime::socket_file;
use tulle_runtime::tasks::Scope;

use super::book::Step;
use super::connection::{Connection, ConnectionError};
use super::hub::{self, Announcement, Hub, ProxyInfo};

/// At most five connections a second.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(200);
/// Descriptors of namespaces travel here: for the owner only.
const SOCKET_MODE: u32 = 0o600;

/// Why proxies cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {}: {source}", path.display())]
pub struct ZdsError {
    path: PathBuf,
    source: io::Error,
}

/// Binds the socket; the returned future accepts proxies for as long as it is polled.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(path: &Path, hub: Hub) -> Result<impl Future<Output = ()> + Send + use<>, ZdsError> {
    let listener =
        socket_file::place(path, SOCKET_MODE, SeqPacketListener::bind).map_err(|source| ZdsError {
            path: path.to_owned(),
            source,
        })?;
    Ok(accept(listener, hub))
}

/// Connections end with the server.
struct Conversations(Scope);

impl Drop for Conversations {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

async fn accept(listener: SeqPacketListener, hub: Hub) {
    let conversations = Conversations(Scope::new());
    loop {
        match listener.accept().await {
            Ok(socket) => {
                conversations.0.spawn("zds-proxy", converse(socket, hub.clone()));
            }
            Err(error) => tracing::warn!(%error, "cannot accept a proxy"),
        }
        tokio::time::sleep(ACCEPT_INTERVAL).await;
    }
}

async fn converse(socket: SeqPacket, hub: Hub) {
    let (connection, hello) = match Connection::greet(socket).await {
        Ok(greeted) => greeted,
        Err(error) => {
            tracing::warn!(%error, "a proxy did not introduce itself");
            return;
        }
    };
    let info = hub.connect(hello.abilities, connection.peer_pid());
    tracing::info!(
        proxy = info.id,
        generation = info.generation,
        sockets = info.takes_sockets,
        lingering = info.lingering,
        "proxy connected"
    );
    let _registered = Registered {
        hub: &hub,
        id: info.id,
    };
    match tell(&connection, &hub, &info).await {
        Ok(()) => tracing::warn!(proxy = info.id, "proxy cut: newer ones have taken its place"),
        Err(error) => tracing::info!(proxy = info.id, %error, "proxy disconnected"),
    }
}

/// A proxy is registered for as long as its conversation lasts, however that ends.
struct Registered<'a> {
    hub: &'a Hub,
    id: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.hub.disconnect(self.id);
    }
}

/// Tells a proxy one thing after the other until the connection ends, or must end because newer ones are there.
async fn tell(connection: &Connection, hub: &Hub, info: &ProxyInfo) -> Result<(), ConnectionError> {
    loop {
        let step = tokio::select! {
            step = hub.next(info.id) => step,
            error = connection.ended() => return Err(error),
        };
        let Some(step) = step else { return Ok(()) };
        let served = hub.is_served_beside(info.id, &step);
        let request = hub::request(&step, info.takes_sockets, served);
        let pod = match &step {
            Step::Add(_, pod) => Some(pod.as_ref()),
            _ => None,
        };
        let (answer, fds) = connection.exchange(&request, &descriptors(&request, pod)).await?;
        if let Some(error) = &answer.error {
            tracing::warn!(proxy = info.id, ?request, error, "a proxy refused a request");
        }
        hub.answered(info.id, &step, answer, fds);
    }
}

/// The namespace first, then the listeners if they were announced.
fn descriptors<'a>(request: &Request, pod: Option<&'a Announcement>) -> Vec<BorrowedFd<'a>> {
    let (Request::Add(added), Some(pod)) = (request, pod) else {
        return Vec::new();
    };
    let mut fds = vec![pod.netns.fd()];
    if let (Some(_), Some(listeners)) = (&added.sockets, &pod.listeners) {
        fds.extend(listeners.fds());
    }
    fds
}
