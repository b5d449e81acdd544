use super::*;
use crate::testing::{TestCa, certificate, shared_ca};
use crate::tls::{HandshakeError, accept, accepted, connect};
use crate::{KeyExchange, WorkloadCertificate};
use std::time::Duration;
use tokio::io::{AsyncReadExt, duplex};
use tulle_model::Identity;
use tulle_model::trust::Subject;

const HOUR: Duration = Duration::from_secs(3600);

fn id(name: &str) -> Identity {
    Identity::new("cluster.local", "shop", name)
}

/// A certificate of `ca` whose holder judges peers by `trust`.
fn judging(ca: &TestCa, name: &str, trust: &TrustStore) -> WorkloadCertificate {
    let now = SystemTime::now();
    let issued = ca.issue(&id(name), now, HOUR);
    WorkloadCertificate::new(&id(name), &issued, KeyExchange::Standard, now)
        .unwrap()
        .trusting(trust.clone())
}

fn serial_of(certificate: &WorkloadCertificate) -> Vec<u8> {
    certificate.proof().links()[0].serial.to_vec()
}

/// How a handshake between both ends, for the client and for the server. The client's end includes its first read.
async fn meet(
    client: &WorkloadCertificate,
    server: &WorkloadCertificate,
) -> (Result<(), HandshakeError>, Result<(), HandshakeError>) {
    let (near, far) = duplex(64 * 1024);
    let connecting = async {
        let mut stream = connect(client.client_config(&[server.identity().clone()]), near).await?;
        let mut one = [0];
        match stream.read(&mut one).await {
            Ok(_) => Ok(()),
            // The server was done, and went.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(()),
            Err(error) => Err(HandshakeError::from(error)),
        }
    };
    let accepting = async {
        let (stream, _) = accept(server.server_config(), far).await?;
        assert_eq!(accepted(&stream)?.identity(), client.identity());
        Ok(())
    };
    tokio::join!(connecting, accepting)
}

fn reason<T: fmt::Debug>(result: Result<T, HandshakeError>) -> Reason {
    result.unwrap_err().reason()
}

fn lists(ca: &TestCa, revoked: &[&WorkloadCertificate], since: Duration, lifetime: Duration) -> Lists {
    let serials: Vec<_> = revoked.iter().map(|certificate| serial_of(certificate)).collect();
    let serials: Vec<&[u8]> = serials.iter().map(Vec::as_slice).collect();
    let text = ca.revocation_list(&serials, SystemTime::now() - since, lifetime);
    Lists::parse(text.as_bytes()).unwrap()
}

fn pushed(edit: impl FnOnce(&mut Trust)) -> Vec<Arc<Trust>> {
    let mut trust = Trust::new("cluster.local", shared_ca().root_pem());
    edit(&mut trust);
    vec![Arc::new(trust)]
}

fn denying(subject: Subject, until: Option<u64>) -> Vec<Arc<Trust>> {
    pushed(|trust| {
        trust.denied.push(Denied {
            subject,
            reason: "stolen".into(),
            until,
            by: "root".into(),
        });
    })
}

#[tokio::test]
async fn a_revoked_client_and_a_revoked_server_are_refused() {
    let (ca, trust) = (shared_ca(), TrustStore::default());
    let plain = TrustStore::default();
    let (web, db) = (judging(ca, "web", &plain), judging(ca, "db", &trust));
    trust.set_file(Some(lists(ca, &[&web], Duration::ZERO, HOUR)));
    let (client, server) = meet(&web, &db).await;
    assert_eq!(reason(server), Reason::CertRevoked);
    assert_eq!(reason(client), Reason::CertRevoked, "the alert tells the client");
    let (client, server) = meet(&db, &web).await;
    assert_eq!(reason(client), Reason::CertRevoked);
    assert_eq!(reason(server), Reason::CertRevoked);
}

#[tokio::test]
async fn what_is_on_no_list_is_believed() {
    let (ca, trust) = (shared_ca(), TrustStore::default());
    let (web, db) = (
        judging(ca, "web", &TrustStore::default()),
        judging(ca, "db", &trust),
    );
    let other = judging(ca, "other", &trust);
    trust.set_file(Some(lists(ca, &[&other], Duration::ZERO, HOUR)));
    let (client, server) = meet(&web, &db).await;
    server.unwrap();
    client.unwrap();
}

#[tokio::test]
async fn a_list_past_its_time_refuses_unless_that_is_allowed() {
    let ca = shared_ca();
    for (policy, expected) in [
        (StalePolicy::Deny, Some(Reason::CrlStale)),
        (StalePolicy::Allow, None),
    ] {
        let trust = TrustStore::new(policy, Clock::system());
        let (web, db) = (
            judging(ca, "web", &TrustStore::default()),
            judging(ca, "db", &trust),
        );
        trust.set_file(Some(lists(ca, &[], 2 * HOUR, HOUR)));
        let (_, server) = meet(&web, &db).await;
        assert_eq!(server.err().map(|error| error.reason()), expected, "{policy:?}");
    }
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_whatever_the_age_of_the_list() {
    let ca = shared_ca();
    let trust = TrustStore::new(StalePolicy::Allow, Clock::system());
    let (web, db) = (
        judging(ca, "web", &TrustStore::default()),
        judging(ca, "db", &trust),
    );
    trust.set_file(Some(lists(ca, &[&web], 2 * HOUR, HOUR)));
    assert_eq!(reason(meet(&web, &db).await.1), Reason::CertRevoked);
}

#[tokio::test]
async fn a_list_that_cannot_be_read_refuses_and_the_last_one_stays() {
    let (ca, trust) = (shared_ca(), TrustStore::default());
    let (web, db) = (
        judging(ca, "web", &TrustStore::default()),
        judging(ca, "db", &trust),
    );
    trust.set_file(None);
    assert_eq!(
        reason(meet(&web, &db).await.1),
        Reason::CrlStale,
        "never readable"
    );
    trust.set_file(Some(lists(ca, &[&web], Duration::ZERO, HOUR)));
    trust.set_file(None);
    assert_eq!(
        reason(meet(&web, &db).await.1),
        Reason::CertRevoked,
        "not readable any more"
    );
}

#[tokio::test]
async fn a_list_of_somebody_else_proves_nothing() {
    let (ca, trust) = (shared_ca(), TrustStore::default());
    let (web, db) = (
        judging(ca, "web", &TrustStore::default()),
        judging(ca, "db", &trust),
    );
    // The same name, another key: its signature does not hold.
    trust.set_file(Some(lists(&TestCa::new(), &[], Duration::ZERO, HOUR)));
    assert_eq!(reason(meet(&web, &db).await.1), Reason::CrlStale);
}

#[tokio::test]
async fn a_revoked_intermediate_takes_all_below_it() {
    let (root, trust) = (TestCa::new(), TrustStore::default());
    let below = root.intermediate(|_| {});
    let (web, db) = (
        judging(&below, "web", &TrustStore::default()),
        judging(&below, "db", &trust),
    );
    let serial = web.proof().links()[1].serial.to_vec();
    let text = root.revocation_list(&[&serial], SystemTime::now(), HOUR);
    let (client, server) = meet(&web, &db).await;
    assert!(client.is_ok() && server.is_ok());
    trust.set_file(Some(Lists::parse(text.as_bytes()).unwrap()));
    assert_eq!(reason(meet(&web, &db).await.1), Reason::CertRevoked);
    assert!(trust.judge(web.proof(), None).is_err());
}

#[tokio::test]
async fn pushed_roots_are_believed_beside_those_of_the_certificate() {
    let (old, new) = (TestCa::new(), TestCa::new());
    let trust = TrustStore::default();
    let (web, db) = (judging(&old, "web", &trust), judging(&new, "db", &trust));
    assert!(meet(&web, &db).await.0.is_err());
    trust.set_pushed(vec![Arc::new(Trust::new(
        "cluster.local",
        old.root_pem() + &new.root_pem(),
    ))]);
    let (client, server) = meet(&web, &db).await;
    server.unwrap();
    client.unwrap();
    trust.set_pushed(vec![Arc::new(Trust::new("cluster.local", "no root"))]);
    assert!(
        meet(&web, &db).await.0.is_ok(),
        "roots that cannot be read leave the old ones"
    );
}

#[tokio::test]
async fn an_alias_is_our_trust_domain_too() {
    let trust = TrustStore::default();
    let db = judging(shared_ca(), "db", &trust);
    let old = certificate(&Identity::new("old.domain", "shop", "web"));
    assert_eq!(reason(meet(&old, &db).await.1), Reason::PeerIdentityMismatch);
    trust.set_pushed(pushed(|trust| trust.aliases.push("old.domain".into())));
    meet(&old, &db).await.1.unwrap();
}

#[tokio::test]
async fn whom_an_operator_denies_is_refused() {
    let (ca, trust) = (shared_ca(), TrustStore::default());
    let (web, db) = (
        judging(ca, "web", &TrustStore::default()),
        judging(ca, "db", &trust),
    );
    for subject in [
        Subject::Identity(id("web")),
        Subject::Serial(web.proof().serial().clone()),
    ] {
        trust.set_pushed(denying(subject, None));
        assert_eq!(reason(meet(&web, &db).await.1), Reason::CertRevoked);
    }
    trust.set_pushed(denying(Subject::Identity(id("web")), Some(1)));
    meet(&web, &db).await.1.unwrap();
    assert!(trust.judge(web.proof(), Some("n1")).is_ok());
    trust.set_pushed(denying(Subject::Node("n1".into()), None));
    assert!(
        trust.judge(web.proof(), Some("n1")).is_err(),
        "wherever its node is known"
    );
    assert!(trust.judge(web.proof(), Some("n2")).is_ok());
}

#[tokio::test]
async fn who_waits_for_distrust_hears_of_it_at_once() {
    let (ca, trust) = (shared_ca(), TrustStore::default());
    let web = judging(ca, "web", &trust);
    let waiting = trust.distrusted(web.proof(), None);
    let revoke = async {
        trust.set_file(Some(lists(ca, &[], Duration::ZERO, HOUR)));
        tokio::task::yield_now().await;
        trust.set_file(Some(lists(ca, &[&web], Duration::ZERO, HOUR)));
    };
    let (why, ()) = tokio::join!(waiting, revoke);
    assert_eq!(why.reason(), Reason::CertRevoked);
    assert!(web.judge().is_err(), "its holder does not show it any more");
}

#[test]
fn versions_count_changes_and_nothing_else() {
    let trust = TrustStore::default();
    trust.set_pushed(pushed(|_| {}));
    trust.set_pushed(pushed(|_| {}));
    assert_eq!(trust.view().version(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_file_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("crl.pem");
    let (ca, trust) = (shared_ca(), TrustStore::default());
    let web = judging(ca, "web", &trust);
    trust.load_file(&path);
    assert!(
        trust.view().summary().revocation_unknown,
        "a file that is missing proves nothing"
    );
    let following = tulle_runtime::tasks::spawn("crl", trust.clone().follow_file(path.clone()));
    let serial = serial_of(&web);
    let text = ca.revocation_list(&[&serial], SystemTime::now(), HOUR);
    std::fs::write(&path, text).unwrap();
    let why = tokio::time::timeout(Duration::from_secs(2), trust.distrusted(web.proof(), None)).await;
    assert_eq!(why.unwrap().reason(), Reason::CertRevoked);
    following.abort();
}
