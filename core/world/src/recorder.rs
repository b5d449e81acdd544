//! The wire recorder: reads every frame that crosses the wire between the nodes, or any interface of a node, and looks for
//! something in it.

mod frame;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
};
use nix::sys::time::TimeVal;
use tulle_linux::NetNs;

/// A frame is at most one GSO packet.
const FRAME_BYTES_MAX: usize = 96 * 1024;
/// Room for bursts between two reads.
const RECEIVE_BUFFER_BYTES: usize = 64 * 1024 * 1024;
/// `PACKET_OUTGOING` of linux/if_packet.h: a frame that leaves; it was counted when it came in.
const PACKET_OUTGOING: u8 = 4;

/// What a recorder looks for in frames.
#[derive(Debug, Clone)]
pub enum Sought {
    /// These bytes.
    Marker(Vec<u8>),
    /// TCP from or to one of these addresses, with another port than this at both ends.
    Streams {
        /// The addresses.
        of: Vec<IpAddr>,
        /// The port.
        but: u16,
    },
}

/// Which frames are read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Frames {
    /// Those that enter by an interface, but for this one: each frame that crosses a wire once.
    Entering {
        /// Index of the wire itself, whose frames are those of its ports again.
        except: u32,
    },
    /// Those that enter and those that leave by any interface.
    All,
}

/// Records the frames of a wire or a node until it is dropped.
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    bytes: AtomicU64,
    frames: AtomicU64,
    marked: AtomicU64,
    marked_bytes: AtomicU64,
}

/// What has been seen so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Bytes of frames looked through.
    pub bytes: u64,
    /// Frames looked through.
    pub frames: u64,
    /// Frames in which it was found.
    pub marked_frames: u64,
    /// Bytes of those frames.
    pub marked_bytes: u64,
}

impl Recorded {
    /// What has been seen since an earlier look.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            bytes: self.bytes - earlier.bytes,
            frames: self.frames - earlier.frames,
            marked_frames: self.marked_frames - earlier.marked_frames,
            marked_bytes: self.marked_bytes - earlier.marked_bytes,
        }
    }
}

impl Recorder {
    /// Starts to record in a namespace.
    pub(crate) fn start(place: &NetNs, frames: Frames, sought: &Sought) -> io::Result<Self> {
        let socket = place.run(open)??;
        let shared = Arc::new(Shared::default());
        let (seen, finds) = (Arc::clone(&shared), finder(sought.clone()));
        let thread = std::thread::Builder::new()
            .name("wire-recorder".to_owned())
            .spawn(move || record(&socket, frames, finds, &seen))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// What has been seen so far.
    #[must_use]
    pub fn seen(&self) -> Recorded {
        Recorded {
            bytes: self.shared.bytes.load(Ordering::Relaxed),
            frames: self.shared.frames.load(Ordering::Relaxed),
            marked_frames: self.shared.marked.load(Ordering::Relaxed),
            marked_bytes: self.shared.marked_bytes.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the recorder has been printed by its thread.
            let _ = thread.join();
        }
    }
}

fn open() -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::new(0, 50_000))?;
    // Without CAP_NET_ADMIN in the first user namespace the ordinary limit holds; frames may be lost under load.
    let _ = setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER_BYTES);
    Ok(socket)
}

/// Whether a frame is what is sought.
type Finds = Box<dyn Fn(&[u8]) -> bool + Send>;

fn finder(sought: Sought) -> Finds {
    match sought {
        Sought::Marker(marker) => {
            let finder = memchr::memmem::Finder::new(&marker).into_owned();
            Box::new(move |frame| finder.find(frame).is_some())
        }
        Sought::Streams { of, but } => Box::new(move |frame| frame::is_stream(frame, &of, but)),
    }
}

impl Frames {
    fn read(self, from: &LinkAddr) -> bool {
        match self {
            Self::Entering { except } => {
                from.pkttype() != PACKET_OUTGOING && from.ifindex() != except as usize
            }
            Self::All => true,
        }
    }
}

fn record(socket: &OwnedFd, frames: Frames, finds: Finds, seen: &Shared) {
    let mut frame = vec![0; FRAME_BYTES_MAX];
    while !seen.stop.load(Ordering::Relaxed) {
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut frame) {
            Ok((_, Some(from))) if !frames.read(&from) => {}
            Ok((len, _)) => {
                if finds(&frame[..len]) {
                    seen.marked.fetch_add(1, Ordering::Relaxed);
                    seen.marked_bytes.fetch_add(len as u64, Ordering::Relaxed);
                }
                seen.frames.fetch_add(1, Ordering::Relaxed);
                seen.bytes.fetch_add(len as u64, Ordering::Relaxed);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => {
                tracing::error!(%error, "the wire recorder stopped");
                return;
            }
        }
    }
}
