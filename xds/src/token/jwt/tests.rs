use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::*;

const NOW: i64 = 1_800_000_000;

/// An issuer with one key, and the file it publishes it in.
pub(crate) struct TestIssuer {
    pub(crate) folder: tempfile::TempDir,
    key: EcdsaKeyPair,
}

impl TestIssuer {
    pub(crate) fn new() -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let issuer = Self {
            folder: tempfile::tempdir().unwrap(),
            key,
        };
        issuer.publish(&issuer.key);
        issuer
    }

    fn publish(&self, key: &EcdsaKeyPair) {
        let point = key.public_key().as_ref();
        let set = json!({"keys": [
            {"kty": "oct", "k": "c2VjcmV0"},
            {
                "kty": "EC", "crv": "P-256", "kid": "k1", "use": "sig",
                "x": URL_SAFE_NO_PAD.encode(&point[1..33]),
                "y": URL_SAFE_NO_PAD.encode(&point[33..65]),
            },
        ]});
        fs::write(self.path(), set.to_string()).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("jwks.json")
    }

    pub(crate) fn verifier(&self) -> JwtVerifier {
        let issuer = Issuer {
            name: "https://kubernetes.default.svc".to_owned(),
            keys: self.path(),
        };
        JwtVerifier::new(vec![issuer], "istio-ca".into())
    }

    pub(crate) fn token(&self, claims: &Value) -> String {
        self.sign(&json!({"alg": "ES256", "kid": "k1"}), claims)
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(header), encode(claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

pub(crate) fn claims(now: i64) -> Value {
    json!({
        "iss": "https://kubernetes.default.svc",
        "sub": "system:serviceaccount:istio-system:ztunnel",
        "aud": ["istio-ca"],
        "exp": now + 600,
        "nbf": now - 5,
        "kubernetes.io": {"node": {"name": "n1"}, "pod": {"name": "ztunnel-x", "uid": "u"}},
    })
}

/// The pod that [`claims`] speak of.
pub(crate) fn pod() -> Bearer {
    Bearer {
        namespace: "istio-system".into(),
        account: "ztunnel".into(),
        pod: "ztunnel-x".into(),
        uid: "u".into(),
    }
}

fn with(key: &str, value: Value) -> Value {
    let mut claims = claims(NOW);
    claims[key] = value;
    claims
}

#[test]
fn a_signed_token_names_its_account_and_its_node() {
    let issuer = TestIssuer::new();
    let account = issuer
        .verifier()
        .verify(&issuer.token(&claims(NOW)), NOW)
        .unwrap();
    let expected = Account {
        namespace: "istio-system".into(),
        name: "ztunnel".into(),
        node: Some("n1".into()),
        pod: Some(pod()),
    };
    assert_eq!(account, expected);
}

#[test]
fn a_token_says_which_pod_it_is_bound_to_or_that_it_is_bound_to_none() {
    let issuer = TestIssuer::new();
    let bound = |pod: Value| {
        let claims = with("kubernetes.io", json!({"namespace": "istio-system", "pod": pod}));
        let account = issuer.verifier().verify(&issuer.token(&claims), NOW);
        account.map(|account| account.pod)
    };
    assert_eq!(bound(json!({"name": "ztunnel-x", "uid": "u"})), Ok(Some(pod())));
    assert_eq!(bound(Value::Null), Ok(None));
    for unreadable in [
        json!({"name": "ztunnel-x"}),
        json!({"name": "ztunnel-x", "uid": ""}),
        json!({"name": "", "uid": "u"}),
        json!({"name": "ztunnel-x", "uid": "u\n"}),
        json!({"name": "../x", "uid": "u"}),
        json!({"name": "ztunnel-x", "uid": "u".repeat(254)}),
    ] {
        assert_eq!(bound(unreadable.clone()), Err(InvalidJwt::Pod), "{unreadable}");
    }
    assert_eq!(bound(json!({"uid": "u"})), Err(InvalidJwt::Form));
}

#[test]
fn r309_another_issuer_or_audience_is_refused() {
    let issuer = TestIssuer::new();
    for (claims, error) in [
        (with("iss", json!("https://other")), InvalidJwt::Issuer),
        (with("aud", json!("vault")), InvalidJwt::Audience),
        (with("aud", json!([])), InvalidJwt::Audience),
        (with("sub", json!("alice")), InvalidJwt::Subject),
        (
            with("sub", json!("system:serviceaccount:a/b:c")),
            InvalidJwt::Subject,
        ),
    ] {
        let token = issuer.token(&claims);
        assert_eq!(issuer.verifier().verify(&token, NOW), Err(error), "{claims}");
    }
}

#[test]
fn times_count_with_a_minute_of_leeway() {
    let issuer = TestIssuer::new();
    let token = issuer.token(&claims(NOW));
    let verify = |now| issuer.verifier().verify(&token, now).map(drop);
    assert_eq!(verify(NOW + 659), Ok(()));
    assert_eq!(verify(NOW + 660), Err(InvalidJwt::Expired));
    assert_eq!(verify(NOW - 65), Ok(()));
    assert_eq!(verify(NOW - 66), Err(InvalidJwt::NotYet));
}

#[test]
fn a_token_that_no_key_signed_is_refused_whatever_it_says_of_itself() {
    let issuer = TestIssuer::new();
    let other = TestIssuer::new();
    let verifier = issuer.verifier();
    assert_eq!(
        verifier.verify(&other.token(&claims(NOW)), NOW),
        Err(InvalidJwt::Signature)
    );
    for algorithm in ["none", "HS256", ""] {
        let token = issuer.sign(&json!({"alg": algorithm}), &claims(NOW));
        assert_eq!(
            verifier.verify(&token, NOW),
            Err(InvalidJwt::Algorithm),
            "{algorithm}"
        );
    }
    let rsa = issuer.sign(&json!({"alg": "RS256"}), &claims(NOW));
    assert_eq!(verifier.verify(&rsa, NOW), Err(InvalidJwt::Signature));
    for text in ["", ".", "..", "a.b.c", "!.!.!"] {
        assert_eq!(verifier.verify(text, NOW), Err(InvalidJwt::Form), "{text}");
    }
}

#[test]
fn r308_without_keys_nobody_is_believed() {
    let issuer = TestIssuer::new();
    let token = issuer.token(&claims(NOW));
    for text in [None, Some(""), Some("{}"), Some(r#"{"keys":[]}"#)] {
        match text {
            Some(text) => fs::write(issuer.path(), text).unwrap(),
            None => fs::remove_file(issuer.path()).unwrap(),
        }
        let refused = issuer.verifier().verify(&token, NOW);
        assert_eq!(refused, Err(InvalidJwt::Signature), "{text:?}");
    }
}
