//! Unix sequenced-packet sockets (`SOCK_SEQPACKET`) that carry descriptors: one packet, one message.
//!
//! Descriptors that arrive are owned from the first moment, so they are closed on every path.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::io::unix::AsyncFd;

/// Most descriptors one packet may carry.
pub const DESCRIPTORS_MAX: usize = 16;

/// Connections waiting to be accepted.
const BACKLOG: i32 = 16;

/// A listening socket bound to a path.
#[derive(Debug)]
pub struct SeqPacketListener {
    socket: AsyncFd<OwnedFd>,
}

/// One end of a connection.
#[derive(Debug)]
pub struct SeqPacket {
    socket: AsyncFd<OwnedFd>,
}

/// One received packet.
#[derive(Debug)]
pub struct Received {
    /// Bytes received; 0 is the end of the connection.
    pub len: usize,
    /// Descriptors received, in order.
    pub fds: Vec<OwnedFd>,
    /// The packet, or its descriptors, did not fit and part of it is lost.
    pub truncated: bool,
}

fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Registers a socket with the runtime.
pub(crate) fn watched(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[allow(
        deprecated,
        reason = "the replacement is unsafe because a foreign type may change its descriptor; an OwnedFd never does"
    )]
    AsyncFd::new(socket)
}

impl SeqPacketListener {
    /// Binds a path that must not exist and listens. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the path exists or cannot be made.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let socket = socket()?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(Self {
            socket: watched(socket)?,
        })
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// When accepting fails, for example for want of descriptors.
    pub async fn accept(&self) -> io::Result<SeqPacket> {
        let accepted = loop {
            let mut ready = self.socket.readable().await?;
            let attempt = ready.try_io(|socket| {
                rustix::net::accept_with(socket.get_ref(), SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)
                    .map_err(io::Error::from)
            });
            if let Ok(outcome) = attempt {
                break outcome?;
            }
        };
        SeqPacket::from_fd(accepted)
    }
}

impl SeqPacket {
    /// Connects to a listener. Needs a tokio runtime.
    ///
    /// # Errors
    /// When nobody listens at the path, or its queue is full.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = socket()?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Self::from_fd(socket)
    }

    /// A connected pair, for tests.
    ///
    /// # Errors
    /// When no descriptor is free.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self::from_fd(one)?, Self::from_fd(other)?))
    }

    fn from_fd(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket: watched(socket)?,
        })
    }

    /// The process at the other end, as it was when it connected; 0 if it is out of sight of ours.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn peer_pid(&self) -> io::Result<i32> {
        let peer =
            nix::sys::socket::getsockopt(self.socket.get_ref(), nix::sys::socket::sockopt::PeerCredentials)?;
        Ok(peer.pid())
    }

    /// Sends one packet with its descriptors.
    ///
    /// # Errors
    /// `InvalidInput` for more than [`DESCRIPTORS_MAX`] descriptors; else what the kernel says.
    pub async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if fds.len() > DESCRIPTORS_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "too many descriptors for one packet",
            ));
        }
        loop {
            let mut ready = self.socket.writable().await?;
            let attempt = ready.try_io(|socket| send_packet(socket.get_ref().as_fd(), bytes, fds));
            if let Ok(outcome) = attempt {
                return outcome;
            }
        }
    }

    /// Receives one packet into `buffer`.
    ///
    /// # Errors
    /// What the kernel says; the end of the connection is no error but `len` 0.
    pub async fn recv(&self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            let mut ready = self.socket.readable().await?;
            let attempt = ready.try_io(|socket| receive_packet(socket.get_ref().as_fd(), buffer));
            if let Ok(outcome) = attempt {
                return outcome;
            }
        }
    }
}

pub(crate) fn send_packet(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors for one packet",
        ));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

pub(crate) fn receive_packet(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let truncated = received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    Ok(Received {
        len: received.bytes,
        fds,
        truncated,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    #[tokio::test]
    async fn a_packet_keeps_its_bounds_and_its_descriptor() {
        let (one, other) = SeqPacket::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"through the socket").unwrap();
        one.send(b"first", &[file.as_fd()]).await.unwrap();
        one.send(b"second", &[]).await.unwrap();

        let mut buffer = [0; 64];
        let mut first = other.recv(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..first.len], b"first");
        let second = other.recv(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..second.len], b"second");

        let mut copy = std::fs::File::from(first.fds.remove(0));
        let mut text = String::new();
        copy.rewind().unwrap();
        copy.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through the socket");
        assert!(second.fds.is_empty());
    }

    #[tokio::test]
    async fn a_packet_that_does_not_fit_is_reported() {
        let (one, other) = SeqPacket::pair().unwrap();
        one.send(&[7; 100], &[]).await.unwrap();
        let received = other.recv(&mut [0; 10]).await.unwrap();
        assert!(received.truncated);
    }

    #[tokio::test]
    async fn the_end_of_the_connection_is_an_empty_packet() {
        let (one, other) = SeqPacket::pair().unwrap();
        drop(one);
        assert_eq!(other.recv(&mut [0; 10]).await.unwrap().len, 0);
    }

    #[tokio::test]
    async fn a_listener_serves_a_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("zds.sock");
        let listener = SeqPacketListener::bind(&path).unwrap();
        let client = SeqPacket::connect(&path).unwrap();
        let server = listener.accept().await.unwrap();
        client.send(b"hello", &[]).await.unwrap();
        let mut buffer = [0; 16];
        assert_eq!(server.recv(&mut buffer).await.unwrap().len, 5);
    }
}
