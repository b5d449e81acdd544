//! One entry per parser of foreign bytes, for the fuzzers. Each panics when a property does not hold.

use crate::hbone::connect;
use crate::hbone::own::fuzz as own;
use crate::{Baggage, Forwarded, ReasonHeader, TraceParent, proxy_protocol, socks5};

/// What was parsed is written and parsed alike.
pub fn baggage(data: &[u8]) {
    let parsed = Baggage::parse(&String::from_utf8_lossy(data));
    assert_eq!(Baggage::parse(&parsed.to_string()), parsed);
}

/// What was parsed is written and parsed alike.
pub fn forwarded(data: &[u8]) {
    if let Ok(parsed) = String::from_utf8_lossy(data).parse::<Forwarded>() {
        assert_eq!(parsed.to_string().parse(), Ok(parsed));
    }
}

/// What was parsed is written and parsed alike.
pub fn reason_header(data: &[u8]) {
    if let Ok(parsed) = String::from_utf8_lossy(data).parse::<ReasonHeader>() {
        assert_eq!(parsed.to_string().parse(), Ok(parsed));
    }
}

/// What was parsed is written and parsed alike.
pub fn traceparent(data: &[u8]) {
    if let Ok(parsed) = String::from_utf8_lossy(data).parse::<TraceParent>() {
        assert_eq!(parsed.to_string().parse(), Ok(parsed));
    }
}

/// A header never claims more bytes than there are.
pub fn proxy_protocol(data: &[u8]) {
    if let Ok((_, length)) = proxy_protocol::Header::parse(data) {
        assert!(length <= data.len());
    }
}

/// A greeting or request never claims more bytes than there are, and never asks for more than its bound; what is
/// understood does not depend on what follows.
pub fn socks5(data: &[u8]) {
    let bounded = |error, most| {
        if let socks5::Malformed::Incomplete(least) = error {
            assert!(data.len() < least && least <= most);
        }
    };
    match socks5::greeting(data) {
        Ok(length) => assert!(length <= data.len()),
        Err(error) => bounded(error, socks5::GREETING_BYTES_MAX),
    }
    match socks5::request(data) {
        Ok((target, length)) => assert_eq!(socks5::request(&data[..length]), Ok((target, length))),
        Err(error) => bounded(error, socks5::REQUEST_BYTES_MAX),
    }
}

/// Header values of a tunnel request, one per line: `name: value`.
pub fn connect_headers(data: &[u8]) {
    connect::fuzz_headers(data);
}

/// HTTP/2 frames of a peer, after one byte that says how they are cut.
pub fn tunnel_frames(data: &[u8]) {
    own::frames(data);
}

/// Header blocks of one connection, each with its length in front.
pub fn tunnel_heads(data: &[u8]) {
    own::hpack(data);
}

/// TLS records of a peer, sealed with the right key or not, after one byte that says how they are cut.
pub fn records(data: &[u8]) {
    crate::records::fuzz::records(data);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn properties_hold_for_any_bytes(data: Vec<u8>) {
            baggage(&data);
            forwarded(&data);
            reason_header(&data);
            traceparent(&data);
            proxy_protocol(&data);
            connect_headers(&data);
        }

        #[test]
        fn properties_hold_for_likely_headers(
            baggage in "[ -~]{0,40}", client in "[0-9a-f.:%\\[\\]]{0,30}", host in "[ -~]{0,20}",
            code in "T[0-9]{4}", parts in "(;[ -~]{0,20}){0,4}", source in "spiffe://[a-z/]{0,30}",
        ) {
            forwarded(format!("for=\"{client}\";host={host}").as_bytes());
            reason_header(format!("{code};x{parts}").as_bytes());
            let lines = format!(
                "baggage:service.name={baggage}\nforwarded:for=\"{client}\"\nx-tulle-original-source:{source}\n\
                 x-forwarded-network:{host}",
            );
            connect_headers(lines.as_bytes());
        }
    }
}
