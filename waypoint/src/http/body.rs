//! Bodies on their way: requests up, answers down. Bytes are handed on as they come; nothing is gathered.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::time::{Instant, Sleep, sleep_until};
use tulle_model::Reason;

use super::cut::Cut;
use super::idle::{BODY_IDLE_MAX, Idle};
use super::interim::{Gated, Interims, Unwanted};
use super::leftover;
use super::record::{Ending, Record};
use super::upgrade::Switched;
use crate::filter::mirror::{Cut as CutOff, Shadow, Tee, tee};
use crate::telemetry::grpc::Messages;
use crate::upstream::breaker::Guard;
use crate::upstream::cluster::Pick;
use crate::upstream::pool::Lease;
use crate::upstream::retry::look_ahead::Seen;
use crate::upstream::retry::replay::{ReplayError, TryBody};

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The side it comes from broke off.
    #[error("the body broke off: {0}")]
    Broken(#[from] hyper::Error),
    /// Policies changed, and deny what is on its way.
    #[error("policies changed")]
    PolicyChanged,
    /// It is a copy, and was cut off.
    #[error(transparent)]
    Cut(#[from] CutOff),
    /// Another try has taken the body over.
    #[error("another try has taken the body over")]
    TakenOver,
    /// The answer took longer than its route allows.
    #[error("the answer took longer than its route allows")]
    TimedOut,
    /// The answer came without it.
    #[error(transparent)]
    Unwanted(#[from] Unwanted),
    /// The client stopped sending it.
    #[error("the body stopped arriving")]
    Idle,
}

impl From<ReplayError<Self>> for BodyError {
    fn from(error: ReplayError<Self>) -> Self {
        match error {
            ReplayError::Body(error) => error,
            ReplayError::TakenOver => Self::TakenOver,
        }
    }
}

/// The body of a request on its way to an endpoint.
#[derive(Debug, Default)]
pub struct RequestBody {
    /// What was looked at before it went on.
    first: VecDeque<Frame<Bytes>>,
    /// Boxed, because few requests are copied.
    source: RequestSource,
}

/// Where a request's body comes from.
#[derive(Debug, Default)]
enum RequestSource {
    #[default]
    Empty,
    Client(Box<Client>),
    Teed(Box<Tee<RequestBody>>),
    Copy(Box<Shadow>),
    /// For one try of several.
    Try(Box<TryBody<RequestBody>>),
    /// Not before the endpoint wants it.
    Gated(Box<Gated<RequestBody>>),
}

/// What a client sends, counted as it comes.
#[derive(Debug)]
struct Client {
    /// Gone with the drop only.
    incoming: Option<Incoming>,
    messages: Messages,
    record: Arc<Record>,
    idle: Idle,
}

impl Client {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(incoming) = &mut self.incoming else {
            return Poll::Ready(None);
        };
        self.record.body_begins();
        let Poll::Ready(frame) = Pin::new(&mut *incoming).poll_frame(cx) else {
            // Once the answer is on its way, a client may take its time: calls stay open for hours.
            if self.idle.poll(cx).is_ready() && !self.record.is_answered() {
                self.record.body_failed(Reason::BodyIdle);
                return Poll::Ready(Some(Err(BodyError::Idle)));
            }
            return Poll::Pending;
        };
        self.idle.moved();
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    if self.record.is_grpc() {
                        self.messages.feed(data);
                    }
                    self.record.received(data.len(), &self.messages);
                }
            }
            Some(Err(_)) => self.record.body_failed(Reason::ClientGone),
            None => {}
        }
        let is_over = frame.is_none() || incoming.is_end_stream() && matches!(frame, Some(Ok(_)));
        if is_over {
            self.record.body_ended();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)))
    }
}

impl Drop for Client {
    /// What nobody has read of it must not be taken for the next request.
    fn drop(&mut self) {
        if let Some(incoming) = self.incoming.take()
            && self.record.must_read_on()
        {
            leftover::drain(incoming);
        }
    }
}

impl RequestBody {
    /// What the client sends. It is counted on this record, and may stand still for so long.
    #[must_use]
    pub fn of(incoming: Incoming, record: &Arc<Record>, idle: Option<Duration>) -> Self {
        if incoming.is_end_stream() {
            return Self::default();
        }
        let client = Client {
            incoming: Some(incoming),
            messages: Messages::default(),
            record: Arc::clone(record),
            idle: Idle::new(idle.unwrap_or(BODY_IDLE_MAX)),
        };
        Self {
            first: VecDeque::new(),
            source: RequestSource::Client(Box::new(client)),
        }
    }

    /// A text of our own.
    #[must_use]
    pub fn text(text: Bytes) -> Self {
        let frames = (!text.is_empty()).then(|| Frame::data(text));
        Self {
            first: frames.into_iter().collect(),
            source: RequestSource::Empty,
        }
    }

    /// Splits it into itself and copies.
    #[must_use]
    pub fn teed(self, copies: usize) -> (Self, Vec<Self>) {
        let of = |source| Self {
            first: VecDeque::new(),
            source,
        };
        let (tee, shadows) = tee(self, copies);
        let copy = |shadow| of(RequestSource::Copy(Box::new(shadow)));
        let own = of(RequestSource::Teed(Box::new(tee)));
        (own, shadows.into_iter().map(copy).collect())
    }

    /// The body of one try.
    #[must_use]
    pub fn of_try(body: TryBody<Self>) -> Self {
        if body.is_end_stream() {
            return Self::default();
        }
        Self {
            source: RequestSource::Try(Box::new(body)),
            ..Self::default()
        }
    }

    /// The same, but not before the endpoint wants it.
    #[must_use]
    pub fn gated(body: Gated<Self>) -> Self {
        Self {
            source: RequestSource::Gated(Box::new(body)),
            ..Self::default()
        }
    }

    /// Whether nothing of it was looked at.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        self.first.is_empty() && !matches!(self.source, RequestSource::Empty)
    }

    /// The first `max` bytes, and whether that is all. They still go on; what is held back is no more than that and one
    /// frame.
    ///
    /// # Errors
    /// The client broke off.
    pub async fn peek(&mut self, max: usize) -> Result<(Bytes, bool), BodyError> {
        let length = |frames: &VecDeque<Frame<Bytes>>| -> usize {
            frames.iter().filter_map(Frame::data_ref).map(Bytes::len).sum()
        };
        while length(&self.first) <= max {
            match poll_fn(|cx| self.source.poll_frame(cx)).await {
                Some(frame) => self.first.push_back(frame?),
                None => {
                    self.source = RequestSource::Empty;
                    break;
                }
            }
        }
        let is_whole = length(&self.first) <= max;
        let mut bytes = Vec::new();
        for data in self.first.iter().filter_map(Frame::data_ref) {
            bytes.extend_from_slice(data);
        }
        bytes.truncate(max);
        Ok((Bytes::from(bytes), is_whole))
    }
}

impl RequestSource {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Client(client) => client.poll_frame(cx),
            Self::Teed(teed) => Pin::new(teed).poll_frame(cx),
            Self::Copy(copy) => Pin::new(copy).poll_frame(cx).map_err(BodyError::from),
            Self::Try(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::from),
            Self::Gated(body) => Pin::new(body).poll_frame(cx),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.first.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => self.source.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        if !self.first.is_empty() {
            return false;
        }
        match &self.source {
            RequestSource::Empty => true,
            RequestSource::Client(client) => client.incoming.as_ref().is_none_or(Incoming::is_end_stream),
            RequestSource::Teed(teed) => teed.is_end_stream(),
            RequestSource::Copy(copy) => copy.is_end_stream(),
            RequestSource::Try(body) => body.is_end_stream(),
            RequestSource::Gated(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let rest = match &self.source {
            RequestSource::Empty => SizeHint::with_exact(0),
            RequestSource::Client(client) => client
                .incoming
                .as_ref()
                .map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint),
            RequestSource::Teed(teed) => teed.size_hint(),
            RequestSource::Copy(copy) => copy.size_hint(),
            RequestSource::Try(body) => body.size_hint(),
            RequestSource::Gated(body) => body.size_hint(),
        };
        let held = self.first.iter().filter_map(Frame::data_ref);
        let held: u64 = held.map(|data| data.len() as u64).sum();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + held);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + held);
        }
        hint
    }
}

/// What an answer holds until its end: the endpoint's count of it, the backend's, and that of retries.
pub type Held = (Pick, Guard, Option<Guard>);

/// The body of an answer on its way to the client.
#[derive(Debug, Default)]
pub struct ResponseBody {
    source: Source,
    /// It was asked for a part before.
    begun: bool,
    /// When it has to be over.
    ends: Option<Instant>,
    /// The same as a timer, once it has to be waited for.
    timer: Option<Pin<Box<Sleep>>>,
    held: Option<Held>,
    /// Ends the answer before its end.
    cut: Option<Cut>,
    /// Sees it pass, and is dropped with it, whether or not it came to its end.
    ending: Option<Ending>,
}

/// Where an answer comes from.
#[derive(Debug, Default)]
enum Source {
    #[default]
    Empty,
    /// A text of our own.
    Text(Bytes),
    Upstream(Upstream),
    /// Its first frame was looked at.
    Seen(Box<Seen<ResponseBody>>),
    /// The endpoint has agreed to become a stream of bytes; the answer itself has no body.
    Switched(Box<Switching>),
}

/// What is needed to go on as a stream of bytes.
#[derive(Debug)]
struct Switching {
    upstream: OnUpgrade,
    lease: Lease,
}

/// What an endpoint sends, with what is to be given back at its end.
struct Upstream {
    incoming: Incoming,
    /// Gone once the body has ended.
    lease: Option<Lease>,
    /// What is to be told then, if the request's body waits to be wanted.
    waiting: Option<Interims>,
}

impl ResponseBody {
    /// A text of our own.
    #[must_use]
    pub fn text(text: Bytes) -> Self {
        Source::Text(text).into()
    }

    /// What an endpoint sends over a leased connection; `waiting` is told of its end.
    #[must_use]
    pub fn upstream(incoming: Incoming, lease: Lease, waiting: Option<Interims>) -> Self {
        let upstream = Upstream {
            incoming,
            lease: Some(lease),
            waiting,
        };
        Source::Upstream(upstream).into()
    }

    /// That of an endpoint that becomes a stream of bytes, over a leased connection.
    #[must_use]
    pub fn switched(upstream: OnUpgrade, lease: Lease) -> Self {
        Source::Switched(Box::new(Switching { upstream, lease })).into()
    }

    /// Takes the stream of bytes out of it, if it is one, with everything it holds.
    pub fn take_switched(&mut self) -> Option<Switched> {
        match std::mem::take(&mut self.source) {
            Source::Switched(switching) => Some(Switched {
                upstream: switching.upstream,
                lease: switching.lease,
                held: self.held.take(),
                cut: self.cut.take(),
            }),
            source => {
                self.source = source;
                None
            }
        }
    }

    /// One whose first frame was looked at.
    #[must_use]
    pub fn seen(seen: Seen<Self>) -> Self {
        Source::Seen(Box::new(seen)).into()
    }

    /// Holds this until the answer has ended, and breaks it off when its time is over.
    pub fn hold(&mut self, held: Held, ends: Option<Instant>) {
        self.held = Some(held);
        self.ends = ends;
    }

    /// Ends the answer, unless it is over, when policies deny it.
    #[must_use]
    pub fn cut_by(self, cut: Cut) -> Self {
        Self {
            cut: Some(cut),
            ..self
        }
    }

    /// Keeps this until the answer has ended.
    #[must_use]
    pub fn ending_with(self, ending: Ending) -> Self {
        Self {
            ending: Some(ending),
            ..self
        }
    }
}

impl From<Source> for ResponseBody {
    fn from(source: Source) -> Self {
        Self {
            source,
            ..Self::default()
        }
    }
}

impl Upstream {
    fn finish(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.over();
        }
        if let Some(lease) = self.lease.take() {
            lease.finish();
        }
    }
}

impl Drop for Upstream {
    /// Whoever knows the length does not ask for the end. A body that is dropped before its end takes its connection
    /// along: what is left on it belongs to nobody.
    fn drop(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.over();
        }
        if self.incoming.is_end_stream() {
            self.finish();
        }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").finish_non_exhaustive()
    }
}

impl ResponseBody {
    /// What is there at once goes at once: an answer of one part, as most are, needs neither timer nor watch.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let is_first = !std::mem::replace(&mut self.begun, true);
        if is_first && let Poll::Ready(part) = self.poll_part(cx) {
            return Poll::Ready(part);
        }
        match self.poll_ended(cx) {
            Some(ended) => Poll::Ready(Some(Err(ended))),
            None if is_first => Poll::Pending,
            None => self.poll_part(cx),
        }
    }

    /// Why it ends before its end, if it does.
    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Option<BodyError> {
        let error = if self.poll_late(cx) {
            BodyError::TimedOut
        } else {
            let cut = Pin::new(self.cut.as_mut()?);
            cut.poll(cx).is_ready().then_some(BodyError::PolicyChanged)?
        };
        // What is left of it, and its connection, go at once.
        (self.source, self.ends, self.cut) = (Source::Empty, None, None);
        Some(error)
    }

    fn poll_late(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(ends) = self.ends else { return false };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(ends)));
        timer.as_mut().poll(cx).is_ready()
    }

    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.source {
            Source::Empty | Source::Switched(_) => Poll::Ready(None),
            Source::Text(text) => {
                let text = std::mem::take(text);
                self.source = Source::Empty;
                Poll::Ready(Some(Ok(Frame::data(text))))
            }
            Source::Upstream(upstream) => {
                let frame = ready!(Pin::new(&mut upstream.incoming).poll_frame(cx));
                if let (Some(Ok(frame)), Some(lease)) = (&frame, &upstream.lease) {
                    lease.handed_on(frame.data_ref().map_or(0, Bytes::len));
                }
                if frame.is_none() {
                    upstream.finish();
                }
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)))
            }
            Source::Seen(seen) => Pin::new(seen).poll_frame(cx),
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.poll_source(cx));
        let is_over = self.is_end_stream();
        if let Some(ending) = &mut self.ending {
            ending.pass(frame.as_ref(), is_over);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty | Source::Switched(_) => true,
            Source::Text(_) => false,
            Source::Upstream(upstream) => upstream.incoming.is_end_stream(),
            Source::Seen(seen) => seen.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty | Source::Switched(_) => SizeHint::with_exact(0),
            Source::Text(text) => SizeHint::with_exact(text.len() as u64),
            Source::Upstream(upstream) => upstream.incoming.size_hint(),
            Source::Seen(seen) => seen.size_hint(),
        }
    }
}
