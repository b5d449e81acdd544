//! `--supervise`: generations of the node proxy as children of one long-lived process, so that the next is started from
//! the binary on disk while the last keeps its connections. The [`plan`] decides; this starts, signals and listens.
//!
//! It carries no byte and knows no key: what a generation wants kept for the next it holds as a sealed memory file.

pub mod plan;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use tokio::process::{Child, ChildStdin, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tulle_linux::held::Inherited;
use tulle_linux::notify::{Inbox, Told};
use tulle_runtime::admin::{self, Listen, Listener};
use tulle_runtime::config::{Collector, Env};
use tulle_runtime::exit::Exit;
use tulle_runtime::telemetry::{self, LogFormat};
use tulle_runtime::{drain, tasks};

use self::plan::{Act, Event, Phase, Plan};
use crate::config::held::{HELD_NAMES, variable_of};

/// Events that may wait; their senders wait for room.
const EVENTS_MAX: usize = 64;
/// How long generations may take to end once the supervisor itself shall end, if nothing is configured.
const STOP_WAIT: Duration = Duration::from_secs(5);
/// How long a lingering generation keeps its connections, if nothing is configured.
const LINGER: &str = "3600s";

/// What the supervisor itself is told by its environment; all of it reaches the generations too.
#[derive(Debug)]
pub(crate) struct Settings {
    node: String,
    run_dir: PathBuf,
    settle: Duration,
    stop_wait: Duration,
    /// Nobody has said how long a generation may linger.
    default_linger: bool,
    /// What generations do when we are gone.
    without_us: &'static str,
    log: String,
    json: bool,
}

impl Settings {
    pub(crate) fn read(env: &dyn Env) -> Result<Self, String> {
        let mut read = Collector::new(env);
        let deadline = env.var("CONNECTION_TERMINATION_DEADLINE");
        let settings = Self {
            node: read.string("NODE_NAME", ""),
            run_dir: read.string("TULLE_RUN_DIR", "/run/tulle").into(),
            settle: read.duration("TULLE_SUPERVISE_SETTLE", Duration::from_secs(2)),
            stop_wait: read.duration("TULLE_SUPERVISE_STOP", STOP_WAIT),
            default_linger: deadline.is_none() && env.var("TERMINATION_GRACE_PERIOD_SECONDS").is_none(),
            // In a local mesh nothing outlives the command that started it.
            without_us: match env.var("TULLE_EXIT_WITH_STDIN").as_deref() {
                Some("true") => "true",
                _ => "drain",
            },
            log: read.string("RUST_LOG", "info"),
            json: read.string("LOG_FORMAT", "text") == "json",
        };
        read.finish()
            .map(|()| settings)
            .map_err(|error| error.to_string())
    }

    fn place(&self, name: &str) -> PathBuf {
        let node = if self.node.is_empty() { "local" } else { &self.node };
        self.run_dir.join(format!("supervisor-{node}{name}"))
    }
}

/// Runs generations of this very program with `arguments` until SIGTERM or SIGINT. SIGHUP, or `POST /upgrade` on the unix socket
/// `supervisor-NODE.sock`, starts the next generation from whatever is at the program's path by then.
pub fn run_process(env: &dyn Env, arguments: Vec<OsString>) -> Exit {
    let settings = match Settings::read(env) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("{error}");
            return Exit::Usage;
        }
    };
    let format = if settings.json {
        LogFormat::Json
    } else {
        LogFormat::Text
    };
    let log = match telemetry::init(format, &settings.log) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("{error}");
            return Exit::Usage;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = own_program().and_then(|program| {
        let runtime = runtime?;
        runtime.block_on(supervise(settings, program, arguments))
    });
    if let Err(error) = &outcome {
        tracing::error!(%error, "the supervisor cannot run");
    }
    log.flush();
    if outcome.is_ok() { Exit::Ok } else { Exit::Failed }
}

/// The path that this program was started from; another file may take its place later.
fn own_program() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    // What the kernel says of a program whose file was replaced between its start and now.
    let text = path.to_string_lossy();
    Ok(text
        .strip_suffix(" (deleted)")
        .map_or_else(|| path.clone(), PathBuf::from))
}

/// One generation as it is shown.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    generation: u64,
    pid: Option<u32>,
    phase: Phase,
}

#[derive(Debug, Clone)]
struct Pages {
    events: mpsc::Sender<Event>,
    shown: Arc<Mutex<Vec<Shown>>>,
}

impl Pages {
    fn router(self) -> Router {
        Router::new()
            .route("/generations", get(generations))
            .route("/upgrade", post(upgrade))
            .with_state(self)
    }
}

async fn generations(State(pages): State<Pages>) -> Json<Vec<Shown>> {
    Json(pages.shown.lock().clone())
}

async fn upgrade(State(pages): State<Pages>) -> impl IntoResponse {
    match pages.events.send(Event::Upgrade).await {
        Ok(()) => (StatusCode::ACCEPTED, "the next generation is being started\n"),
        Err(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the supervisor is about to end\n",
        ),
    }
}

async fn supervise(settings: Settings, program: PathBuf, arguments: Vec<OsString>) -> io::Result<()> {
    std::fs::create_dir_all(&settings.run_dir)?;
    let (events, mut happened) = mpsc::channel(EVENTS_MAX);
    let shown = Arc::new(Mutex::new(Vec::new()));
    let pages = Pages {
        events: events.clone(),
        shown: Arc::clone(&shown),
    };
    let (trigger, watcher) = drain::new();
    let listener = Listener::bind(&Listen::Unix(settings.place(".sock"))).await;
    let listener = listener.map_err(io::Error::other)?;
    tasks::spawn(
        "supervisor-pages",
        admin::serve(listener, pages.router(), watcher),
    );
    for (kind, event) in [
        (SignalKind::hangup(), Event::Upgrade),
        (SignalKind::terminate(), Event::Stop),
        (SignalKind::interrupt(), Event::Stop),
    ] {
        tasks::spawn("signals", pass_on(kind, event, events.clone())?);
    }
    let mut plan = Plan::new(settings.settle, settings.stop_wait, Instant::now());
    let mut children = Children {
        settings,
        program,
        arguments,
        events,
        running: BTreeMap::new(),
        kept: Arc::default(),
    };
    loop {
        let due = plan.due();
        let due = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            event = happened.recv() => event.unwrap_or(Event::Stop),
            () = due => Event::Due,
        };
        children.note(event, &plan);
        for act in plan.on(event, Instant::now()) {
            if act == Act::Exit {
                tracing::info!("every generation has ended");
                trigger.drain_and_wait(Duration::ZERO).await;
                return Ok(());
            }
            children.perform(act).await;
        }
        *shown.lock() = children.show(&plan);
    }
}

fn pass_on(
    kind: SignalKind,
    event: Event,
    events: mpsc::Sender<Event>,
) -> io::Result<impl Future<Output = ()> + Send + use<>> {
    let mut arrivals = signal(kind)?;
    Ok(async move { while arrivals.recv().await.is_some() && events.send(event).await.is_ok() {} })
}

/// What generations want kept for the next one, by name.
type Kept = Arc<Mutex<BTreeMap<String, OwnedFd>>>;

/// The processes.
struct Children {
    settings: Settings,
    program: PathBuf,
    arguments: Vec<OsString>,
    events: mpsc::Sender<Event>,
    running: BTreeMap<u64, Running>,
    kept: Kept,
}

struct Running {
    pid: Option<u32>,
    /// Its end tells the generation that we are gone.
    _stdin: Option<ChildStdin>,
}

impl Children {
    fn note(&mut self, event: Event, plan: &Plan) {
        match event {
            Event::Ended(number) => {
                self.running.remove(&number);
                let mut others = plan.generations().iter().rev();
                let serving = others.find(|known| known.number != number && known.phase != Phase::Draining);
                if let Some(serving) = serving {
                    tracing::info!(
                        generation = number,
                        serving = serving.number,
                        "another generation serves on"
                    );
                }
            }
            Event::Upgrade => tracing::info!(program = %self.program.display(), "upgrade asked for"),
            Event::Ready(generation) => {
                tracing::info!(generation, "ready: new connections are its own from now on")
            }
            Event::Due => {}
            Event::Stop => tracing::info!("ending: every generation drains"),
        }
    }

    async fn perform(&mut self, act: Act) {
        match act {
            Act::Start(number) => {
                if let Err(error) = self.start(number) {
                    tracing::error!(generation = number, program = %self.program.display(), %error, "cannot start");
                    // The plan waits and tries again, as after any other death.
                    let _ = self.events.send(Event::Ended(number)).await;
                }
            }
            Act::Drain(generation) => {
                tracing::info!(
                    generation,
                    "drains: it takes nothing new and ends with its last connection"
                );
                self.signal(generation, Signal::SIGTERM);
            }
            Act::Cut(generation) => {
                tracing::warn!(generation, "cut");
                self.signal(generation, Signal::SIGKILL);
            }
            Act::Busy(generation) => tracing::warn!(generation, "is still starting; no other is started"),
            Act::Exit => {}
        }
    }

    fn start(&mut self, number: u64) -> io::Result<()> {
        let path = self.settings.place(&format!("-{number}.notify"));
        let inbox = Inbox::bind(&path)?;
        let mut command = self.command(&path);
        let mut child = {
            let kept = self.kept.lock();
            let mut inherited = Vec::new();
            for (name, fd) in kept.iter() {
                let fd = Inherited::new(fd)?;
                command.env(variable_of(name), fd.number().to_string());
                inherited.push(fd);
            }
            command.spawn()?
        };
        let pid = child.id();
        tracing::info!(generation = number, pid, program = %self.program.display(), "started");
        let running = Running {
            pid,
            _stdin: child.stdin.take(),
        };
        self.running.insert(number, running);
        let (events, kept) = (self.events.clone(), Arc::clone(&self.kept));
        tasks::spawn("generation", watch(number, child, inbox, kept, events));
        Ok(())
    }

    fn command(&self, notify: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .env("NOTIFY_SOCKET", notify)
            .env("TULLE_SUPERVISED", "true")
            .env("TULLE_EXIT_WITH_STDIN", self.settings.without_us);
        for name in HELD_NAMES {
            command.env_remove(variable_of(name));
        }
        if self.settings.default_linger {
            command.env("CONNECTION_TERMINATION_DEADLINE", LINGER);
        }
        command
    }

    fn signal(&self, number: u64, signal: Signal) {
        let pid = self.running.get(&number).and_then(|running| running.pid);
        if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()) {
            // The child is waited for by its watcher alone, so the number is still its own; gone already is fine.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    fn show(&self, plan: &Plan) -> Vec<Shown> {
        let shown = |known: &plan::Generation| Shown {
            generation: known.number,
            pid: self.running.get(&known.number).and_then(|running| running.pid),
            phase: known.phase,
        };
        plan.generations().iter().map(shown).collect()
    }
}

/// Listens to one generation until its process ends.
async fn watch(number: u64, mut child: Child, inbox: Inbox, kept: Kept, events: mpsc::Sender<Event>) {
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            told = inbox.next() => match told {
                Ok(told) => take(number, told, &kept, &events).await,
                Err(error) => tracing::warn!(generation = number, %error, "cannot hear the generation"),
            },
        }
    };
    match status {
        Ok(status) => log_end(number, status),
        Err(error) => tracing::error!(generation = number, %error, "cannot wait for the generation"),
    }
    // Nobody listens any more only when the supervisor ends.
    let _ = events.send(Event::Ended(number)).await;
}

fn log_end(generation: u64, status: ExitStatus) {
    if status.success() {
        tracing::info!(generation, "ended in order");
    } else {
        tracing::error!(generation, %status, "died");
    }
}

async fn take(number: u64, told: Told, kept: &Kept, events: &mpsc::Sender<Event>) {
    if told.value("READY") == Some("1") {
        // As above.
        let _ = events.send(Event::Ready(number)).await;
    }
    let name = told
        .value("FDNAME")
        .filter(|name| HELD_NAMES.contains(name))
        .map(str::to_owned);
    if let Some(name) = name
        && told.value("FDSTORE") == Some("1")
        && let Some(fd) = told.fds.into_iter().next()
    {
        kept.lock().insert(name, fd);
    }
}
