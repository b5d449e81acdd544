//! A corpus of requests: whatever they ask for, the certificate says exactly what was authorised.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
};
use rcgen::{PKCS_ECDSA_P521_SHA512, PKCS_RSA_SHA256, RsaKeySize, SanType};
use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry::{OID_X509_EXT_SUBJECT_ALT_NAME, Oid};

use super::*;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn root() -> Root {
    Root::generate("cluster.local", now()).unwrap()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn params(names: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    params
}

fn csr_with(key: &KeyPair, params: &CertificateParams) -> String {
    params.serialize_request(key).unwrap().pem().unwrap()
}

fn csr(params: &CertificateParams) -> String {
    csr_with(&KeyPair::generate().unwrap(), params)
}

fn issue(csr_pem: &str, ttl: Duration) -> Leaf {
    let csr = Csr::parse(csr_pem).unwrap();
    workload(&root(), &csr, &WEB.parse().unwrap(), ttl, now()).unwrap()
}

/// Checks a certificate against the one form there is.
fn check_form(leaf: &Leaf) {
    let (_, pem) = x509_parser::pem::parse_x509_pem(leaf.pem.as_bytes()).unwrap();
    let certificate: X509Certificate<'_> = pem.parse_x509().unwrap();
    assert_eq!(certificate.subject().iter().count(), 0, "the subject is empty");
    let names = certificate.subject_alternative_name().unwrap().expect("names");
    assert!(names.critical);
    assert_eq!(names.value.general_names, [GeneralName::URI(WEB)]);
    let constraints = certificate.basic_constraints().unwrap().expect("constraints");
    assert!(constraints.critical && !constraints.value.ca);
    let usage = certificate.key_usage().unwrap().expect("usage").value;
    assert_eq!(usage.flags, 1, "digital signature alone");
    let extended = certificate
        .extended_key_usage()
        .unwrap()
        .expect("extended usage")
        .value;
    assert!(extended.server_auth && extended.client_auth && extended.other.is_empty() && !extended.any);
    assert!(!extended.code_signing && !extended.email_protection && !extended.ocsp_signing);
    let known = [
        "2.5.29.14",
        "2.5.29.15",
        "2.5.29.17",
        "2.5.29.19",
        "2.5.29.35",
        "2.5.29.37",
    ];
    for extension in certificate.extensions() {
        assert!(
            known.contains(&extension.oid.to_id_string().as_str()),
            "{}",
            extension.oid
        );
    }
    assert_eq!(certificate.raw_serial().len(), 17);
}

/// Unix seconds of the validity.
fn validity(leaf: &Leaf) -> (i64, i64) {
    let (_, pem) = x509_parser::pem::parse_x509_pem(leaf.pem.as_bytes()).unwrap();
    let certificate = pem.parse_x509().unwrap();
    let validity = certificate.validity();
    (validity.not_before.timestamp(), validity.not_after.timestamp())
}

#[test]
fn whatever_names_are_claimed_the_authorised_one_is_issued() {
    let admin = "spiffe://cluster.local/ns/kube-system/sa/admin";
    for names in [
        vec![],
        vec![uri(WEB)],
        vec![uri(admin)],
        vec![uri(WEB), uri(admin)],
        vec![uri("spiffe://cluster.local/ns/shop/sa/web\0.evil")],
        vec![SanType::DnsName("istiod.istio-system.svc".try_into().unwrap())],
        vec![SanType::IpAddress("10.0.0.1".parse().unwrap()), uri(WEB)],
    ] {
        let claimed: Vec<_> = names
            .iter()
            .filter(|name| matches!(name, SanType::URI(_)))
            .cloned()
            .collect();
        let pem = csr(&params(names));
        assert_eq!(Csr::parse(&pem).unwrap().claimed.len(), claimed.len());
        check_form(&issue(&pem, TTL_DEFAULT));
    }
}

#[test]
fn nothing_else_of_a_request_is_copied() {
    let mut greedy = params(vec![uri(WEB)]);
    greedy.distinguished_name.push(DnType::CommonName, "istiod");
    greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    greedy.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    let strange = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![4, 1, 0]);
    greedy.custom_extensions = vec![strange];
    check_form(&issue(&csr(&greedy), TTL_DEFAULT));
}

#[test]
fn the_usual_keys_are_accepted() {
    let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let others =
        [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519].map(|algorithm| KeyPair::generate_for(algorithm).unwrap());
    for key in others.iter().chain([&rsa]) {
        check_form(&issue(&csr_with(key, &params(vec![uri(WEB)])), TTL_DEFAULT));
    }
}

#[test]
fn other_curves_are_refused() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).unwrap();
    let refused = Csr::parse(&csr_with(&key, &params(vec![])));
    assert_eq!(refused, Err(InvalidCsr::KeyNotAccepted));
}

#[test]
fn a_request_signed_by_another_key_is_refused() {
    let pem = csr(&params(vec![uri(WEB)]));
    let block = one_block(&pem).unwrap();
    // The last byte belongs to the signature.
    let mut forged = block.clone();
    *forged.last_mut().unwrap() ^= 1;
    let refused = Csr::parse(&pem_of(&forged));
    assert!(matches!(refused, Err(InvalidCsr::BadSignature)), "{refused:?}");
    // And a changed name breaks the signature.
    let position = block.windows(4).position(|bytes| bytes == b"shop").unwrap();
    let mut renamed = block;
    renamed[position] = b'S';
    assert_eq!(Csr::parse(&pem_of(&renamed)), Err(InvalidCsr::BadSignature));
}

fn pem_of(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        lines.join("\n")
    )
}

#[test]
fn what_is_no_request_is_refused() {
    let pem = csr(&params(vec![]));
    let der = one_block(&pem).unwrap();
    let trailing = pem_of(&[&der[..], b"x"].concat());
    for (text, expected) in [
        (String::new(), InvalidCsr::NotPem),
        ("hello".to_owned(), InvalidCsr::NotPem),
        (format!("{pem}{pem}"), InvalidCsr::NotPem),
        (
            pem.replace("CERTIFICATE REQUEST", "CERTIFICATE"),
            InvalidCsr::NotPem,
        ),
        (pem_of(&der[..der.len() / 2]), InvalidCsr::NotPkcs10),
        (trailing, InvalidCsr::NotPkcs10),
    ] {
        assert_eq!(Csr::parse(&text), Err(expected), "{text}");
    }
    let long = "x".repeat(CSR_BYTES_MAX + 1);
    assert_eq!(Csr::parse(&long), Err(InvalidCsr::TooLong(CSR_BYTES_MAX + 1)));
}

#[test]
fn the_validity_is_clamped() {
    let day = 24 * 3600;
    for (asked, expected) in [
        (0, day),
        (-5, day),
        (1, 60),
        (3600, 3600),
        (10 * 365 * day, day),
        (i64::MAX, day),
    ] {
        let ttl = clamp_ttl(asked, TTL_DEFAULT);
        assert_eq!(ttl.as_secs(), u64::try_from(expected).unwrap(), "{asked}");
    }
    let leaf = issue(&csr(&params(vec![])), Duration::from_secs(3600));
    let at = now().unix_timestamp();
    // The root begins five minutes before it was made, so the leaf may too.
    assert_eq!(validity(&leaf), (at - 300, at + 3600));
}

#[test]
fn a_leaf_never_outlives_its_issuer_nor_begins_before_it() {
    let root = root();
    let csr = Csr::parse(&csr(&params(vec![]))).unwrap();
    let issue_at = |at| workload(&root, &csr, &WEB.parse().unwrap(), TTL_DEFAULT, at);
    let late = issue_at(root.not_after() - Duration::from_secs(100)).unwrap();
    assert_eq!(validity(&late).1, root.not_after().unix_timestamp());
    let early = issue_at(root.not_before() + Duration::from_secs(10)).unwrap();
    assert_eq!(validity(&early).0, root.not_before().unix_timestamp());
    assert_eq!(issue_at(root.not_after()), Err(IssueError::IssuerNotValid));
    assert_eq!(
        issue_at(root.not_before() - Duration::from_secs(1)),
        Err(IssueError::IssuerNotValid)
    );
}

#[test]
fn identities_that_need_escaping_are_never_written() {
    let csr = Csr::parse(&csr(&params(vec![]))).unwrap();
    for service_account in ["web\0", "a b", "a/../b", "wéb", "a%2fb", "a?b", ""] {
        let identity = Identity::new("cluster.local", "shop", service_account);
        let refused = workload(&root(), &csr, &identity, TTL_DEFAULT, now());
        assert!(matches!(refused, Err(IssueError::Name(_))), "{service_account:?}");
    }
}

#[test]
fn serial_numbers_differ() {
    let pem = csr(&params(vec![]));
    assert_ne!(issue(&pem, TTL_DEFAULT).serial, issue(&pem, TTL_DEFAULT).serial);
}

#[test]
fn the_chain_verifies_and_the_server_certificate_carries_its_names() {
    let root = root();
    let names = ["localhost", "127.0.0.1", "::1", "istiod.istio-system.svc"].map(Str::from);
    let certificate = server(&root, &names, TTL_DEFAULT, now()).unwrap();
    let (_, root_pem) = x509_parser::pem::parse_x509_pem(root.certificate_pem().as_bytes()).unwrap();
    let authority = root_pem.parse_x509().unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.leaf.pem.as_bytes()).unwrap();
    let leaf = pem.parse_x509().unwrap();
    leaf.verify_signature(Some(authority.public_key())).unwrap();
    let san: &Oid<'_> = &OID_X509_EXT_SUBJECT_ALT_NAME;
    assert!(leaf.get_extension_unique(san).unwrap().expect("names").critical);
    let names = leaf.subject_alternative_name().unwrap().expect("names").value;
    assert_eq!(names.general_names.len(), 4);
    let refused = server(&root, &["bad name".into()], TTL_DEFAULT, now());
    assert!(matches!(refused, Err(IssueError::Name(_))));
}
