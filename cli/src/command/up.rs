//! `tulle up`: a mesh on this machine, without Kubernetes.

mod kept;
mod local;
mod plan;
mod programs;
pub(crate) mod waypoints;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tulle_linux::isolate::{self, Isolation};
use tulle_runtime::exit::Exit;

use self::local::Local;
use crate::demo::Story;

/// How often the folder and what runs are looked at.
const BEAT: Duration = Duration::from_secs(1);
/// The same until everything has come up.
const QUICK_BEAT: Duration = Duration::from_millis(50);

/// Start a mesh on this machine, without Kubernetes
///
/// While it runs, its configuration folder is in force: a Gateway of class tulle-waypoint or istio-waypoint that comes
/// gets a waypoint, one that goes is drained, and a waypoint that ends by itself is started again.
///
/// Each WorkloadEntry of the folder with the annotations tulle.dev/node and tulle.dev/process: netns:NAME becomes a pod, a
/// network namespace with the address of the entry; the annotation tulle.dev/command is run in it by /bin/sh.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tulle up --demo            show the mesh on a sample application; Ctrl-C ends it\n  \
    tulle up --demo --check    the same unattended: verify each claim, tear down, exit 0 or 1\n  \
    tulle up ./mesh            run the pods, programs, policies and waypoints of a folder of manifests"
)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["folder", "demo"])))]
pub(crate) struct Up {
    /// Folder of manifests that says what runs, and stays in force
    #[arg(value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Run the sample application: two nodes, five services, a waypoint, a client outside of the mesh
    #[arg(long)]
    demo: bool,
    /// Verify every claim of the demo, tear down, and exit 0 or 1
    #[arg(long, requires = "demo", conflicts_with = "folder")]
    check: bool,
    /// Keep configuration, state and logs in this folder instead of a temporary one
    #[arg(long, value_name = "DIR")]
    keep_state: Option<PathBuf>,
}

/// Runs a mesh. Must be called while the process has one thread.
pub(crate) fn run(up: &Up) -> anyhow::Result<Exit> {
    let started = Instant::now();
    // Another user's sockets are found by that user's number, not by root's of the new namespace.
    let run_dir = crate::running::default_run_dir();
    let isolation = isolate::enter()?;
    println!(
        "{}",
        match isolation {
            Isolation::Root => "tulle up: as root, in network namespaces of its own",
            Isolation::UserNamespace => "tulle up: not root, inside user and network namespaces of its own",
        }
    );
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match &up.folder {
            Some(folder) => local(up, folder, started, run_dir).await,
            None => demo(up, started, run_dir).await,
        }
    })
}

/// A folder that ends with the command, unless one was asked for.
fn root(up: &Up) -> anyhow::Result<(PathBuf, Option<tempfile::TempDir>)> {
    if let Some(kept) = &up.keep_state {
        return Ok((std::path::absolute(kept)?, None));
    }
    let temporary = tempfile::Builder::new().prefix("tulle-up-").tempdir()?;
    Ok((temporary.path().to_owned(), Some(temporary)))
}

/// Runs the mesh of a user's folder until it is told to end.
async fn local(up: &Up, folder: &Path, started: Instant, run_dir: PathBuf) -> anyhow::Result<Exit> {
    let config =
        std::fs::canonicalize(folder).with_context(|| format!("there is no folder {}", folder.display()))?;
    anyhow::ensure!(config.is_dir(), "{} is no folder", config.display());
    let (root, temporary) = root(up)?;
    anyhow::ensure!(
        !root.starts_with(&config),
        "--keep-state {} is inside of the folder, whose files are configuration; choose another",
        root.display()
    );
    let run_dir = claim(run_dir)?;
    let mut local = Local::start(config, &root, &run_dir).await?;
    let stayed = stay(&mut local, started).await;
    let ended = local.end().await;
    if let Err(error) = std::fs::remove_dir_all(&run_dir) {
        eprintln!("could not remove {}: {error}", run_dir.display());
    }
    if stayed.is_err()
        && let Some(folder) = temporary
    {
        eprintln!("state and logs are kept in {}", folder.keep().display());
    }
    stayed.and(ended).map(|()| Exit::Ok)
}

async fn stay(local: &mut Local, started: Instant) -> anyhow::Result<()> {
    let ended = tulle_runtime::signal::shutdown();
    tokio::pin!(ended);
    let (mut settled, mut beat) = (false, tokio::time::interval(QUICK_BEAT));
    loop {
        tokio::select! {
            _ = &mut ended => return Ok(()),
            _ = beat.tick() => {}
        }
        for news in local.look().await? {
            println!("   {news}");
        }
        if !settled && local.is_settled() {
            println!(
                " ✓ {} [{:.1} s]\n{}",
                local.summary(),
                started.elapsed().as_secs_f64(),
                local.hint()
            );
            (settled, beat) = (true, tokio::time::interval(BEAT));
        }
    }
}

async fn demo(up: &Up, started: Instant, run_dir: PathBuf) -> anyhow::Result<Exit> {
    let (root, temporary) = root(up)?;
    let run_dir = if up.check {
        root.join("run")
    } else {
        claim(run_dir)?
    };
    let mut story = Story::begin(started, &root, &run_dir).await?;
    let told = tell(&mut story, up.check).await;
    let report = story.end().await;
    if !up.check
        && let Err(error) = std::fs::remove_dir_all(&run_dir)
    {
        eprintln!("could not remove {}: {error}", run_dir.display());
    }
    if told.is_err()
        && let Some(folder) = temporary
    {
        eprintln!(
            "configuration, state and logs are kept in {}",
            folder.keep().display()
        );
    }
    told?;
    let report = report?;
    let broken = report.broken_claims();
    for claim in &broken {
        eprintln!("✗ {claim}");
    }
    println!("{}", report.line());
    Ok(if broken.is_empty() { Exit::Ok } else { Exit::Failed })
}

/// Tells the story to the table; then stays until it is told to end, unless it only checks.
async fn tell(story: &mut Story, check: bool) -> anyhow::Result<()> {
    let ended = tulle_runtime::signal::shutdown();
    tokio::pin!(ended);
    let steps = async {
        story.install().await?;
        story.enrol().await?;
        story.talk().await?;
        story.deny().await?;
        story.front().await?;
        story.sum_up().await?;
        anyhow::Ok(())
    };
    tokio::select! {
        told = steps => told?,
        signal = &mut ended => anyhow::bail!("ended by {signal} before the story was told"),
    }
    if check {
        return Ok(());
    }
    println!("{}", story.hint());
    let mut beat = tokio::time::interval(BEAT);
    loop {
        tokio::select! {
            _ = &mut ended => return Ok(()),
            _ = beat.tick() => {
                for news in story.tend().await? {
                    println!("   {news}");
                }
            }
        }
    }
}

/// Makes the folder of admin sockets ours; a mesh that still runs there is left alone.
fn claim(run_dir: PathBuf) -> anyhow::Result<PathBuf> {
    if run_dir.join("xds.sock").exists() {
        let live = std::os::unix::net::UnixStream::connect(run_dir.join("xds.sock")).is_ok();
        anyhow::ensure!(
            !live,
            "a mesh already runs here ({}); stop it first",
            run_dir.display()
        );
        std::fs::remove_dir_all(&run_dir).with_context(|| format!("cannot clean {}", run_dir.display()))?;
    }
    Ok(run_dir)
}
