//! The sockets that questions arrive on. Every question is a task of its own, and both they and connections are
//! bounded per workload.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};
use tulle_model::workload::Workload;
use tulle_runtime::tasks;

use super::answer::{Decision, decide};
use super::forward::ForwardError;
use super::metrics::DnsLabels;
use super::stale::Answered;
use super::wire::{self, DATAGRAM_BYTES_MAX, Query, Received, Transport};
use super::{frame, reply};
use crate::accept::{Accepting, pause_after};
use crate::on_demand;
use crate::pod::Pod;

/// How long a question waits for the description of its own workload: less than a client waits for an answer.
const SOURCE_WAIT: Duration = Duration::from_secs(2);

/// How long a connection may be silent, or stuck.
const STREAM_IDLE: Duration = Duration::from_secs(10);

/// Answers datagrams until accepting stops.
pub async fn serve_datagrams(socket: UdpSocket, pod: Arc<Pod>, mut accepting: Accepting) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; usize::from(DATAGRAM_BYTES_MAX) + 1];
    loop {
        let received = tokio::select! {
            biased;
            () = accepting.stopped(&pod) => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        match received {
            // A client sends again what gets lost; a question of this size is none.
            Ok((length, _)) if length > usize::from(DATAGRAM_BYTES_MAX) => {}
            Ok((length, client)) => match pod.dns.question_place() {
                Some(place) => start(&pod, &socket, buffer[..length].to_vec(), client, place),
                None => tracing::debug!(workload = %pod.name, "too many questions at once, dropped"),
            },
            Err(error) => pause_after(&error).await,
        }
    }
}

fn start(
    pod: &Arc<Pod>,
    socket: &Arc<UdpSocket>,
    bytes: Vec<u8>,
    client: SocketAddr,
    place: OwnedSemaphorePermit,
) {
    let (pod, socket, guard) = (Arc::clone(pod), Arc::clone(socket), pod.drain.guard());
    tasks::spawn("dns-question", async move {
        let _held = (guard, place);
        let answering = async {
            if let Some(reply) = handle(&pod, &bytes, Transport::Udp).await {
                // A client that is gone is no news.
                let _ = socket.send_to(&reply, client).await;
            }
        };
        tokio::select! {
            () = answering => {}
            () = pod.drain.urgent() => {}
        }
    });
}

/// Answers the questions of one connection, one after the other.
pub async fn serve_stream(pod: Arc<Pod>, mut stream: TcpStream, _client: SocketAddr) {
    let Some(_place) = pod.dns.stream_place() else {
        tracing::debug!(workload = %pod.name, "too many connections for questions, closed");
        return;
    };
    // It only makes replies later.
    let _ = stream.set_nodelay(true);
    loop {
        let read = tokio::select! {
            read = timeout(STREAM_IDLE, frame::read(&mut stream)) => read,
            _ = pod.drain.signaled() => return,
        };
        let Ok(Ok(Some(question))) = read else { return };
        let reply = tokio::select! {
            reply = handle(&pod, &question, Transport::Tcp) => reply,
            () = pod.drain.urgent() => return,
        };
        let Some(reply) = reply else { return };
        let written = timeout(STREAM_IDLE, frame::write(&mut stream, &reply)).await;
        if !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
}

/// The reply to what a client sent, if it gets one.
async fn handle(pod: &Pod, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
    match Received::read(bytes) {
        Received::Ignored => None,
        Received::Refused(code) => Some(wire::bare_reply(bytes, code)),
        Received::Query(query) => {
            let reply = resolve(pod, &query, transport).await;
            Some(wire::cut(reply, query.reply_bytes_max(transport)))
        }
    }
}

async fn resolve(pod: &Pod, query: &Query<'_>, transport: Transport) -> Vec<u8> {
    let source = pod.workload_within(SOURCE_WAIT).await.ok();
    let labels = DnsLabels::new(query.question.query_type(), transport, source.as_deref());
    let labels = pod.node.metrics.dns.count_request(labels);
    let Some(source) = source else {
        log(pod, query, "unknown source");
        return reply::failure(query, ResponseCode::ServFail);
    };
    let mut decision = decide_now(pod, query, &source);
    if decision == Decision::Forward && on_demand::learn_name(pod, &query.question, &source).await {
        decision = decide_now(pod, query, &source);
    }
    match decision {
        Decision::Answer(answer) => {
            log(pod, query, "answered");
            reply::answer(query, answer)
        }
        Decision::Forward => forward(pod, query, transport, &labels).await,
    }
}

fn decide_now(pod: &Pod, query: &Query<'_>, source: &Workload) -> Decision {
    let snapshot = pod.node.mesh.snapshot();
    decide(&query.question, &snapshot, source, &pod.dns.settings)
}

async fn forward(pod: &Pod, query: &Query<'_>, transport: Transport, labels: &DnsLabels) -> Vec<u8> {
    let begun = Instant::now();
    let outcome = pod.dns.stale.ask(&pod.dns.upstream, query, transport).await;
    let metrics = &pod.node.metrics.dns;
    let failed = outcome.as_ref().map_or(true, |answered| answered.stale);
    metrics.count_forwarded(labels, begun.elapsed(), failed);
    match outcome {
        Ok(Answered { reply, stale: false }) => {
            log(pod, query, "forwarded");
            reply
        }
        Ok(Answered { reply, stale: true }) => {
            metrics.stale.inc();
            log(pod, query, "answered as before, as no name server answers");
            reply
        }
        Err(error) => {
            metrics.count_unanswered(error.reason());
            tracing::debug!(target: "dns", workload = %pod.name, name = %query.question.name(), %error, "not forwarded");
            if let Some(questions) = pod.dns.complaints.note() {
                complain(pod, query, &error, questions);
            }
            reply::failure(query, ResponseCode::ServFail)
        }
    }
}

/// Says once for many `questions` that nobody answers, this one the last of them.
fn complain(pod: &Pod, query: &Query<'_>, error: &ForwardError, questions: u64) {
    tracing::warn!(
        target: "dns",
        workload = %pod.name,
        reason = %error.reason(),
        servers = ?pod.dns.upstream.servers,
        questions,
        last = %query.question.name(),
        "{error}; see that a name server of the pod runs and is reachable from it on port 53"
    );
}

fn log(pod: &Pod, query: &Query<'_>, outcome: &'static str) {
    let question = &query.question;
    tracing::debug!(
        target: "dns",
        workload = %pod.name,
        name = %question.name(),
        kind = %question.query_type(),
        outcome
    );
}
