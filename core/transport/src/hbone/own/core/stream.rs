//! One stream of a connection: what waits in both directions, its windows, how far it has come.

use std::task::{Context, Waker};

use serde::{Deserialize, Serialize};

use super::super::chunks::Chunks;
use super::calls::SEND_BUFFER_MAX;
use crate::hbone::connect::{ConnectResponse, Refusal};

/// What has become of the answer to our CONNECT.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// It has not come.
    Awaited,
    /// It came, and waits to be taken.
    Arrived(#[serde(with = "super::written::answer")] Box<Result<ConnectResponse, Refusal>>),
    /// It was taken, or this side is the one that answers.
    Past,
}

/// Who waits for what.
#[derive(Debug, Default)]
pub(super) struct Wakers {
    pub(super) read: Option<Waker>,
    pub(super) write: Option<Waker>,
    pub(super) reset: Option<Waker>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Stream {
    pub(super) answer: Answer,
    /// Arrived, and not read.
    pub(super) received: Chunks,
    /// What the peer may still send.
    pub(super) receive_window: i64,
    /// Arrived, and not taken by whom it is for.
    pub(super) held: usize,
    /// Taken, and not told to the peer yet.
    pub(super) owed: usize,
    /// END_STREAM has arrived.
    pub(super) receive_ended: bool,
    /// Waits to be sent.
    pub(super) sending: Chunks,
    pub(super) send_window: i64,
    /// The head that has to come before DATA was sent.
    pub(super) head_sent: bool,
    /// END_STREAM is to follow what waits.
    pub(super) finishing: bool,
    /// END_STREAM was sent.
    pub(super) send_ended: bool,
    /// It is in one of the lists of those that have something to send.
    pub(super) listed: bool,
    /// Ended before its end, by either side.
    pub(super) reset: Option<u32>,
    /// It was ended because it held too much for its reader.
    pub(super) shed: bool,
    /// The peer goes away and has not taken it.
    pub(super) away: bool,
    /// To be reset once what waits was sent.
    pub(super) cancel: Option<u32>,
    /// Somebody holds it.
    pub(super) handle: bool,
    /// It is over, and no longer counted as open.
    pub(super) over: bool,
    #[serde(skip)]
    pub(super) wakers: Wakers,
}

impl Stream {
    /// A new stream; it is held by somebody, and its head is still to be sent.
    pub(super) fn new(receive_window: u32, send_window: u32, answer: Answer) -> Self {
        Self {
            answer,
            received: Chunks::default(),
            receive_window: i64::from(receive_window),
            held: 0,
            owed: 0,
            receive_ended: false,
            sending: Chunks::default(),
            send_window: i64::from(send_window),
            head_sent: false,
            finishing: false,
            send_ended: false,
            listed: false,
            reset: None,
            shed: false,
            away: false,
            cancel: None,
            handle: true,
            over: false,
            wakers: Wakers::default(),
        }
    }

    /// Whether bytes that arrive are for anybody.
    pub(super) fn is_read(&self) -> bool {
        self.handle && self.reset.is_none() && !self.receive_ended
    }

    /// How many bytes may be added to what waits to be sent, the connection's own window being used up or not.
    pub(super) fn room(&self, exhausted: bool) -> usize {
        let waiting = self.sending.len();
        if exhausted && waiting > 0 {
            return 0;
        }
        let window = usize::try_from(self.send_window).unwrap_or(0);
        window.min(SEND_BUFFER_MAX).saturating_sub(waiting)
    }

    /// Whether a turn would send something, as far as its own window goes.
    pub(super) fn has_something_to_send(&self) -> bool {
        let data = !self.sending.is_empty() && self.send_window > 0;
        let end = self.sending.is_empty() && (self.finishing && !self.send_ended || self.cancel.is_some());
        self.reset.is_none() && (data || end)
    }

    pub(super) fn wake_all(&mut self) -> impl Iterator<Item = Waker> {
        let Wakers { read, write, reset } = std::mem::take(&mut self.wakers);
        [read, write, reset].into_iter().flatten()
    }
}

/// Remembers whom to wake.
pub(super) fn remember(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}
