use super::*;
use crate::ca::HeldCa;
use crate::testing::{FakeCa, TestCa};
use tulle_runtime::metrics::Registry;

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

struct World {
    ca: FakeCa,
    secrets: SecretManager,
    registry: Registry,
}

/// A store over a fake authority, whose wall clock moves with the paused time.
fn world() -> World {
    let (wall, start) = (SystemTime::now(), Instant::now());
    let clock = Clock::from_fn(move || wall + start.elapsed());
    let ca = FakeCa::new(Arc::new(TestCa::new()), clock.clone());
    let registry = Registry::new();
    let options = Options {
        clock,
        ..Options::default()
    };
    let secrets = SecretManager::new(Arc::new(ca.clone()), options, Metrics::register(&registry));
    World {
        ca,
        secrets,
        registry,
    }
}

fn id(name: &str) -> Identity {
    Identity::new("cluster.local", "shop", name)
}

/// Lets `duration` pass, with everything that happens in it.
async fn pass(duration: Duration) {
    tokio::time::sleep(duration).await;
}

async fn settle() {
    pass(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_waits_for_its_certificate() {
    let world = world();
    world.ca.set_delay(Duration::from_secs(2));
    let certificate = world.secrets.fetch(&id("web"), Priority::Waiting).await.unwrap();
    assert_eq!(certificate.identity(), &id("web"));
    let again = world.secrets.fetch(&id("web"), Priority::Waiting).await.unwrap();
    assert_eq!(again.version(), certificate.version());
    assert_eq!(world.ca.asked(), [id("web")]);
}

#[tokio::test(start_paused = true)]
async fn many_waiters_share_one_request() {
    let world = world();
    world.ca.set_delay(Duration::from_secs(1));
    let web = id("web");
    let waiters = (0..50).map(|_| world.secrets.fetch(&web, Priority::Waiting));
    let all = futures_util::future::join_all(waiters).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(world.ca.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_after_five_seconds_as_unavailable() {
    let world = world();
    world.ca.set_delay(HOUR);
    let start = Instant::now();
    let error = world
        .secrets
        .fetch(&id("web"), Priority::Waiting)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::CertUnavailable);
    assert_eq!(start.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_outlasts_short_pauses() {
    let world = world();
    world.ca.set_away(true);
    let recovers = async {
        pass(Duration::from_secs(1)).await;
        world.ca.set_away(false);
    };
    let web = id("web");
    let (fetched, ()) = tokio::join!(world.secrets.fetch(&web, Priority::Waiting), recovers);
    fetched.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_long_pause_after_refusals_fails_the_waiter_at_once_and_says_why() {
    let world = world();
    world.ca.set_refusing(true);
    world.secrets.retain(&id("web"));
    pass(Duration::from_secs(90)).await;
    let start = Instant::now();
    let error = world
        .secrets
        .fetch(&id("web"), Priority::Waiting)
        .await
        .unwrap_err();
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert!(error.to_string().contains("not on this node"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn f03_connections_notice_within_two_seconds_that_the_authority_is_back() {
    let world = world();
    world.ca.set_away(true);
    world.secrets.retain(&id("web"));
    (0..100).for_each(|n| world.secrets.retain(&id(&format!("other{n}"))));
    pass(HOUR).await;
    world.ca.set_away(false);
    let start = Instant::now();
    world.secrets.fetch(&id("web"), Priority::Waiting).await.unwrap();
    assert!(start.elapsed() <= Duration::from_secs(2));
    pass(Duration::from_secs(1)).await;
    assert!(
        world
            .secrets
            .list()
            .iter()
            .all(|line| line.state == CertificateState::Valid)
    );
}

#[tokio::test(start_paused = true)]
async fn f03_retries_slow_down_while_the_authority_is_away() {
    let world = world();
    world.ca.set_away(true);
    world.secrets.retain(&id("web"));
    pass(HOUR).await;
    let asked = world.ca.asked().len();
    assert!((28..=40).contains(&asked), "{asked} requests in an hour");
}

#[tokio::test(start_paused = true)]
async fn a_local_workload_is_served_before_anyone_asks() {
    let world = world();
    world.secrets.retain(&id("web"));
    settle().await;
    assert!(world.secrets.current(&id("web")).is_some());
}

#[tokio::test(start_paused = true)]
async fn eight_requests_are_under_way_at_once() {
    let world = world();
    world.ca.set_delay(Duration::from_secs(1));
    (0..30).for_each(|n| world.secrets.retain(&id(&format!("w{n}"))));
    pass(Duration::from_secs(10)).await;
    assert_eq!(world.ca.asked().len(), 30);
    assert_eq!(world.ca.in_flight_max(), 8);
}

#[tokio::test(start_paused = true)]
async fn certificates_are_renewed_at_half_life() {
    let world = world();
    world.secrets.retain(&id("web"));
    settle().await;
    let first = world.secrets.current(&id("web")).unwrap();
    pass(DAY.mul_f64(0.47)).await;
    assert_eq!(
        world.secrets.current(&id("web")).unwrap().version(),
        first.version()
    );
    pass(DAY.mul_f64(0.06)).await;
    assert_ne!(
        world.secrets.current(&id("web")).unwrap().version(),
        first.version()
    );
    assert_eq!(world.ca.asked().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn f02_a_valid_certificate_is_used_until_it_expires_and_not_beyond() {
    let world = world();
    world.secrets.retain(&id("web"));
    settle().await;
    world.ca.set_away(true);
    pass(DAY - HOUR).await;
    world.secrets.fetch(&id("web"), Priority::Waiting).await.unwrap();
    pass(HOUR + Duration::from_secs(1)).await;
    assert!(world.secrets.current(&id("web")).is_none());
    let error = world
        .secrets
        .fetch(&id("web"), Priority::Waiting)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::CertExpired);
    world.ca.set_away(false);
    pass(Duration::from_secs(151)).await;
    world.secrets.fetch(&id("web"), Priority::Waiting).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_last_release_forgets_the_certificate() {
    let world = world();
    world.secrets.retain(&id("web"));
    world.secrets.retain(&id("web"));
    settle().await;
    world.secrets.release(&id("web"));
    assert!(world.secrets.current(&id("web")).is_some());
    world.secrets.release(&id("web"));
    assert!(world.secrets.current(&id("web")).is_none());
    settle().await;
    assert_eq!(world.secrets.list(), []);
    assert!(!world.registry.encode().contains("tulle_cert_not_after_seconds{"));
}

/// A store over an authority whose answers outlive the process.
fn held() -> (World, Arc<HeldCa>) {
    let World { ca, secrets, .. } = world();
    let registry = Registry::new();
    let options = secrets.shared().options.clone();
    let held = Arc::new(HeldCa::new(Arc::new(ca.clone()), options.clock.clone()));
    let authority: Arc<dyn CaClient> = Arc::clone(&held) as _;
    let world = World {
        secrets: SecretManager::new(authority, options, Metrics::register(&registry)),
        ca,
        registry,
    };
    (world, held)
}

/// For how many identities the next process would find a key.
fn left(held: &HeldCa) -> usize {
    let nobody = FakeCa::new(Arc::new(TestCa::new()), Clock::system());
    let next = HeldCa::new(Arc::new(nobody), Clock::system());
    next.restore(&held.encode()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_last_release_takes_the_key_from_the_next_process() {
    let (world, held) = held();
    world.secrets.retain(&id("web"));
    world.secrets.retain(&id("web"));
    settle().await;
    world.secrets.release(&id("web"));
    assert_eq!(left(&held), 1, "one workload is left");
    world.secrets.release(&id("web"));
    assert_eq!(left(&held), 0);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_comes_after_the_last_release_is_not_left_to_the_next_process() {
    let (world, held) = held();
    world.ca.set_delay(Duration::from_secs(1));
    world.secrets.retain(&id("web"));
    settle().await;
    world.secrets.release(&id("web"));
    pass(Duration::from_secs(2)).await;
    assert_eq!(world.ca.asked(), [id("web")]);
    assert_eq!(left(&held), 0);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_nobody_uses_any_more_is_not_left_to_the_next_process() {
    let (world, held) = held();
    world.secrets.fetch(&id("web"), Priority::Waiting).await.unwrap();
    assert_eq!(left(&held), 1);
    // Renewed once, as it was used, and not a second time.
    pass(DAY * 3 / 2).await;
    assert_eq!(world.secrets.list(), [], "swept");
    assert_eq!(left(&held), 0);
}

#[tokio::test(start_paused = true)]
async fn a_foreign_leaf_is_never_kept() {
    #[derive(Debug)]
    struct Liar(TestCa, Clock);
    impl CaClient for Liar {
        fn fetch<'a>(&'a self, _: &'a Identity) -> crate::ca::CaFuture<'a> {
            Box::pin(async { Ok(self.0.issue(&id("other"), self.1.now(), DAY)) })
        }
    }
    let liar = Arc::new(Liar(TestCa::new(), Clock::system()));
    let secrets = SecretManager::new(liar, Options::default(), Metrics::default());
    let error = secrets.fetch(&id("web"), Priority::Waiting).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("asked for spiffe://cluster.local/ns/shop/sa/web"),
        "{error}"
    );
    assert!(secrets.current(&id("web")).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_panicking_client_is_a_failed_attempt() {
    #[derive(Debug)]
    struct Broken(std::sync::atomic::AtomicUsize, FakeCa);
    impl CaClient for Broken {
        fn fetch<'a>(&'a self, identity: &'a Identity) -> crate::ca::CaFuture<'a> {
            assert!(
                self.0.fetch_add(1, Ordering::Relaxed) > 0,
                "the first attempt panics"
            );
            self.1.fetch(identity)
        }
    }
    let inner = FakeCa::new(Arc::new(TestCa::new()), Clock::system());
    let secrets = SecretManager::new(
        Arc::new(Broken(0.into(), inner)),
        Options::default(),
        Metrics::default(),
    );
    secrets.fetch(&id("web"), Priority::Waiting).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_never_answers_frees_its_place() {
    let world = world();
    world.ca.set_delay(DAY);
    (0..8).for_each(|n| world.secrets.retain(&id(&format!("stuck{n}"))));
    settle().await;
    world.ca.set_delay(Duration::ZERO);
    world.secrets.retain(&id("web"));
    pass(Duration::from_secs(31)).await;
    assert!(world.secrets.current(&id("web")).is_some());
}

#[tokio::test(start_paused = true)]
async fn the_dump_shows_state_and_no_key() {
    let world = world();
    world.secrets.retain(&id("web"));
    settle().await;
    let [line] = &world.secrets.list()[..] else {
        panic!("one identity is listed")
    };
    assert_eq!(
        (line.state, line.workloads, line.roots),
        (CertificateState::Valid, 1, 1)
    );
    assert_eq!(
        line.serial.as_deref(),
        Some(world.secrets.current(&id("web")).unwrap().serial())
    );
    assert!(line.not_after.as_ref().unwrap().ends_with('Z'));
    assert!(line.renew_at.is_some());
}

#[tokio::test(start_paused = true)]
async fn metrics_follow_what_is_held() {
    let world = world();
    world.secrets.retain(&id("web"));
    settle().await;
    let not_after = world.secrets.current(&id("web")).unwrap().not_after();
    let seconds = not_after
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let text = world.registry.encode();
    let line = format!(
        "tulle_cert_not_after_seconds{{identity=\"spiffe://cluster.local/ns/shop/sa/web\"}} {seconds}"
    );
    assert!(text.contains(&line), "{text}");
    assert!(
        text.contains("tulle_cert_fetches_total{result=\"issued\"} 1"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_store_ends_with_its_last_handle() {
    let world = world();
    world.secrets.retain(&id("web"));
    settle().await;
    let shared = Arc::downgrade(world.secrets.shared());
    drop(world);
    settle().await;
    assert!(shared.upgrade().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_is_not_renewed_raises_an_alarm_with_a_third_of_its_life_left() {
    let world = world();
    let overdue = || {
        let text = world.registry.encode();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("tulle_cert_overdue "));
        line.unwrap().parse::<u64>().unwrap()
    };
    world.secrets.retain(&id("web"));
    settle().await;
    let end = world.secrets.current(&id("web")).unwrap().not_after();
    let life = end
        .duration_since(world.secrets.shared().options.clock.now())
        .unwrap();
    world.ca.set_away(true);
    pass(life * 3 / 5).await;
    assert_eq!(overdue(), 0, "due, and not yet alarming");
    pass(life / 10).await;
    assert_eq!(overdue(), 1);
    world.ca.set_away(false);
    pass(Duration::from_secs(200)).await;
    assert_eq!(overdue(), 0, "renewed");
    world.ca.set_away(true);
    pass(life * 4 / 5).await;
    assert_eq!(overdue(), 1);
    world.secrets.release(&id("web"));
    settle().await;
    assert_eq!(overdue(), 0, "nobody needs it any more");
}

#[tokio::test(start_paused = true)]
async fn an_alarm_comes_at_its_time_although_the_next_attempt_is_far() {
    let world = world();
    let overdue = || world.registry.encode().contains("tulle_cert_overdue 1");
    world.secrets.retain(&id("web"));
    settle().await;
    let end = world.secrets.current(&id("web")).unwrap().not_after();
    let life = end
        .duration_since(world.secrets.shared().options.clock.now())
        .unwrap();
    world.ca.set_away(true);
    // By then attempts are minutes apart.
    pass(life * 2 / 3 - Duration::from_secs(5)).await;
    assert!(!overdue());
    pass(Duration::from_secs(6)).await;
    assert!(overdue());
}
