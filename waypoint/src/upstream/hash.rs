//! What of a request decides its endpoint, for ways of balancing that hash.

use std::time::Duration;

use http::HeaderValue;
use tulle_model::RequestHead;
use tulle_model::policy::traffic::{CookieKey, Key};
use tulle_model::request::Source;
use xxhash_rust::xxh64::xxh64;

use super::session::cookie;

/// What decides, and what the client must be told so that it decides again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hashed {
    /// The hash; `None` if no key is present.
    pub hash: Option<u64>,
    /// A cookie that the client does not have yet.
    pub set_cookie: Option<HeaderValue>,
}

/// The hash of the first key that is present. A cookie with a life is made where it is missing, of `fresh`.
#[must_use]
pub fn of(keys: &[Key], head: &RequestHead, source: &Source, fresh: u64) -> Hashed {
    for key in keys {
        if let Some(value) = of_head(key, head).or_else(|| of_source(key, source)) {
            return Hashed {
                hash: Some(xxh64(value.as_bytes(), 0)),
                set_cookie: None,
            };
        }
        if let Key::Cookie(CookieKey { ttl: Some(ttl), .. }) = key
            && let Some(made) = made(key, *ttl, fresh)
        {
            return made;
        }
    }
    Hashed::default()
}

/// The hash of the first key that a stream has which is not read: who opened it, from where, or what is the same for all.
#[must_use]
pub fn of_stream(keys: &[Key], source: &Source) -> Option<u64> {
    let value = keys.iter().find_map(|key| of_source(key, source))?;
    Some(xxh64(value.as_bytes(), 0))
}

fn of_head(key: &Key, head: &RequestHead) -> Option<String> {
    match key {
        Key::Header(name) => {
            let value = head.headers.get(&**name)?;
            Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
        }
        Key::Cookie(key) => cookie::find(&head.headers, &key.name).map(str::to_owned),
        Key::Query(name) => {
            let pairs = head.query.as_deref()?.split('&');
            let named = |pair: &str| Some(pair.split_once('=').unwrap_or((pair, "")).1.to_owned());
            let mut found = pairs.filter(|pair| pair.split('=').next() == Some(name));
            found.next().and_then(named)
        }
        Key::Method => Some(head.method.to_string()),
        _ => None,
    }
}

fn of_source(key: &Key, source: &Source) -> Option<String> {
    match key {
        Key::SourceIdentity => source.identity.as_ref().map(ToString::to_string),
        Key::SourceNamespace => source
            .identity
            .as_ref()
            .map(|identity| identity.namespace.to_string()),
        Key::SourceIp => Some(source.ip.to_string()),
        Key::Constant(text) => Some(text.to_string()),
        _ => None,
    }
}

fn made(key: &Key, ttl: Duration, fresh: u64) -> Option<Hashed> {
    let Key::Cookie(CookieKey { name, path, .. }) = key else {
        return None;
    };
    let path = if path.is_empty() { "/" } else { path };
    if !cookie::is_name(name) || !cookie::is_path(path) {
        return None;
    }
    let value = format!("{fresh:016x}");
    let life = match ttl.as_secs() {
        0 => String::new(),
        seconds => format!("; Max-Age={seconds}"),
    };
    let text = format!("{name}={value}; Path={path}; HttpOnly{life}");
    Some(Hashed {
        hash: Some(xxh64(value.as_bytes(), 0)),
        set_cookie: HeaderValue::try_from(text).ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::COOKIE;
    use tulle_model::testing::get;

    fn source() -> Source {
        Source {
            identity: None,
            ip: [10, 0, 0, 1].into(),
            remote_ip: [10, 0, 0, 1].into(),
        }
    }

    fn session(ttl: Option<Duration>) -> Key {
        Key::Cookie(CookieKey {
            name: "s".into(),
            path: "".into(),
            ttl,
        })
    }

    #[test]
    fn the_first_key_that_is_present_decides() {
        let mut head = get("/");
        let keys = [Key::Header("x-user".into()), Key::SourceIdentity, Key::SourceIp];
        let by_ip = of(&keys, &head, &source(), 1);
        assert_eq!(by_ip.hash, Some(xxh64(b"10.0.0.1", 0)));
        head.headers.insert("x-user", HeaderValue::from_static("ann"));
        assert_eq!(of(&keys, &head, &source(), 1).hash, Some(xxh64(b"ann", 0)));
        assert_eq!(of(&keys[1..2], &head, &source(), 1), Hashed::default());
    }

    #[test]
    fn a_stream_is_hashed_by_what_needs_no_request() {
        let keys = [
            Key::Header("x-user".into()),
            Key::Method,
            Key::SourceIdentity,
            Key::SourceIp,
            Key::Constant("all".into()),
        ];
        assert_eq!(of_stream(&keys, &source()), Some(xxh64(b"10.0.0.1", 0)));
        assert_eq!(of_stream(&keys[4..], &source()), Some(xxh64(b"all", 0)));
        assert_eq!(of_stream(&keys[..3], &source()), None);
        let known = Source {
            identity: Some("spiffe://cluster.local/ns/shop/sa/a".parse().unwrap()),
            ..source()
        };
        let own = Some(xxh64(b"spiffe://cluster.local/ns/shop/sa/a", 0));
        assert_eq!(of_stream(&keys, &known), own);
        let namespace = [Key::SourceNamespace];
        assert_eq!(of_stream(&namespace, &known), Some(xxh64(b"shop", 0)));
    }

    #[test]
    fn a_parameter_of_the_query_decides() {
        let mut head = get("/");
        head.query = Some("a=1&b=2&b=3".into());
        let hash = of(&[Key::Query("b".into())], &head, &source(), 1).hash;
        assert_eq!(hash, Some(xxh64(b"2", 0)));
    }

    #[test]
    fn a_cookie_with_a_life_is_made_and_decides_the_same_when_it_comes_back() {
        let mut head = get("/");
        let made = of(&[session(Some(Duration::from_secs(60)))], &head, &source(), 7);
        let cookie = made.set_cookie.unwrap();
        assert_eq!(cookie, "s=0000000000000007; Path=/; HttpOnly; Max-Age=60");
        head.headers
            .insert(COOKIE, HeaderValue::from_static("s=0000000000000007"));
        let again = of(&[session(Some(Duration::from_secs(60)))], &head, &source(), 8);
        assert_eq!((again.hash, again.set_cookie), (made.hash, None));
        head.headers.clear();
        assert_eq!(of(&[session(None)], &head, &source(), 7), Hashed::default());
    }
}
