//! Logs that nobody reads, and traffic meanwhile.

use std::io::Read as _;

use tulle_runtime::telemetry::{self, LogFormat, QUEUE_LINES_MAX, QUEUE_RESERVE_LINES_MAX};
use tulle_transport::TraceParent;
use tulle_transport::hbone::ConnectRequest;

use crate::inbound::DENY_REVIEWS;
use crate::outbound::{self, behind_waypoint, call, with_waypoint};
use crate::world::{World, assert_echoes, identity};

#[tokio::test]
async fn traffic_flows_while_nobody_reads_the_log() {
    let (unread, sink) = std::io::pipe().unwrap();
    let (dispatch, _log) = telemetry::to_sink(LogFormat::Text, "info", sink).unwrap();
    let _logging = tracing::dispatcher::set_default(&dispatch);
    // More than the pipe and the queue take, reserve included.
    for line in 0..QUEUE_LINES_MAX + 2 * QUEUE_RESERVE_LINES_MAX {
        tracing::error!(
            line,
            "a line that is long enough to fill a pipe that nobody reads from"
        );
    }
    let before = telemetry::lines_dropped();
    let world = World::start("").await;
    for _ in 0..20 {
        let (mut stream, _) = world.ask_echo().await.unwrap();
        assert_echoes(&mut stream, b"not held up").await;
    }
    let refused = world.ask("10.9.9.9:80").await.unwrap_err();
    assert_eq!(refused.status, 400);
    let ended = async {
        while telemetry::lines_dropped() < before + 20 {
            tokio::task::yield_now().await;
        }
    };
    // However slow the machine is: the lines are lost, or this never ends.
    ended.await;
    let counted = format!("tulle_log_lines_dropped_total {}", telemetry::lines_dropped());
    assert!(world.metrics().contains(&counted), "{counted}");
    drop(unread);
}

/// What is logged at `info` while something is done.
async fn logged(work: impl AsyncFnOnce()) -> String {
    logged_at("info", work).await
}

/// The same at another level.
async fn logged_at(filter: &str, work: impl AsyncFnOnce()) -> String {
    let (mut written, sink) = std::io::pipe().unwrap();
    let (dispatch, log) = telemetry::to_sink(LogFormat::Text, filter, sink).unwrap();
    {
        let _logging = tracing::dispatcher::set_default(&dispatch);
        work().await;
    }
    log.flush();
    drop((dispatch, log));
    let mut text = vec![0; 64 * 1024];
    let length = written.read(&mut text).unwrap();
    String::from_utf8_lossy(&text[..length]).into_owned()
}

#[tokio::test]
async fn a_denial_names_policy_and_rule_at_the_level_that_was_asked_for() {
    for (asked, shown) in [("true", true), ("false", false)] {
        let text = logged(async || {
            let world = World::start_with("", &[("AUTHZ_POLICY_INFO_LOGGING", asked)]).await;
            world.apply(DENY_REVIEWS);
            assert_eq!(world.ask_echo().await.unwrap_err().status, 401);
        });
        let text = text.await;
        let line = text.lines().find(|line| line.contains("inbound::authorize"));
        let named = line.is_some_and(|line| line.contains("deny-reviews") && line.contains("rule"));
        assert_eq!(named, shown, "{text}");
        assert!(
            text.contains("shop/deny-reviews"),
            "the access line has the policy all the same: {text}"
        );
    }
}

#[tokio::test]
async fn the_configuration_in_force_is_logged_at_the_start_without_a_secret() {
    const SECRET: &str = "a-secret-that-nobody-reads";
    let text = logged(async || {
        let variables = [
            ("AUTH_TOKEN", SECRET),
            ("CA_HEADER_AUTHORIZATION", SECRET),
            ("XDS_ADDRESS", "https://127.0.0.1:1"),
            ("XDS_HEADER_X_KEY", SECRET),
            ("XDS_ROOT_CA", "SYSTEM"),
            ("SECRET_TTL", "7h"),
        ];
        drop(World::start_with("", &variables).await);
    });
    let text = text.await;
    let line = text
        .lines()
        .find(|line| line.contains("starting"))
        .expect("a line");
    for expected in ["shop", "web-1", "7h", "127.0.0.1:1", "literal"] {
        assert!(line.contains(expected), "{expected} in {line}");
    }
    assert!(!text.contains(SECRET), "{text}");
}

/// The trace of each line with these words in it.
fn traces(text: &str, words: &[&str]) -> Vec<String> {
    let lines = text
        .lines()
        .filter(|line| words.iter().all(|word| line.contains(word)));
    let trace = |line: &str| Some(line.split_once(" trace_id=\"")?.1.split_once('"')?.0.to_owned());
    lines
        .map(|line| trace(line).unwrap_or_else(|| panic!("no trace in {line}")))
        .collect()
}

#[tokio::test]
async fn a_receiver_logs_the_trace_that_a_tunnel_names_and_one_of_its_own_where_none_is() {
    let named = TraceParent::random();
    let text = logged_at("access=debug", async || {
        let world = World::start("").await;
        let connection = world.connect_as(&identity("shop", "reviews")).await.unwrap();
        for traceparent in [Some(named), None] {
            let request = |authority: String| ConnectRequest {
                traceparent,
                ..ConnectRequest::new(authority)
            };
            let (mut stream, _) = connection.open(&request(world.echo.to_string())).await.unwrap();
            assert_echoes(&mut stream, b"traced").await;
            assert!(connection.open(&request("10.9.9.9:80".to_owned())).await.is_err());
        }
    });
    let text = text.await;
    let named = format!("{:032x}", named.trace_id);
    for line in ["connection opened", "connection failed"] {
        let [first, second] = &traces(&text, &[line, "direction=\"inbound\""])[..] else {
            panic!("{text}")
        };
        assert_eq!(*first, named, "{line}");
        assert!(second.len() == 32 && *second != named, "{second}");
    }
}

#[tokio::test]
async fn both_ends_of_a_tunnel_log_the_same_trace() {
    let text = logged_at("access=debug", async || {
        let world = World::start("").await;
        let _front = with_waypoint(&world, "front").await;
        let mut application = call(&world, behind_waypoint().await).await;
        outbound::assert_echoes(&mut application, b"one trace").await;
    });
    let text = text.await;
    let of = |direction: &str| {
        traces(
            &text,
            &["connection opened", &format!("direction=\"{direction}\"")],
        )
    };
    let sent = of("outbound");
    assert_eq!(sent.len(), 1, "{text}");
    assert_eq!(sent, of("inbound"));
}
