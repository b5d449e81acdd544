use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::http::HeaderMap;
use axum::routing::post;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tulle_proto::otlp::Value;
use tulle_runtime::tasks;

use super::super::tests::{BYTES, KEYS, denied, story};
use super::*;
use crate::metrics::Metrics;
use crate::metrics::labels::Direction;

fn at(address: std::net::SocketAddr) -> LogCollector {
    LogCollector {
        authority: address.to_string(),
        path: "/v1/logs".to_owned(),
    }
}

fn metrics(collector: LogCollector) -> (Metrics, Counter) {
    let dropped = Counter::default();
    let resource = Resource::new(vec![KeyValue::text("service.name", "ztunnel")]);
    let exporter = Exporter::start(collector, resource, dropped.clone());
    let metrics = Metrics {
        exporter: Some(exporter),
        ..Metrics::default()
    };
    (metrics, dropped)
}

/// A collector that gives these answers, the last one again and again, and what it was sent.
async fn collector(answers: &'static [u16]) -> (LogCollector, UnboundedReceiver<Logs>) {
    let (told, requests) = mpsc::unbounded_channel();
    let asked = Arc::new(AtomicUsize::new(0));
    let answer = move |headers: HeaderMap, body: Bytes| {
        let nth = asked.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1);
        let told = told.clone();
        async move {
            assert_eq!(headers["content-type"], "application/x-protobuf");
            let _ = told.send(Logs::decode(body).unwrap());
            StatusCode::from_u16(answers[nth]).unwrap()
        }
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let pages = Router::new().route("/v1/logs", post(answer));
    tasks::spawn(
        "collector",
        async move { axum::serve(listener, pages).await.unwrap() },
    );
    (at(address), requests)
}

fn lines(logs: &Logs) -> &[LogRecord] {
    &logs.resource_logs[0].scope_logs[0].log_records
}

fn text<'a>(record: &'a LogRecord, key: &str) -> &'a str {
    let found = record.attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(Value::Text(text)) => text,
        other => panic!("{key}: {other:?}"),
    }
}

#[tokio::test]
async fn a_line_arrives_with_the_keys_of_the_log_in_their_order() {
    let (collector, mut requests) = collector(&[200]).await;
    let (metrics, dropped) = metrics(collector);
    story(Direction::Outbound).complete(&metrics, BYTES, Some(&denied()));
    let logs = requests.recv().await.unwrap();
    let resource = logs.resource_logs[0].resource.as_ref().unwrap();
    assert_eq!(resource.attributes, [KeyValue::text("service.name", "ztunnel")]);
    let [line] = lines(&logs) else {
        panic!("one line: {logs:?}")
    };
    assert_eq!((line.severity_number, &*line.severity_text), (17, "ERROR"));
    let keys = line.attributes.iter().map(|attribute| &*attribute.key);
    assert!(
        keys.eq(KEYS.into_iter().filter(|key| *key != "policy")),
        "{line:?}"
    );
    assert_eq!(text(line, "src.identity"), "spiffe://td/ns/shop/sa/web");
    assert_eq!(text(line, "reason"), "T0515 overload");
    assert!(
        line.attributes
            .contains(&KeyValue::count("bytes_sent", BYTES.from_client))
    );
    assert!(line.time_unix_nano > 0 && dropped.get() == 0);
}

#[tokio::test(start_paused = true)]
async fn lines_are_sent_again_to_a_collector_that_could_not_take_them() {
    let (collector, mut requests) = collector(&[503, 200]).await;
    let (metrics, dropped) = metrics(collector);
    story(Direction::Inbound).complete(&metrics, BYTES, None);
    let first = requests.recv().await.unwrap();
    assert_eq!(requests.recv().await.unwrap(), first);
    assert_eq!(dropped.get(), 0);
}

#[tokio::test]
async fn lines_that_the_collector_refuses_are_counted() {
    let (collector, mut requests) = collector(&[400, 200]).await;
    let (metrics, dropped) = metrics(collector);
    story(Direction::Inbound).complete(&metrics, BYTES, None);
    requests.recv().await.unwrap();
    // The next delivery begins when the refusal was counted.
    story(Direction::Inbound).fail(&metrics, &denied());
    assert_eq!(lines(&requests.recv().await.unwrap())[0].severity_number, 17);
    assert_eq!(dropped.get(), 1);
}

#[tokio::test]
async fn a_collector_that_takes_nothing_loses_lines_and_holds_nobody_up() {
    // It accepts, as the kernel does for it, and never reads.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (metrics, dropped) = metrics(at(silent.local_addr().unwrap()));
    let story = story(Direction::Inbound);
    // The task of delivery has no turn meanwhile: each of these is queued or counted at once.
    (0..LINES_MAX + 5).for_each(|_| story.complete(&metrics, BYTES, None));
    assert_eq!(dropped.get(), 5);
}
