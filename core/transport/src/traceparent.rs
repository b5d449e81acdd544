//! The W3C `traceparent` header of a tunnel request.

use std::fmt;
use std::str::FromStr;

/// Version 00, a trace id, a span id and flags; 55 characters on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceParent {
    /// Id of the whole trace, never zero.
    pub trace_id: u128,
    /// Id of the sender's span, never zero.
    pub span_id: u64,
    /// Bit 0: sampled.
    pub flags: u8,
}

/// The text is no version 00 `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent of version 00")]
pub struct InvalidTraceParent;

impl TraceParent {
    /// Fresh random ids, not sampled.
    #[must_use]
    pub fn random() -> Self {
        Self {
            trace_id: rand::random::<u128>().max(1),
            span_id: rand::random::<u64>().max(1),
            flags: 0,
        }
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            self.trace_id, self.span_id, self.flags
        )
    }
}

impl FromStr for TraceParent {
    type Err = InvalidTraceParent;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('-');
        let mut part = |length: usize| {
            let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            parts
                .next()
                .filter(|part| part.len() == length && part.bytes().all(hex))
                .ok_or(InvalidTraceParent)
        };
        if part(2)? != "00" {
            return Err(InvalidTraceParent);
        }
        let parsed = Self {
            trace_id: u128::from_str_radix(part(32)?, 16).map_err(|_| InvalidTraceParent)?,
            span_id: u64::from_str_radix(part(16)?, 16).map_err(|_| InvalidTraceParent)?,
            flags: u8::from_str_radix(part(2)?, 16).map_err(|_| InvalidTraceParent)?,
        };
        let complete = parts.next().is_none() && parsed.trace_id != 0 && parsed.span_id != 0;
        complete.then_some(parsed).ok_or(InvalidTraceParent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_version_00_with_ids_is_taken() {
        for text in [
            "",
            "00",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
            "00-00000000000000000000000000000000-b7ad6b7169203331-00",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-00",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
        ] {
            assert_eq!(text.parse::<TraceParent>(), Err(InvalidTraceParent), "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_form_round_trips(trace_id in 1..=u128::MAX, span_id in 1..=u64::MAX, flags: u8) {
            let given = TraceParent { trace_id, span_id, flags };
            prop_assert_eq!(given.to_string().len(), 55);
            prop_assert_eq!(given.to_string().parse(), Ok(given));
        }

        #[test]
        fn any_text_is_survived(text in ".*") {
            let _ = text.parse::<TraceParent>();
        }
    }
}
