//! Certificates as an odd authority under our own root might issue them, and what peers make of them.

use rcgen::{
    CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, NameConstraints,
    SanType,
};
use rustls::CertificateError;

use super::*;
use crate::testing::{leaf, uri};

struct Case {
    name: &'static str,
    params: CertificateParams,
    verdict: Verdict,
}

#[derive(Debug, PartialEq)]
enum Verdict {
    Accept,
    Peer(&'static str),
    Certificate(CertificateError),
    AnyTls,
}

fn case(name: &'static str, verdict: Verdict, params: CertificateParams) -> Case {
    Case {
        name,
        params,
        verdict,
    }
}

fn with(edit: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = leaf([uri(WEB)]);
    edit(&mut params);
    params
}

/// A subject alternative name extension of these raw GeneralNames.
fn raw_names(names: &[(u8, &[u8])]) -> CustomExtension {
    let mut inner = Vec::new();
    for (tag, bytes) in names {
        inner.extend([*tag, u8::try_from(bytes.len()).unwrap()]);
        inner.extend_from_slice(bytes);
    }
    let mut outer = vec![0x30, u8::try_from(inner.len()).unwrap()];
    outer.extend(inner);
    critical(&[2, 5, 29, 17], outer)
}

fn critical(oid: &[u64], content: Vec<u8>) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content);
    extension.set_criticality(true);
    extension
}

fn raw(names: &[(u8, &[u8])]) -> CertificateParams {
    let mut params = leaf([]);
    params.custom_extensions = vec![raw_names(names)];
    params
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn mail(name: &str) -> SanType {
    SanType::Rfc822Name(name.try_into().unwrap())
}

fn other(name: &str) -> SanType {
    SanType::OtherName((vec![1, 2, 3], name.into()))
}

fn accepted() -> Vec<Case> {
    use Verdict::Accept;
    vec![
        case("plain", Accept, leaf([uri(WEB)])),
        case(
            "raw form of the plain one",
            Accept,
            raw(&[(0x86, WEB.as_bytes())]),
        ),
        case(
            "DNS names beside the URI",
            Accept,
            leaf([dns("web.shop.svc"), uri(WEB), dns("x")]),
        ),
        case(
            "no usage at all",
            Accept,
            with(|params| params.extended_key_usages = vec![]),
        ),
    ]
}

fn wrong_number_or_form() -> Vec<Case> {
    let (none, several, form) = (
        || Verdict::Peer("NoUriName"),
        || Verdict::Peer("SeveralUriNames"),
        || Verdict::Peer("OtherName"),
    );
    let web = WEB.as_bytes();
    vec![
        case("DNS names only", none(), leaf([dns("web.shop.svc")])),
        case("the identity as mail address", none(), leaf([mail(WEB)])),
        case("the identity as DNS name", none(), raw(&[(0x82, web)])),
        case("the identity as otherName", form(), leaf([other(WEB)])),
        case(
            "an otherName beside the URI",
            form(),
            leaf([uri(WEB), other("x")]),
        ),
        case(
            "a broken otherName beside the URI",
            form(),
            raw(&[(0x86, web), (0xa0, b"\xff")]),
        ),
        case("two URIs", several(), leaf([uri(WEB), uri(REVIEWS)])),
        case("the same URI twice", several(), leaf([uri(WEB), uri(WEB)])),
        case(
            "an unreadable URI beside",
            several(),
            raw(&[(0x86, web), (0x86, b"\xff\xfe")]),
        ),
    ]
}

fn no_identities() -> Vec<Case> {
    let texts = [
        ("NUL at the end", format!("{WEB}\0")),
        ("NUL before another domain", format!("{WEB}\0.evil.example")),
        ("trailing slash", format!("{WEB}/")),
        ("query", format!("{WEB}?a=b")),
        ("fragment", format!("{WEB}#a")),
        (
            "percent escapes",
            "spiffe://cluster.local/ns/shop/sa/w%65b".to_owned(),
        ),
        (
            "upper-case scheme",
            "SPIFFE://cluster.local/ns/shop/sa/web".to_owned(),
        ),
        (
            "user before the domain",
            "spiffe://x@cluster.local/ns/shop/sa/web".to_owned(),
        ),
        (
            "port behind the domain",
            "spiffe://cluster.local:1/ns/shop/sa/web".to_owned(),
        ),
        (
            "another scheme",
            "https://cluster.local/ns/shop/sa/web".to_owned(),
        ),
        ("a node's name", "spiffe://cluster.local/node/n1".to_owned()),
        ("empty URI", String::new()),
    ];
    let texts = texts.iter().map(|(name, text)| (*name, leaf([uri(text)])));
    let unreadable = ("an unreadable URI", raw(&[(0x86, b"\xff\xfe")]));
    let verdict = || Verdict::Peer("NotAnIdentity");
    texts
        .chain([unreadable])
        .map(|(name, params)| case(name, verdict(), params))
        .collect()
}

fn broken() -> Vec<Case> {
    use Verdict::{AnyTls, Certificate};
    let week = Duration::from_secs(7 * 24 * 60 * 60);
    let now = SystemTime::now();
    vec![
        case(
            "CA flag",
            AnyTls,
            with(|params| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
        ),
        case(
            "names twice",
            AnyTls,
            with(|params| params.custom_extensions = vec![raw_names(&[(0x86, REVIEWS.as_bytes())])]),
        ),
        case(
            "unknown critical extension",
            AnyTls,
            with(|params| params.custom_extensions = vec![critical(&[1, 2, 3, 4], vec![5, 0])]),
        ),
        case(
            "another usage",
            Certificate(CertificateError::InvalidPurpose),
            with(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]),
        ),
        case(
            "expired",
            Certificate(CertificateError::Expired),
            with(|params| {
                params.not_before = (now - week).into();
                params.not_after = (now - Duration::from_secs(1)).into();
            }),
        ),
        case(
            "not valid yet",
            Certificate(CertificateError::NotValidYet),
            with(|params| {
                params.not_before = (now + Duration::from_secs(600)).into();
                params.not_after = (now + week).into();
            }),
        ),
    ]
}

fn check(case: &Case, by: &str, result: Result<(), HandshakeError>) {
    let Case { name, verdict, .. } = case;
    match (verdict, result) {
        (Verdict::Accept, Ok(())) | (Verdict::AnyTls, Err(HandshakeError::Tls(_))) => {}
        (Verdict::Peer(expected), Err(HandshakeError::Peer(error))) => {
            assert!(
                format!("{error:?}").starts_with(expected),
                "{name}, by {by}: {error:?}"
            );
            assert_eq!(error.reason(), Reason::TlsFailed);
        }
        (Verdict::Certificate(expected), Err(HandshakeError::Tls(error))) => {
            assert_eq!(
                error,
                rustls::Error::InvalidCertificate(expected.clone()),
                "{name}, by {by}"
            );
        }
        (verdict, result) => panic!("{name}, by {by}: expected {verdict:?}, got {result:?}"),
    }
}

#[tokio::test]
async fn r303_odd_certificates_are_judged_alike_in_both_directions() {
    let cases = [accepted(), wrong_number_or_form(), no_identities(), broken()];
    for case in cases.into_iter().flatten() {
        let issued = shared().issue_as(case.params.clone());
        let as_client = judged_by_server(&issued).await;
        if case.verdict == Verdict::Accept {
            assert_eq!(as_client.as_ref().unwrap(), &id(WEB), "{}", case.name);
        }
        check(&case, "the server", as_client.map(drop));
        check(&case, "the client", judged_by_client(&issued).await);
    }
}

fn refused_for(result: Result<(), HandshakeError>, expected: CertificateError) {
    let expected = rustls::Error::InvalidCertificate(expected);
    match result {
        Err(HandshakeError::Tls(error)) => assert_eq!(error, expected),
        other => panic!("expected {expected:?}, got {other:?}"),
    }
}

#[tokio::test]
async fn r304_a_usage_for_one_direction_does_not_serve_the_other() {
    let only = |usage| shared().issue_as(with(|params| params.extended_key_usages = vec![usage]));
    let client_only = only(ExtendedKeyUsagePurpose::ClientAuth);
    judged_by_server(&client_only).await.unwrap();
    refused_for(
        judged_by_client(&client_only).await,
        CertificateError::InvalidPurpose,
    );
    let server_only = only(ExtendedKeyUsagePurpose::ServerAuth);
    judged_by_client(&server_only).await.unwrap();
    refused_for(
        judged_by_server(&server_only).await.map(drop),
        CertificateError::InvalidPurpose,
    );
}

#[tokio::test]
async fn the_right_name_under_another_root_is_refused() {
    // The other root has the same subject, so that only its key tells them apart.
    let issued = TestCa::new().issue_as(leaf([uri(WEB)]));
    let forged = Issued {
        roots: vec![shared().root_der()],
        ..issued
    };
    refused_for(
        judged_by_server(&forged).await.map(drop),
        CertificateError::BadSignature,
    );
    refused_for(judged_by_client(&forged).await, CertificateError::BadSignature);
}

#[tokio::test]
async fn intermediates_are_sent_and_followed() {
    let issued = shared().intermediate(|_| {}).issue_as(leaf([uri(WEB)]));
    assert_eq!((issued.chain.len(), issued.roots.len()), (2, 1));
    judged_by_client(&issued).await.unwrap();
    assert_eq!(judged_by_server(&issued).await.unwrap(), id(WEB));
    let headless = Issued {
        chain: vec![issued.chain[0].clone()],
        ..issued
    };
    refused_for(judged_by_client(&headless).await, CertificateError::UnknownIssuer);
}

#[tokio::test]
async fn r304_what_an_intermediate_may_not_do_it_cannot() {
    let expired = shared().intermediate(|params| {
        params.not_after = (SystemTime::now() - Duration::from_secs(1)).into();
    });
    let no_authority = shared().intermediate(|params| params.is_ca = IsCa::ExplicitNoCa);
    let other_names = shared().intermediate(|params| {
        let permitted_subtrees = vec![GeneralSubtree::DnsName("shop.svc".to_owned())];
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees,
            excluded_subtrees: Vec::new(),
        });
    });
    let no_servers = shared().intermediate(|params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    });
    for (name, authority) in [
        ("expired", expired),
        ("no authority", no_authority),
        ("constrained", other_names),
        ("usage", no_servers),
    ] {
        let issued = authority.issue_as(leaf([uri(WEB), dns("web.bank.svc")]));
        judged_by_server(&issued).await.expect_err(name);
        judged_by_client(&issued).await.expect_err(name);
    }
}

proptest::proptest! {
    /// Bytes of strangers reach the reader before anything vouches for them.
    #[test]
    fn no_damage_to_a_certificate_makes_reading_it_panic(
        damage in proptest::collection::vec((0_usize..1024, proptest::prelude::any::<u8>()), 1..8),
        length in 0_usize..1024,
    ) {
        let mut bytes = certificate(&id(WEB)).chain()[0].to_vec();
        for (at, byte) in damage {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let _ = peer_identity(&[CertificateDer::from(bytes.clone())]);
        bytes.truncate(length);
        let _ = peer_identity(&[CertificateDer::from(bytes)]);
    }

    /// Whatever is accepted as a name is written back exactly: nothing is normalised on the way.
    #[test]
    fn an_accepted_name_is_the_name_that_was_written(text in "spiffe://[ -~]{0,40}(/ns/[a-z]{1,4}/sa/[ -~]{0,6})?") {
        let issued = shared().issue_as(leaf([uri(&text)]));
        if let Ok(identity) = peer_identity(&issued.chain) {
            assert_eq!(identity.to_string(), text);
        }
    }
}
