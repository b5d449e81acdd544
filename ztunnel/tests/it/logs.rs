//! Logs that nobody reads, and traffic meanwhile.

use tulle_runtime::telemetry::{self, LogFormat, QUEUE_LINES_MAX, QUEUE_RESERVE_LINES_MAX};

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
    tokio::time::timeout(crate::world::SOON, ended)
        .await
        .expect("every end of a connection is a line that is lost");
    let counted = format!("tulle_log_lines_dropped_total {}", telemetry::lines_dropped());
    assert!(world.metrics().contains(&counted), "{counted}");
    drop(unread);
}
