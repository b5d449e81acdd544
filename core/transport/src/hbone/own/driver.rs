//! Moves bytes between a connection and the stream under it. One task owns that stream.
//!
//! What waits is written at once while the stream takes it. While it does not, everything that streams want to send
//! gathers, and goes out together as soon as there is room again.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::time::Instant;
use tulle_model::Reason;

use super::conn::Conn;
use super::core::{Core, End, Next, Outbox};
use super::link::Link;
use super::wire::PREFACE;
use crate::hbone::held::Held;
use crate::hbone::seam::Ping;
use crate::hbone::settings::Settings;

/// Bytes that are gathered for one write. What comes next waits behind no more than this, and what the kernel has.
const GATHERED: usize = 128 * 1024;

/// Bytes that are moved before others have a turn, who may run on this very thread.
const TURN: usize = 128 * 1024;

/// The same of writes alone: these end by themselves as soon as nothing waits, and each turn that is asked for wakes
/// another thread.
const WRITE_TURN: usize = 256 * 1024;

/// Places for chunks of one read that are kept for the next one.
const CHUNKS_KEPT: usize = 4;

/// The task's end of a connection.
#[derive(Debug)]
pub(super) struct Driver<L> {
    link: L,
    conn: Arc<Conn>,
    out: Outbox,
    /// What was read and not taken in; empty but for what came behind a preface.
    chunks: Vec<Bytes>,
    /// What streams hold for their readers.
    held: usize,
    streams_max: u32,
    unwritable: Option<Unwritable>,
    over: Option<Result<(), String>>,
}

/// Writing has failed: what the peer said before it closed is still to be heard.
#[derive(Debug)]
struct Unwritable {
    error: io::Error,
    /// Nothing was there when it was last looked for.
    waited: bool,
}

impl<L: Link> Driver<L> {
    pub(super) fn new(link: L, conn: Arc<Conn>, settings: &Settings) -> Self {
        Self {
            link,
            conn,
            out: Outbox::default(),
            chunks: Vec::new(),
            held: 0,
            streams_max: settings.streams_max,
            unwritable: None,
            over: None,
        }
    }

    pub(super) fn conn(&self) -> &Arc<Conn> {
        &self.conn
    }

    /// Writes what each side begins with.
    pub(super) async fn introduce(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_write(cx)).await.map(|_| ())
    }

    /// Reads the client's preface; false if something else came.
    pub(super) async fn read_preface(&mut self) -> io::Result<bool> {
        let mut expected = &PREFACE[..];
        while !expected.is_empty() {
            let read = poll_fn(|cx| self.link.poll_read(cx, 0, &mut self.chunks)).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            for chunk in &mut self.chunks {
                let part = expected.len().min(chunk.len());
                if chunk[..part] != expected[..part] {
                    return Ok(false);
                }
                chunk.advance(part);
                expected = &expected[part..];
            }
            self.chunks.retain(|chunk| !chunk.is_empty());
        }
        Ok(true)
    }

    /// Moves what can be moved. Ready when the connection is over, with the reason unless it ended in order.
    pub(super) fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        if self.over.is_none() {
            self.over = match self.poll_move(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => Some(Ok(())),
                Poll::Ready(Err(error)) => Some(Err(error.to_string())),
            };
            let why = match &self.over {
                Some(Err(why)) => why.as_str(),
                _ => "the connection was closed",
            };
            self.conn.drive(|core| core.end(End::Lost(why.into())));
        }
        Poll::Ready(self.over.clone().unwrap_or(Ok(())))
    }

    fn poll_move(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.conn.register(cx);
        let mut left = TURN;
        while left > 0 {
            if self.unwritable.is_some() {
                return self.poll_hear_out(cx);
            }
            let written = match self.write(cx) {
                Ok(written) => written,
                Err(error) => {
                    self.unwritable = Some(Unwritable { error, waited: false });
                    continue;
                }
            };
            match self.conn.drive(Core::next) {
                Next::Read => {}
                Next::Wait => return Poll::Pending,
                Next::Close => return self.poll_goodbye(cx),
                // It ends at once, whether or not the peer takes what is left to say.
                Next::Cut => {
                    let _ = self.poll_goodbye(cx);
                    return Poll::Ready(Ok(()));
                }
            }
            left = match self.poll_read(cx)? {
                // Whatever was on its way in either direction is lost.
                Poll::Ready(0) => return Poll::Ready(Ok(())),
                Poll::Ready(read) => left.saturating_sub(read),
                // Who asks for another turn without need is polled once more, and wakes another thread to look for work.
                Poll::Pending if written >= WRITE_TURN => 0,
                Poll::Pending => return Poll::Pending,
            };
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads what is left to read, now that nothing can be written: answers that came in whole, or why the peer refused
    /// our certificate. It is there, or will be in a moment: a failed socket is always readable. It is no more than the
    /// windows let come, which cannot be opened any further.
    fn poll_hear_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while matches!(self.conn.drive(Core::next), Next::Read) {
            match self.poll_read(cx) {
                Poll::Ready(Ok(1..)) => self
                    .unwritable
                    .as_mut()
                    .into_iter()
                    .for_each(|it| it.waited = false),
                Poll::Pending if self.unwritable.as_mut().is_some_and(Unwritable::waits) => {
                    return Poll::Pending;
                }
                _ => break,
            }
        }
        Poll::Ready(self.unwritable.take().map_or(Ok(()), |it| Err(it.error)))
    }

    /// Writes until nothing is left, the stream takes no more, or it is the turn of others; says how much.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<usize> {
        let mut written = 0;
        while written < WRITE_TURN
            && let Poll::Ready(bytes @ 1..) = self.poll_write(cx)?
        {
            written += bytes;
        }
        Ok(written)
    }

    /// Writes what there is to write, one batch of it, and flushes it; says how long it was, 0 if nothing was left.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.out.is_empty() {
            let out = &mut self.out;
            self.conn.drive(|core| core.gather(out, GATHERED));
        }
        let written = self.out.len();
        ready!(self.link.poll_write(cx, &mut self.out))?;
        Poll::Ready(Ok(written))
    }

    /// Reads once, and takes in what was read; 0 at the end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let read = if self.chunks.is_empty() {
            ready!(self.link.poll_read(cx, self.held, &mut self.chunks))?
        } else {
            self.chunks.iter().map(Bytes::len).sum()
        };
        let (chunks, held) = (&mut self.chunks, &mut self.held);
        let (limit, failed) = self.conn.drive(|core| {
            let now = Instant::now();
            let mut received = chunks.drain(..).map(|chunk| core.receive(chunk, now));
            let failed = received.find_map(Result::err);
            drop(received);
            failed.into_iter().for_each(|fault| core.fail(fault));
            *held = core.held();
            let changed = std::mem::take(&mut core.limit_changed);
            (changed.then(|| core.peer_streams_max()), failed)
        });
        if self.chunks.capacity() > CHUNKS_KEPT {
            self.chunks = Vec::new();
        }
        if let Some(limit) = limit {
            self.conn.vitals().set_limit(self.streams_max.min(limit));
        }
        match failed {
            None => {
                self.relieve()?;
                Poll::Ready(Ok(read))
            }
            Some(fault) => {
                // It is told if that can be done at once; it has no claim to more.
                while matches!(self.poll_write(cx), Poll::Ready(Ok(1..))) {}
                Poll::Ready(Err(io::Error::other(fault)))
            }
        }
    }

    /// Ends streams while this process holds all it may, and this connection more than a little of it.
    fn relieve(&mut self) -> io::Result<()> {
        let Err(too_much) = Held::judge(self.held) else {
            return Ok(());
        };
        let held = &mut self.held;
        let relieved = self.conn.drive(|core| {
            let relieved = core.shed(too_much.may);
            *held = core.held();
            relieved
        });
        if relieved {
            return Ok(());
        }
        self.conn.vitals().cut(Reason::Overload);
        Err(io::Error::other(too_much))
    }

    /// All is said: closes the stream once it is written.
    fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while ready!(self.poll_write(cx))? > 0 {}
        self.link.poll_close(cx)
    }
}

impl Unwritable {
    /// Yes, once for each time that something came.
    fn waits(&mut self) -> bool {
        !std::mem::replace(&mut self.waited, true)
    }
}

impl<L> Drop for Driver<L> {
    fn drop(&mut self) {
        self.conn
            .drive(|core| core.end(End::Lost("this side ended it".into())));
    }
}

/// The question whether the peer lives.
#[derive(Debug)]
pub(super) struct Question {
    conn: Arc<Conn>,
}

impl Question {
    pub(super) fn new(conn: &Arc<Conn>) -> Self {
        Self {
            conn: Arc::clone(conn),
        }
    }
}

impl Ping for Question {
    fn send(&mut self) -> bool {
        self.conn.with(Core::ask)
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.conn.with(|core| core.poll_alive(cx))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

    use super::*;
    use crate::hbone::ConnectRequest;
    use crate::hbone::liveness::Vitals;
    use crate::hbone::own::client;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// SETTINGS, and on the first stream `:status: 200` and a body, whole.
    const ANSWERED: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\x04\0\0\0\x01\x88\0\0\x03\0\x01\0\0\0\x01yes";

    /// Once its peer has closed it, nothing can be written, and what the peer said before can be read, a little at a time.
    struct ClosedByPeer {
        said: &'static [u8],
        closed: Arc<AtomicBool>,
        pauses: bool,
    }

    impl AsyncRead for ClosedByPeer {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            room: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.pauses = !self.pauses;
            if !self.closed.load(Ordering::Relaxed) {
                return Poll::Pending;
            }
            if self.pauses {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let (some, rest) = self.said.split_at(self.said.len().min(10));
            self.said = rest;
            room.put_slice(some);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for ClosedByPeer {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let closed = self.closed.load(Ordering::Relaxed);
            Poll::Ready(if closed {
                Err(io::ErrorKind::BrokenPipe.into())
            } else {
                Ok(bytes.len())
            })
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn an_answer_that_came_in_whole_is_read_though_nothing_can_be_written_any_more() {
        let closed = Arc::<AtomicBool>::default();
        let stream = ClosedByPeer {
            said: ANSWERED,
            closed: Arc::clone(&closed),
            pauses: false,
        };
        let client = crate::hbone::client::handshake(stream, &Settings::client())
            .await
            .unwrap();
        tokio::task::yield_now().await;
        closed.store(true, Ordering::Relaxed);
        let (mut stream, _) = client.open(&ConnectRequest::new("10.0.0.1:80")).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "yes");
    }

    #[tokio::test]
    async fn who_has_written_all_there_was_asks_for_no_further_turn() {
        let (near, _far) = tokio::io::duplex(64 * 1024);
        let settings = Settings::client();
        let (_opener, mut frames) = client::handshake(near, &settings, &Vitals::new(&settings));
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        assert!(frames.poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
    }
}
