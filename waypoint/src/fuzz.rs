//! What must hold for any bytes that a client or an endpoint sends. Fuzz targets and the kept corpus call these.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue};

use crate::detect::first::{self, First};
use crate::detect::sni::{self, HELLO_BYTES_MAX, Hello};
use crate::http::heads::Heads;
use crate::telemetry::grpc::Messages;
use crate::telemetry::trace::{Ids, Trace, b3};
use crate::upstream::retry::retry_after;
use crate::upstream::session::{Token, cookie};
use crate::upstream::timeout;

/// What was read of B3 is written and read alike; what is said of sampling stays.
///
/// # Panics
/// If that does not hold.
pub fn b3(data: &[u8]) {
    let Some(incoming) = std::str::from_utf8(data).ok().and_then(b3::single) else {
        return;
    };
    let ids = Ids { trace: 1, span: 2 };
    let trace = Trace::begin(Some(incoming), 0, ids, 0);
    let mut headers = HeaderMap::new();
    trace.write(&mut headers, 3);
    let again = b3::read(&headers).expect("what we write can be read");
    assert_eq!(again.ids.map(|ids| ids.span), Some(3));
    assert_eq!(again.sampled, Some(incoming.sampled.unwrap_or(false)));
    if let Some(known) = incoming.ids {
        assert_eq!(again.ids.map(|ids| ids.trace), Some(known.trace));
    }
}

/// A wait that was read is bounded, and seconds mean what they say.
///
/// # Panics
/// If that does not hold.
pub fn retry_after(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let read = retry_after::parse(text, SystemTime::UNIX_EPOCH);
    if let Ok(seconds) = text.parse::<u16>()
        && !text.starts_with('+')
    {
        assert_eq!(read, Some(Duration::from_secs(seconds.into())));
    }
    let _ = retry_after::pushback(text);
}

/// A timeout that was read is written as no more than it was.
///
/// # Panics
/// If that does not hold.
pub fn grpc_timeout(data: &[u8]) {
    let Some(read) = std::str::from_utf8(data).ok().and_then(timeout::parse) else {
        return;
    };
    let written = timeout::header(read);
    let again = timeout::parse(written.to_str().expect("digits and a letter"));
    assert!(again.is_some_and(|again| again <= read));
}

/// Every cookie is found under its name; a session that was read is written alike.
///
/// # Panics
/// If that does not hold.
pub fn cookie(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else {
        return;
    };
    let Ok(line) = value.to_str().map(str::to_owned) else {
        return;
    };
    let headers = HeaderMap::from_iter([(http::header::COOKIE, value)]);
    for (name, value) in cookie::pairs(&line) {
        assert!(cookie::find(&headers, name).is_some());
        if let Some(token) = Token::parse(value) {
            assert_eq!(Token::parse(&token.to_string()), Some(token));
        }
    }
}

/// Messages are counted alike, however the bytes are cut.
///
/// # Panics
/// If that does not hold.
pub fn grpc_messages(data: &[u8]) {
    let mut whole = Messages::default();
    whole.feed(data);
    let mut single = Messages::default();
    data.chunks(1).for_each(|byte| single.feed(byte));
    assert_eq!(whole, single);
}

/// The same requests are refused, for the same reasons, however their bytes are cut.
///
/// # Panics
/// If that does not hold.
pub fn request_heads(data: &[u8]) {
    const REQUESTS: usize = 64;
    let Some((piece, sent)) = data.split_first() else {
        return;
    };
    let (mut whole, mut cut) = (Heads::default(), Heads::default());
    whole.see(sent);
    sent.chunks(usize::from(*piece).max(1))
        .for_each(|piece| cut.see(piece));
    for _ in 0..REQUESTS {
        assert_eq!(whole.serve(), cut.serve());
    }
}

/// What is understood does not depend on what follows, a name is one that can be matched, and nothing is waited for
/// beyond the bound.
///
/// # Panics
/// If that does not hold.
pub fn client_hello(data: &[u8]) {
    let found = sni::read(data);
    if let Hello::Named(name) = &found {
        assert!(!name.is_empty() && name.len() <= 253 && name.is_ascii());
    }
    if found != Hello::More {
        let mut longer = data.to_vec();
        longer.push(0x16);
        if longer.len() <= HELLO_BYTES_MAX {
            assert_eq!(sni::read(&longer), found);
        }
    }
    assert!(data.len() <= HELLO_BYTES_MAX || found != Hello::More);
}

/// What was told from the first bytes stays true when more arrive.
///
/// # Panics
/// If that does not hold.
pub fn first_bytes(data: &[u8]) {
    let found = first::look(data);
    if found != First::More {
        let mut longer = data.to_vec();
        longer.push(b'x');
        assert_eq!(first::look(&longer), found);
    }
    assert!(data.len() <= 128 || found != First::More, "it is decided soon");
}
