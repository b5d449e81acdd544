//! The trace a request belongs to: read from what the client sends, written the way it came.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue};
use tulle_transport::TraceParent;

pub mod b3;

/// The W3C header.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Its companion.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Spans of this many requests of a million, where neither parent nor policy says.
pub const SAMPLING_PPM: u32 = 10_000;
/// Bytes of `tracestate` that are told to the collector; more is none.
const TRACESTATE_BYTES_MAX: usize = 512;

/// What a client says of its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incoming {
    /// The trace; `None` where only the sampling is said.
    pub ids: Option<Ids>,
    /// Whether it is sampled; `None` leaves it to us.
    pub sampled: Option<bool>,
    /// How it is written.
    pub form: Form,
}

/// A trace and a span of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    /// The trace, never zero.
    pub trace: u128,
    /// The span, never zero.
    pub span: u64,
}

/// How a trace is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `traceparent`.
    W3c,
    /// `b3`.
    B3Single,
    /// `x-b3-traceid` and its like.
    B3Multi,
}

/// Reads what a client says. W3C wins over B3, one header over several.
#[must_use]
pub fn read(headers: &HeaderMap) -> Option<Incoming> {
    let w3c = || {
        let mut values = headers.get_all(TRACEPARENT).into_iter();
        let only = values.next().filter(|_| values.next().is_none())?;
        let parent: TraceParent = only.to_str().ok()?.parse().ok()?;
        Some(Incoming {
            ids: Some(Ids {
                trace: parent.trace_id,
                span: parent.span_id,
            }),
            sampled: Some(parent.flags & 1 == 1),
            form: Form::W3c,
        })
    };
    w3c().or_else(|| b3::read(headers))
}

/// The trace of one request from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    /// The trace.
    pub id: u128,
    /// The client's span; `None` where the trace begins here.
    pub parent: Option<u64>,
    /// Our own span: that of the whole request.
    pub span: u64,
    /// Whether spans are told.
    pub sampled: bool,
    form: Form,
}

impl Trace {
    /// The trace of a request. `ids` are fresh random numbers; `chance` is in `0..1_000_000`.
    #[must_use]
    pub fn begin(incoming: Option<Incoming>, sampling_ppm: u32, ids: Ids, chance: u32) -> Self {
        let said = incoming.and_then(|incoming| incoming.sampled);
        let parent = incoming.and_then(|incoming| incoming.ids);
        Self {
            id: parent.map_or(ids.trace, |parent| parent.trace).max(1),
            parent: parent.map(|parent| parent.span),
            span: ids.span.max(1),
            sampled: said.unwrap_or(chance < sampling_ppm),
            form: incoming.map_or(Form::W3c, |incoming| incoming.form),
        }
    }

    /// Tells the next one, as the child of `span`.
    pub fn write(&self, headers: &mut HeaderMap, span: u64) {
        match self.form {
            Form::W3c => {
                let parent = TraceParent {
                    trace_id: self.id,
                    span_id: span,
                    flags: u8::from(self.sampled),
                };
                headers.insert(TRACEPARENT, value(&parent));
            }
            Form::B3Single => b3::write_single(headers, self, span),
            Form::B3Multi => b3::write_multi(headers, self, span),
        }
    }

    /// The trace as 32 digits, for the access log.
    #[must_use]
    pub fn hex(&self) -> String {
        let mut text = String::with_capacity(32);
        write!(text, "{:032x}", self.id).expect("writing to a string does not fail");
        text
    }
}

/// What else the client's trace carries, for the collector.
#[must_use]
pub fn tracestate(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(TRACESTATE)?.to_str().ok()?;
    (text.len() <= TRACESTATE_BYTES_MAX).then_some(text)
}

fn value(text: &dyn std::fmt::Display) -> HeaderValue {
    HeaderValue::try_from(text.to_string()).expect("digits, letters and dashes are a header value")
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: Ids = Ids { trace: 7, span: 9 };
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair =
            |(name, value): &(&'static str, &str)| (HeaderName::from_static(name), value.parse().unwrap());
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn a_trace_goes_on_under_our_span() {
        let incoming = read(&headers(&[("traceparent", PARENT)]));
        let trace = Trace::begin(incoming, 0, IDS, 0);
        assert_eq!(
            (trace.parent, trace.span, trace.sampled),
            (Some(0xb7ad_6b71_6920_3331), 9, true)
        );
        let mut out = HeaderMap::new();
        trace.write(&mut out, 0xab);
        assert_eq!(
            out[TRACEPARENT],
            "00-0af7651916cd43dd8448eb211c80319c-00000000000000ab-01"
        );
        assert_eq!(trace.hex(), "0af7651916cd43dd8448eb211c80319c");
    }

    #[test]
    fn w3c_wins_over_b3() {
        let both = headers(&[("traceparent", PARENT), ("b3", "1-2-1")]);
        assert_eq!(read(&both).unwrap().form, Form::W3c);
        let twice: HeaderMap = [PARENT, PARENT]
            .map(|text| (TRACEPARENT, text.parse().unwrap()))
            .into_iter()
            .collect();
        assert_eq!(read(&twice), None, "which of them is meant cannot be told");
    }

    #[test]
    fn without_a_parent_one_of_a_hundred_is_sampled() {
        assert!(Trace::begin(None, SAMPLING_PPM, IDS, 9_999).sampled);
        assert!(!Trace::begin(None, SAMPLING_PPM, IDS, 10_000).sampled);
        let unsampled = read(&headers(&[("traceparent", &PARENT.replace("-01", "-00"))]));
        assert!(
            !Trace::begin(unsampled, 1_000_000, IDS, 0).sampled,
            "the parent decides"
        );
        let mut out = HeaderMap::new();
        Trace::begin(None, 0, IDS, 0).write(&mut out, 1);
        assert!(out.contains_key(TRACEPARENT), "W3C where nothing came in");
    }

    #[test]
    fn a_trace_goes_on_in_the_form_it_came_in() {
        for (name, value) in [
            ("b3", "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1"),
            ("traceparent", PARENT),
        ] {
            let trace = Trace::begin(read(&headers(&[(name, value)])), 0, IDS, 0);
            let mut out = HeaderMap::new();
            trace.write(&mut out, 0xb7ad_6b71_6920_3331);
            assert!(out[name].to_str().unwrap().starts_with(value), "{out:?}");
            assert_eq!(out.len(), 1);
        }
    }
}
