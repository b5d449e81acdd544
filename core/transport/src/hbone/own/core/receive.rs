//! What arrives on streams: DATA against both windows, and what is given back.

use bytes::Bytes;
use tokio::time::Instant;

use super::super::fault::Fault;
use super::super::parser::Item;
use super::super::wire::{self, code};
use super::stream::Answer;
use super::{Core, Gone, HELD_FREELY, Role};

impl Core {
    pub(super) fn item(&mut self, item: Item, now: Instant) -> Result<(), Fault> {
        let (kind, flags) = match &item {
            Item::Frame { head, .. } => (head.kind, head.flags),
            _ => (wire::DATA, 0),
        };
        if self.open_head.is_some() != (kind == wire::CONTINUATION) {
            return Err(Fault::protocol("a head is to be finished before anything else"));
        }
        if !self.peer.heard && (kind != wire::SETTINGS || flags & wire::ACK != 0) {
            return Err(Fault::protocol("the first frame is not SETTINGS"));
        }
        match item {
            Item::Data { stream, length, last } => self.data(stream, length, last, now),
            Item::Part { stream, bytes } => {
                self.part(stream, bytes);
                Ok(())
            }
            Item::DataEnd {
                stream,
                overhead,
                last,
            } => {
                self.data_end(stream, overhead, last);
                Ok(())
            }
            Item::Frame { head, payload } => self.frame(head, payload, now),
        }
    }

    /// Whether nobody can have sent anything on this stream yet.
    pub(super) fn is_idle(&self, id: u32) -> bool {
        let is_own = (id % 2 == 1) == (self.role == Role::Client);
        if is_own { id >= self.next } else { id > self.last }
    }

    fn data(&mut self, id: u32, length: usize, last: bool, now: Instant) -> Result<(), Fault> {
        let bytes = i64::try_from(length).unwrap_or(i64::MAX);
        self.credit.window -= bytes;
        if self.credit.window < 0 {
            return Err(Fault::flow("more DATA than the connection's window"));
        }
        if self.is_idle(id) {
            return Err(Fault::protocol("DATA on a stream that is not open"));
        }
        if length == 0 && !last && !self.empty.spend(now) {
            return Err(Fault::calm("too many DATA frames that carry nothing"));
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            // It was reset and forgotten; what was on its way is dropped.
            return Ok(());
        };
        stream.receive_window -= bytes;
        // A peer that has not seen our SETTINGS yet believes in the window of the protocol.
        let believed = i64::from(wire::DEFAULT_WINDOW.saturating_sub(self.settings.stream_window));
        let error = if stream.reset.is_some() {
            None
        } else if stream.receive_ended {
            Some(code::STREAM_CLOSED)
        } else if stream.receive_window < -believed {
            Some(code::FLOW_CONTROL_ERROR)
        } else if matches!(stream.answer, Answer::Awaited) {
            Some(code::PROTOCOL_ERROR)
        } else {
            None
        };
        error.map_or(Ok(()), |code| self.stream_error(id, code, now))
    }

    fn part(&mut self, id: u32, bytes: Bytes) {
        let length = bytes.len();
        if let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.is_read()) {
            stream.held += length;
            stream.received.push(bytes);
            self.woken.extend(stream.wakers.read.take());
            self.credit.held += length;
            if self.credit.held > HELD_FREELY {
                self.credit.withheld += length;
                return;
            }
        }
        self.credit.owed += length;
    }

    fn data_end(&mut self, id: u32, overhead: usize, last: bool) {
        self.credit.owed += overhead;
        if let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.is_read()) {
            stream.owed += overhead;
            if last {
                self.receive_end(id);
            } else {
                self.pay_stream(id);
            }
        }
        self.pay_connection(self.credit.target / 2);
    }

    /// END_STREAM has arrived.
    pub(super) fn receive_end(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.receive_ended = true;
            self.woken.extend(stream.wakers.read.take());
            self.settle(id);
        }
    }

    /// `bytes` were taken by whom they are for.
    pub(in super::super) fn release(&mut self, id: u32, bytes: usize) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let bytes = bytes.min(stream.held);
        stream.held -= bytes;
        stream.owed += bytes;
        self.give_back(bytes);
        self.pay_stream(id);
    }

    /// Nobody will take what is left of a stream; says how much of it was not read.
    pub(super) fn drop_received(&mut self, id: u32) -> usize {
        let Some(stream) = self.streams.get_mut(&id) else {
            return 0;
        };
        let unread = stream.received.len();
        stream.received.clear();
        let held = std::mem::take(&mut stream.held);
        self.give_back(held);
        unread
    }

    fn give_back(&mut self, bytes: usize) {
        self.credit.held -= bytes;
        let given = bytes.min(self.credit.withheld);
        self.credit.withheld -= given;
        self.credit.owed += given;
        self.pay_connection(self.credit.target / 2);
    }

    /// Tells the peer what it may send again on a stream, if that is worth a frame.
    fn pay_stream(&mut self, id: u32) {
        let worth = (self.settings.stream_window as usize / 2).max(1);
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.owed < worth || stream.receive_ended || stream.reset.is_some() {
            return;
        }
        let owed = u32::try_from(std::mem::take(&mut stream.owed)).unwrap_or(wire::LARGEST);
        stream.receive_window += i64::from(owed);
        wire::put(&mut self.control, wire::WINDOW_UPDATE, 0, id, &owed.to_be_bytes());
        self.dirty = true;
    }

    /// The same for the connection, if at least `worth` is owed.
    pub(super) fn pay_connection(&mut self, worth: usize) {
        if self.credit.owed < worth.max(1) {
            return;
        }
        let owed = u32::try_from(std::mem::take(&mut self.credit.owed)).unwrap_or(wire::LARGEST);
        self.credit.window += i64::from(owed);
        wire::put(&mut self.control, wire::WINDOW_UPDATE, 0, 0, &owed.to_be_bytes());
        self.dirty = true;
    }

    /// Resets a stream because of what the peer sent; too many of these end the connection.
    pub(super) fn stream_error(&mut self, id: u32, code: u32, now: Instant) -> Result<(), Fault> {
        if !self.forced.spend(now) {
            return Err(Fault::calm("too many streams that had to be reset"));
        }
        if self.streams.contains_key(&id) {
            self.reset_here(id, code);
        } else {
            wire::put(&mut self.control, wire::RST_STREAM, 0, id, &code.to_be_bytes());
        }
        Ok(())
    }

    /// What a stream that is no more looks like from inside.
    pub(super) fn gone(&self, id: u32) -> Gone {
        let stream = self.streams.get(&id);
        match (stream.and_then(|stream| stream.reset), &self.end) {
            (Some(_), _) if stream.is_some_and(|stream| stream.shed) => Gone::Shed,
            (Some(code), _) => Gone::Reset(code),
            (None, Some(end)) => Gone::Connection(end.clone()),
            (None, None) => Gone::Closed,
        }
    }
}
