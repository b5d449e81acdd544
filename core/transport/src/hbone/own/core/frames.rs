//! Frames other than DATA.

use bytes::{Buf, Bytes};
use tokio::time::Instant;

use super::super::fault::Fault;
use super::super::head::Head;
use super::super::wire::{self, FrameHead, code};
use super::stream::{Answer, Stream};
use super::{Asked, Core, HEAD_FRAMES_MAX, HEAD_OVERHEAD, OpenHead, PING_ALIVE, PING_DRAIN, Role};

impl Core {
    pub(super) fn frame(&mut self, head: FrameHead, payload: Bytes, now: Instant) -> Result<(), Fault> {
        let id = head.stream;
        match head.kind {
            wire::HEADERS => self.headers(head, payload, now),
            wire::CONTINUATION => self.continuation(head, &payload, now),
            wire::RST_STREAM => self.reset_there(id, wire::number(&payload), now),
            wire::SETTINGS => self.settings(head.flags, &payload),
            wire::PING => {
                self.pinged(head.has(wire::ACK), &payload);
                Ok(())
            }
            wire::GOAWAY => {
                self.goaway(wire::number(&payload) & wire::LARGEST);
                Ok(())
            }
            wire::WINDOW_UPDATE => self.window_update(id, wire::number(&payload) & wire::LARGEST, now),
            // PRIORITY, and types that we do not know.
            _ => Ok(()),
        }
    }

    fn headers(&mut self, head: FrameHead, mut payload: Bytes, now: Instant) -> Result<(), Fault> {
        let mut padding = 0;
        if head.has(wire::PADDED) {
            padding = usize::from(
                payload
                    .try_get_u8()
                    .map_err(|_| Fault::size("HEADERS too short"))?,
            );
        }
        if head.has(wire::WITH_PRIORITY) {
            if payload.len() < 5 {
                return Err(Fault::size("HEADERS too short"));
            }
            payload.advance(5);
        }
        let length = payload.len().checked_sub(padding);
        payload.truncate(length.ok_or(Fault::protocol("more padding than payload"))?);
        let last = head.has(wire::END_STREAM);
        if head.has(wire::END_HEADERS) {
            return self.head(head.stream, last, &payload, now);
        }
        self.open_head = Some(OpenHead {
            stream: head.stream,
            last,
            block: payload.into(),
            frames: 1,
        });
        Ok(())
    }

    fn continuation(&mut self, head: FrameHead, payload: &[u8], now: Instant) -> Result<(), Fault> {
        let most = self.header_list() + HEAD_OVERHEAD;
        let open = self.open_head.as_mut().filter(|open| open.stream == head.stream);
        let open = open.ok_or(Fault::protocol("CONTINUATION of another head"))?;
        open.frames += 1;
        if open.frames > HEAD_FRAMES_MAX || open.block.len() + payload.len() > most {
            return Err(Fault::calm("a head without end"));
        }
        open.block.extend_from_slice(payload);
        if head.has(wire::END_HEADERS)
            && let Some(open) = self.open_head.take()
        {
            return self.head(open.stream, open.last, &open.block, now);
        }
        Ok(())
    }

    /// A head is complete. It is decoded whoever it is for, as the next one builds on it.
    fn head(&mut self, id: u32, last: bool, block: &[u8], now: Instant) -> Result<(), Fault> {
        let (most, mut head) = (self.header_list(), Head::default());
        let fits = self
            .decoder
            .decode(block, most, |name, value| head.put(name, value))
            .map_err(|_| Fault::connection(code::COMPRESSION_ERROR, "a head that cannot be decoded"))?;
        if id.is_multiple_of(2) {
            return Err(Fault::protocol("a stream that nobody may open"));
        }
        if self.is_idle(id) {
            return match self.role {
                Role::Server => self.opened(id, last, fits.then_some(head), now),
                Role::Client => Err(Fault::protocol("an answer to nothing")),
            };
        }
        let Some(stream) = self.streams.get(&id) else {
            // It was reset and forgotten here; too much of this is no accident.
            let spent = self.forced.spend(now);
            return spent
                .then_some(())
                .ok_or(Fault::calm("too many heads of streams that are over"));
        };
        match stream.answer {
            _ if stream.reset.is_some() => Ok(()),
            _ if stream.receive_ended => self.stream_error(id, code::STREAM_CLOSED, now),
            Answer::Awaited => self.answered(id, last, fits.then_some(head), now),
            // Trailers carry nothing that a tunnel has a use for.
            _ if last => {
                self.receive_end(id);
                Ok(())
            }
            _ => self.stream_error(id, code::PROTOCOL_ERROR, now),
        }
    }

    /// A client opens a stream. `head` is absent if it is too large.
    fn opened(&mut self, id: u32, last: bool, head: Option<Head>, now: Instant) -> Result<(), Fault> {
        self.last = id;
        if self.retired {
            // RFC 9113, 6.8: it is above what the last GOAWAY named, and the client knows that it was not taken.
            return Ok(());
        }
        if self.their_open >= self.settings.streams_max {
            return self.stream_error(id, code::REFUSED_STREAM, now);
        }
        let Some(head) = head else {
            return self.stream_error(id, code::ENHANCE_YOUR_CALM, now);
        };
        let Ok(request) = head.request() else {
            return self.stream_error(id, code::PROTOCOL_ERROR, now);
        };
        let mut stream = Stream::new(self.settings.stream_window, self.peer.window, Answer::Past);
        stream.receive_ended = last;
        self.streams.insert(id, stream);
        self.their_open += 1;
        self.accepted.push_back((id, request));
        Ok(())
    }

    /// A server answers.
    fn answered(&mut self, id: u32, last: bool, head: Option<Head>, now: Instant) -> Result<(), Fault> {
        let Some(head) = head else {
            return self.stream_error(id, code::ENHANCE_YOUR_CALM, now);
        };
        match head.response() {
            Ok(Some(answer)) => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.answer = Answer::Arrived(Box::new(answer));
                    self.woken.extend(stream.wakers.read.take());
                }
                if last {
                    self.receive_end(id);
                }
                Ok(())
            }
            Ok(None) if !last => Ok(()),
            _ => self.stream_error(id, code::PROTOCOL_ERROR, now),
        }
    }

    fn reset_there(&mut self, id: u32, code: u32, now: Instant) -> Result<(), Fault> {
        if self.is_idle(id) {
            return Err(Fault::protocol("RST_STREAM on a stream that is not open"));
        }
        let before = self.accepted.len();
        self.accepted.retain(|(accepted, _)| *accepted != id);
        if self.accepted.len() < before {
            if !self.early.spend(now) {
                return Err(Fault::calm("too many streams that are reset at once"));
            }
            // Nobody has heard of it.
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.handle = false;
            }
        }
        self.mark_reset(id, code);
        Ok(())
    }

    fn pinged(&mut self, is_answer: bool, payload: &[u8]) {
        if !is_answer {
            wire::put(&mut self.control, wire::PING, wire::ACK, 0, payload);
        } else if payload == PING_DRAIN {
            self.drained();
        } else if payload == PING_ALIVE && self.asked == Asked::Yes {
            self.asked = Asked::Answered;
            self.woken.extend(self.ping_waker.take());
        }
    }

    /// The peer goes away: what it has not taken can be tried elsewhere.
    fn goaway(&mut self, last: u32) {
        self.taken_by_peer = Some(last.min(self.taken_by_peer.unwrap_or(last)));
        self.woken.append(&mut self.opening);
        if self.role == Role::Server {
            return;
        }
        let above: Vec<u32> = self.streams.keys().copied().filter(|id| *id > last).collect();
        for id in above {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.away = true;
            }
            self.mark_reset(id, code::REFUSED_STREAM);
        }
    }

    fn window_update(&mut self, id: u32, bytes: u32, now: Instant) -> Result<(), Fault> {
        if id == 0 {
            self.send_window += i64::from(bytes);
            return match bytes {
                0 => Err(Fault::protocol("WINDOW_UPDATE of nothing")),
                _ if self.send_window > i64::from(wire::LARGEST) => {
                    Err(Fault::flow("a window grew too large"))
                }
                _ => Ok(()),
            };
        }
        if self.is_idle(id) {
            return Err(Fault::protocol("WINDOW_UPDATE on a stream that is not open"));
        }
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.reset.is_none()) else {
            return Ok(());
        };
        if bytes == 0 {
            return self.stream_error(id, code::PROTOCOL_ERROR, now);
        }
        stream.send_window += i64::from(bytes);
        if stream.send_window > i64::from(wire::LARGEST) {
            return self.stream_error(id, code::FLOW_CONTROL_ERROR, now);
        }
        self.woken.extend(stream.wakers.write.take());
        self.list(id);
        Ok(())
    }
}
