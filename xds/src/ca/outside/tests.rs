use std::os::unix::fs::PermissionsExt;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use super::*;
use crate::ca::root::generate_pems;

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

/// A root, and an intermediate that it signed.
struct Pki {
    root: String,
    issuer: String,
    key: String,
}

fn pki() -> Pki {
    let (root, root_key) = generate_pems("cluster.local", now()).unwrap();
    let above = Issuer::from_ca_cert_pem(&root, KeyPair::from_pem(&root_key).unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.not_before = now();
    params.not_after = now() + time::Duration::days(30);
    params.distinguished_name.push(DnType::CommonName, "intermediate");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Pki {
        issuer: params.signed_by(&key, &above).unwrap().pem(),
        key: key.serialize_pem(),
        root,
    }
}

fn cacerts(pki: &Pki) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("ca-cert.pem", &pki.issuer),
        ("ca-key.pem", &pki.key),
        ("cert-chain.pem", &format!("{}{}", pki.issuer, pki.root)),
        ("root-cert.pem", &pki.root),
    ] {
        fs::write(folder.path().join(name), text).unwrap();
        let mode = fs::Permissions::from_mode(0o600);
        fs::set_permissions(folder.path().join(name), mode).unwrap();
    }
    folder
}

#[test]
fn an_intermediate_is_shown_beside_its_leaves_and_its_root_is_believed() {
    let pki = pki();
    let outside = read(cacerts(&pki).path(), now()).unwrap();
    assert_eq!(
        outside.material.intermediates.len(),
        1,
        "the issuer, without the root"
    );
    assert_eq!(certificates(&outside.material.anchors), certificates(&pki.root));
    assert!(outside.crl.is_none());
}

#[test]
fn a_secret_of_type_tls_is_taken_too() {
    let pki = pki();
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("tls.crt", &pki.issuer),
        ("tls.key", &pki.key),
        ("ca.crt", &pki.root),
    ] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    assert_eq!(
        read(folder.path(), now()).unwrap().material.intermediates.len(),
        1
    );
}

#[test]
fn what_is_incomplete_or_does_not_fit_is_refused_by_name() {
    let pki = pki();
    let other = self::pki();
    let edits: [(&str, Option<&str>, &str); 7] = [
        ("ca-cert.pem", None, "ca-cert.pem"),
        ("ca-key.pem", None, "ca-key.pem"),
        ("cert-chain.pem", None, "cert-chain.pem"),
        ("root-cert.pem", None, "root-cert.pem"),
        ("ca-key.pem", Some(&other.key), "another certificate"),
        ("root-cert.pem", Some(&other.root), "does not lead to it"),
        ("ca-crl.pem", Some("text"), "ca-crl.pem"),
    ];
    for (name, text, told) in edits {
        let folder = cacerts(&pki);
        match text {
            Some(text) => fs::write(folder.path().join(name), text).unwrap(),
            None => fs::remove_file(folder.path().join(name)).unwrap(),
        }
        let error = read(folder.path(), now()).unwrap_err().to_string();
        assert!(error.contains("T0301") && error.contains(told), "{name}: {error}");
    }
}

#[test]
fn an_issuer_that_has_ended_is_refused() {
    let pki = pki();
    let late = now() + time::Duration::days(31);
    let error = read(cacerts(&pki).path(), late).unwrap_err().to_string();
    assert!(error.contains("not valid now"), "{error}");
}
