//! B3 trace headers, in one header or in several.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Form, Ids, Incoming, Trace, value};

/// All in one.
pub const B3: HeaderName = HeaderName::from_static("b3");
/// The trace.
pub const TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
/// The span.
pub const SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
/// The span it belongs to.
pub const PARENT_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-parentspanid");
/// Whether it is sampled.
pub const SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
/// `1` is sampled, whatever else is said.
pub const FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// Reads either form; the single header wins.
#[must_use]
pub fn read(headers: &HeaderMap) -> Option<Incoming> {
    let single = headers.get(B3).and_then(|value| single(value.to_str().ok()?));
    single.or_else(|| multi(headers))
}

/// Reads `trace-span[-sampled[-parent]]`, or the sampling alone.
#[must_use]
pub fn single(text: &str) -> Option<Incoming> {
    let form = Form::B3Single;
    let mut parts = text.split('-');
    let first = parts.next()?;
    let Some(second) = parts.next() else {
        return Some(Incoming {
            ids: None,
            sampled: Some(state(first)?),
            form,
        });
    };
    let ids = Some(Ids {
        trace: trace_id(first)?,
        span: span_id(second)?,
    });
    let sampled = match parts.next() {
        Some(text) => Some(state(text)?),
        None => None,
    };
    if let Some(parent) = parts.next() {
        span_id(parent)?;
    }
    parts.next().is_none().then_some(Incoming { ids, sampled, form })
}

fn multi(headers: &HeaderMap) -> Option<Incoming> {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let trace = text(&TRACE_ID).and_then(trace_id);
    let span = text(&SPAN_ID).and_then(span_id);
    let debug = text(&FLAGS) == Some("1");
    let sampled = if debug {
        Some(true)
    } else {
        text(&SAMPLED).and_then(said)
    };
    let ids = trace.zip(span).map(|(trace, span)| Ids { trace, span });
    (ids.is_some() || sampled.is_some()).then_some(Incoming {
        ids,
        sampled,
        form: Form::B3Multi,
    })
}

/// 16 or 32 digits, not zero.
fn trace_id(text: &str) -> Option<u128> {
    let fits = matches!(text.len(), 16 | 32) && is_hex(text);
    u128::from_str_radix(text, 16).ok().filter(|id| fits && *id != 0)
}

fn span_id(text: &str) -> Option<u64> {
    let fits = text.len() == 16 && is_hex(text);
    u64::from_str_radix(text, 16).ok().filter(|id| fits && *id != 0)
}

/// Digits may be written either way; a sign is none.
fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn state(text: &str) -> Option<bool> {
    match text {
        "1" | "d" => Some(true),
        "0" => Some(false),
        _ => None,
    }
}

/// Old clients say it in words.
fn said(text: &str) -> Option<bool> {
    match text {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

pub(super) fn write_single(headers: &mut HeaderMap, trace: &Trace, span: u64) {
    let Trace { id, sampled, .. } = trace;
    let text = format!("{id:032x}-{span:016x}-{}-{:016x}", u8::from(*sampled), trace.span);
    headers.insert(B3, value(&text));
}

pub(super) fn write_multi(headers: &mut HeaderMap, trace: &Trace, span: u64) {
    headers.insert(TRACE_ID, value(&format!("{:032x}", trace.id)));
    headers.insert(SPAN_ID, value(&format!("{span:016x}")));
    headers.insert(PARENT_SPAN_ID, value(&format!("{:016x}", trace.span)));
    let sampled = if trace.sampled { "1" } else { "0" };
    headers.insert(SAMPLED, HeaderValue::from_static(sampled));
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    #[test]
    fn the_single_header_is_read_in_all_its_lengths() {
        let ids = Some(Ids {
            trace: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c,
            span: 0xb7ad_6b71_6920_3331,
        });
        let read = |text: &str| single(text).map(|incoming| (incoming.ids, incoming.sampled));
        assert_eq!(read(&format!("{TRACE}-{SPAN}")), Some((ids, None)));
        assert_eq!(read(&format!("{TRACE}-{SPAN}-1")), Some((ids, Some(true))));
        assert_eq!(read(&format!("{TRACE}-{SPAN}-d")), Some((ids, Some(true))));
        assert_eq!(
            read(&format!("{TRACE}-{SPAN}-0-{SPAN}")),
            Some((ids, Some(false)))
        );
        assert_eq!(read("0"), Some((None, Some(false))));
        for text in [
            "",
            "2",
            "0af7-b7ad6b7169203331",
            &format!("{TRACE}-{SPAN}-x"),
            &format!("{TRACE}-{SPAN}-1-{SPAN}-1"),
            &format!("{}-{SPAN}", "0".repeat(32)),
            &format!("+{}-{SPAN}", &TRACE[1..]),
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn several_headers_are_read_and_written() {
        let pairs = [(TRACE_ID, TRACE), (SPAN_ID, SPAN), (SAMPLED, "true")];
        let headers: HeaderMap = pairs
            .into_iter()
            .map(|(name, value)| (name, value.parse().unwrap()))
            .collect();
        let incoming = read(&headers).unwrap();
        assert_eq!((incoming.form, incoming.sampled), (Form::B3Multi, Some(true)));
        let trace = Trace::begin(Some(incoming), 0, Ids { trace: 1, span: 2 }, 0);
        let mut out = HeaderMap::new();
        trace.write(&mut out, 0xcd);
        assert_eq!(out[TRACE_ID], TRACE);
        assert_eq!(out[SPAN_ID], "00000000000000cd");
        assert_eq!(out[PARENT_SPAN_ID], "0000000000000002");
        assert_eq!(out[SAMPLED], "1");
    }

    #[test]
    fn the_debug_flag_is_sampled() {
        let headers: HeaderMap = [(FLAGS, "1".parse().unwrap())].into_iter().collect();
        assert_eq!(read(&headers).unwrap().sampled, Some(true));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in ".*") {
            let _ = single(&text);
        }

        #[test]
        fn what_is_written_is_read(trace_id in 1..=u128::MAX, span in 1..=u64::MAX, next in 1..=u64::MAX, sampled: bool) {
            let trace = Trace { id: trace_id, parent: None, span, sampled, form: Form::B3Single };
            let mut headers = HeaderMap::new();
            write_single(&mut headers, &trace, next);
            let expected = Incoming {
                ids: Some(Ids { trace: trace_id, span: next }), sampled: Some(sampled), form: Form::B3Single,
            };
            proptest::prop_assert_eq!(read(&headers), Some(expected));
        }
    }
}
