use http::header::COOKIE;
use proptest::prelude::*;

use super::*;

const NOW: u32 = 1_700_000_000;
const PRINT: u128 = 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef;

fn session(by: SessionBy) -> Session {
    Session {
        by,
        absolute: None,
        idle: None,
        permanent: false,
    }
}

fn by_cookie() -> Session {
    session(SessionBy::Cookie {
        name: "".into(),
        path: "".into(),
    })
}

fn policy(session: &Session) -> SessionPolicy {
    SessionPolicy::new(session).unwrap()
}

fn carrying(name: HeaderName, text: &str) -> HeaderMap {
    HeaderMap::from_iter([(name, text.parse().unwrap())])
}

#[test]
fn a_cookie_comes_back_as_the_session_it_was() {
    let policy = policy(&by_cookie());
    let (name, value) = policy.write(None, PRINT, NOW, false).unwrap();
    let text = value.to_str().unwrap();
    assert_eq!(name, SET_COOKIE);
    assert!(text.ends_with("; Path=/; HttpOnly"), "{text}");
    let cookie = text.split(';').next().unwrap();
    let token = policy.read(&carrying(COOKIE, cookie), NOW + 5).unwrap();
    assert_eq!((token.fingerprint, token.issued), (PRINT, NOW));
}

#[test]
fn a_client_that_stays_is_told_nothing() {
    let policy = policy(&by_cookie());
    let token = Token {
        fingerprint: PRINT,
        issued: NOW,
        used: NOW,
    };
    assert_eq!(policy.write(Some(token), PRINT, NOW, false), None);
    assert!(
        policy.write(Some(token), PRINT + 1, NOW, false).is_some(),
        "its endpoint is another"
    );
}

#[test]
fn a_cookie_is_secure_where_the_client_speaks_tls() {
    let (_, value) = policy(&by_cookie()).write(None, PRINT, NOW, true).unwrap();
    assert!(value.to_str().unwrap().contains("; Secure"));
}

#[test]
fn a_permanent_cookie_lives_as_long_as_its_session() {
    let given = Session {
        absolute: Some(Duration::from_secs(100)),
        idle: Some(Duration::from_secs(50)),
        permanent: true,
        ..by_cookie()
    };
    let begun = Token {
        fingerprint: PRINT,
        issued: NOW - 40,
        used: NOW - 1,
    };
    let (_, value) = policy(&given).write(Some(begun), PRINT, NOW, false).unwrap();
    assert!(value.to_str().unwrap().contains("; Max-Age=60"), "{value:?}");
}

#[test]
fn a_session_ends_with_its_time() {
    let given = Session {
        absolute: Some(Duration::from_secs(100)),
        idle: Some(Duration::from_secs(10)),
        ..session(SessionBy::Header("x-session".into()))
    };
    let policy = policy(&given);
    let name = HeaderName::from_static("x-session");
    let read = |issued, used| {
        let token = Token {
            fingerprint: PRINT,
            issued,
            used,
        };
        policy
            .read(&carrying(name.clone(), &token.to_string()), NOW)
            .is_some()
    };
    assert!(read(NOW - 99, NOW - 9));
    assert!(!read(NOW - 100, NOW - 1));
    assert!(!read(NOW - 50, NOW - 10));
    let (written, value) = policy
        .write(
            Some(Token {
                fingerprint: PRINT,
                issued: NOW - 50,
                used: NOW - 5,
            }),
            PRINT,
            NOW,
            false,
        )
        .unwrap();
    let token = Token::parse(value.to_str().unwrap()).unwrap();
    assert_eq!(
        (written, token.issued, token.used),
        (name, NOW - 50, NOW),
        "idle begins anew, the whole does not"
    );
}

#[test]
fn what_is_no_session_is_none() {
    let policy = policy(&by_cookie());
    for text in [
        "tulle-session=",
        "tulle-session=abc",
        "tulle-session=%%%",
        "other=x",
    ] {
        assert_eq!(policy.read(&carrying(COOKIE, text), NOW), None, "{text}");
    }
    assert_eq!(
        SessionPolicy::new(&session(SessionBy::Header("not a name".into()))),
        None
    );
}

proptest! {
    #[test]
    fn a_token_survives_being_written(fingerprint: u128, issued: u32, used: u32) {
        let token = Token { fingerprint, issued, used };
        prop_assert_eq!(Token::parse(&token.to_string()), Some(token));
        prop_assert_eq!(token.to_string().len(), 32);
    }

    #[test]
    fn any_text_is_survived(text in ".*") {
        let _ = Token::parse(&text);
        cookie::pairs(&text).for_each(drop);
    }
}
