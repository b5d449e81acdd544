//! Every rule of request hygiene that a head alone decides, as a table, and the writing of what goes upstream.

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Version};
use proptest::prelude::*;
use tulle_model::reason::Reason;
use tulle_model::request::{Protocol, Scheme};
use tulle_model::waypoint::PathNormalization;

use super::answer::{Connection, clean};
use super::encode::{ClientCert, Telling, encode, request_id};
use super::{Admitted, Bounds, Rejection, Terms, Upgrade, admit, remote_ip};

fn terms() -> Terms<'static> {
    Terms {
        bounds: Bounds::default(),
        paths: PathNormalization::Base,
        scheme: Scheme::Http,
        gateway: false,
        authority: "web.shop:80",
    }
}

fn parts(version: Version, method: &str, target: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().version(version).method(method).uri(target);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn h1(target: &str, headers: &[(&str, &str)]) -> Result<Admitted, Rejection> {
    let mut all = vec![("host", "web.shop")];
    all.extend_from_slice(headers);
    admit(parts(Version::HTTP_11, "GET", target, &all), &terms())
}

fn refused(of: Result<Admitted, Rejection>) -> Reason {
    of.expect_err("it must be refused").reason
}

#[test]
fn a_length_and_a_coding_are_one_too_many() {
    for headers in [
        &[("content-length", "3"), ("transfer-encoding", "chunked")][..],
        &[("transfer-encoding", "gzip, chunked")],
        &[("transfer-encoding", "chunked, chunked")],
        &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
        &[("transfer-encoding", "identity")],
        &[("transfer-encoding", "xchunked")],
        &[("content-length", "3"), ("content-length", "3")],
        &[("content-length", "3, 3")],
        &[("content-length", "+3")],
        &[("content-length", "")],
    ] {
        let rejection = h1("/", headers).expect_err("it must be refused");
        assert_eq!(rejection.reason, Reason::BadFraming, "{headers:?}");
        assert!(rejection.close, "{headers:?}");
    }
    assert!(h1("/", &[("transfer-encoding", "Chunked")]).is_ok());
    let old = parts(Version::HTTP_10, "POST", "/", &[("transfer-encoding", "chunked")]);
    assert_eq!(refused(admit(old, &terms())), Reason::BadFraming);
}

#[test]
fn a_request_has_one_host() {
    let plain = |version, target, headers: &[_]| admit(parts(version, "GET", target, headers), &terms());
    assert_eq!(refused(plain(Version::HTTP_11, "/", &[])), Reason::BadHost);
    assert_eq!(
        refused(plain(Version::HTTP_11, "http://a/", &[])),
        Reason::BadHost
    );
    let two = [("host", "a"), ("host", "a")];
    assert_eq!(refused(plain(Version::HTTP_11, "/", &two)), Reason::BadHost);
    assert_eq!(
        refused(plain(Version::HTTP_11, "/", &[("host", "u@a")])),
        Reason::BadHost
    );
    assert_eq!(refused(h1("http://user@a/", &[])), Reason::BadHost);
    assert_eq!(
        refused(plain(Version::HTTP_11, "/", &[("host", "")])),
        Reason::BadHost
    );
    assert_eq!(
        &*plain(Version::HTTP_10, "/", &[]).unwrap().head.authority,
        "web.shop:80"
    );
}

#[test]
fn the_target_wins_over_the_host_field() {
    let admitted = h1("http://Other.shop:8080/x", &[]).unwrap();
    assert_eq!(&*admitted.head.authority, "other.shop:8080");
    assert!(!admitted.head.headers.contains_key("host"));
    let h2 = |target, headers: &[_]| {
        admit(parts(Version::HTTP_2, "GET", target, headers), &terms())
            .unwrap()
            .head
    };
    assert_eq!(&*h2("http://a.b/", &[("host", "c.d")]).authority, "a.b");
    assert_eq!(&*h2("/", &[("host", "c.d")]).authority, "c.d");
}

#[test]
fn paths_come_out_canonical_and_queries_as_they_were() {
    let admitted = h1("/a/%2e%2e/b/./%41?x=%2e%2e&y", &[]).unwrap();
    assert_eq!(&*admitted.head.path, "/b/A");
    assert_eq!(admitted.head.query.as_deref(), Some("x=%2e%2e&y"));
    assert_eq!(&*h1("http://web.shop", &[]).unwrap().head.path, "/");
    for target in ["/../x", "/%", "/%00", "ftp://web.shop/", "web.shop"] {
        assert_eq!(refused(h1(target, &[])), Reason::BadPath, "{target}");
    }
}

#[test]
fn only_options_has_no_path() {
    let of = |method| admit(parts(Version::HTTP_11, method, "*", &[("host", "a")]), &terms());
    assert_eq!(&*of("OPTIONS").unwrap().head.path, "*");
    assert_eq!(refused(of("GET")), Reason::BadPath);
}

#[test]
fn hop_by_hop_fields_and_those_that_connection_names_end_here() {
    let admitted = h1(
        "/",
        &[
            ("connection", "close, X-Secret , content-length"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "x"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers, deflate"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
            ("content-length", "0"),
            ("accept", "*/*"),
        ],
    )
    .unwrap();
    let names: Vec<_> = admitted.head.headers.keys().map(|name| name.as_str()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(
        admitted.head.headers.contains_key("content-length") && admitted.head.headers.contains_key("accept")
    );
    assert!(admitted.takes_trailers);
    assert_eq!(admitted.upgrade, None);
}

#[test]
fn what_only_the_mesh_says_is_not_taken_from_a_client() {
    let told = [
        ("x-tulle-original-source", "spiffe://a"),
        ("x-envoy-attempt-count", "9"),
        ("x-istio-attributes", "x"),
        ("x-forwarded-client-cert", "By=x"),
        ("x-forwarded-for", "203.0.113.7, 198.51.100.1"),
        ("x-forwarded-proto", "https"),
        ("forwarded", "for=1.2.3.4"),
    ];
    let admitted = h1("/", &told).unwrap();
    assert!(admitted.head.headers.is_empty(), "{:?}", admitted.head.headers);
    assert_eq!(admitted.remote_ip, None);
    let mut headers = vec![("host", "a")];
    headers.extend_from_slice(&told);
    let gateway = Terms {
        gateway: true,
        ..terms()
    };
    let admitted = admit(parts(Version::HTTP_11, "GET", "/", &headers), &gateway).unwrap();
    assert_eq!(admitted.head.headers.len(), 3, "{:?}", admitted.head.headers);
    assert_eq!(admitted.remote_ip, Some("198.51.100.1".parse().unwrap()));
}

#[test]
fn the_client_of_a_gateway_is_the_last_address_it_names() {
    for (told, expect) in [
        ("203.0.113.7", Some("203.0.113.7")),
        ("203.0.113.7:5000", Some("203.0.113.7")),
        ("10.1.1.1, ::ffff:203.0.113.7", Some("203.0.113.7")),
        ("[2001:db8::1]:5000", Some("2001:db8::1")),
        ("203.0.113.7, unknown", None),
        ("", None),
    ] {
        let headers = HeaderMap::from_iter([(
            HeaderName::from_static("x-forwarded-for"),
            HeaderValue::from_static(told),
        )]);
        let expect = expect.map(|address| address.parse().unwrap());
        assert_eq!(remote_ip(&headers), expect, "{told}");
    }
}

#[test]
fn cookies_are_one_field() {
    let headers = [("cookie", "a=1"), ("cookie", "b=2")];
    let admitted = admit(parts(Version::HTTP_2, "GET", "http://a/", &headers), &terms()).unwrap();
    let cookies: Vec<_> = admitted.head.headers.get_all("cookie").iter().collect();
    assert_eq!(cookies, ["a=1; b=2"]);
}

#[test]
fn only_continue_may_be_expected() {
    assert!(h1("/", &[("expect", "100-Continue")]).unwrap().expects_continue);
    assert_eq!(refused(h1("/", &[("expect", "200-ok")])), Reason::BadExpect);
    let twice = [("expect", "100-continue"), ("expect", "100-continue")];
    assert_eq!(refused(h1("/", &twice)), Reason::BadExpect);
}

#[test]
fn heads_are_bounded() {
    let long = format!("/{}", "a".repeat(32 << 10));
    assert_eq!(refused(h1(&long, &[])), Reason::UriTooLong);
    let big = "a".repeat(64 << 10);
    assert_eq!(refused(h1("/", &[("x", &big)])), Reason::HeadersTooLarge);
    let many: Vec<_> = (0..100).map(|_| ("x", "1")).collect();
    assert_eq!(refused(h1("/", &many)), Reason::HeadersTooLarge);
}

#[test]
fn websockets_are_asked_for_in_two_ways_and_nothing_else_is_tunnelled() {
    let asked = [("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")];
    assert_eq!(h1("/chat", &asked).unwrap().upgrade, Some(Upgrade::WebSocket));
    assert_eq!(h1("/chat", &[("upgrade", "websocket")]).unwrap().upgrade, None);
    let connect = parts(
        Version::HTTP_11,
        "CONNECT",
        "web.shop:443",
        &[("host", "web.shop:443")],
    );
    assert_eq!(refused(admit(connect, &terms())), Reason::ConnectNotCarried);
    let mut extended = parts(Version::HTTP_2, "CONNECT", "http://web.shop/chat", &[]);
    extended
        .extensions
        .insert(hyper::ext::Protocol::from_static("websocket"));
    let admitted = admit(extended, &terms()).unwrap();
    assert_eq!(admitted.upgrade, Some(Upgrade::WebSocket));
    assert_eq!(admitted.head.method, "GET");
}

#[test]
fn methods_are_case_sensitive() {
    let admitted = admit(parts(Version::HTTP_11, "get", "/", &[("host", "a")]), &terms()).unwrap();
    assert_eq!(admitted.head.method, "get");
}

static SOURCE: HeaderValue = HeaderValue::from_static("10.0.0.7");

fn telling(id: &HeaderValue) -> Telling<'_> {
    Telling {
        request_id: id,
        source: &SOURCE,
        attempt: 2,
        client_cert: None,
        upgrade: None,
        takes_trailers: false,
        expects_continue: false,
    }
}

#[test]
fn what_goes_upstream_is_written_from_the_canonical_form() {
    let id = HeaderValue::from_static("id-1");
    let head = h1("http://Other.shop/a/../b?q", &[("accept", "*/*")])
        .unwrap()
        .head;
    let old = encode(&head, &telling(&id), Version::HTTP_11).unwrap();
    assert_eq!(old.uri, "/b?q");
    assert_eq!(old.headers["host"], "other.shop");
    assert_eq!(old.headers["x-request-id"], "id-1");
    assert_eq!(old.headers["x-forwarded-for"], "10.0.0.7");
    assert_eq!(old.headers["x-forwarded-proto"], "http");
    assert_eq!(old.headers["x-envoy-attempt-count"], "2");
    assert_eq!(old.headers["accept"], "*/*");
    let new = encode(&head, &telling(&id), Version::HTTP_2).unwrap();
    assert_eq!(new.uri, "http://other.shop/b?q");
    assert!(!new.headers.contains_key("host"));
}

#[test]
fn what_a_gateway_said_is_continued() {
    let id = HeaderValue::from_static("id-1");
    let gateway = Terms {
        gateway: true,
        ..terms()
    };
    let headers = [
        ("host", "a"),
        ("x-forwarded-for", "203.0.113.7"),
        ("x-forwarded-proto", "https"),
    ];
    let head = admit(parts(Version::HTTP_11, "GET", "/", &headers), &gateway)
        .unwrap()
        .head;
    let sent = encode(&head, &telling(&id), Version::HTTP_11).unwrap();
    assert_eq!(sent.headers["x-forwarded-for"], "203.0.113.7, 10.0.0.7");
    assert_eq!(sent.headers["x-forwarded-proto"], "https");
}

#[test]
fn applications_are_told_the_client_s_identity_when_asked_for() {
    let id = HeaderValue::from_static("id-1");
    let head = h1("/", &[]).unwrap().head;
    let telling = Telling {
        client_cert: Some(ClientCert {
            source: "spiffe://td/ns/a/sa/b",
            destination: "spiffe://td/ns/c/sa/d",
        }),
        ..telling(&id)
    };
    let sent = encode(&head, &telling, Version::HTTP_11).unwrap();
    assert_eq!(
        sent.headers["x-forwarded-client-cert"],
        "By=spiffe://td/ns/c/sa/d;URI=spiffe://td/ns/a/sa/b"
    );
}

#[test]
fn a_websocket_is_asked_for_in_the_words_of_the_upstream_s_protocol() {
    let id = HeaderValue::from_static("id-1");
    let head = h1("/chat", &[("sec-websocket-key", "abc")]).unwrap().head;
    let telling = Telling {
        upgrade: Some(Upgrade::WebSocket),
        ..telling(&id)
    };
    let old = encode(&head, &telling, Version::HTTP_11).unwrap();
    assert_eq!(
        (&old.headers["connection"], &old.headers["upgrade"]),
        (&"upgrade".parse().unwrap(), &"websocket".parse().unwrap())
    );
    assert_eq!(old.headers["sec-websocket-key"], "abc");
    let new = encode(&head, &telling, Version::HTTP_2).unwrap();
    assert_eq!(new.method, "CONNECT");
    assert!(new.extensions.get::<hyper::ext::Protocol>().is_some());
    assert!(!new.headers.contains_key("sec-websocket-key"));
}

#[test]
fn only_short_visible_request_ids_are_kept() {
    let kept = |id: &str| request_id(&h1("/", &[("x-request-id", id)]).unwrap().head).is_some();
    assert!(kept("abc-1"));
    assert!(!kept("a b"));
    assert!(!kept(""));
    assert!(!kept(&"a".repeat(129)));
}

fn answer(
    status: u16,
    version: Version,
    headers: &[(&str, &str)],
) -> (http::response::Parts, Result<Connection, Reason>) {
    let mut response = http::Response::builder().status(status).version(version);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    let mut parts = response.body(()).unwrap().into_parts().0;
    let cleaned = clean(&mut parts, false);
    (parts, cleaned)
}

#[test]
fn an_answer_with_two_ends_closes_its_connection() {
    let both = [("content-length", "3"), ("transfer-encoding", "chunked")];
    let (parts, cleaned) = answer(200, Version::HTTP_11, &both);
    assert_eq!(cleaned, Ok(Connection::Close));
    assert!(!parts.headers.contains_key("content-length"));
    for headers in [
        &[("transfer-encoding", "gzip")][..],
        &[("transfer-encoding", "gzip, chunked")],
        &[("content-length", "3"), ("content-length", "4")],
    ] {
        assert_eq!(
            answer(200, Version::HTTP_11, headers).1,
            Err(Reason::UpstreamProtocol)
        );
    }
}

#[test]
fn answers_lose_what_ends_here_and_what_only_the_mesh_says() {
    let headers = [
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("keep-alive", "1"),
        ("x-envoy-upstream-service-time", "3"),
        ("x-tulle-reason", "T0412"),
        ("server", "nginx"),
    ];
    let (parts, cleaned) = answer(200, Version::HTTP_11, &headers);
    assert_eq!(cleaned, Ok(Connection::Keep));
    assert_eq!(parts.headers.len(), 1);
    assert_eq!(parts.headers["server"], "nginx");
}

#[test]
fn nobody_switches_protocols_unasked() {
    assert_eq!(
        answer(101, Version::HTTP_11, &[]).1,
        Err(Reason::UpstreamProtocol)
    );
}

proptest! {
    /// Whatever is sent, what goes upstream is read again as exactly what routing and policy saw.
    #[test]
    fn what_policy_saw_is_what_goes_upstream(
        path in "/[a-c./%\\\\2eEfF]{0,16}(\\?[a-z=&%]{0,8})?",
        host in "[a-cA-C.:@0-9\\[\\]]{0,10}",
        headers in prop::collection::vec(
            (prop::sample::select(vec!["connection", "te", "cookie", "x-a", "x-envoy-b", "forwarded", "content-length"]), "[a-z0-9, -]{0,12}"),
            0..6,
        ),
        two in prop::bool::ANY,
    ) {
        let mut all = vec![("host", host.as_str())];
        all.extend(headers.iter().map(|(name, value)| (*name, value.as_str())));
        let mut request = Request::builder().version(Version::HTTP_11).method("GET").uri(&path);
        for (name, value) in &all {
            request = request.header(*name, *value);
        }
        let Ok(request) = request.body(()) else { return Ok(()) };
        let Ok(admitted) = admit(request.into_parts().0, &terms()) else { return Ok(()) };
        let id = HeaderValue::from_static("id");
        let version = if two { Version::HTTP_2 } else { Version::HTTP_11 };
        let sent = encode(&admitted.head, &telling(&id), version).unwrap();
        let again = admit(sent, &terms()).unwrap();
        prop_assert_eq!(&again.head.authority, &admitted.head.authority);
        prop_assert_eq!(&again.head.path, &admitted.head.path);
        prop_assert_eq!(&again.head.query, &admitted.head.query);
        prop_assert_eq!(again.head.protocol == Protocol::Http2, two);
    }
}
