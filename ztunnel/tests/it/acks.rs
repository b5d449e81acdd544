//! How long the answer to `add` waits for what the pod's first connection needs: its description and its certificate.
//!
//! The clock stands still and is moved by hand; the listeners are the agent's, so that no thread is waited for.

use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::task::yield_now;
use tokio::time::{advance, sleep};
use tulle_identity::{Clock, Priority};
use tulle_runtime::tasks;

use crate::agent::{Agent, KINDS, add, listeners, namespace, snapshot_sent, with_listeners};
use crate::world::{identity, updates};

/// The longest wait.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// How far the clock is moved at once.
const STEP: Duration = Duration::from_millis(100);

/// What a timer may be late.
const TICK: Duration = Duration::from_millis(1);

/// More turns of the runtime than any request needs while the clock stands still.
const TURNS: usize = 200;

const DESCRIBED: &str = "workloads: [{uid: w, name: web, namespace: shop, serviceAccount: web, protocol: HBONE, \
                         workloadIps: [10.0.0.1]}]";

/// An agent that says nothing more of its pods than the test does, and a clock that stands still.
async fn agent() -> Agent {
    let agent = Agent::start().await;
    tokio::time::pause();
    agent
}

fn describe(agent: &Agent) {
    agent.app.node().mesh.apply(updates(DESCRIBED));
}

fn has_certificate(agent: &Agent) -> bool {
    let secrets = &agent.app.node().secrets;
    secrets.current(&identity("shop", "web")).is_some()
}

/// Lets everything happen that needs no time.
async fn turn() {
    for _ in 0..TURNS {
        yield_now().await;
    }
}

/// After how long the `add` of a new pod is answered without an error.
async fn answered_after(agent: &Agent) -> Option<Duration> {
    let netns = namespace()?;
    let opened = listeners(&netns);
    let fds = with_listeners(&netns, &opened);
    agent.send(add("web", &KINDS), &fds).await;
    let mut answer = std::pin::pin!(agent.answer());
    let mut waited = Duration::ZERO;
    // Timers begin, and go off up to a tick late.
    turn().await;
    advance(TICK).await;
    loop {
        turn().await;
        if let Some((error, _, _)) = answer.as_mut().now_or_never() {
            assert_eq!(error, "");
            return Some(waited);
        }
        assert!(waited <= 2 * WAIT_MAX, "never answered");
        advance(STEP).await;
        waited += STEP;
    }
}

#[tokio::test]
async fn an_add_is_answered_as_soon_as_the_pods_certificate_is_there() {
    let agent = agent().await;
    agent.assert_done(snapshot_sent(), &[]).await;
    describe(&agent);
    agent.authority.set_delay(6 * STEP);
    let Some(waited) = answered_after(&agent).await else {
        return;
    };
    assert_eq!(waited, 6 * STEP);
    assert!(has_certificate(&agent), "the first connection finds it");
}

#[tokio::test]
async fn an_add_is_answered_as_soon_as_the_pod_is_described() {
    let agent = agent().await;
    agent.assert_done(snapshot_sent(), &[]).await;
    let mesh = agent.app.node().mesh.clone();
    let later = tasks::spawn("describe", async move {
        sleep(4 * STEP).await;
        mesh.apply(updates(DESCRIBED));
    });
    let Some(waited) = answered_after(&agent).await else {
        return;
    };
    // Its certificate takes no time, which is a tick.
    assert!((4 * STEP..=5 * STEP).contains(&waited), "{waited:?}");
    assert!(has_certificate(&agent));
    later.await.unwrap();
}

#[tokio::test]
async fn an_add_of_a_pod_that_nobody_describes_is_answered_after_a_second() {
    let agent = agent().await;
    agent.assert_done(snapshot_sent(), &[]).await;
    let Some(waited) = answered_after(&agent).await else {
        return;
    };
    assert_eq!(waited, WAIT_MAX, "its first connection waits instead");
    assert!(agent.app.ready().is_ready(), "the pod is served");
}

#[tokio::test]
async fn an_add_whose_certificate_is_late_is_answered_after_a_second() {
    let agent = agent().await;
    agent.assert_done(snapshot_sent(), &[]).await;
    describe(&agent);
    agent.authority.set_delay(3 * WAIT_MAX);
    let Some(waited) = answered_after(&agent).await else {
        return;
    };
    assert_eq!(waited, WAIT_MAX);
    assert!(!has_certificate(&agent));
    let secrets = agent.app.node().secrets.clone();
    let certificate = secrets.fetch(&identity("shop", "web"), Priority::Waiting).await;
    let certificate = certificate.expect("what was asked for is still waited for");
    assert!(certificate.is_valid(Clock::system().now()));
}

#[tokio::test]
async fn an_add_within_a_snapshot_waits_for_nothing() {
    let agent = agent().await;
    agent.authority.set_delay(3 * WAIT_MAX);
    let Some(waited) = answered_after(&agent).await else {
        return;
    };
    assert_eq!(waited, Duration::ZERO, "the next pod of the snapshot is waiting");
}
