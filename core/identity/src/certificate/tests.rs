use super::*;
use crate::testing::{TestCa, leaf, shared_ca, uri};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn web() -> Identity {
    WEB.parse().unwrap()
}

fn reviews() -> Identity {
    Identity::new("cluster.local", "shop", "reviews")
}

fn keep(issued: &Issued) -> Result<WorkloadCertificate, InvalidCertificate> {
    WorkloadCertificate::new(&web(), issued, KeyExchange::Standard, SystemTime::now())
}

#[test]
fn configurations_are_made_once_per_expected_set() {
    let certificate = crate::testing::certificate(&web());
    let one = certificate.client_config(&[web(), reviews()]);
    assert!(Arc::ptr_eq(
        &one,
        &certificate.client_config(&[reviews(), web(), web()])
    ));
    assert!(!Arc::ptr_eq(&one, &certificate.client_config(&[web()])));
    assert!(Arc::ptr_eq(
        &certificate.server_config(),
        &certificate.server_config()
    ));
    let successor = crate::testing::certificate(&web());
    assert_ne!(successor.version(), certificate.version());
    assert!(!Arc::ptr_eq(&one, &successor.client_config(&[web(), reviews()])));
}

#[test]
fn the_cache_of_configurations_is_bounded() {
    let certificate = crate::testing::certificate(&web());
    for n in 0..=CLIENT_CONFIGS_MAX {
        let _ = certificate.client_config(&[Identity::new("td", "ns", format!("sa{n}"))]);
    }
    assert!(certificate.clients.lock().len() <= CLIENT_CONFIGS_MAX);
}

#[test]
fn only_exactly_the_asked_identity_is_kept() {
    let ca = shared_ca();
    assert!(keep(&ca.issue_as(leaf([uri(WEB)]))).is_ok());
    let other = keep(&ca.issue_as(leaf([uri(&reviews().to_string())]))).unwrap_err();
    assert_eq!(
        other,
        InvalidCertificate::OtherIdentity {
            asked: web(),
            issued: reviews()
        }
    );
    let two = keep(&ca.issue_as(leaf([uri(WEB), uri(WEB)]))).unwrap_err();
    assert_eq!(two, InvalidCertificate::Leaf(PeerError::SeveralUriNames(2)));
    let none = keep(&ca.issue_as(leaf([]))).unwrap_err();
    assert_eq!(none, InvalidCertificate::Leaf(PeerError::NoUriName));
}

#[test]
fn what_peers_would_refuse_is_not_kept() {
    let ca = shared_ca();
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let expired = ca.issue(&web(), now - 2 * hour, hour);
    assert!(matches!(
        keep(&expired),
        Err(InvalidCertificate::Chain(webpki::Error::CertExpired { .. }))
    ));
    let foreign = Issued {
        roots: vec![TestCa::new().root_der()],
        ..ca.issue(&web(), now, hour)
    };
    assert!(matches!(keep(&foreign), Err(InvalidCertificate::Chain(_))));
    let rootless = Issued {
        roots: vec![],
        ..ca.issue(&web(), now, hour)
    };
    assert_eq!(keep(&rootless).unwrap_err(), InvalidCertificate::Roots);
    let headless = Issued {
        chain: vec![],
        ..ca.issue(&web(), now, hour)
    };
    assert_eq!(keep(&headless).unwrap_err(), InvalidCertificate::EmptyChain);
    let stolen = Issued {
        key: ca.issue(&web(), now, hour).key,
        ..ca.issue(&web(), now, hour)
    };
    assert_eq!(keep(&stolen).unwrap_err(), InvalidCertificate::OtherKey);
}

#[test]
fn validity_has_a_start_and_an_end() {
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let certificate = keep(&shared_ca().issue(&web(), now, hour)).unwrap();
    assert!(certificate.is_valid(now));
    assert!(!certificate.is_valid(now + hour + Duration::from_secs(1)));
    assert!(!certificate.is_valid(now - hour));
}

#[test]
fn no_output_shows_the_key() {
    let text = format!("{:?}", crate::testing::certificate(&web()));
    assert!(text.contains(WEB) && text.contains(".."), "{text}");
    assert!(!text.to_lowercase().contains("key"), "{text}");
}
