//! One direction of a copy: read a chunk, hand it on, finish when the source has.

use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use super::backlog::Backlog;
use super::pipe::Pipe;
use super::wire::{TcpWire, Wire};
use crate::hbone::StreamError;
use crate::socket::Closed;

/// What ended an end of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// A socket was reset, timed out or failed.
    Socket(Closed),
    /// The tunnel was reset or lost.
    Tunnel(StreamError),
    /// The peer has finished and wants nothing more: RST_STREAM(NO_ERROR) after its END_STREAM.
    Finished,
}

/// Which end of a direction failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The one that is read.
    Source,
    /// The one that is written.
    Sink,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    /// The source has finished; what is held is still to be written.
    ReadToEnd,
    /// FIN is passed on.
    Finished,
}

/// The state of one direction.
#[derive(Debug)]
pub(super) struct Direction<'a> {
    state: State,
    backlog: Backlog,
    /// Between two sockets, while bytes keep coming.
    pipe: Option<Pipe>,
    moved: &'a AtomicU64,
}

impl<'a> Direction<'a> {
    pub(super) fn new(moved: &'a AtomicU64) -> Self {
        Self {
            state: State::Reading,
            backlog: Backlog::default(),
            pipe: None,
            moved,
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        self.state == State::Finished
    }

    pub(super) fn is_read_to_end(&self) -> bool {
        self.state != State::Reading
    }

    /// The sink wants nothing more; what is held is dropped.
    pub(super) fn stop(&mut self) {
        self.state = State::Finished;
        self.backlog = Backlog::default();
        self.pipe = None;
    }

    /// Moves what can be moved now. Ready once FIN is passed on, or an end failed.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut dyn Wire,
        sink: &mut dyn Wire,
    ) -> Poll<Result<(), (Side, Fault)>> {
        loop {
            if self.state == State::Finished {
                return Poll::Ready(Ok(()));
            }
            if let (Some(from), Some(to)) = (source.socket(), sink.socket())
                && self.is_spliced(from)
            {
                ready!(self.poll_splice(cx, from, to))?;
                continue;
            }
            self.fill(cx, source, sink)
                .map_err(|fault| (Side::Source, fault))?;
            let step = if !self.backlog.is_empty() {
                sink.poll_push(cx, &mut self.backlog)
            } else if self.state == State::ReadToEnd {
                sink.poll_finish(cx).map_ok(|()| 0)
            } else {
                return Poll::Pending;
            };
            match step {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(Fault::Finished)) => self.stop(),
                Poll::Ready(Err(fault)) => return Poll::Ready(Err((Side::Sink, fault))),
                Poll::Ready(Ok(0)) => self.state = State::Finished,
                Poll::Ready(Ok(bytes)) => {
                    self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
                    source.taken(bytes);
                }
            }
        }
    }

    /// Whether the next bytes go through a pipe.
    fn is_spliced(&mut self, from: &TcpWire) -> bool {
        if self.pipe.is_none()
            && self.state == State::Reading
            && self.backlog.is_empty()
            && from.brings_bulk()
        {
            self.pipe = Pipe::lend();
        }
        self.pipe.is_some()
    }

    /// One step through the pipe, which goes when there is nothing to read.
    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpWire,
        to: &TcpWire,
    ) -> Poll<Result<(), (Side, Fault)>> {
        let Some(pipe) = &mut self.pipe else {
            return Poll::Ready(Ok(()));
        };
        if pipe.is_empty() {
            match from.poll_fill(cx, pipe) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0)) => {
                    self.pipe = None;
                    self.state = State::ReadToEnd;
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Err(fault)) => return Poll::Ready(Err((Side::Source, fault))),
                Poll::Pending => {
                    self.pipe = None;
                    return Poll::Pending;
                }
            }
        }
        match ready!(to.poll_empty(cx, pipe)) {
            Ok(bytes) => {
                self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            Err(Fault::Finished) => self.stop(),
            Err(fault) => return Poll::Ready(Err((Side::Sink, fault))),
        }
        Poll::Ready(Ok(()))
    }

    /// Reads one chunk when nothing is held; a source whose peer is bounded by credit is emptied always.
    ///
    /// What was read and is not taken stands in a buffer, for as long as a reader on the far side is slow, and keeps what
    /// the allocator has around it: for many such readers that is more than the bytes themselves. So where a read
    /// may bring much, no more is read than the sink has room for, or the least there is: an end or a reset is to be heard of.
    fn fill(&mut self, cx: &mut Context<'_>, source: &mut dyn Wire, sink: &dyn Wire) -> Result<(), Fault> {
        let ahead = source.reads_ahead();
        while self.state == State::Reading && (ahead || self.backlog.is_empty()) {
            let wanted = if !ahead && source.brings_much() {
                sink.room()
            } else {
                usize::MAX
            };
            match source.poll_pull(cx, wanted) {
                Poll::Ready(Ok(Some(chunk))) => self.backlog.push(chunk),
                Poll::Ready(Ok(None)) => self.state = State::ReadToEnd,
                Poll::Ready(Err(fault)) => return Err(fault),
                Poll::Pending => return Ok(()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tulle_runtime::tasks;

    use super::*;
    use crate::socket::Keepalive;

    async fn sockets() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn bulk_between_sockets_goes_through_a_pipe_whole_and_in_order() {
        const BYTES: usize = 64 * 1024 * 1024;
        let ((mut client, captured), (delivered, mut server)) = (sockets().await, sockets().await);
        let sent: Vec<u8> = (0..=250).cycle().take(BYTES).collect();
        let expected = sent.clone();
        let client = tasks::spawn("client", async move {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            client
        });
        let moved = AtomicU64::new(0);
        let [mut from, mut to] =
            [captured, delivered].map(|stream| TcpWire::new(stream, Keepalive::HALF_CLOSED));
        let mut direction = Direction::new(&moved);
        // Nobody reads yet: it comes to rest with a pipe that is not empty.
        poll_fn(|cx| {
            let result = direction.poll(cx, &mut from, &mut to);
            assert!(result.is_pending(), "more is sent than sockets take");
            let rests = direction.pipe.as_ref().is_some_and(|pipe| !pipe.is_empty());
            if rests { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let server = tasks::spawn("server", async move {
            let mut received = Vec::new();
            server.read_to_end(&mut received).await.unwrap();
            received
        });
        poll_fn(|cx| direction.poll(cx, &mut from, &mut to))
            .await
            .unwrap();
        assert!(direction.pipe.is_none(), "it is given back at the end");
        assert_eq!(moved.load(Ordering::Relaxed), BYTES as u64);
        assert!(server.await.unwrap() == expected);
        drop(client.await.unwrap());
    }

    #[tokio::test]
    async fn a_pause_gives_the_pipe_back() {
        let ((mut client, captured), (delivered, mut server)) = (sockets().await, sockets().await);
        let moved = AtomicU64::new(0);
        let [mut from, mut to] =
            [captured, delivered].map(|stream| TcpWire::new(stream, Keepalive::HALF_CLOSED));
        let mut direction = Direction::new(&moved);
        let sent = vec![7; 512 * 1024];
        let mut received = vec![0; sent.len()];
        let (written, read, ()) = tokio::join!(
            client.write_all(&sent),
            server.read_exact(&mut received),
            poll_fn(|cx| {
                assert!(direction.poll(cx, &mut from, &mut to).is_pending());
                let done = moved.load(Ordering::Relaxed) == 512 * 1024;
                if done { Poll::Ready(()) } else { Poll::Pending }
            })
        );
        written.unwrap();
        read.unwrap();
        assert!(from.brings_bulk() && direction.pipe.is_none());
        assert!(received == sent);
    }
}
