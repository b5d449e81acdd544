//! A whole rotation, by an injected clock: at each step a client that holds what it was told verifies every leaf
//! that may be alive.

use std::sync::atomic::AtomicI64;
use std::time::SystemTime;

use rcgen::{CertificateParams, KeyPair};
use tulle_identity::Clock;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;
use crate::ca::issue::Csr;
use crate::ca::issuer::certificates;
use crate::ca::{issue, order};
use crate::engine::table::Resource as Row;
use crate::serve::session::{Request, Session};
use crate::serve::viewer::{Features, Viewer};
use crate::snapshot::{Order, Scope};
use crate::status::ClientStatus;

const START: i64 = 1_800_000_000;

struct World {
    now: Arc<AtomicI64>,
    keeper: Keeper,
    snapshot: Snapshot,
}

impl World {
    fn new(state: &Path) -> Self {
        let now = Arc::new(AtomicI64::new(START));
        let told = now.clone();
        let clock = Clock::from_fn(move || {
            let seconds = u64::try_from(told.load(Ordering::Relaxed)).unwrap();
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
        });
        let begin = OffsetDateTime::from_unix_timestamp(START).unwrap();
        let roots = Roots::open(&state.join("ca"), "cluster.local", begin).unwrap();
        let issuing = roots.issuing().unwrap();
        let ttl = Duration::from_secs(60);
        let authority = Authority::with(issuing, "cluster.local".into(), ttl, clock);
        let mut keeper = Keeper::new(
            roots,
            Arc::new(authority),
            DenyList::memory(),
            Arc::new(Issued::memory()),
        );
        keeper.waits = Waits {
            distribute: Duration::from_secs(10),
            margin: Duration::from_secs(5),
            ..Waits::default()
        };
        Self {
            now,
            keeper,
            snapshot: Snapshot::default(),
        }
    }

    fn pass(&self, seconds: i64) {
        self.now.fetch_add(seconds, Ordering::Relaxed);
    }

    /// What the engine does with what the keeper publishes.
    fn serve(&mut self) {
        let trust = self.keeper.trust().borrow().clone().unwrap();
        let sequence = self.snapshot.sequence + 1;
        let row = Row {
            name: trust.trust_domain.clone(),
            aliases: Vec::new(),
            body: tulle_proto::encode_trust(&trust).into(),
            order: Order::Policy,
            scope: Scope::Everyone,
        };
        if self.snapshot.trust.set(row, sequence) {
            self.snapshot.sequence = sequence;
        }
        self.snapshot.synced = true;
    }

    fn round(&mut self) {
        self.serve();
        self.keeper.round(&self.snapshot);
        self.serve();
    }

    fn leaf(&self) -> Vec<Vec<u8>> {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap();
        let identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let order = order(csr.pem().unwrap(), identity, 60);
        let signed = self
            .keeper
            .authority
            .sign_now(&order, self.keeper.authority.now())
            .unwrap();
        let chain = std::iter::once(&signed.leaf.pem).map(String::as_str);
        let chain = chain.chain(signed.intermediates.iter().map(AsRef::as_ref));
        chain.flat_map(certificates).map(|(der, _)| der).collect()
    }

    fn trust(&self) -> Arc<Trust> {
        self.keeper.trust().borrow().clone().unwrap()
    }
}

/// Whether a chain leads to one of these roots.
fn verifies(chain: &[Vec<u8>], roots: &str) -> bool {
    let anchors = certificates(roots);
    let signed_by = |below: &[u8], above: &[u8]| {
        let (_, below) = X509Certificate::from_der(below).unwrap();
        let (_, above) = X509Certificate::from_der(above).unwrap();
        below.verify_signature(Some(above.public_key())).is_ok()
    };
    let linked = chain.windows(2).all(|pair| signed_by(&pair[0], &pair[1]));
    let anchored = |der: &Vec<u8>| anchors.iter().any(|(anchor, _)| signed_by(der, anchor));
    linked && chain.iter().any(anchored)
}

/// A connected client that takes trust and acknowledges what it is sent.
struct Connected {
    session: Session<Arc<Snapshot>>,
    status: crate::status::Connected,
}

impl Connected {
    fn new(world: &World) -> Self {
        let features = Features {
            trust: true,
            dry_run: false,
        };
        let status = ClientStatus::new("n1".into(), Kind::Ztunnel, features);
        let head = Arc::new(world.snapshot.clone());
        let mut session = Session::new(1, Viewer::node("n1").with(features), head.clone());
        let request = Request {
            type_url: ResourceType::Trust.type_url().into(),
            ..Request::default()
        };
        session.on_request(&request, &head).unwrap();
        Self {
            session,
            status: world.keeper.clients.connect(status).unwrap(),
        }
    }

    fn catch_up(&mut self, world: &World) {
        let head = Arc::new(world.snapshot.clone());
        while let Some(response) = self.session.poll_send(&head, Instant::now()) {
            let answer = Request {
                type_url: response.type_url.clone(),
                nonce: response.nonce.clone(),
                ..Request::default()
            };
            self.session.on_request(&answer, &head).unwrap();
        }
        self.status.update(&self.session, &head);
    }
}

#[test]
fn a_rotation_with_short_certificates_breaks_no_connection() {
    let state = tempfile::tempdir().unwrap();
    let mut world = World::new(state.path());
    world.round();
    let mut client = Connected::new(&world);
    client.catch_up(&world);
    let old_leaf = world.leaf();
    let old_roots = world.trust().roots.clone();
    world.keeper.rotate(false).unwrap();
    world.round();
    assert_eq!(world.keeper.phase(), Phase::Distribute);
    world.pass(11);
    world.round();
    assert_eq!(
        world.keeper.phase(),
        Phase::Distribute,
        "the client has not the new root"
    );
    client.catch_up(&world);
    world.round();
    assert_eq!(world.keeper.phase(), Phase::Switch);
    let new_leaf = world.leaf();
    assert!(verifies(&new_leaf, &old_roots), "one that missed the new root");
    assert!(verifies(&new_leaf, &world.trust().roots) && verifies(&old_leaf, &world.trust().roots));
    world.pass(64);
    world.round();
    assert_eq!(
        world.keeper.phase(),
        Phase::Switch,
        "a leaf of the old root may live"
    );
    world.pass(1);
    world.round();
    assert_eq!(world.keeper.phase(), Phase::Retire);
    assert!(verifies(&world.leaf(), &world.trust().roots) && verifies(&new_leaf, &world.trust().roots));
    assert!(!verifies(&old_leaf, &world.trust().roots));
    client.catch_up(&world);
    world.round();
    assert_eq!(world.keeper.phase(), Phase::Stable);
}

#[test]
fn agents_hold_up_no_rotation() {
    let state = tempfile::tempdir().unwrap();
    let mut world = World::new(state.path());
    world.round();
    let trust = Features {
        trust: true,
        dry_run: false,
    };
    let agents = [("n1", trust), ("n2", Features::default())].map(|(node, features)| {
        let agent = ClientStatus::new(node.into(), Kind::Agent, features);
        world.keeper.clients.connect(agent).unwrap()
    });
    world.keeper.rotate(false).unwrap();
    world.pass(10);
    world.round();
    assert_eq!(world.keeper.phase(), Phase::Switch);
    drop(agents);
}

#[test]
fn an_old_root_is_rotated_by_itself() {
    let state = tempfile::tempdir().unwrap();
    let mut world = World::new(state.path());
    world.pass(7 * 365 * 24 * 3600);
    world.round();
    assert_eq!(world.keeper.phase(), Phase::Stable);
    world.pass(2 * 365 * 24 * 3600);
    world.round();
    assert_eq!(world.keeper.phase(), Phase::Distribute);
}

#[test]
fn a_rotation_that_waits_past_its_deadline_raises_an_alarm_until_it_goes_on() {
    let state = tempfile::tempdir().unwrap();
    let mut world = World::new(state.path());
    let web = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    world.snapshot.placement.place("away".into(), [web].into());
    world.keeper.rotate(false).unwrap();
    let alarms = |world: &World| {
        let status = world.keeper.status(&world.snapshot);
        (world.keeper.is_overdue(), status.overdue)
    };
    let week = i64::try_from(world.keeper.waits.deadline.as_secs()).unwrap();
    world.pass(week - 1);
    world.round();
    assert_eq!(alarms(&world), (false, false));
    world.pass(1);
    world.round();
    assert_eq!(alarms(&world), (true, true));
    world.keeper.rotate(true).unwrap();
    world.round();
    assert_eq!(
        (world.keeper.phase(), alarms(&world)),
        (Phase::Switch, (false, false))
    );
}

#[test]
fn an_authority_whose_root_runs_out_says_so_before() {
    let state = tempfile::tempdir().unwrap();
    let world = World::new(state.path());
    let said = || world.keeper.status(&world.snapshot).expires_soon;
    assert_eq!(said(), None);
    let end = world.keeper.authority.root().not_after().unix_timestamp();
    world.pass(end - START - 30 * 24 * 3600);
    let soon = said().expect("it ends soon");
    assert!(soon.starts_with("T0308") && soon.contains("30 days"), "{soon}");
}

#[test]
fn entries_of_the_deny_list_are_told_and_end_at_their_time() {
    let state = tempfile::tempdir().unwrap();
    let mut world = World::new(state.path());
    let until = u64::try_from(START).unwrap() + 60;
    let entry = tulle_model::trust::Denied {
        subject: crate::ca::deny::subject("node:n1").unwrap(),
        reason: "lost".into(),
        until: Some(until),
        by: "uid 0".into(),
    };
    world.keeper.denied.deny(entry).unwrap();
    world.round();
    assert!(world.trust().denies_node("n1", until - 1).is_some());
    world.pass(60);
    world.round();
    assert!(world.trust().denied.is_empty());
}

#[test]
fn a_deny_list_without_room_for_all_that_left_says_so_and_here_they_are_refused() {
    let state = tempfile::tempdir().unwrap();
    let mut world = World::new(state.path());
    let entry = |number: usize| crate::ca::issued::Entry {
        serial: format!("{number:x}"),
        identity: "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap(),
        node: "n1".into(),
        not_after: START + 60,
    };
    let entries: Vec<_> = (1..=tulle_model::trust::DENIED_MAX + 2).map(entry).collect();
    world.keeper.issued.note(&entries, START).unwrap();
    // The identity goes on elsewhere, so that no entry can stand for all of it.
    let web = entries[0].identity.clone();
    world.snapshot.placement.place("n2".into(), [web].into());
    world.round();
    let status = world.keeper.status(&world.snapshot);
    assert_eq!(
        (status.denied, status.unlisted),
        (tulle_model::trust::DENIED_MAX, 2)
    );
    assert!(
        status
            .problem
            .is_some_and(|problem| problem.contains("2 certificates"))
    );
    let trust = world.trust();
    let untold = entries.iter().filter(|entry| {
        let subject = crate::ca::deny::subject(&format!("serial:{}", entry.serial)).unwrap();
        !trust.denied.iter().any(|told| told.subject == subject)
            && world.keeper.denied.unlisted_of(&[subject], 0).is_some()
    });
    assert_eq!(untold.count(), 2);
    world.pass(60);
    world.round();
    assert_eq!(world.keeper.status(&world.snapshot).problem, None);
}

#[test]
fn an_issuer_that_has_ended_signs_nothing() {
    let state = tempfile::tempdir().unwrap();
    let world = World::new(state.path());
    world.pass(3660 * 24 * 3600);
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .unwrap()
        .pem()
        .unwrap();
    let csr = Csr::parse(&csr).unwrap();
    let identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    let root = world.keeper.authority.root();
    let refused = issue::workload(
        &root,
        &csr,
        &identity,
        Duration::from_secs(60),
        world.keeper.authority.now(),
    );
    assert_eq!(refused, Err(issue::IssueError::IssuerNotValid));
}

#[tokio::test]
async fn a_change_in_the_folder_of_an_issuer_is_heard_before_the_next_poll() {
    let (state, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut world = World::new(state.path());
    world.keeper.outside = Some(outside.path().to_owned());
    let keeper = Arc::new(world.keeper);
    let (trigger, drain) = tulle_runtime::drain::new();
    let snapshots = watch::channel(Arc::new(Snapshot::default())).1;
    let running = tulle_runtime::tasks::spawn("keeper", keeper.clone().run(snapshots, drain));
    let problem = || keeper.status(&Snapshot::default()).problem;
    assert_eq!(problem(), None, "it was not read yet");
    let begin = Instant::now();
    while problem().is_none() {
        // What is there cannot be used, and that is said.
        std::fs::write(outside.path().join("ca-cert.pem"), "nothing").unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(begin.elapsed() < OUTSIDE_POLL, "only the poll would find it");
    }
    trigger.start(tulle_runtime::drain::DrainMode::Graceful);
    running.await.unwrap();
}

#[test]
fn a_clock_that_is_set_is_an_alarm_and_one_that_goes_is_none() {
    let state = tempfile::tempdir().unwrap();
    let world = World::new(state.path());
    let begin = Instant::now();
    let mut clock = ClockWatch::new(world.keeper.authority.now(), begin);
    // Both clocks go on: by a round, and by an hour in which the process stood still.
    let mut monotonic = begin;
    let mut go = |seconds: u64, drift: i64| {
        monotonic += Duration::from_secs(seconds);
        world.pass(i64::try_from(seconds).unwrap() + drift);
        let jumped = clock.look(world.keeper.authority.now(), monotonic);
        jumped.map(|jump| jump.as_secs())
    };
    assert_eq!(go(1, 0), None);
    assert_eq!(go(3600, 0), None);
    assert_eq!(go(1, 60), None, "it is corrected by as much as clocks drift");
    assert_eq!(go(1, 61), Some(61));
    assert_eq!(go(1, -3600), Some(3600), "back as well as forth");
    assert_eq!(go(1, 0), None, "each jump is told once");
}

#[test]
fn jumps_of_the_clock_are_counted_and_told() {
    let state = tempfile::tempdir().unwrap();
    let world = World::new(state.path());
    let mut clock = ClockWatch::new(world.keeper.authority.now(), Instant::now());
    let told = |world: &World| {
        let status = world.keeper.status(&world.snapshot);
        (world.keeper.clock_jumps(), status.clock_jumps)
    };
    world.keeper.watch_clock(&mut clock);
    assert_eq!(told(&world), (0, 0));
    for (jump, jumps) in [(300, 1), (-300, 2)] {
        world.pass(jump);
        world.keeper.watch_clock(&mut clock);
        world.keeper.watch_clock(&mut clock);
        assert_eq!(told(&world), (jumps, jumps));
    }
}

#[test]
fn whatever_the_clock_does_no_leaf_is_issued_that_is_not_valid_then() {
    let state = tempfile::tempdir().unwrap();
    let mut world = World::new(state.path());
    let year = 365 * 24 * 3600;
    let mut issued = 0;
    // Forwards and backwards, by minutes and by years, beyond both ends of the root.
    for jump in [
        0,
        300,
        -600,
        90,
        -120,
        9 * year,
        -year,
        2 * year,
        -20 * year,
        10 * year,
        1,
    ] {
        world.pass(jump);
        world.serve();
        let now = world.keeper.authority.now();
        let root = world.keeper.authority.root();
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap();
        let identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let order = order(csr.pem().unwrap(), identity, 60);
        let Ok(signed) = world.keeper.authority.sign_now(&order, now) else {
            assert!(
                now < root.not_before() || now >= root.not_after(),
                "refused at {now}"
            );
            continue;
        };
        issued += 1;
        let (der, _) = certificates(&signed.leaf.pem).remove(0);
        let (_, leaf) = X509Certificate::from_der(&der).unwrap();
        let validity = leaf.validity();
        let (begin, end) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        let now = now.unix_timestamp();
        assert!(begin <= now && now < end, "{begin} {now} {end}");
        // A peer whose clock is five minutes behind takes it, too, as far as the root itself had begun.
        assert_eq!(begin, (now - 300).max(root.not_before().unix_timestamp()));
        assert!(end <= root.not_after().unix_timestamp());
    }
    assert!(issued >= 6, "{issued} issued");
}
