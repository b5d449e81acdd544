//! Bytes that two readers could read differently: each ends in one rejection, or in exactly the requests that rules and
//! policies saw. The inputs are the files of `tests/desync/`.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tulle_runtime::tasks;
use tulle_transport::hbone::HboneStream;
use tulle_waypoint::http::pace::REST_AFTER;

use super::strict::{Reader, Seen};
use super::world::{World, front, get, identity, web};
use tulle_model::service::AppProtocol;
use tulle_model::testing::workload;

/// Fewest inputs of both sides together.
const INPUTS_MIN: usize = 60;
/// Long enough for everything that is going to happen, under a clock that is paused.
const A_WHILE: Duration = Duration::from_secs(1);

/// A request as an input expects it upstream: method, authority, target, body.
type Expected = (String, String, String, String);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Front {
    name: String,
    send: String,
    reject: Option<u16>,
    /// The body breaks off: nothing whole goes upstream, and the answer is no success.
    #[serde(default)]
    broken: bool,
    #[serde(default)]
    forward: Vec<Expected>,
    /// Fields that must not go upstream.
    #[serde(default)]
    absent: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Back {
    name: String,
    answer: String,
    status: u16,
    #[serde(default)]
    body: String,
    #[serde(default)]
    broken: bool,
    #[serde(default)]
    again: bool,
    #[serde(default)]
    absent: Vec<String>,
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> Vec<T> {
    serde_saphyr::from_str(text).unwrap()
}

fn fronts() -> Vec<Front> {
    read(include_str!("../desync/front.yaml"))
}

fn backs() -> Vec<Back> {
    read(include_str!("../desync/back.yaml"))
}

async fn world() -> World {
    World::start(vec![
        web(AppProtocol::Http11),
        workload("shop/web-1")
            .sa("web")
            .ip("10.0.0.7")
            .hbone()
            .serves("shop/web")
            .into(),
        front("shop/web", |_| {}),
    ])
    .await
}

/// Everything that arrives upstream, read by the strictest of readers.
fn record(world: &World) -> Arc<Mutex<Vec<Seen>>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (mut streams, keeping) = (world.endpoint("10.0.0.7", "web"), Arc::clone(&seen));
    drop(tasks::spawn("recorder", async move {
        while let Some(stream) = streams.recv().await {
            drop(tasks::spawn(
                "recorder-stream",
                answer_ok(stream, Arc::clone(&keeping)),
            ));
        }
    }));
    seen
}

async fn answer_ok(mut stream: HboneStream, seen: Arc<Mutex<Vec<Seen>>>) {
    let (mut reader, mut buffer) = (Reader::default(), [0; 4096]);
    loop {
        let length = match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        for request in reader.feed(&buffer[..length]) {
            seen.lock().push(request);
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    }
}

/// A connection that has served a request, and rests since.
async fn rested(world: &World) -> HboneStream {
    let mut stream = world.ask("client", "10.96.0.1:80").await.unwrap();
    let first = b"POST /first HTTP/1.1\r\nHost: web.shop\r\nContent-Length: 2\r\n\r\nok";
    stream.write_all(first).await.unwrap();
    let head = super::world::read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    tokio::time::sleep(2 * REST_AFTER).await;
    stream
}

/// Sends bytes and an end; gives back all that comes.
async fn exchange(mut stream: HboneStream, bytes: &str) -> Vec<u8> {
    let mut answer = Vec::new();
    let talking = async {
        // The other side may have seen enough before the end.
        let _ = stream.write_all(bytes.as_bytes()).await;
        let _ = stream.flush().await;
        tokio::time::sleep(A_WHILE).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut answer).await;
    };
    let _ = tokio::time::timeout(Duration::from_secs(60), talking).await;
    tokio::time::sleep(A_WHILE).await;
    answer
}

/// The statuses of the answers, in order.
fn statuses(answer: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answer);
    let lines = text
        .match_indices("HTTP/1.")
        .filter_map(|(at, _)| text.get(at + 9..at + 12));
    lines.filter_map(|status| status.parse().ok()).collect()
}

fn judge(input: &Front, seen: &[Seen], answer: &[u8]) -> Result<(), String> {
    let statuses = statuses(answer);
    let told = || format!("answers {statuses:?}, upstream {seen:?}");
    let as_expected = |seen: &Seen, (method, authority, target, body): &Expected| {
        let same = (&seen.method, &seen.host, &seen.target, &seen.body) == (method, authority, target, body);
        same && input
            .absent
            .iter()
            .all(|name| !seen.fields.iter().any(|(known, _)| known == name))
    };
    let forwarded = |expected: &[Expected]| {
        seen.len() == expected.len()
            && seen
                .iter()
                .zip(expected)
                .all(|(seen, one)| as_expected(seen, one))
    };
    if let Some(malformed) = seen.iter().find_map(|seen| seen.malformed.as_ref()) {
        return Err(format!("malformed upstream: {malformed}; {}", told()));
    }
    let holds = if input.broken {
        seen.is_empty() && !statuses.contains(&200)
    } else if let Some(status) = input.reject {
        seen.is_empty() && statuses.first() == Some(&status) && !statuses.contains(&200)
    } else {
        forwarded(&input.forward) && statuses.iter().filter(|status| **status == 200).count() == seen.len()
    };
    if holds { Ok(()) } else { Err(told()) }
}

#[tokio::test(start_paused = true)]
async fn what_clients_send_is_refused_or_goes_up_as_rules_saw_it() {
    assert!(fronts().len() + backs().len() >= INPUTS_MIN);
    check_fronts(false).await;
}

#[tokio::test(start_paused = true)]
async fn what_clients_send_after_a_rest_is_read_no_other_way() {
    check_fronts(true).await;
}

async fn check_fronts(after_a_rest: bool) {
    let inputs = fronts();
    let world = world().await;
    let seen = record(&world);
    let mut wrong = Vec::new();
    for input in &inputs {
        let stream = if after_a_rest {
            rested(&world).await
        } else {
            world.ask("client", "10.96.0.1:80").await.unwrap()
        };
        seen.lock().clear();
        let answer = exchange(stream, &input.send).await;
        let seen = seen.lock().clone();
        if let Err(what) = judge(input, &seen, &answer) {
            wrong.push(format!("{}: {what}", input.name));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        inputs.len(),
        wrong.join("\n")
    );
}

/// An endpoint that gives one answer to everything, and counts its connections.
fn answering(world: &World, account: &str, input: &Back) -> Arc<Mutex<usize>> {
    let opened = Arc::new(Mutex::new(0));
    let (mut streams, counting) = (world.endpoint("10.0.0.7", account), Arc::clone(&opened));
    let (answer, broken) = (input.answer.clone(), input.broken);
    drop(tasks::spawn("endpoint", async move {
        while let Some(mut stream) = streams.recv().await {
            *counting.lock() += 1;
            let answer = answer.clone();
            drop(tasks::spawn("endpoint-stream", async move {
                let (mut reader, mut buffer) = (Reader::default(), [0; 4096]);
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    for _ in reader.feed(&buffer[..length]) {
                        let _ = stream.write_all(answer.as_bytes()).await;
                        if broken {
                            let _ = stream.shutdown().await;
                        }
                    }
                }
            }));
        }
    }));
    opened
}

async fn check_back(input: &Back) -> Result<(), String> {
    let world = world().await;
    let opened = answering(&world, "web", input);
    let mut told = Vec::new();
    for _ in 0..2 {
        let mut client = world.http1(&identity("client").service_account).await;
        let asking = tokio::time::timeout(Duration::from_secs(60), client.send_request(get("/")));
        let response = asking
            .await
            .map_err(|_| "no answer")?
            .map_err(|error| error.to_string())?;
        let (parts, body) = response.into_parts();
        let body = body
            .collect()
            .await
            .map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
        let body_holds = match &body {
            Ok(body) => !input.broken && (input.status != 200 || *body == input.body),
            Err(_) => input.broken,
        };
        let absent = input.absent.iter().all(|name| !parts.headers.contains_key(name));
        if parts.status != input.status || !body_holds || !absent {
            return Err(format!("{} {:?} {body:?}", parts.status, parts.headers));
        }
        told.push(parts.status);
        tokio::time::sleep(A_WHILE).await;
    }
    let opened = *opened.lock();
    if (opened == 1) != input.again {
        return Err(format!("{opened} connections for two requests"));
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn what_applications_answer_goes_down_whole_or_breaks_off() {
    let mut wrong = Vec::new();
    for input in backs() {
        if let Err(what) = check_back(&input).await {
            wrong.push(format!("{}: {what}", input.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
