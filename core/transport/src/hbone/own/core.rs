//! One connection as data: streams, windows and what is to be sent, without a socket and without a clock.
//!
//! ```text
//!   bytes ─▶ receive ─▶ streams ─▶ read          write ─▶ streams ─▶ gather ─▶ bytes
//! ```
//!
//! Wakers are the only thing in it that cannot be written down and handed to another process: who waits there asks again.

mod answers;
mod calls;
#[cfg(any(test, feature = "testing"))]
mod check;
mod frames;
mod receive;
mod send;
mod settings;
mod shed;
mod stream;
#[cfg(test)]
mod tests;
mod written;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::fault::Fault;
use super::hpack::Decoder;
use super::parser::Parser;
use super::wire::{self, code};
use crate::budget::Budget;
use crate::hbone::connect::{ConnectRequest, MalformedConnect};
use crate::hbone::settings::Settings;

pub(super) use send::Outbox;
use stream::Stream;

/// Streams per connection that a peer may reset before they were handed on, at once and per second.
const EARLY_RESETS: (u32, u32) = (50, 50);

/// Streams per connection that a peer may make us reset, at once and per second.
const FORCED_RESETS: (u32, u32) = (1000, 10);

/// DATA frames that carry nothing, at once and per second.
const EMPTY_FRAMES: (u32, u32) = (2000, 1000);

/// Frames that one head may be cut into.
const HEAD_FRAMES_MAX: u32 = 64;

/// Bytes of a head beyond what it may decode to: names and values are never longer encoded, the rest is lengths.
const HEAD_OVERHEAD: usize = 16 * 1024;

/// Bytes that streams of one connection hold for their readers before its own window counts. Up to here slow readers
/// do not slow their neighbours.
const HELD_FREELY: usize = 512 * 1024 * 1024;

/// Answers that wait to be sent; a peer that does not take them is not read either.
const CONTROL_MAX: usize = 64 * 1024;

/// Streams that may be opened before the peer has said how many.
const STREAMS_BEFORE_SETTINGS: u32 = 100;

/// What a PING of ours carries: the question whether the peer lives, and the one that follows the first GOAWAY.
const PING_ALIVE: [u8; 8] = *b"tulle:up";
const PING_DRAIN: [u8; 8] = *b"tulle:go";

/// Which end this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Role {
    Client,
    Server,
}

/// Why a connection is no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// One side broke the protocol.
    Protocol(Arc<str>),
    /// The stream under it ended or failed.
    Lost(Arc<str>),
}

impl End {
    pub(super) fn text(&self) -> &Arc<str> {
        match self {
            Self::Protocol(text) | Self::Lost(text) => text,
        }
    }
}

/// What the driver of a connection does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Reads more from the peer.
    Read,
    /// Waits until the peer takes what waits for it.
    Wait,
    /// Closes: nothing is left to do.
    Close,
    /// Ends at once.
    Cut,
}

/// Why a stream goes no further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Gone {
    /// It was reset.
    Reset(u32),
    /// This side ended it: it held too much for its reader.
    Shed,
    /// This side has ended it.
    Closed,
    /// The peer goes away and has not taken it.
    Away,
    /// The connection is no more.
    Connection(End),
}

/// What the peer has told of itself.
#[derive(Debug, Serialize, Deserialize)]
struct Peer {
    heard: bool,
    window: u32,
    frame_max: usize,
    streams_max: u32,
}

/// Bytes the peer may still send on all streams together, and what is owed to it.
#[derive(Debug, Serialize, Deserialize)]
struct Credit {
    window: i64,
    target: usize,
    /// Taken, and not told yet.
    owed: usize,
    /// Held by all streams for their readers.
    held: usize,
    /// Of these, what is owed only when it is taken.
    withheld: usize,
}

/// A head whose last frame has not come.
#[derive(Debug, Serialize, Deserialize)]
struct OpenHead {
    stream: u32,
    last: bool,
    block: Vec<u8>,
    frames: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Drain {
    No,
    /// The first GOAWAY is on its way, and a PING behind it.
    Announced,
    /// No further stream is taken.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Asked {
    No,
    Yes,
    Answered,
}

/// One end of a connection.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Core {
    role: Role,
    settings: Settings,
    peer: Peer,
    parser: Parser,
    decoder: Decoder,
    open_head: Option<OpenHead>,
    streams: HashMap<u32, Stream>,
    /// Streams that this side opened and that are not over.
    own_open: u32,
    /// Streams that the peer opened and that are not over.
    their_open: u32,
    /// The next stream that this side opens.
    next: u32,
    /// The highest that the peer opened.
    last: u32,
    #[serde(with = "written::accepted")]
    accepted: VecDeque<(u32, Result<ConnectRequest, MalformedConnect>)>,
    send_window: i64,
    credit: Credit,
    control: Vec<u8>,
    /// Streams with something to send: those that had nothing before, and those that have had a turn.
    fresh: VecDeque<u32>,
    ready: VecDeque<u32>,
    fresh_run: u32,
    /// Payload that waits to be sent.
    queued: usize,
    empty: Budget,
    forced: Budget,
    early: Budget,
    drain: Drain,
    /// No further stream is opened here.
    retired: bool,
    /// What our last GOAWAY said we have taken.
    taken_here: Option<u32>,
    /// What a GOAWAY of the peer said it has taken.
    taken_by_peer: Option<u32>,
    asked: Asked,
    #[serde(skip)]
    ping_waker: Option<Waker>,
    #[serde(skip)]
    opening: Vec<Waker>,
    #[serde(with = "crate::plain::unless_ended")]
    end: Option<End>,
    /// To be woken once nobody looks at this any more.
    #[serde(skip)]
    pub(super) woken: Vec<Waker>,
    /// The driver has something to do.
    pub(super) dirty: bool,
    /// The peer has said how many streams it takes.
    pub(super) limit_changed: bool,
}

impl Core {
    pub(super) fn new(role: Role, settings: &Settings, now: Instant) -> Self {
        let header_list = match role {
            Role::Client => settings.client_header_list,
            Role::Server => settings.server_header_list,
        } as usize;
        let budget = |(burst, per_second)| Budget::new(burst, per_second, now);
        let mut core = Self {
            role,
            settings: *settings,
            peer: Peer {
                heard: false,
                window: wire::DEFAULT_WINDOW,
                frame_max: wire::DEFAULT_FRAME_SIZE,
                streams_max: STREAMS_BEFORE_SETTINGS,
            },
            parser: Parser::new(settings.frame_size as usize, header_list + HEAD_OVERHEAD),
            decoder: Decoder::default(),
            open_head: None,
            streams: HashMap::new(),
            own_open: 0,
            their_open: 0,
            next: 1,
            last: 0,
            accepted: VecDeque::new(),
            send_window: i64::from(wire::DEFAULT_WINDOW),
            credit: Credit {
                window: i64::from(wire::DEFAULT_WINDOW),
                target: settings.connection_window.max(wire::DEFAULT_WINDOW) as usize,
                owed: 0,
                held: 0,
                withheld: 0,
            },
            control: Vec::new(),
            fresh: VecDeque::new(),
            ready: VecDeque::new(),
            fresh_run: 0,
            queued: 0,
            empty: budget(EMPTY_FRAMES),
            forced: budget(FORCED_RESETS),
            early: budget(EARLY_RESETS),
            drain: Drain::No,
            retired: false,
            taken_here: None,
            taken_by_peer: None,
            asked: Asked::No,
            ping_waker: None,
            opening: Vec::new(),
            end: None,
            woken: Vec::new(),
            dirty: false,
            limit_changed: false,
        };
        core.introduce();
        core
    }

    fn header_list(&self) -> usize {
        (match self.role {
            Role::Client => self.settings.client_header_list,
            Role::Server => self.settings.server_header_list,
        }) as usize
    }

    /// Streams the peer takes at once.
    pub(super) fn peer_streams_max(&self) -> u32 {
        self.peer.streams_max
    }

    /// Payload that waits to be sent.
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// Bytes that streams hold for their readers.
    pub(super) fn held(&self) -> usize {
        self.credit.held
    }

    /// Takes in what arrived. An error ends the connection.
    pub(super) fn receive(&mut self, mut input: Bytes, now: Instant) -> Result<(), Fault> {
        while let Some(item) = self.parser.next(&mut input)? {
            self.item(item, now)?;
        }
        Ok(())
    }

    /// Ends the connection, and tells the peer why.
    pub(super) fn fail(&mut self, fault: Fault) {
        self.goodbye(self.last, fault.code, fault.what);
        self.end(End::Protocol(fault.to_string().into()));
    }

    /// GOAWAY(NO_ERROR), and every open stream ends at once.
    pub(super) fn close(&mut self) {
        self.goodbye(self.last, code::NO_ERROR, "");
        self.end(End::Lost("closed by this side".into()));
    }

    /// The connection is no more. The first reason stays.
    pub(super) fn end(&mut self, end: End) {
        self.end.get_or_insert(end);
        self.retired = true;
        self.dirty = true;
        let streams = self.streams.values_mut();
        self.woken.extend(streams.flat_map(Stream::wake_all));
        self.woken.append(&mut self.opening);
        self.woken.extend(self.ping_waker.take());
    }

    /// Opens no further stream; the connection ends with the last one.
    pub(super) fn retire(&mut self) {
        self.retired = true;
        self.dirty = true;
        self.woken.append(&mut self.opening);
    }

    /// Takes no further stream, in two steps, so that none is refused that was on its way.
    pub(super) fn drain(&mut self) {
        if self.drain == Drain::No && self.end.is_none() {
            self.drain = Drain::Announced;
            self.goodbye(wire::LARGEST, code::NO_ERROR, "");
            wire::put(&mut self.control, wire::PING, 0, 0, &PING_DRAIN);
            self.dirty = true;
        }
    }

    fn drained(&mut self) {
        if self.drain == Drain::Announced {
            self.drain = Drain::Done;
            self.goodbye(self.last, code::NO_ERROR, "");
            self.retire();
        }
    }

    /// What the driver does once all is written that can be. Says goodbye to the peer if that is left to do.
    pub(super) fn next(&mut self) -> Next {
        if self.end.is_some() {
            return Next::Cut;
        }
        let over = self.own_open == 0 && self.their_open == 0;
        if over && (self.retired || self.taken_by_peer.is_some()) {
            if self.taken_here.is_none() {
                self.goodbye(self.last, code::NO_ERROR, "");
            }
            return Next::Close;
        }
        if self.control.len() < CONTROL_MAX {
            Next::Read
        } else {
            Next::Wait
        }
    }

    fn goodbye(&mut self, last: u32, code: u32, what: &str) {
        // RFC 9113, 6.8: it never grows.
        let last = self.taken_here.map_or(last, |before| before.min(last));
        self.taken_here = Some(last);
        let payload = [&last.to_be_bytes()[..], &code.to_be_bytes(), what.as_bytes()].concat();
        wire::put(&mut self.control, wire::GOAWAY, 0, 0, &payload);
        self.dirty = true;
    }
}
