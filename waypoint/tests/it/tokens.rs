//! Tokens, through a whole waypoint: which are valid, what applications see of them, and where their keys come from.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tulle_model::Str;
use tulle_model::policy::Concern;
use tulle_model::policy::authz::{Action, Rule, Values, When};
use tulle_model::policy::jwt::{ClaimToHeader, Jwt, JwtRule, Keys};
use tulle_runtime::tasks;

use super::policies::{authz, exact, helper, status};
use super::world::{World, body, get, told_policy};

/// An issuer of tokens.
pub(crate) struct Issuer(EcdsaKeyPair);

impl Issuer {
    pub(crate) fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    pub(crate) fn jwks(&self) -> String {
        let point = self.0.public_key().as_ref();
        let encoded = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
        let (x, y) = (encoded(&point[1..33]), encoded(&point[33..]));
        format!(r#"{{"keys":[{{"kty":"EC","crv":"P-256","kid":"k","x":"{x}","y":"{y}"}}]}}"#)
    }

    pub(crate) fn token(&self, claims: &str) -> String {
        let encoded = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let message = format!("{}.{}", encoded(r#"{"alg":"ES256","kid":"k"}"#), encoded(claims));
        let signature = self.0.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

pub(crate) fn with_token(token: &str) -> Request<Full<Bytes>> {
    Request::get("/")
        .header("host", "web.shop")
        .header("authorization", format!("Bearer {token}"))
        .header("x-user", "forged")
        .body(Full::default())
        .unwrap()
}

pub(crate) fn jwt(keys: Keys) -> Concern {
    Concern::Jwt(Jwt {
        rules: vec![JwtRule {
            issuer: "https://issuer".into(),
            keys,
            claims_to_headers: vec![ClaimToHeader {
                header: "x-user".into(),
                claim: "sub".into(),
            }],
            ..JwtRule::default()
        }],
    })
}

/// Requests whose token says that they are an admin's.
pub(crate) fn of_admins() -> Rule {
    Rule {
        when: vec![When {
            key: "request.auth.claims[role]".into(),
            values: exact("admin"),
            ips: Values::default(),
        }],
        ..Rule::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_is_verified_used_and_not_passed_on() {
    let world = World::web().await;
    let issuer = Issuer::new();
    let keys = Keys::Inline(issuer.jwks().into());
    world
        .apply(vec![
            told_policy("jwt", jwt(keys)),
            told_policy("need", authz(Action::Allow, vec![of_admins()])),
        ])
        .await;
    let good = issuer.token(r#"{"iss":"https://issuer","sub":"anna","role":"admin"}"#);
    let mut client = world.http1("client").await;
    let passed = client.send_request(with_token(&good)).await.unwrap();
    assert_eq!(passed.status(), 200);
    let seen = body(passed).await;
    assert!(
        seen.contains("x-user: anna\n") && !seen.contains("forged"),
        "{seen}"
    );
    assert!(!seen.contains("authorization"), "{seen}");
    let weak = issuer.token(r#"{"iss":"https://issuer","sub":"ben","role":"guest"}"#);
    assert_eq!(status(&world, "client", with_token(&weak)).await, 403);
    assert_eq!(
        status(&world, "client", get("/")).await,
        403,
        "no token, no claim"
    );
    let forged = Issuer::new().token(r#"{"iss":"https://issuer","sub":"eve","role":"admin"}"#);
    let refused = client.send_request(with_token(&forged)).await.unwrap();
    assert_eq!(refused.status(), 401);
    assert_eq!(
        refused.headers()["www-authenticate"],
        r#"Bearer error="invalid_token""#
    );
    assert!(world.metric(r#"tulle_waypoint_jwt_failures_total{reason="signature"}"#) > 0.0);
}

#[tokio::test(start_paused = true)]
async fn keys_come_from_a_service_of_the_mesh_by_a_tunnel() {
    let world = World::web().await;
    let issuer = Issuer::new();
    let keys: Str = "http://keys.shop.svc.cluster.local/jwks".into();
    world.apply(vec![told_policy("jwt", jwt(Keys::Uri(keys)))]).await;
    let token = issuer.token(r#"{"iss":"https://issuer","sub":"anna"}"#);
    assert_eq!(
        status(&world, "client", with_token(&token)).await,
        401,
        "without keys no token is valid"
    );
    let jwks = issuer.jwks();
    helper(&world, "keys", move |request| {
        let jwks = jwks.clone();
        async move {
            assert_eq!(request.uri().path(), "/jwks");
            crate::world::text(jwks)
        }
    })
    .await;
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(status(&world, "client", with_token(&token)).await, 200);
    let authorities: Vec<_> = world
        .connects
        .lock()
        .iter()
        .map(|connect| connect.authority.clone())
        .collect();
    assert!(
        authorities.contains(&"10.0.0.8:8080".to_owned()),
        "{authorities:?}"
    );
}

/// What a server outside of the mesh answers, byte by byte, and how often it was asked.
struct Outside {
    asked: Arc<AtomicUsize>,
}

impl Outside {
    /// A server at this address that proves this name. It writes `answer`, and then goes on with `then` without end.
    fn serve(world: &World, at: &str, name: &str, answer: String, then: Option<Vec<u8>>) -> Self {
        let server = world.ca.tls_server(&[name]);
        let mut sockets = world.pipes.listen(at);
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        drop(tasks::spawn("outside", async move {
            while let Some(socket) = sockets.recv().await {
                let Some(mut stream) = server.accept(socket).await else {
                    continue;
                };
                let mut head = [0; 4096];
                let length = stream.read(&mut head).await.unwrap_or_default();
                assert!(head[..length].starts_with(b"GET /jwks HTTP/1.1\r\n"), "{length}");
                counted.fetch_add(1, Ordering::Relaxed);
                let _ = stream.write_all(answer.as_bytes()).await;
                while let Some(more) = &then {
                    if stream.write_all(more).await.is_err() {
                        break;
                    }
                }
                let _ = stream.shutdown().await;
            }
        }));
        Self { asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn answer(status: &str, fields: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{fields}content-length: {length}\r\n\r\n{body}")
}

/// A waypoint whose tokens are checked by the keys of `https://keys.example.com/jwks`, which has these addresses.
async fn checking(issuer: &Issuer, addresses: &[&str]) -> (World, String) {
    let world = World::web().await;
    let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
    world
        .pipes
        .names
        .lock()
        .insert("keys.example.com".to_owned(), addresses);
    let token = issuer.token(r#"{"iss":"https://issuer","sub":"anna"}"#);
    (world, token)
}

async fn apply(world: &World) {
    let keys = Keys::Uri("https://keys.example.com/jwks".into());
    world.apply(vec![told_policy("jwt", jwt(keys))]).await;
}

#[tokio::test(start_paused = true)]
async fn keys_come_from_outside_of_the_mesh_by_https() {
    let issuer = Issuer::new();
    let (world, token) = checking(&issuer, &["192.0.2.1"]).await;
    let at = "192.0.2.1:443";
    let server = Outside::serve(
        &world,
        at,
        "keys.example.com",
        answer("200 OK", "", &issuer.jwks()),
        None,
    );
    apply(&world).await;
    while server.asked() == 0 {
        tokio::task::yield_now().await;
    }
    // They were fetched when the policy came: the first request finds them.
    assert_eq!(status(&world, "client", with_token(&token)).await, 200);
    assert_eq!(server.asked(), 1);
    world.pipes.silence(at);
    tokio::time::advance(Duration::from_secs(60 * 60)).await;
    assert_eq!(
        status(&world, "client", with_token(&token)).await,
        200,
        "the last good keys are kept"
    );
    tokio::time::advance(Duration::from_secs(24 * 60 * 60)).await;
    assert_eq!(
        status(&world, "client", with_token(&token)).await,
        401,
        "for a day"
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_prove_its_name_gives_no_keys() {
    let issuer = Issuer::new();
    let (world, token) = checking(&issuer, &["192.0.2.1"]).await;
    let good = answer("200 OK", "", &issuer.jwks());
    let server = Outside::serve(&world, "192.0.2.1:443", "other.example.com", good, None);
    apply(&world).await;
    assert_eq!(status(&world, "client", with_token(&token)).await, 401);
    assert_eq!(server.asked(), 0, "not even asked");
}

#[tokio::test(start_paused = true)]
async fn r112_an_answer_without_end_is_cut_at_its_limit() {
    let issuer = Issuer::new();
    let (world, token) = checking(&issuer, &["192.0.2.1"]).await;
    let endless = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
    let chunk = [b"10000\r\n".as_slice(), &vec![b'x'; 0x10000], b"\r\n"].concat();
    let server = Outside::serve(&world, "192.0.2.1:443", "keys.example.com", endless, Some(chunk));
    apply(&world).await;
    assert_eq!(status(&world, "client", with_token(&token)).await, 401);
    assert!(server.asked() > 0);
}

#[tokio::test(start_paused = true)]
async fn r308_without_keys_nobody_passes_whatever_the_server_says() {
    let issuer = Issuer::new();
    for (status_line, text) in [
        ("500 Internal Server Error", issuer.jwks()),
        ("200 OK", String::new()),
        ("200 OK", "{}".to_owned()),
        ("200 OK", r#"{"keys":[]}"#.to_owned()),
        ("200 OK", "<html>".to_owned()),
    ] {
        let (world, token) = checking(&issuer, &["192.0.2.1"]).await;
        let said = answer(status_line, "", &text);
        let _server = Outside::serve(&world, "192.0.2.1:443", "keys.example.com", said, None);
        apply(&world).await;
        assert_eq!(
            status(&world, "client", with_token(&token)).await,
            401,
            "{status_line} {text}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn r507_nobody_leads_us_to_loopback_link_local_or_metadata_addresses() {
    let issuer = Issuer::new();
    for addresses in [
        &["127.0.0.1"][..],
        &["169.254.169.254"],
        &["::1"],
        &["fe80::1"],
        &["fd00:ec2::254"],
        &["192.0.2.1", "127.0.0.1"],
    ] {
        let (world, token) = checking(&issuer, addresses).await;
        let servers: Vec<_> = addresses
            .iter()
            .map(|ip| {
                let at = std::net::SocketAddr::new(ip.parse().unwrap(), 443).to_string();
                let good = answer("200 OK", "", &issuer.jwks());
                Outside::serve(&world, &at, "keys.example.com", good, None)
            })
            .collect();
        apply(&world).await;
        assert_eq!(
            status(&world, "client", with_token(&token)).await,
            401,
            "{addresses:?}"
        );
        assert_eq!(
            servers.iter().map(Outside::asked).sum::<usize>(),
            0,
            "{addresses:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn r507_a_redirect_leads_nowhere() {
    let issuer = Issuer::new();
    let (world, token) = checking(&issuer, &["192.0.2.1"]).await;
    let inner = answer("200 OK", "", &issuer.jwks());
    let hidden = Outside::serve(&world, "127.0.0.1:443", "127.0.0.1", inner, None);
    let away = answer("302 Found", "location: https://127.0.0.1/jwks\r\n", "");
    let server = Outside::serve(&world, "192.0.2.1:443", "keys.example.com", away, None);
    apply(&world).await;
    assert_eq!(status(&world, "client", with_token(&token)).await, 401);
    assert!(server.asked() > 0);
    assert_eq!(hidden.asked(), 0);
}
