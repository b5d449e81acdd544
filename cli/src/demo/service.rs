//! One service of the demo application, as a process of its own: serves pages, echoes lines, calls others.
//!
//! It knows nothing of the mesh. Standard input takes commands (`pin`: open one more lasting connection to each
//! called service) and its end ends the process; standard output gives one line of [`Stats`] every 100 ms.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tulle_runtime::{http_client, tasks};

use super::application::{ECHO_PORT, PAGE_PORT};
use super::stats::{CallStats, PinnedStats, Stats};

/// Time a page may take, connecting included.
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two lines on a lasting connection, and between two reports.
const BEAT: Duration = Duration::from_millis(100);
/// What lasting connections of before the mesh carry: they stay plain text, so they hold no marker.
const OLD_LINE: &str = "opened before the mesh";

/// How the service is called and whom it calls.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name shown on its pages.
    #[arg(long)]
    name: String,
    /// Text that every page and every line on the wire carries.
    #[arg(long)]
    marker: String,
    /// A called service, NAME=ADDRESS.
    #[arg(long = "call", value_parser = parse_call)]
    calls: Vec<(String, std::net::IpAddr)>,
    /// Pages per second to ask for without being asked.
    #[arg(long, default_value_t = 0)]
    rate: u32,
}

fn parse_call(text: &str) -> Result<(String, std::net::IpAddr), String> {
    let (name, address) = text.split_once('=').ok_or("expected NAME=ADDRESS")?;
    Ok((
        name.to_owned(),
        address.parse().map_err(|error| format!("{address}: {error}"))?,
    ))
}

#[derive(Debug, Clone)]
struct Service {
    name: Arc<str>,
    marker: Arc<str>,
    calls: Arc<[(String, std::net::IpAddr)]>,
    stats: Arc<Mutex<Stats>>,
}

/// Runs the service until standard input ends.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let names = args
        .calls
        .iter()
        .map(|(name, _)| (name.clone(), CallStats::default()));
    let service = Service {
        name: args.name.into(),
        marker: args.marker.into(),
        stats: Arc::new(Mutex::new(Stats {
            calls: names.collect::<BTreeMap<_, _>>(),
        })),
        calls: args.calls.into(),
    };
    let pages = TcpListener::bind(("::", PAGE_PORT)).await?;
    let lines = TcpListener::bind(("::", ECHO_PORT)).await?;
    let page = service.clone();
    let router = Router::new().route("/", get(move || async move { page.page().await }));
    tasks::spawn("pages", async move { axum::serve(pages, router).await });
    tasks::spawn("lines", echo_lines(lines));
    for (name, address) in service.calls.iter().cloned() {
        tasks::spawn(
            "old",
            service
                .clone()
                .pin(name, SocketAddr::new(address, ECHO_PORT), Pin::Old),
        );
    }
    if args.rate > 0 {
        tasks::spawn("load", service.clone().load(args.rate));
    }
    tasks::spawn("report", report(Arc::clone(&service.stats)));
    service.obey().await
}

/// Which of the counters a lasting connection counts in.
#[derive(Debug, Clone, Copy)]
enum Pin {
    Old,
    New,
}

impl Service {
    /// Follows the commands on standard input until it ends.
    async fn obey(self) -> anyhow::Result<()> {
        let mut commands = BufReader::new(blocking_stdin()).lines();
        while let Some(command) = commands.next_line().await? {
            anyhow::ensure!(
                command == "pin",
                "unknown command {command:?}; the only one is `pin`"
            );
            for (name, address) in self.calls.iter().cloned() {
                tasks::spawn(
                    "pinned",
                    self.clone()
                        .pin(name, SocketAddr::new(address, ECHO_PORT), Pin::New),
                );
            }
        }
        Ok(())
    }

    /// One page: what this service says, and what those it calls say.
    async fn page(&self) -> axum::Json<serde_json::Value> {
        let mut parts = serde_json::Map::new();
        for (name, address) in self.calls.iter() {
            parts.insert(name.clone(), self.call(name, *address).await);
        }
        axum::Json(serde_json::json!({"service": &*self.name, "marker": &*self.marker, "calls": parts}))
    }

    /// Calls one service on a new connection and counts the outcome.
    async fn call(&self, name: &str, address: std::net::IpAddr) -> serde_json::Value {
        let outcome = tokio::time::timeout(PAGE_TIMEOUT, self.fetch(name, address)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {PAGE_TIMEOUT:?}")));
        let mut stats = self.stats.lock();
        let count = stats.calls.entry(name.to_owned()).or_default();
        match outcome {
            Ok(page) => {
                count.pages += 1;
                page
            }
            Err(error) => {
                count.failed += 1;
                count.last_error = Some(format!("{error:#}"));
                serde_json::json!({"unavailable": format!("{error:#}")})
            }
        }
    }

    async fn fetch(&self, host: &str, address: std::net::IpAddr) -> anyhow::Result<serde_json::Value> {
        let stream = TcpStream::connect((address, PAGE_PORT)).await?;
        let marker = http::HeaderValue::from_str(&self.marker)?;
        let headers = http::HeaderMap::from_iter([(http::HeaderName::from_static("x-marker"), marker)]);
        let answer = http_client::get(stream, host, "/", headers).await?;
        anyhow::ensure!(
            answer.status().is_success(),
            "{host} answered {}",
            answer.status()
        );
        Ok(serde_json::from_slice(answer.body())?)
    }

    /// Asks for pages at a steady rate, one at a time.
    async fn load(self, rate: u32) {
        let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let _page = self.page().await;
        }
    }

    /// Keeps one connection open for good and counts what becomes of it.
    async fn pin(self, name: String, address: SocketAddr, kind: Pin) {
        let line = match kind {
            Pin::Old => OLD_LINE.to_owned(),
            Pin::New => self.marker.to_string(),
        };
        let change = |change: &dyn Fn(&mut PinnedStats)| {
            let mut stats = self.stats.lock();
            let count = stats.calls.entry(name.clone()).or_default();
            change(match kind {
                Pin::Old => &mut count.old,
                Pin::New => &mut count.pinned,
            });
        };
        let mut stream = connect_patiently(address).await;
        change(&|count| count.open += 1);
        let outcome = beat(&mut stream, &line, || change(&|count| count.echoes += 1)).await;
        change(&|count| {
            count.open -= 1;
            count.lost += 1;
        });
        if let Err(error) = outcome {
            self.stats.lock().calls.entry(name).or_default().last_error = Some(error.to_string());
        }
    }
}

/// The called pod may start a moment later than this one.
async fn connect_patiently(address: SocketAddr) -> TcpStream {
    loop {
        match TcpStream::connect(address).await {
            Ok(stream) => return stream,
            Err(_) => tokio::time::sleep(BEAT).await,
        }
    }
}

/// Sends a line every beat and waits for it to come back, until the connection breaks.
async fn beat(stream: &mut TcpStream, line: &str, mut echoed: impl FnMut()) -> std::io::Result<()> {
    let text = format!("{line}\n");
    let mut answer = vec![0; text.len()];
    loop {
        stream.write_all(text.as_bytes()).await?;
        stream.read_exact(&mut answer).await?;
        echoed();
        tokio::time::sleep(BEAT).await;
    }
}

/// Sends back what comes, on every connection, for good.
async fn echo_lines(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tasks::spawn("echo", async move {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await
        });
    }
}

/// Reports the counts until nobody reads them.
async fn report(stats: Arc<Mutex<Stats>>) {
    loop {
        let line = serde_json::to_string(&*stats.lock()).expect("counts can be written as JSON");
        if write_line(&line).is_err() {
            return;
        }
        tokio::time::sleep(BEAT).await;
    }
}

fn write_line(line: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

/// Standard input as an async stream, read on a thread of its own.
fn blocking_stdin() -> tokio::io::DuplexStream {
    let (near, mut far) = tokio::io::duplex(1024);
    let (sender, mut lines) = tokio::sync::mpsc::channel::<String>(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    tasks::spawn("stdin", async move {
        while let Some(line) = lines.recv().await {
            far.write_all(format!("{line}\n").as_bytes()).await?;
        }
        far.shutdown().await
    });
    near
}
