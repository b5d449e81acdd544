//! In-pod mode under the agent of another mesh, played by the bytes that it writes: the protocol as it was before any
//! extension of ours, with one descriptor at most, and the habits of that agent around it.

use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::BorrowedFd;
use std::path::Path;

use tokio::time::timeout;
use tulle_linux::seqpacket::{SeqPacket, SeqPacketListener};

use crate::agent::{Agent, listens, namespace, until};
use crate::world::SOON;

/// What that agent reads an answer, and the hello, into.
const BUFFER: usize = 1024;

/// A field of the wire format that holds bytes: a text or a message.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap();
    assert!(number < 16 && length < 128, "one byte each");
    [&[number << 3 | 2, length], value].concat()
}

fn add(uid: &str) -> Vec<u8> {
    let info = [
        field(1, uid.as_bytes()),
        field(2, b"shop"),
        field(3, uid.as_bytes()),
    ]
    .concat();
    field(1, &[field(1, uid.as_bytes()), field(2, &info)].concat())
}

fn keep(uid: &str) -> Vec<u8> {
    field(5, &field(1, uid.as_bytes()))
}

/// The uid has another number here than anywhere else.
fn del(uid: &str) -> Vec<u8> {
    field(2, &field(2, uid.as_bytes()))
}

fn snapshot_sent() -> Vec<u8> {
    field(3, &[])
}

/// One proxy's connection, as that agent sees it.
struct Connection(SeqPacket);

impl Connection {
    /// Accepts a proxy and takes its hello for what version 1 knows of it.
    async fn accept(listener: &SeqPacketListener) -> Self {
        let connection = timeout(SOON, listener.accept())
            .await
            .expect("the proxy dials")
            .unwrap();
        let mut buffer = [0; BUFFER];
        let hello = timeout(SOON, connection.recv(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(buffer[..2], [1 << 3, 1], "field 1: version 1");
        assert!(hello.len < BUFFER && hello.fds.is_empty());
        Self(connection)
    }

    /// Sends one message and waits for the one answer there is to it.
    async fn ask(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> Vec<u8> {
        self.0.send(message, fds).await.unwrap();
        let mut buffer = [0; BUFFER];
        let answer = timeout(SOON, self.0.recv(&mut buffer)).await.unwrap().unwrap();
        assert!(answer.fds.is_empty(), "that agent takes none");
        buffer[..answer.len].to_vec()
    }

    /// An Ack without an error, and without anything that version 1 does not know.
    async fn done(&self, message: &[u8], fds: &[BorrowedFd<'_>]) {
        assert_eq!(self.ask(message, fds).await, field(1, &[]));
    }
}

/// An agent that starts anew: what it left is removed, then it listens at the same place.
fn start_again(before: SeqPacketListener, at: &Path) -> SeqPacketListener {
    drop(before);
    // Who binds it may have removed it.
    let _ = std::fs::remove_file(at);
    SeqPacketListener::bind(at).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_without_our_extensions_is_followed_through_its_own_restart() {
    let (Some(stays), Some(goes)) = (namespace(), namespace()) else {
        return;
    };
    let Agent {
        app,
        listener,
        proxy,
        folder,
        ..
    } = Agent::start().await;
    let socket = folder.path().join("ztunnel.sock");
    // It may be gone before it has read a hello.
    drop(proxy);
    let agent = Connection::accept(&listener).await;
    agent.done(&add("stays"), &[stays.fd()]).await;
    agent.done(&add("goes"), &[goes.fd()]).await;
    agent.done(&snapshot_sent(), &[]).await;
    assert!(listens(&stays) && listens(&goes), "it opens its listeners itself");
    assert!(app.ready().is_ready());

    let listener = start_again(listener, &socket);
    drop(agent);
    let agent = Connection::accept(&listener).await;
    assert!(listens(&stays) && listens(&goes), "nothing is closed meanwhile");
    // It has not found the namespace of the one again, and never heard of the other.
    agent.done(&keep("stays"), &[]).await;
    agent.done(&snapshot_sent(), &[]).await;
    until("the pod that was not mentioned is let go", || !listens(&goes)).await;
    assert!(listens(&stays));

    agent.done(&add("goes"), &[goes.fd()]).await;
    assert!(listens(&goes), "it is back");
    agent.done(&del("goes"), &[]).await;
    agent.done(&del("never heard of"), &[]).await;
    until("a deleted pod is let go", || !listens(&goes)).await;
    assert!(listens(&stays));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_cannot_be_served_is_told_to_that_agent_which_goes_on() {
    let (Some(taken), Some(free)) = (namespace(), namespace()) else {
        return;
    };
    let Agent {
        app,
        listener,
        proxy,
        folder,
        ..
    } = Agent::start().await;
    drop(proxy);
    let agent = Connection::accept(&listener).await;
    let held = taken
        .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 15001)).unwrap())
        .unwrap();
    let refused = agent.ask(&add("taken"), &[taken.fd()]).await;
    assert_eq!(refused[0], 1 << 3 | 2, "an Ack");
    let told = String::from_utf8_lossy(&refused).into_owned();
    assert!(told.contains("cannot be started"), "{told}");
    agent.done(&add("free"), &[free.fd()]).await;
    agent.done(&snapshot_sent(), &[]).await;
    assert!(listens(&free), "others are served");
    assert!(!app.ready().is_ready(), "one is not");
    drop((held, folder));
}
