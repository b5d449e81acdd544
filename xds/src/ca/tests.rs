//! The authority as a whole: what a request says never reaches a certificate.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;
use crate::ca::issuer::certificates;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn authority() -> Arc<Authority> {
    let root = Root::generate("cluster.local", OffsetDateTime::now_utc()).unwrap();
    Arc::new(Authority::new(root, "cluster.local".into(), TTL_MAX_DEFAULT))
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.to_owned().try_into().unwrap())
}

fn csr(edit: impl FnOnce(&mut CertificateParams)) -> String {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    edit(&mut params);
    params.serialize_request(&key).unwrap().pem().unwrap()
}

/// Requests that ask for more than they may have.
fn corpus() -> Vec<String> {
    vec![
        csr(|_| {}),
        csr(|params| params.subject_alt_names = vec![uri("spiffe://cluster.local/ns/kube-system/sa/admin")]),
        csr(|params| params.subject_alt_names = vec![uri(WEB), uri("spiffe://cluster.local/ns/shop/sa/db")]),
        csr(|params| {
            params.subject_alt_names = vec![
                SanType::DnsName("istiod.istio-system.svc".to_owned().try_into().unwrap()),
                SanType::IpAddress("127.0.0.1".parse().unwrap()),
            ];
        }),
        csr(|params| params.subject_alt_names = vec![uri("spiffe://cluster.local/ns/shop/sa/web\0admin")]),
        csr(|params| params.distinguished_name.push(DnType::CommonName, "root")),
        csr(|params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        }),
        csr(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]),
        csr(|params| {
            let oid = [1, 3, 6, 1, 4, 1, 99999, 1];
            params.custom_extensions = vec![CustomExtension::from_oid_content(&oid, vec![4, 1, 0])];
        }),
    ]
}

#[tokio::test]
async fn r306_the_issued_name_is_always_the_authorised_one() {
    let authority = authority();
    for (at, csr) in corpus().into_iter().enumerate() {
        let order = order(csr, WEB.parse().unwrap(), i64::MAX);
        let signed = authority.sign(order, false).await.unwrap();
        let (der, _) = certificates(&signed.leaf.pem).remove(0);
        let (_, leaf) = X509Certificate::from_der(&der).unwrap();
        assert!(
            !leaf.is_ca() && leaf.subject().iter().next().is_none(),
            "request {at}"
        );
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        assert!(names.critical, "request {at}");
        assert_eq!(names.value.general_names, [GeneralName::URI(WEB)], "request {at}");
        let usage = leaf.key_usage().unwrap().unwrap().value;
        assert!(
            usage.digital_signature() && !usage.key_cert_sign(),
            "request {at}"
        );
        assert!(!leaf.extended_key_usage().unwrap().unwrap().value.code_signing);
        let life = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
        let longest = (TTL_MAX_DEFAULT + issue::BACKDATED).as_secs();
        assert!(life <= i64::try_from(longest).unwrap(), "request {at}");
        assert_eq!(
            leaf.extensions().len(),
            6,
            "request {at}: nothing of the request is copied"
        );
    }
}

#[tokio::test]
async fn a_batch_is_answered_one_by_one_and_in_order() {
    let authority = authority();
    let orders = (0..WORK_ITEM_MAX + 3).map(|at| {
        let csr = if at == 5 {
            "nonsense".to_owned()
        } else {
            csr(|_| {})
        };
        let identity = Identity::new("cluster.local", "shop", format!("sa-{at}"));
        order(csr, identity, 60)
    });
    let signed = authority.sign_all(orders.collect(), true).await;
    assert_eq!(signed.len(), WORK_ITEM_MAX + 3);
    assert!(matches!(signed[5], Err(Refusal::CsrInvalid(_))));
    let (der, _) = certificates(&signed[66].as_ref().unwrap().leaf.pem).remove(0);
    let (_, leaf) = X509Certificate::from_der(&der).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    let expected = "spiffe://cluster.local/ns/shop/sa/sa-66";
    assert_eq!(names.value.general_names, [GeneralName::URI(expected)]);
}

#[tokio::test]
async fn a_line_that_is_full_turns_requests_away() {
    let authority = authority();
    let orders = vec![order("x".into(), WEB.parse().unwrap(), 60); WAITING_MAX + 1];
    let signed = authority.sign_all(orders, false).await;
    assert!(
        signed
            .iter()
            .all(|one| matches!(one, Err(Refusal::RateLimited { .. })))
    );
    let one = authority
        .sign(order(csr(|_| {}), WEB.parse().unwrap(), 60), false)
        .await;
    assert!(one.is_ok(), "the places come back");
}

#[test]
fn a_node_is_named_as_a_node() {
    let name = issue::Name::Node {
        trust_domain: "cluster.local".into(),
        node: "n1".into(),
    };
    assert_eq!(name.to_string(), "spiffe://cluster.local/node/n1");
}
