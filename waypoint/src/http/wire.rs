//! The bytes of a client's connection below the HTTP library: what arrives is looked at, and between the library's own
//! messages something can be said: interim answers, and the last word of a connection. What the library answers to
//! what it cannot read is said in our words.
//!
//! ```text
//! client ── Wire (tap sees reads; asides go in between writes) ── library ── requests
//! ```

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tulle_model::Reason;
use tulle_transport::hbone::{HboneStream, StreamError};

use super::respond;
use crate::config::ReasonDetail;

/// Bytes of interim answers that wait. What is more is dropped: they are hints.
const ASIDE_BYTES_MAX: usize = 64 * 1024;

/// Looks at what arrives.
pub trait Tap {
    /// Bytes have arrived.
    ///
    /// # Errors
    /// The connection is to end; these are its last bytes.
    fn arrived(&mut self, bytes: &[u8]) -> Result<(), Bytes>;
}

/// What is said beside the library. Shared by the connection and its requests.
#[derive(Debug, Default)]
pub struct Aside(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    waiting: BytesMut,
    /// All that the library has written has left: what comes next begins a message.
    between: bool,
    /// A request waits for its answer: interim answers may go out.
    open: bool,
    leaving: bool,
    /// How much the client is told of a request that the library refuses by itself; `None` leaves its words alone.
    speaks: Option<ReasonDetail>,
    /// An answer was not handed over to its end, or has not left.
    owed: bool,
    /// The last answer was handed over to its end.
    handed: bool,
    /// Why the library has refused what it could not read.
    refused: Option<Reason>,
    connection: Option<Waker>,
}

/// An answer that the library has not been handed to its end.
#[derive(Debug)]
pub struct Owed(Arc<Aside>);

impl Drop for Owed {
    fn drop(&mut self) {
        self.0.0.lock().handed = true;
    }
}

impl Aside {
    /// Nothing is said.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The same for a connection on which the library refuses what it cannot read: that is said in our words.
    #[must_use]
    pub fn speaking(detail: ReasonDetail) -> Arc<Self> {
        let state = State {
            speaks: Some(detail),
            ..State::default()
        };
        Arc::new(Self(Mutex::new(state)))
    }

    /// Why the library has refused what it could not read, if it has.
    #[must_use]
    pub fn refused(&self) -> Option<Reason> {
        self.0.lock().refused
    }

    /// A request begins. The end of the answer before it may still be with the library. What is given back goes when
    /// the answer has been handed over.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> Owed {
        let mut state = self.0.lock();
        (state.open, state.between) = (true, false);
        (state.owed, state.handed) = (true, false);
        state.waiting.clear();
        Owed(Arc::clone(self))
    }

    /// The answer begins: it is too late for interim ones.
    pub fn answered(&self) {
        self.0.lock().open = false;
    }

    /// Says something before the answer.
    pub fn say(&self, bytes: &[u8]) {
        let mut state = self.0.lock();
        if state.open && state.waiting.len() + bytes.len() <= ASIDE_BYTES_MAX {
            state.waiting.extend_from_slice(bytes);
            if let Some(connection) = state.connection.take() {
                connection.wake();
            }
        }
    }

    /// Whether the last answer has left whole, and nothing else is to be said.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        let state = self.0.lock();
        state.between && !state.owed && !state.leaving && state.waiting.is_empty()
    }

    /// What is said and has not gone out.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().waiting).into_owned()
    }

    /// Says this, unless the library is in the middle of something, and ends the connection.
    pub fn leave(&self, last: &[u8]) {
        let mut state = self.0.lock();
        state.waiting.clear();
        state.waiting.extend_from_slice(last);
        state.leaving = true;
        if let Some(connection) = state.connection.take() {
            connection.wake();
        }
    }
}

/// A client's connection.
#[derive(Debug)]
pub struct Wire<S, T> {
    stream: S,
    /// What the library has read before, and given back: it was looked at.
    again: Bytes,
    tap: T,
    aside: Arc<Aside>,
}

impl<S, T> Wire<S, T> {
    /// The connection `stream`.
    #[must_use]
    pub fn new(stream: S, tap: T, aside: Arc<Aside>) -> Self {
        Self {
            stream,
            again: Bytes::new(),
            tap,
            aside,
        }
    }

    /// Goes on with what the library has read and not used. It is copied: its buffer is large.
    pub fn give_back(&mut self, unused: &[u8]) {
        self.again = Bytes::copy_from_slice(unused);
    }
}

impl<T> Wire<HboneStream, T> {
    /// Waits until something arrives, or the end. It is left there.
    ///
    /// # Errors
    /// The stream was reset, or its connection lost.
    pub async fn stirs(&mut self) -> Result<(), StreamError> {
        self.stream.peek(0).await.map(|_| ())
    }
}

impl<S: AsyncWrite + Unpin, T> Wire<S, T> {
    /// Writes what waits, if the library is between two messages.
    fn interject(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.aside.0.lock();
        if state.leaving {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if !state.between {
            if !state.open {
                state.waiting.clear();
            }
            return Poll::Ready(Ok(()));
        }
        while !state.waiting.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &state.waiting))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            state.waiting.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Whether these are the library's own words about what it could not read: no request waits for an answer then. Ours
    /// go out in their place.
    fn is_refusal(&self, bytes: &[u8]) -> bool {
        let mut state = self.aside.0.lock();
        let Some(detail) = state.speaks.filter(|_| !state.owed && !state.leaving) else {
            return false;
        };
        let Some(reason) = refusal(bytes) else {
            return false;
        };
        state.refused = Some(reason);
        state.waiting = respond::last_word(reason, detail)[..].into();
        state.between = true;
        true
    }

    /// Says the last word, as far as the client takes it at once: nobody waits for one who is thrown out.
    fn leave(&mut self, cx: &mut Context<'_>) {
        let mut state = self.aside.0.lock();
        while state.between && !state.waiting.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &state.waiting) {
                Poll::Ready(Ok(written)) if written > 0 => state.waiting.advance(written),
                _ => return,
            }
        }
        state.waiting.clear();
        let _ = Pin::new(&mut self.stream).poll_flush(cx);
        let _ = Pin::new(&mut self.stream).poll_shutdown(cx);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, T: Tap + Unpin> AsyncRead for Wire<S, T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.aside.0.lock().leaving {
            this.leave(cx);
            return Poll::Ready(Ok(()));
        }
        if !this.again.is_empty() {
            let again = this.again.split_to(this.again.len().min(buffer.remaining()));
            buffer.put_slice(&again);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        let arrived = &buffer.filled()[before..];
        if !arrived.is_empty()
            && let Err(last) = this.tap.arrived(arrived)
        {
            buffer.set_filled(before);
            this.aside.leave(&last);
            this.leave(cx);
            return Poll::Ready(Ok(()));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin, T: Unpin> AsyncWrite for Wire<S, T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // The library writes the head of an answer in one piece, and its own words are no more than a head.
        if let [head, rest @ ..] = slices
            && this.is_refusal(head)
        {
            return Poll::Ready(Ok(
                head.len() + rest.iter().map(|slice| slice.len()).sum::<usize>()
            ));
        }
        ready!(this.interject(cx))?;
        this.aside.0.lock().between = false;
        Pin::new(&mut this.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.stream).poll_flush(cx))?;
        {
            let mut state = this.aside.0.lock();
            // The library flushes when it has nothing left to write.
            state.between = true;
            state.owed &= !state.handed;
            match &mut state.connection {
                Some(known) => known.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            if state.waiting.is_empty() || state.leaving {
                return Poll::Ready(Ok(()));
            }
        }
        ready!(this.interject(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// What the library means by an answer of its own.
fn refusal(bytes: &[u8]) -> Option<Reason> {
    match bytes.strip_prefix(b"HTTP/1.1 ")?.first_chunk()? {
        b"400" => Some(Reason::BadFraming),
        b"414" => Some(Reason::UriTooLong),
        b"431" => Some(Reason::HeadersTooLarge),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Nothing;

    impl Tap for Nothing {
        fn arrived(&mut self, bytes: &[u8]) -> Result<(), Bytes> {
            if bytes.contains(&b'!') {
                return Err(Bytes::from_static(b"bye"));
            }
            Ok(())
        }
    }

    fn wire(
        size: usize,
    ) -> (
        Wire<tokio::io::DuplexStream, Nothing>,
        Arc<Aside>,
        tokio::io::DuplexStream,
    ) {
        let (near, far) = tokio::io::duplex(size);
        let aside = Aside::new();
        (Wire::new(near, Nothing, Arc::clone(&aside)), aside, far)
    }

    async fn heard(mut far: tokio::io::DuplexStream) -> String {
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn an_aside_comes_before_the_answer_and_after_the_one_before() {
        let (mut wire, aside, far) = wire(64);
        wire.write_all(b"one ").await.unwrap();
        let _owed = aside.begin();
        aside.say(b"(hint) ");
        // The rest of the first answer has not left yet.
        wire.write_all(b"end ").await.unwrap();
        wire.flush().await.unwrap();
        aside.say(b"(again) ");
        aside.answered();
        wire.write_all(b"two").await.unwrap();
        wire.flush().await.unwrap();
        aside.say(b"(late)");
        wire.shutdown().await.unwrap();
        drop(wire);
        assert_eq!(heard(far).await, "one end (hint) (again) two");
    }

    #[tokio::test]
    async fn an_aside_that_cannot_go_between_is_dropped() {
        let (mut wire, aside, far) = wire(64);
        wire.write_all(b"one ").await.unwrap();
        let _owed = aside.begin();
        aside.say(b"(hint) ");
        aside.answered();
        wire.write_all(b"two").await.unwrap();
        wire.flush().await.unwrap();
        drop(wire);
        assert_eq!(heard(far).await, "one two");
    }

    #[tokio::test]
    async fn the_last_word_is_said_between_messages_and_nothing_after_it() {
        let (mut wire, _, mut far) = wire(64);
        wire.write_all(b"one ").await.unwrap();
        wire.flush().await.unwrap();
        far.write_all(b"stop!").await.unwrap();
        let mut read = [0; 8];
        assert_eq!(wire.read(&mut read).await.unwrap(), 0, "as if it had ended");
        assert!(wire.write_all(b"two").await.is_err());
        drop(wire);
        assert_eq!(heard(far).await, "one bye");
    }

    #[tokio::test]
    async fn the_library_s_own_words_are_replaced_and_an_answer_s_are_not() {
        const REFUSED: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
        let (near, far) = tokio::io::duplex(1_024);
        let aside = Aside::speaking(ReasonDetail::Full);
        let mut wire = Wire::new(near, Nothing, Arc::clone(&aside));
        let owed = aside.begin();
        wire.write_all(REFUSED).await.unwrap();
        drop(owed);
        // It was handed over, and has not left.
        wire.write_all(REFUSED).await.unwrap();
        wire.flush().await.unwrap();
        assert_eq!(aside.refused(), None);
        wire.write_all(REFUSED).await.unwrap();
        wire.flush().await.unwrap();
        drop(wire);
        assert_eq!(aside.refused(), Some(Reason::BadFraming));
        let heard = heard(far).await;
        let ours = heard.strip_prefix(&String::from_utf8_lossy(&REFUSED.repeat(2)).into_owned());
        let ours = ours.expect("answers are left alone");
        assert!(
            ours.contains("\r\nx-tulle-reason: T0614; bad_framing; id="),
            "{ours}"
        );
    }

    #[tokio::test]
    async fn what_was_given_back_comes_again_and_is_not_looked_at_again() {
        let (mut wire, _, mut far) = wire(64);
        wire.give_back(b"again!");
        far.write_all(b" more").await.unwrap();
        let mut read = [0; 4];
        for expected in [b"agai".as_slice(), b"n!", b" mor", b"e"] {
            let length = wire.read(&mut read).await.unwrap();
            assert_eq!(&read[..length], expected);
        }
    }

    #[tokio::test]
    async fn one_is_silent_once_the_answer_has_left() {
        let (mut wire, aside, _far) = wire(64);
        let owed = aside.begin();
        wire.flush().await.unwrap();
        assert!(!aside.is_silent(), "nothing was answered");
        wire.write_all(b"one").await.unwrap();
        drop(owed);
        assert!(!aside.is_silent(), "it has not left");
        wire.flush().await.unwrap();
        assert!(aside.is_silent());
        aside.leave(b"bye");
        assert!(!aside.is_silent());
    }

    #[tokio::test]
    async fn who_takes_nothing_is_not_waited_for() {
        let (mut wire, _, mut far) = wire(4);
        wire.write_all(b"full").await.unwrap();
        wire.flush().await.unwrap();
        far.write_all(b"!").await.unwrap();
        let mut read = [0; 8];
        assert_eq!(wire.read(&mut read).await.unwrap(), 0);
    }
}
