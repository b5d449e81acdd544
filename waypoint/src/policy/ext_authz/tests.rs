//! Against servers that really answer, over loopback.

use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tonic::{Response, Status};
use tulle_model::NamespacedHostname;
use tulle_model::route::{Backend, BackendTo};
use tulle_model::testing::get;
use tulle_proto::ext_authz::authorization_server::{Authorization, AuthorizationServer};
use tulle_proto::ext_authz::check_response::HttpResponse;
use tulle_proto::ext_authz::{
    CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValue, HeaderValueOption, HttpStatus,
    OkHttpResponse,
};
use tulle_runtime::tasks;

use super::super::ask::BEGINS;
use super::super::ask::testing::Loopback;
use super::*;

fn backend() -> Backend {
    Backend {
        to: BackendTo::Service {
            service: NamespacedHostname::new("shop", "authz.shop.svc.cluster.local"),
            port: 9000,
        },
        weight: 1,
        filters: vec![],
    }
}

fn ext_authz(ask: Whom) -> ExtAuthz {
    ExtAuthz {
        ask,
        headers: vec![],
        response_headers: vec![],
        body_bytes_max: 0,
        allow_partial: false,
        timeout: None,
        fail_open: false,
        status_on_error: None,
    }
}

fn source() -> Source {
    Source {
        identity: Some(tulle_model::Identity::new("td", "shop", "web")),
        ip: "10.0.0.7".parse().unwrap(),
        remote_ip: "10.0.0.7".parse().unwrap(),
    }
}

async fn decide(of: &ExtAuthz, to: SocketAddr, head: &RequestHead, body: &[u8]) -> Decision {
    let source = source();
    let subject = Subject {
        source: &source,
        destination: Destination {
            address: "10.96.0.1:80".parse().unwrap(),
        },
        head,
        id: "id-1",
        body,
        now: 1000,
        hops: BEGINS,
    };
    let authorizer = Authorizer::new(of, &[]).unwrap();
    authorizer.decide(&Loopback(to), subject).await
}

/// A server of gRPC that remembers what it was asked.
#[derive(Clone, Default)]
struct Judge {
    asked: Arc<Mutex<Vec<CheckRequest>>>,
    answer: CheckResponse,
}

#[tonic::async_trait]
impl Authorization for Judge {
    async fn check(&self, request: tonic::Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        self.asked.lock().push(request.into_inner());
        if self.answer.status.is_none() {
            return Err(Status::unavailable("not now"));
        }
        Ok(Response::new(self.answer.clone()))
    }
}

async fn grpc(judge: Judge) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    tasks::spawn("judge", async move {
        let server = tonic::transport::Server::builder().add_service(AuthorizationServer::new(judge));
        server.serve_with_incoming(incoming).await
    });
    address
}

fn answer(code: i32, http_response: Option<HttpResponse>) -> CheckResponse {
    CheckResponse {
        status: Some(tulle_proto::rpc_status::Status {
            code,
            ..Default::default()
        }),
        http_response,
    }
}

fn option(key: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: key.into(),
            value: value.into(),
            raw_value: vec![],
        }),
        append: None,
        append_action: 0,
    }
}

#[tokio::test]
async fn a_yes_over_grpc_changes_the_request_as_told() {
    let ok = OkHttpResponse {
        headers: vec![option("x-user", "anna"), option("x-tulle-source", "forged")],
        headers_to_remove: vec!["x-secret".into()],
        response_headers_to_add: vec![option("x-checked", "yes")],
    };
    let judge = Judge {
        answer: answer(0, Some(HttpResponse::OkResponse(ok))),
        ..Judge::default()
    };
    let to = grpc(judge.clone()).await;
    let head = get("/a/b?c=d").header("x-secret", "s").header("x-user", "forged");
    let decision = decide(&ext_authz(Whom::Grpc(backend())), to, &head, b"{}").await;
    let Decision::Allow(changes) = decision else {
        panic!("{decision:?}")
    };
    let (mut request, mut response) = (head.headers.clone(), HeaderMap::new());
    changes.apply_to_request(&mut request);
    changes.apply_to_response(&mut response);
    assert_eq!(request["x-user"], "anna");
    assert!(!request.contains_key("x-secret") && !request.contains_key("x-tulle-source"));
    assert_eq!(response["x-checked"], "yes");
    let asked = judge.asked.lock()[0].attributes.clone().unwrap();
    assert_eq!(asked.source.unwrap().principal, "spiffe://td/ns/shop/sa/web");
    let http = asked.request.unwrap().http.unwrap();
    assert_eq!(
        (&*http.method, &*http.path, &*http.body),
        ("GET", "/a/b?c=d", "{}")
    );
    assert_eq!(http.headers["x-secret"], "s");
}

#[tokio::test]
async fn a_no_over_grpc_is_answered_with_what_it_says() {
    let denied = DeniedHttpResponse {
        status: Some(HttpStatus { code: 401 }),
        headers: vec![option("x-why", "no ticket"), option("connection", "close")],
        body: "go away".into(),
    };
    let to = grpc(Judge {
        answer: answer(7, Some(HttpResponse::DeniedResponse(denied))),
        ..Judge::default()
    })
    .await;
    let decision = decide(&ext_authz(Whom::Grpc(backend())), to, &get("/"), b"").await;
    let Decision::Deny(denied) = decision else {
        panic!("{decision:?}")
    };
    assert_eq!((denied.status.as_u16(), &denied.body[..]), (401, &b"go away"[..]));
    assert_eq!(denied.headers["x-why"], "no ticket");
    assert!(!denied.headers.contains_key("connection"));
}

#[tokio::test]
async fn a_no_without_more_is_forbidden() {
    for answer in [
        answer(7, None),
        answer(7, Some(HttpResponse::OkResponse(OkHttpResponse::default()))),
        answer(
            0,
            Some(HttpResponse::DeniedResponse(DeniedHttpResponse::default())),
        ),
    ] {
        let to = grpc(Judge {
            answer,
            ..Judge::default()
        })
        .await;
        let decision = decide(&ext_authz(Whom::Grpc(backend())), to, &get("/"), b"").await;
        let Decision::Deny(denied) = decision else {
            panic!("{decision:?}")
        };
        assert_eq!(denied.status.as_u16(), 403);
    }
}

#[tokio::test]
async fn without_a_usable_answer_nobody_passes_unless_the_user_wants_that() {
    let broken = grpc(Judge::default()).await;
    let nobody = "127.0.0.1:1".parse().unwrap();
    for to in [broken, nobody] {
        for whom in [
            Whom::Grpc(backend()),
            Whom::Http {
                backend: backend(),
                path: "/check".into(),
            },
        ] {
            let of = ExtAuthz {
                status_on_error: Some(503),
                ..ext_authz(whom.clone())
            };
            let closed = decide(&of, to, &get("/"), b"").await;
            assert!(
                matches!(&closed, Decision::Failed(status, _) if status.as_u16() == 503),
                "{closed:?}"
            );
            let of = ExtAuthz {
                fail_open: true,
                ..of
            };
            let open = decide(&of, to, &get("/"), b"").await;
            assert!(matches!(open, Decision::AllowUnasked(_)), "{open:?}");
        }
    }
}

#[tokio::test]
async fn who_does_not_answer_in_time_decides_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let of = ExtAuthz {
        timeout: Some(Duration::from_millis(20)),
        ..ext_authz(Whom::Grpc(backend()))
    };
    let decision = decide(&of, listener.local_addr().unwrap(), &get("/"), b"").await;
    assert_eq!(
        decision,
        Decision::Failed(StatusCode::FORBIDDEN, AskError::Timeout)
    );
}

type Seen = Arc<Mutex<Vec<::http::Request<Bytes>>>>;

/// A server of HTTP that answers everything alike.
async fn http(
    status: u16,
    headers: &'static [(&'static str, &'static str)],
    body: Bytes,
) -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Seen::default();
    let keep = seen.clone();
    tasks::spawn("http-judge", async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (keep, body) = (keep.clone(), body.clone());
            let service = hyper::service::service_fn(move |request: ::http::Request<Incoming>| {
                let (keep, body) = (keep.clone(), body.clone());
                async move {
                    let (parts, incoming) = request.into_parts();
                    let sent = incoming.collect().await?.to_bytes();
                    keep.lock().push(::http::Request::from_parts(parts, sent));
                    let mut response = ::http::Response::new(Full::new(body));
                    *response.status_mut() = StatusCode::from_u16(status).unwrap();
                    for (name, value) in headers {
                        response
                            .headers_mut()
                            .append(*name, ::http::HeaderValue::from_static(value));
                    }
                    Ok::<_, hyper::Error>(response)
                }
            });
            let connection = hyper::server::conn::http1::Builder::new();
            tasks::spawn(
                "http-judge-connection",
                connection.serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    (address, seen)
}

fn over_http() -> ExtAuthz {
    ExtAuthz {
        headers: vec!["X-Ticket".into()],
        response_headers: vec!["x-user".into()],
        ..ext_authz(Whom::Http {
            backend: backend(),
            path: "/check/".into(),
        })
    }
}

#[tokio::test]
async fn a_yes_over_http_is_status_200_and_passes_the_listed_headers_on() {
    let (to, seen) = http(200, &[("x-user", "anna"), ("x-other", "no")], Bytes::new()).await;
    let head = get("/a?b=c")
        .header("x-ticket", "t")
        .header("x-own", "o")
        .header("authorization", "a");
    let decision = decide(&over_http(), to, &head, b"").await;
    let Decision::Allow(changes) = decision else {
        panic!("{decision:?}")
    };
    let mut headers = HeaderMap::new();
    changes.apply_to_request(&mut headers);
    assert_eq!(headers["x-user"], "anna");
    assert_eq!(headers.len(), 1);
    let seen = seen.lock();
    assert_eq!(seen[0].uri(), "/check/a?b=c");
    assert_eq!(seen[0].headers()["x-ticket"], "t");
    assert_eq!(seen[0].headers()["authorization"], "a");
    assert_eq!(
        seen[0].headers()["x-tulle-source-principal"],
        "spiffe://td/ns/shop/sa/web"
    );
    assert!(!seen[0].headers().contains_key("x-own"));
}

#[tokio::test]
async fn a_no_over_http_is_passed_on() {
    let (to, _) = http(302, &[("location", "/login")], Bytes::from_static(b"log in")).await;
    let decision = decide(&over_http(), to, &get("/"), b"").await;
    let Decision::Deny(denied) = decision else {
        panic!("{decision:?}")
    };
    assert_eq!((denied.status.as_u16(), &denied.body[..]), (302, &b"log in"[..]));
    assert_eq!(denied.headers["location"], "/login");
}

#[tokio::test]
async fn a_success_that_is_not_200_is_no_yes() {
    let (to, _) = http(204, &[], Bytes::new()).await;
    let decision = decide(&over_http(), to, &get("/"), b"").await;
    assert!(
        matches!(&decision, Decision::Deny(denied) if denied.status.as_u16() == 403),
        "{decision:?}"
    );
}

#[tokio::test]
async fn a_broken_authorizer_decides_nothing() {
    let (to, _) = http(500, &[], Bytes::new()).await;
    assert!(matches!(
        decide(&over_http(), to, &get("/"), b"").await,
        Decision::Failed(..)
    ));
    let (to, _) = http(403, &[], Bytes::from(vec![b'x'; ANSWER_BYTES_MAX + 1])).await;
    let long = decide(&over_http(), to, &get("/"), b"").await;
    assert_eq!(long, Decision::Failed(StatusCode::FORBIDDEN, AskError::TooLong));
}

#[test]
fn who_is_not_known_is_not_asked() {
    let of = ext_authz(Whom::Provider("opa".into()));
    assert_eq!(
        Authorizer::new(&of, &[]).unwrap_err(),
        Unknown::Provider("opa".into())
    );
    let known = Provider {
        name: "opa".into(),
        kind: ProviderKind::ExtAuthz(Box::new(ext_authz(Whom::Grpc(backend())))),
    };
    assert!(Authorizer::named(&"opa".into(), &[known]).is_ok());
}

#[test]
fn a_body_is_wanted_up_to_its_bound() {
    let of = ExtAuthz {
        body_bytes_max: 1 << 20,
        ..ext_authz(Whom::Grpc(backend()))
    };
    assert_eq!(
        Authorizer::new(&of, &[]).unwrap().wants_body(),
        Some(BODY_BYTES_MAX)
    );
    let without = ext_authz(Whom::Grpc(backend()));
    assert_eq!(Authorizer::new(&without, &[]).unwrap().wants_body(), None);
}
