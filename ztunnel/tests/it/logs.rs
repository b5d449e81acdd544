//! Logs that nobody reads, and traffic meanwhile.

use std::io::Read as _;

use tulle_runtime::telemetry::{self, LogFormat, QUEUE_LINES_MAX, QUEUE_RESERVE_LINES_MAX};

use crate::inbound::DENY_REVIEWS;
use crate::world::{World, assert_echoes};

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
    let (mut written, sink) = std::io::pipe().unwrap();
    let (dispatch, log) = telemetry::to_sink(LogFormat::Text, "info", sink).unwrap();
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
