//! Many sockets in processes of their own, inside of pods: no process may open more files than its limit, and clients that
//! share one with their servers have half of it.
//!
//! A member is this very program under another name, [`NAME`]. It is told what to do line by line, and answers with a line:
//!
//! | line | does | answer |
//! |---|---|---|
//! | `serve IP PORT COUNT` | echoes at so many ports | `serving` |
//! | `hold IP PORT COUNT` | opens connections and keeps them | how many it holds, and how many failed |
//! | `call IP PORT COUNT RATE SECONDS` | opens new ones at a rate, at so many ports in turn, one request each | good, failed, p50 and p99 in µs, how many took longer than [`SLOW`], and when the first and the last of those were due, in ms |
//! | `lost` | looks at those it holds | how many have ended |

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::process::ChildStdout;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tulle_linux::NetNs;

use crate::load::{Samples, Window};
use crate::mesh::PATIENCE;
use crate::traffic::spawn;

/// First argument of the program when it is to be a member.
pub const NAME: &str = "member-of-a-crowd";

/// Connections that are being opened at a time.
const OPENING: u64 = 16;
/// Callers that may wait to be accepted by a server.
const BACKLOG: u32 = 4096;
/// A new connection that takes longer than this is told of.
pub const SLOW: Duration = Duration::from_millis(20);
/// What a new connection says, and hears.
const REQUEST: &[u8] = b"one new connection";

/// A process that holds sockets inside of a pod; it ends with the value.
#[derive(Debug)]
pub struct Member {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What new connections came to.
#[derive(Debug, Clone, Copy)]
pub struct Called {
    /// Those that came back whole.
    pub good: u64,
    /// Those that did not.
    pub failed: u64,
    /// Half took at most this.
    pub p50: Duration,
    /// 99 of 100 took at most this.
    pub p99: Duration,
    /// How many took longer than [`SLOW`], and between which moments since the beginning those were due.
    pub slow: (u64, [Duration; 2]),
}

impl Member {
    /// Starts one inside of a namespace.
    #[must_use]
    pub fn start(namespace: &NetNs) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("a program has a path"));
        command.arg(NAME).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = namespace.spawn(command).expect("the program starts once more");
        let input = child.stdin.take().expect("its input is piped");
        let output = child.stdout.take().expect("its output is piped");
        let output = BufReader::new(ChildStdout::from_std(output).expect("a pipe can be awaited"));
        Self { child, input, output }
    }

    /// Starts a server inside of a namespace.
    pub async fn serve(namespace: &NetNs, first: SocketAddr, ports: u16) -> Self {
        let mut member = Self::start(namespace);
        let answer = member
            .ask(&format!("serve {} {} {ports}", first.ip(), first.port()))
            .await;
        assert_eq!(answer, "serving");
        member
    }

    /// Opens connections and keeps them; says how many could not be opened.
    pub async fn hold(&mut self, to: SocketAddr, count: u64) -> u64 {
        let answer = self.ask(&format!("hold {} {} {count}", to.ip(), to.port())).await;
        numbers::<2>(&answer)[1]
    }

    /// Opens new connections at a rate, to so many ports in turn.
    pub async fn call(&mut self, first: SocketAddr, ports: u16, rate: u32, time: Duration) -> Called {
        let (ip, port, seconds) = (first.ip(), first.port(), time.as_secs());
        let answer = self
            .ask(&format!("call {ip} {port} {ports} {rate} {seconds}"))
            .await;
        let [good, failed, p50, p99, slow, first, last] = numbers(&answer);
        Called {
            good,
            failed,
            p50: Duration::from_micros(p50),
            p99: Duration::from_micros(p99),
            slow: (slow, [first, last].map(Duration::from_millis)),
        }
    }

    /// How many of the connections that are held have ended.
    pub async fn lost(&mut self) -> u64 {
        numbers::<1>(&self.ask("lost").await)[0]
    }

    async fn ask(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").expect("it listens");
        let mut answer = String::new();
        self.output.read_line(&mut answer).await.expect("it answers");
        answer.trim().to_owned()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn numbers<const COUNT: usize>(line: &str) -> [u64; COUNT] {
    let all: Vec<u64> = line.split_whitespace().map(parsed).collect();
    all.try_into()
        .unwrap_or_else(|_| panic!("{line:?} is no answer of {COUNT} numbers"))
}

fn parsed<T: FromStr>(word: &str) -> T {
    word.parse().unwrap_or_else(|_| panic!("cannot read {word:?}"))
}

/// What the program does as a member, until its input ends.
#[must_use]
pub fn run() -> ExitCode {
    if let Err(error) = tulle_runtime::limits::raise_nofile() {
        eprintln!("the limit of open files stays: {error}");
    }
    let (lines, mut told) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                break;
            }
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built");
    runtime.block_on(async {
        let mut held = Vec::new();
        while let Some(line) = told.recv().await {
            let answer = obey(&line, &mut held).await;
            say(&answer);
        }
    });
    ExitCode::SUCCESS
}

#[allow(clippy::print_stdout, reason = "the answer to who started this")]
fn say(answer: &str) {
    println!("{answer}");
    io::stdout().flush().expect("somebody listens");
}

async fn obey(line: &str, held: &mut Vec<TcpStream>) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["serve", ip, port, count] => {
            serve(parsed(ip), parsed(port), parsed(count));
            "serving".to_owned()
        }
        ["hold", ip, port, count] => {
            let before = held.len();
            let count: u64 = parsed(count);
            held.extend(open(SocketAddr::new(parsed(ip), parsed(port)), count).await);
            let opened = (held.len() - before) as u64;
            format!("{} {}", held.len(), count - opened)
        }
        ["call", ip, port, count, rate, seconds] => {
            let first = SocketAddr::new(parsed(ip), parsed(port));
            let (window, [slow, from, to]) = call(first, parsed(count), parsed(rate), parsed(seconds)).await;
            let (p50, p99) = (window.p50.as_micros(), window.p99.as_micros());
            // Of no good ones the times are longer than any number of 64 bits.
            let [p50, p99] = [p50, p99].map(|time| u64::try_from(time).unwrap_or(u64::MAX));
            format!("{} {} {p50} {p99} {slow} {from} {to}", window.ok, window.failed)
        }
        ["lost"] => held.iter().filter(|stream| has_ended(stream)).count().to_string(),
        _ => panic!("nobody knows what {line:?} means"),
    }
}

/// Nothing is sent on what is held, so there is something to read only at its end.
fn has_ended(stream: &TcpStream) -> bool {
    match stream.try_read(&mut [0]) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}

fn serve(ip: IpAddr, first: u16, count: u16) {
    for port in first..first + count {
        echo(listen(SocketAddr::new(ip, port)));
    }
}

fn echo(listener: TcpListener) {
    spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            spawn(async move {
                let (mut read, mut write) = stream.split();
                // A caller that resets its connection is the caller's affair.
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
}

fn listen(address: SocketAddr) -> TcpListener {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    };
    let listening = socket.and_then(|socket| {
        socket.bind(address)?;
        socket.listen(BACKLOG)
    });
    listening.unwrap_or_else(|error| panic!("cannot listen on {address}: {error}"))
}

/// What went wrong, and how often.
type Failures = Arc<parking_lot::Mutex<BTreeMap<String, u64>>>;

fn note<T: std::fmt::Debug>(
    failures: &Failures,
    failed: &Result<io::Result<T>, tokio::time::error::Elapsed>,
) {
    let cause = match failed {
        Ok(Err(error)) => error.to_string(),
        other => format!("{other:?}"),
    };
    *failures.lock().entry(cause).or_default() += 1;
}

fn report(of: &str, failures: &Failures) {
    for (cause, times) in &*failures.lock() {
        eprintln!("{of}, {times} times: {cause}");
    }
}

async fn open(to: SocketAddr, count: u64) -> Vec<TcpStream> {
    let failures = Failures::default();
    let (left, opened) = (Arc::new(AtomicU64::new(count)), Arc::new(Mutex::new(Vec::new())));
    let workers: Vec<_> = (0..OPENING)
        .map(|_| {
            let (left, opened, failures) = (Arc::clone(&left), Arc::clone(&opened), Arc::clone(&failures));
            spawn(async move {
                let take = |left: u64| left.checked_sub(1);
                while left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                    .is_ok()
                {
                    match tokio::time::timeout(PATIENCE, TcpStream::connect(to)).await {
                        Ok(Ok(stream)) => opened.lock().await.push(stream),
                        failed => note(&failures, &failed),
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.expect("it opens what it can");
    }
    report("lasting connections", &failures);
    std::mem::take(&mut *opened.lock().await)
}

/// New connections, due at fixed times and each on its own.
async fn call(first: SocketAddr, ports: u16, rate: u32, seconds: u64) -> (Window, [u128; 3]) {
    let samples = Arc::new(Samples::default());
    let began = Instant::now();
    let mut ticks = interval_at(began, Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut calls, failures) = (Vec::new(), Failures::default());
    for port in (0..ports).cycle() {
        let due = ticks.tick().await;
        if due - began >= Duration::from_secs(seconds) {
            break;
        }
        let to = SocketAddr::new(first.ip(), first.port() + port);
        let (samples, failures) = (Arc::clone(&samples), Arc::clone(&failures));
        calls.push(spawn(async move {
            match tokio::time::timeout(PATIENCE, exchange(to)).await {
                Ok(Ok(())) => samples.came_back(due),
                failed => {
                    samples.failed(due);
                    note(&failures, &failed);
                }
            }
        }));
    }
    for call in calls {
        call.await.expect("it ends with its patience");
    }
    report("new connections", &failures);
    let slow = samples.slower_than(SLOW).map_or([0; 3], |slow| {
        let [first, last] = [slow.first, slow.last].map(|due| (due - began).as_millis());
        [slow.count as u128, first, last]
    });
    (samples.window(began, Instant::now()), slow)
}

async fn exchange(to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(REQUEST).await?;
    stream.shutdown().await?;
    let mut answer = Vec::with_capacity(REQUEST.len());
    stream.read_to_end(&mut answer).await?;
    if answer == REQUEST {
        Ok(())
    } else {
        Err(io::Error::other("the answer differs"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_member_does_what_it_is_told() {
        let listener = listen("127.0.0.1:0".parse().unwrap());
        let port = listener.local_addr().unwrap().port();
        echo(listener);
        let mut held = Vec::new();
        let answer = obey(&format!("hold 127.0.0.1 {port} 20"), &mut held).await;
        assert_eq!(numbers(&answer), [20, 0]);
        assert_eq!(obey("lost", &mut held).await, "0");
        let called = obey(&format!("call 127.0.0.1 {port} 1 100 1"), &mut held).await;
        let [good, failed, p50, p99, slow, first, last] = numbers(&called);
        assert_eq!((good, failed), (100, 0));
        assert!(p50 > 0 && p50 <= p99);
        assert!(slow <= 100 && first <= last && last < 1_000);
    }
}
