//! SOCKS5 on loopback of a pod, for applications that ask for their proxy: a connection is then planned, carried and
//! told of like a captured one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::Query as Question;
use hickory_proto::rr::{Name, RecordType};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tulle_model::{Reason, Workload};
use tulle_transport::socket;
use tulle_transport::socks5::{self, Malformed, Reply, Target};

use crate::carry;
use crate::dns::answer::{Decision, decide};
use crate::error::Error;
use crate::metrics::labels::Direction;
use crate::outbound::names::pick;
use crate::outbound::open;
use crate::pod::Pod;
use crate::record::Story;

/// How long a client may take to say what it wants.
const ASK_WAIT: Duration = Duration::from_secs(10);

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Listens where the pod lives. The port is shared with another proxy of the pod during an upgrade.
///
/// # Errors
/// When the port is taken by somebody else.
pub fn listen(pod: &Pod, port: u16) -> io::Result<TcpListener> {
    let socket = pod.sockets.tcp_v4()?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves one client to its end.
pub async fn serve(pod: Arc<Pod>, mut client: TcpStream, peer: SocketAddr) {
    // A socket that cannot take its options is already dead; reading will find out.
    let _ = pod.node.socket_options().apply(&client);
    let target = match timeout(ASK_WAIT, ask(&mut client)).await {
        Ok(Ok(target)) => target,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "a SOCKS5 client is not understood");
            return;
        }
        Err(_) => return,
    };
    let _socket = pod.node.metrics.socket(Direction::Outbound);
    let mut story = Story::begin(Direction::Outbound, peer, peer);
    let opened = match resolve(&pod, &target).await {
        Ok(destination) => {
            story.destination_address = destination;
            open(&pod, own_address(&pod, peer), destination, &mut story).await
        }
        Err(error) => Err(error),
    };
    match opened {
        Ok((upstream, _place)) => {
            if client.write_all(&Reply::Succeeded.encode()).await.is_ok() {
                // From here on what ends it early is no orderly end.
                let _ = socket::set_rst(&client);
                let tracked = carry::track(&pod, story, None);
                carry::run(&pod, client, upstream, tracked).await;
            }
        }
        Err(error) => {
            story.fail(&pod.node.metrics, &error);
            // The reply is the news; the reset after it only ends what is over.
            let _ = client.write_all(&reply(&error).encode()).await;
            let _ = client.shutdown().await;
        }
    }
}

/// The client connected over loopback; peers are to hear of the pod.
fn own_address(pod: &Pod, peer: SocketAddr) -> SocketAddr {
    let workload = pod.find(&pod.node.mesh.snapshot());
    let address = workload.and_then(|workload| workload.addresses.first().copied());
    address.map_or(peer, |address| SocketAddr::new(address, peer.port()))
}

/// Why a client is not understood.
#[derive(Debug, thiserror::Error)]
enum NotUnderstood {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Greets and reads what the client wants; answers it itself where that cannot be.
async fn ask(client: &mut TcpStream) -> Result<Target, NotUnderstood> {
    let greeting = read(client, |bytes| socks5::greeting(bytes).map(|length| ((), length))).await;
    client.write_all(&socks5::method(greeting.is_ok())).await?;
    greeting?;
    match read(client, socks5::request).await {
        Ok(target) => Ok(target),
        Err(error) => {
            if let NotUnderstood::Malformed(malformed) = &error {
                client.write_all(&malformed.reply().encode()).await?;
            }
            Err(error)
        }
    }
}

/// Reads until `parse` is content, and takes no byte more: what follows is the application's.
async fn read<T>(
    client: &TcpStream,
    parse: impl Fn(&[u8]) -> Result<(T, usize), Malformed>,
) -> Result<T, NotUnderstood> {
    let mut bytes = Vec::with_capacity(socks5::REQUEST_BYTES_MAX);
    loop {
        let wanted = match parse(&bytes) {
            Ok((read, _)) => return Ok(read),
            Err(Malformed::Incomplete(wanted)) => wanted,
            Err(malformed) => return Err(malformed.into()),
        };
        let begun = bytes.len();
        bytes.resize(wanted, 0);
        let mut at = begun;
        while at < wanted {
            client.readable().await?;
            match client.try_read(&mut bytes[at..]) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(length) => at += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The address of a target: a name of the mesh, or one that the pod's name servers know.
async fn resolve(pod: &Pod, target: &Target) -> Result<SocketAddr, Error> {
    let (name, port) = match target {
        Target::Address(address) => return Ok(*address),
        Target::Name(name, port) => (name, *port),
    };
    let workload = pod.workload().await?;
    let address = match of_mesh(pod, &workload, name) {
        Some(addresses) => any(&addresses),
        None => {
            let (servers, ipv6) = (&pod.dns.upstream, pod.node.config.ipv6);
            let found = pod.names.lookup(servers, &name.as_str().into(), ipv6).await;
            any(&found)
        }
    };
    let unknown = || Error::BadRequest {
        detail: format!("the name {name} does not lead to an address"),
        reason: Reason::NameNotResolved,
    };
    address
        .map(|address| SocketAddr::new(address, port))
        .ok_or_else(unknown)
}

/// What the mesh knows of a name; `None` if it does not know it.
fn of_mesh(pod: &Pod, workload: &Workload, name: &str) -> Option<Vec<IpAddr>> {
    let snapshot = pod.node.mesh.snapshot();
    let name = Name::from_str(name).ok()?;
    let mut found = None;
    for kind in [RecordType::A, RecordType::AAAA] {
        let question = Question::query(name.clone(), kind);
        if let Decision::Answer(answer) = decide(&question, &snapshot, workload, &pod.dns.settings) {
            found.get_or_insert_with(Vec::new).extend(answer.addresses);
        }
    }
    found
}

fn any(addresses: &[IpAddr]) -> Option<IpAddr> {
    let mut random = |bound: u64| rand::random_range(0..bound.max(1));
    pick(addresses, true, |_| true, &mut random)
}

/// What a client is told of a failure.
fn reply(error: &Error) -> Reply {
    match error.reason() {
        Some(Reason::PolicyDenied | Reason::NoAllowMatched | Reason::WaypointRequired | Reason::SelfCall) => {
            Reply::NotAllowed
        }
        Some(Reason::ConnectFailed) => Reply::Refused,
        Some(
            Reason::NoHealthyEndpoint
            | Reason::NoGateway
            | Reason::NoRoute
            | Reason::WaypointUnavailable
            | Reason::NameNotResolved
            | Reason::ConnectTimeout,
        ) => Reply::HostUnreachable,
        _ => Reply::Failure,
    }
}
