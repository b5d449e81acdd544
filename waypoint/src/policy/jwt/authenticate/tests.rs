//! Real signatures, one fact each.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA512,
    RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::json;
use tulle_model::policy::jwt::{ClaimToHeader, FromHeader, Jwt};
use tulle_model::route::{Kind, Origin};
use tulle_model::testing::get;

use super::super::jwks::{Fetch, FetchError};
use super::super::target::Target;
use super::*;
use crate::policy::ask::BEGINS;

const NOW: i64 = 1_000_000;

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

enum Signer {
    Ec(&'static str, usize, EcdsaKeyPair),
    Rsa(&'static str, Box<RsaKeyPair>),
    Ed(Ed25519KeyPair),
}

impl Signer {
    fn ec(algorithm: &'static str) -> Self {
        let (of, width): (&'static EcdsaSigningAlgorithm, _) = match algorithm {
            "ES256" => (&ECDSA_P256_SHA256_FIXED_SIGNING, 32),
            "ES384" => (&ECDSA_P384_SHA384_FIXED_SIGNING, 48),
            _ => (&ECDSA_P521_SHA512_FIXED_SIGNING, 66),
        };
        Self::Ec(algorithm, width, EcdsaKeyPair::generate(of).unwrap())
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Ec(name, ..) | Self::Rsa(name, _) => name,
            Self::Ed(_) => "EdDSA",
        }
    }

    fn jwk(&self, id: &str) -> serde_json::Value {
        match self {
            Self::Ec(name, width, key) => {
                let point = key.public_key().as_ref();
                let curve = match *name {
                    "ES256" => "P-256",
                    "ES384" => "P-384",
                    _ => "P-521",
                };
                let (x, y) = (&point[1..=*width], &point[1 + width..]);
                json!({"kty": "EC", "crv": curve, "kid": id, "x": encoded(x), "y": encoded(y)})
            }
            Self::Rsa(_, key) => {
                let public = key.public_key();
                let (n, e) = (public.modulus(), public.exponent());
                json!({"kty": "RSA", "kid": id, "use": "sig",
                       "n": encoded(n.big_endian_without_leading_zero()),
                       "e": encoded(e.big_endian_without_leading_zero())})
            }
            Self::Ed(key) => {
                json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "x": encoded(key.public_key().as_ref())})
            }
        }
    }

    fn jwks(&self, id: &str) -> String {
        json!({"keys": [self.jwk(id)]}).to_string()
    }

    fn sign(&self, header: &serde_json::Value, claims: &serde_json::Value) -> String {
        let message = format!("{}.{}", encoded(header.to_string()), encoded(claims.to_string()));
        let random = SystemRandom::new();
        let signature = match self {
            Self::Ec(.., key) => key.sign(&random, message.as_bytes()).unwrap().as_ref().to_vec(),
            Self::Ed(key) => key.sign(message.as_bytes()).as_ref().to_vec(),
            Self::Rsa(name, key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                let padding: &dyn aws_lc_rs::signature::RsaEncoding = match *name {
                    "RS256" => &RSA_PKCS1_SHA256,
                    _ => &RSA_PSS_SHA512,
                };
                key.sign(padding, &random, message.as_bytes(), &mut signature)
                    .unwrap();
                signature
            }
        };
        format!("{message}.{}", encoded(signature))
    }

    fn token(&self, claims: &serde_json::Value) -> String {
        self.sign(&json!({"alg": self.algorithm(), "kid": "k"}), claims)
    }
}

fn rule(issuer: &str, keys: String) -> JwtRule {
    JwtRule {
        issuer: issuer.into(),
        keys: Keys::Inline(keys.into()),
        ..JwtRule::default()
    }
}

fn policy(name: &str, rules: Vec<JwtRule>) -> Arc<Policy> {
    Arc::new(Policy {
        object: "RequestAuthentication".into(),
        origin: Origin {
            kind: Kind::Policy,
            namespace: "shop".into(),
            name: name.into(),
            rule_index: 0,
            rule_name: "".into(),
            created: None,
            generation: 0,
        },
        targets: vec![],
        dry_run: false,
        concern: Concern::Jwt(Jwt { rules }),
    })
}

#[derive(Debug)]
struct Nowhere;

impl Fetch for Nowhere {
    fn fetch<'a>(&'a self, _: &'a Target, _: u8) -> BoxFuture<'a, Result<Bytes, FetchError>> {
        Box::pin(async { Err(FetchError::Status(503)) })
    }
}

async fn judge(rules: Vec<JwtRule>, head: &RequestHead) -> Result<Authenticated, Invalid> {
    judge_all(&[policy("p", rules)], head).await
}

async fn judge_all(policies: &[Arc<Policy>], head: &RequestHead) -> Result<Authenticated, Invalid> {
    let jwks = Arc::new(Jwks::new(Arc::new(Nowhere)));
    let authentication = Authentication::new(policies);
    let judged = authentication
        .authenticate(head, &jwks, &Cache::default(), NOW, BEGINS)
        .await;
    judged.map_err(|Failure(invalid)| invalid)
}

fn bearer(token: &str) -> RequestHead {
    get("/").header("authorization", &format!("Bearer {token}"))
}

fn says(issuer: &str) -> serde_json::Value {
    json!({"iss": issuer, "sub": "s", "exp": NOW + 600})
}

#[tokio::test]
async fn every_kind_of_key_verifies_its_tokens() {
    let rsa = || Box::new(RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap());
    let signers = [
        Signer::ec("ES256"),
        Signer::ec("ES384"),
        Signer::ec("ES512"),
        Signer::Rsa("RS256", rsa()),
        Signer::Rsa("PS512", rsa()),
        Signer::Ed(Ed25519KeyPair::generate().unwrap()),
    ];
    for signer in signers {
        let head = bearer(&signer.token(&says("i")));
        let judged = judge(vec![rule("i", signer.jwks("k"))], &head).await;
        let claims = judged
            .unwrap_or_else(|error| panic!("{}: {error}", signer.algorithm()))
            .claims
            .unwrap();
        assert_eq!(&*claims.token.principal, "i/s");
    }
}

#[tokio::test]
async fn a_request_without_token_passes_without_principal() {
    let signer = Signer::ec("ES256");
    let judged = judge(vec![rule("i", signer.jwks("k"))], &get("/")).await.unwrap();
    assert!(judged.claims.is_none());
}

#[tokio::test]
async fn a_token_that_is_not_valid_in_any_way_is_refused() {
    let (signer, other) = (Signer::ec("ES256"), Signer::ec("ES256"));
    let mut tampered = signer.token(&says("i"));
    tampered.replace_range(tampered.len() - 4.., "AAAA");
    let swapped = {
        let good = signer.token(&says("i"));
        let parts: Vec<_> = good.split('.').collect();
        let forged = encoded(json!({"iss": "i", "sub": "root", "exp": NOW + 600}).to_string());
        format!("{}.{forged}.{}", parts[0], parts[2])
    };
    for (token, expect) in [
        (other.token(&says("i")), Invalid::Signature),
        (tampered, Invalid::Signature),
        (swapped, Invalid::Signature),
        (signer.token(&says("other")), Invalid::Issuer),
        (
            signer.token(&json!({"iss": "i", "exp": NOW - 61})),
            Invalid::Expired,
        ),
        (
            signer.token(&json!({"iss": "i", "nbf": NOW + 61})),
            Invalid::NotYet,
        ),
        ("opaque".into(), Invalid::Malformed),
        (String::new(), Invalid::Malformed),
    ] {
        let judged = judge(vec![rule("i", signer.jwks("k"))], &bearer(&token)).await;
        assert_eq!(judged.unwrap_err(), expect, "{token}");
    }
}

#[tokio::test]
async fn the_algorithm_is_said_by_the_key_and_never_by_the_token() {
    let signer = Signer::ec("ES256");
    for algorithm in ["none", "HS256"] {
        let token = signer.sign(&json!({"alg": algorithm, "kid": "k"}), &says("i"));
        let judged = judge(vec![rule("i", signer.jwks("k"))], &bearer(&token)).await;
        assert_eq!(judged.unwrap_err(), Invalid::Algorithm);
    }
    for algorithm in ["ES384", "RS256", "EdDSA"] {
        let token = signer.sign(&json!({"alg": algorithm, "kid": "k"}), &says("i"));
        let judged = judge(vec![rule("i", signer.jwks("k"))], &bearer(&token)).await;
        assert_eq!(judged.unwrap_err(), Invalid::Signature);
    }
}

#[tokio::test]
async fn a_token_for_another_audience_is_refused() {
    let signer = Signer::ec("ES256");
    let strict = JwtRule {
        audiences: vec!["shop".into()],
        ..rule("i", signer.jwks("k"))
    };
    let claims = |audience: &str| json!({"iss": "i", "sub": "s", "aud": audience});
    let judge = |token: String| {
        let strict = strict.clone();
        async move { judge(vec![strict], &bearer(&token)).await }
    };
    assert!(judge(signer.token(&claims("shop"))).await.is_ok());
    assert_eq!(
        judge(signer.token(&claims("bank"))).await.unwrap_err(),
        Invalid::Audience
    );
}

#[tokio::test]
async fn all_of_several_tokens_must_be_valid_and_the_oldest_policy_names_the_principal() {
    let (a, b) = (Signer::ec("ES256"), Signer::ec("ES256"));
    let second = JwtRule {
        from_headers: vec![FromHeader {
            name: "x-second".into(),
            prefix: "".into(),
        }],
        ..rule("b", b.jwks("k"))
    };
    let policies = [
        policy("old", vec![second]),
        policy("new", vec![rule("a", a.jwks("k"))]),
    ];
    let both = bearer(&a.token(&says("a"))).header("x-second", &b.token(&says("b")));
    let judged = judge_all(&policies, &both).await.unwrap();
    assert_eq!(&*judged.claims.unwrap().token.principal, "b/s");
    let one_bad = bearer(&a.token(&says("a"))).header("x-second", "bad");
    assert_eq!(
        judge_all(&policies, &one_bad).await.unwrap_err(),
        Invalid::Malformed
    );
}

#[tokio::test]
async fn a_token_in_a_place_of_another_issuer_is_refused() {
    let (a, b) = (Signer::ec("ES256"), Signer::ec("ES256"));
    let elsewhere = JwtRule {
        from_params: vec!["t".into()],
        ..rule("b", b.jwks("k"))
    };
    let judged = judge(
        vec![rule("a", a.jwks("k")), elsewhere],
        &bearer(&b.token(&says("b"))),
    )
    .await;
    assert_eq!(judged.unwrap_err(), Invalid::Issuer);
}

#[tokio::test]
async fn without_keys_every_token_is_refused() {
    let signer = Signer::ec("ES256");
    let head = bearer(&signer.token(&says("i")));
    let unreadable = rule("i", "{}".into());
    let unreachable = JwtRule {
        keys: Keys::Uri("https://keys.example.com/".into()),
        ..rule("i", String::new())
    };
    for rule in [unreadable, unreachable] {
        let failed = judge(vec![rule], &head).await.unwrap_err();
        assert_eq!(failed, Invalid::NoKeys);
        assert_eq!(Failure(failed).reason(), Reason::JwksUnavailable);
        assert_eq!(Failure(failed).reason().answer().status, 401);
    }
}

#[tokio::test]
async fn a_token_goes_no_further_unless_the_rule_says_so() {
    let signer = Signer::ec("ES256");
    let head = bearer(&signer.token(&says("i")));
    for forward in [false, true] {
        let rule = JwtRule {
            forward_token: forward,
            ..rule("i", signer.jwks("k"))
        };
        let judged = judge(vec![rule], &head).await.unwrap();
        let mut upstream = head.clone();
        judged.effects.apply(&mut upstream.headers, &mut upstream.query);
        assert_eq!(upstream.headers.contains_key("authorization"), forward);
    }
}

#[tokio::test]
async fn claims_reach_headers_that_clients_cannot_set() {
    let signer = Signer::ec("ES256");
    let to = |header: &str, claim: &str| ClaimToHeader {
        header: header.into(),
        claim: claim.into(),
    };
    let rule = JwtRule {
        payload_to_header: Some("x-payload".into()),
        claims_to_headers: vec![
            to("x-sub", "sub"),
            to("x-role", "realm.role"),
            to("x-envoy-peer", "sub"),
        ],
        ..rule("i", signer.jwks("k"))
    };
    let claims = json!({"iss": "i", "sub": "s", "realm": {"role": "admin"}});
    let mut head = bearer(&signer.token(&claims))
        .header("x-role", "root")
        .header("x-payload", "forged");
    let policies = [policy("p", vec![rule])];
    Authentication::new(&policies).strip(&mut head.headers);
    assert!(!head.headers.contains_key("x-role") && !head.headers.contains_key("x-payload"));
    let judged = judge_all(&policies, &head).await.unwrap();
    judged.effects.apply(&mut head.headers, &mut head.query);
    assert_eq!(head.headers["x-sub"], "s");
    assert_eq!(head.headers["x-role"], "admin");
    assert!(
        !head.headers.contains_key("x-envoy-peer"),
        "no claim may set what the mesh needs"
    );
    let payload = URL_SAFE_NO_PAD
        .decode(head.headers["x-payload"].as_bytes())
        .unwrap();
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&payload).unwrap(),
        claims
    );
}

#[tokio::test]
async fn what_was_verified_is_remembered_and_still_ends_in_time() {
    let signer = Signer::ec("ES256");
    let authentication = Authentication::new(&[policy("p", vec![rule("i", signer.jwks("k"))])]);
    let (jwks, cache) = (Arc::new(Jwks::new(Arc::new(Nowhere))), Cache::default());
    let head = bearer(&signer.token(&says("i")));
    for _ in 0..3 {
        assert!(
            authentication
                .authenticate(&head, &jwks, &cache, NOW, BEGINS)
                .await
                .is_ok()
        );
    }
    assert_eq!(cache.len(), 1);
    let late = authentication
        .authenticate(&head, &jwks, &cache, NOW + 660, BEGINS)
        .await;
    assert_eq!(late.unwrap_err(), Failure(Invalid::Expired));
}
