//! The story of the demo, told step by step and measured as it goes.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tulle_world::{Component, Folders, Mesh, Recorded, Recorder, World};

use super::application::{self, DENIED_EDGE, NODES};
use super::pods::Application;
use super::progress::Progress;
use super::write;
use crate::command::up::waypoints::Waypoints;
use crate::edges::{self, Edge};
use crate::running::{Kind, RunDir};

/// Connections each edge inside of the mesh must have made before the table is shown.
const CONNECTIONS_PER_EDGE: u64 = 3;
/// Bytes the recorder must have looked through after enrolment for its silence to mean something.
const CHECKED_BYTES_MIN: u64 = 100_000;
/// A policy must be in force within this time.
const DENIAL_TIME_MAX: Duration = Duration::from_secs(1);
/// Requests that must have passed the waypoint before its line is shown.
const REQUESTS_MIN: u64 = 20;
/// Lasting connections opened through the mesh, per edge; three tries reach the three versions of reviews often enough.
const PINS: usize = 3;

/// The running demo.
#[derive(Debug)]
pub(crate) struct Story {
    started: Instant,
    progress: Progress,
    folders: Folders,
    world: World,
    application: Application,
    process_ids: Vec<u32>,
    recorder: Recorder,
    mesh: Mesh,
    waypoints: Waypoints,
    run_dir: RunDir,
    /// What the proxies had counted when the last pod was captured: a caller may be captured later than its server.
    edges_before: Vec<Edge>,
    report: Report,
}

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Frames with the marker before there was a mesh: the recorder works.
    pub(crate) marked_before: u64,
    /// Time from the edited file to every pod captured.
    pub(crate) enrolment: Duration,
    /// Time from the start to the table.
    pub(crate) ready: Duration,
    /// What the recorder saw since.
    pub(crate) recorded: Recorded,
    /// Edges inside of the mesh, as the proxies counted them.
    pub(crate) edges: Vec<Edge>,
    /// Edges that a policy closed.
    pub(crate) denied: usize,
    /// Time from the policy file to the last open connection of the denied edge reset.
    pub(crate) denial: Duration,
    /// What the caller's proxy said about the refusal.
    pub(crate) reason: String,
    /// Lasting connections that ended, save those of the denied edge.
    pub(crate) resets: u64,
    /// Processes of the application that are not those that were started.
    pub(crate) restarted: usize,
    /// Pages the client outside of the mesh got since enrolment.
    pub(crate) outside_pages: u64,
    /// Requests that the waypoint answered.
    pub(crate) requests: u64,
    /// Those of them that it failed on purpose.
    pub(crate) faults: u64,
}

impl Story {
    /// The world and the application, talking plainly while the recorder listens.
    pub(crate) async fn begin(started: Instant, root: &Path, run_dir: &Path) -> anyhow::Result<Self> {
        let mut progress = Progress::new();
        let mut folders = Folders::create(std::env::current_exe()?, root)?;
        std::fs::create_dir_all(run_dir).with_context(|| format!("cannot make {}", run_dir.display()))?;
        run_dir.clone_into(&mut folders.run);
        progress.doing("building two nodes and a wire");
        let mut world = World::create(root, &NODES).await?;
        let marker = format!("tulle-marker-{:032x}", rand::random::<u128>());
        let recorder = world.record(marker.as_bytes()).await?;
        progress.doing("starting the application");
        let (mut application, placed) = Application::start(&mut world, &folders, &marker).await?;
        write(
            &folders.config.join("namespaces.yaml"),
            &application::namespaces_yaml(false),
        )?;
        write(
            &folders.config.join("services.yaml"),
            &application::services_yaml(false),
        )?;
        write(
            &folders.config.join("workloads.yaml"),
            &application::workloads_yaml(&placed),
        )?;
        let everyone_talks = |application: &Application| {
            application
                .all_calls()
                .iter()
                .all(|(_, _, calls)| calls.pages > 0 && calls.old.echoes > 0)
        };
        application
            .wait(
                "the application's first pages",
                Duration::from_secs(10),
                everyone_talks,
            )
            .await?;
        let process_ids = application.process_ids();
        let report = Report {
            marked_before: recorder.seen().marked_frames,
            ..Report::default()
        };
        progress.done(&format!(
            "2 nodes, {} pods: the application talks plainly, the recorder read {} frames of it",
            placed.len(),
            report.marked_before
        ));
        let mesh = Mesh::new(folders.clone()).with_supervision();
        let run_dir = RunDir::new(run_dir.to_owned());
        let waypoints = Waypoints::new(run_dir.clone(), folders.config.clone(), NODES[1]);
        Ok(Self {
            started,
            progress,
            folders,
            world,
            application,
            process_ids,
            recorder,
            mesh,
            waypoints,
            run_dir,
            edges_before: Vec::new(),
            report,
        })
    }

    /// Puts the mesh under the running application.
    pub(crate) async fn install(&mut self) -> anyhow::Result<()> {
        self.progress
            .doing("starting the control plane, agents and node proxies");
        self.mesh.start_control(&self.world).await?;
        for node in NODES {
            self.mesh
                .set_token(node, &tulle_xds::token::create(&self.folders.state, node)?)?;
            self.mesh.start_agent(&self.world, node)?;
            self.mesh.start_ztunnel(&self.world, node)?;
        }
        for node in NODES {
            self.mesh.wait_ready(&Component::Ztunnel(node.to_owned())).await?;
            self.mesh.wait_ready(&Component::Agent(node.to_owned())).await?;
        }
        self.progress
            .done("control plane with its CA, 2 agents, 2 node proxies");
        Ok(())
    }

    /// Labels the namespace in its file and waits until the running pods are captured.
    pub(crate) async fn enrol(&mut self) -> anyhow::Result<()> {
        self.progress
            .doing("labelling the namespace istio.io/dataplane-mode: ambient");
        let edited = Instant::now();
        write(
            &self.folders.config.join("namespaces.yaml"),
            &application::namespaces_yaml(true),
        )?;
        let inside = application::PODS.iter().filter(|pod| !pod.outside).count();
        loop {
            let captured = self.captured().await?;
            if captured == inside {
                break;
            }
            self.check_processes()?;
            let late = edited.elapsed() > Duration::from_secs(15);
            anyhow::ensure!(!late, "only {captured} of {inside} pods are captured after 15 s");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.report.enrolment = edited.elapsed();
        let text = format!(
            "{inside} running pods enrolled in {} ms, none restarted",
            self.report.enrolment.as_millis()
        );
        self.progress.done(&text);
        self.report.recorded = self.settled().await;
        self.edges_before = self.edges().await?;
        Ok(())
    }

    /// Who talks to whom, as counted so far.
    async fn edges(&self) -> anyhow::Result<Vec<Edge>> {
        let (edges, silent) = edges::collect(&self.run_dir).await?;
        anyhow::ensure!(silent.is_empty(), "{}", silent.join("; "));
        Ok(edges)
    }

    /// Pods that the agents say are captured and verified.
    async fn captured(&self) -> anyhow::Result<usize> {
        let mut captured = 0;
        for node in NODES {
            let agent = self.run_dir.component(Kind::Agent, node);
            captured += crate::command::status::pods(&agent)
                .await?
                .iter()
                .filter(|pod| pod.state == "In")
                .count();
        }
        Ok(captured)
    }

    /// Waits for the last plain connections of before the enrolment to end: 300 ms without a marked frame. What is
    /// seen from then on is a leak.
    async fn settled(&self) -> Recorded {
        let mut last = self.recorder.seen();
        let mut quiet_since = Instant::now();
        let begun = Instant::now();
        while quiet_since.elapsed() < Duration::from_millis(300) && begun.elapsed() < Duration::from_secs(3) {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let seen = self.recorder.seen();
            if seen.marked_frames != last.marked_frames {
                (last, quiet_since) = (seen, Instant::now());
            }
        }
        last
    }

    /// Lets the application talk through the mesh until every edge has been used.
    pub(crate) async fn talk(&mut self) -> anyhow::Result<()> {
        self.progress.doing("waiting until every edge has been used");
        for _ in 0..PINS {
            self.application.pin()?;
        }
        let begun = Instant::now();
        let outside_before = self.application.calls("legacy", "productpage").pages;
        loop {
            let edges = self.edges().await?;
            self.report.edges = inside(edges::since(edges, &self.edges_before));
            self.report.outside_pages =
                self.application.calls("legacy", "productpage").pages - outside_before;
            let used = self
                .report
                .edges
                .iter()
                .filter(|edge| edge.connections >= CONNECTIONS_PER_EDGE)
                .count();
            let checked = self.recorder.seen().since(self.report.recorded).bytes;
            if used == application::edges().len()
                && checked >= CHECKED_BYTES_MIN
                && self.report.outside_pages > 0
            {
                break;
            }
            self.check_processes()?;
            let late = begun.elapsed() > Duration::from_secs(20);
            anyhow::ensure!(
                !late,
                "only {used} of {} edges were used within 20 s",
                application::edges().len()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mtls = self.report.edges.iter().filter(|edge| edge.all_mtls()).count();
        self.progress.done(&format!(
            "{} edges, {mtls} mTLS (TLS 1.3)",
            self.report.edges.len()
        ));
        Ok(())
    }

    /// Drops a policy into the folder and waits until it holds for new and for open connections.
    pub(crate) async fn deny(&mut self) -> anyhow::Result<()> {
        self.progress.doing("denying productpage → details");
        let (caller, service) = (DENIED_EDGE.0, "details");
        let before = self.application.calls(caller, service);
        let written = Instant::now();
        write(
            &self.folders.config.join("deny-details.yaml"),
            application::DENY_DETAILS,
        )?;
        let closed = move |application: &Application| {
            let now = application.calls(caller, service);
            now.failed > before.failed && now.pinned.open == 0
        };
        self.application
            .wait("the denial", Duration::from_secs(10), closed)
            .await?;
        self.report.denial = written.elapsed();
        self.report.denied = 1;
        self.report.reason = self.caller_reason().await?;
        let text = format!(
            "productpage → details denied {} ms after the policy was written, open connections included",
            self.report.denial.as_millis()
        );
        self.progress.done(&text);
        let reason = format!("the caller's node says: {}", self.report.reason);
        self.progress.note(&reason);
        Ok(())
    }

    /// The reason as the caller's node proxy counted and logged it.
    async fn caller_reason(&self) -> anyhow::Result<String> {
        let proxy = self.run_dir.component(Kind::Ztunnel, "n1");
        let begun = Instant::now();
        loop {
            let log = std::fs::read_to_string(self.folders.log("ztunnel-n1"))?;
            let refused = edges::metrics(&proxy).await?.into_iter().find(|sample| {
                sample.name == "tulle_refused_total" && sample.label("code") == "T0412" && sample.value > 0.0
            });
            let line = log
                .lines()
                .rev()
                .find(|line| line.contains("T0412") && line.contains("shop/deny-details"));
            if let (Some(_), Some(line)) = (refused, line) {
                return Ok(reason_of(line));
            }
            let late = begun.elapsed() > Duration::from_secs(5);
            anyhow::ensure!(
                !late,
                "the caller's node proxy does not show T0412 shop/deny-details"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Puts a waypoint in front of a service, and a fault into it for people to find.
    pub(crate) async fn front(&mut self) -> anyhow::Result<()> {
        self.progress.doing("starting a waypoint in front of ratings");
        let begun = Instant::now();
        for (file, text) in [
            ("waypoint.yaml", application::WAYPOINT.to_owned()),
            ("ratings-fail.yaml", application::FAULT.to_owned()),
            ("services.yaml", application::services_yaml(true)),
        ] {
            write(&self.folders.config.join(file), &text)?;
        }
        loop {
            for news in self.tend().await? {
                self.progress.note(&news);
            }
            (self.report.requests, self.report.faults) = self.fronted().await;
            let passed = self.report.requests - self.report.faults;
            if passed >= REQUESTS_MIN && self.report.faults > 0 {
                break;
            }
            let late = begun.elapsed() > Duration::from_secs(20);
            anyhow::ensure!(
                !late,
                "the waypoint answered {} requests within 20 s",
                self.report.requests
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.progress.done(&format!(
            "1 waypoint in front of ratings, {} requests through it",
            self.report.requests
        ));
        self.progress.note(
            "ratings answers 500 to 1 call in 5, on purpose: find it with  tulle explain reviews-v2 ratings:9080 --path /",
        );
        Ok(())
    }

    /// Requests that the waypoint answered, and those of them that its fault took.
    async fn fronted(&self) -> (u64, u64) {
        let waypoint = self
            .run_dir
            .component(Kind::Waypoint, &format!("{}.waypoint", application::NAMESPACE));
        let samples = edges::metrics(&waypoint).await.unwrap_or_default();
        let count = |code: Option<&str>| {
            let counted = samples.iter().filter(|sample| {
                sample.name == "istio_requests_total"
                    && sample.label("destination_service_name") == application::FRONTED
                    && code.is_none_or(|code| sample.label("response_code") == code)
            });
            counted.map(edges::whole).sum()
        };
        (count(None), count(Some("500")))
    }

    /// Looks after what runs: fails if something ended that must not, and starts and ends waypoints as the folder says.
    pub(crate) async fn tend(&mut self) -> anyhow::Result<Vec<String>> {
        self.check_processes()?;
        self.waypoints.look(&mut self.world, &self.mesh).await
    }

    /// Counts what must not have happened, and takes the table.
    pub(crate) async fn sum_up(&mut self) -> anyhow::Result<&Report> {
        self.check_processes()?;
        let edges = edges::since(self.edges().await?, &self.edges_before);
        let table = edges::table(&edges);
        self.report.edges = inside(edges);
        self.report.recorded = self.recorder.seen().since(self.report.recorded);
        let denied = |caller: &str, service: &str| (caller, service) == (DENIED_EDGE.0, "details");
        self.report.resets = self
            .application
            .all_calls()
            .iter()
            .map(|(spec, service, calls)| {
                calls.old.lost
                    + if denied(spec.name, service) {
                        0
                    } else {
                        calls.pinned.lost
                    }
            })
            .sum();
        let now = self.application.process_ids();
        self.report.restarted = now
            .iter()
            .zip(&self.process_ids)
            .filter(|(now, then)| now != then)
            .count();
        self.report.ready = self.started.elapsed();
        println!("\n{table}\n");
        Ok(&self.report)
    }

    /// What to try next, for the shell.
    pub(crate) fn hint(&self) -> String {
        let config = self.folders.config.display();
        format!(
            "Try next, in another terminal:\n  \
             tulle status\n  tulle explain productpage-v1 details:9080\n  tulle ztunnel-config certificates\n  \
             tulle edges\n  tulle waypoint list --config-dir {config}\n  \
             tulle explain reviews-v2 ratings:9080 --path /\n  rm {config}/deny-details.yaml      # allow it again; logs are in {}\n\
             Stop with Ctrl-C: it removes every namespace, rule, route and process.",
            self.folders.logs.display()
        )
    }

    /// Fails if a process of the mesh or of the application has ended.
    pub(crate) fn check_processes(&mut self) -> anyhow::Result<()> {
        self.application.ensure_running()?;
        Ok(self.mesh.ensure_running()?)
    }

    /// Ends every process and removes the world.
    pub(crate) async fn end(mut self) -> anyhow::Result<Report> {
        // Without the application the proxies have nothing to drain.
        drop(self.application);
        self.waypoints.end().await?;
        self.mesh.stop_all().await?;
        Ok(self.report)
    }
}

/// The edges between pods of the application inside of the mesh.
fn inside(edges: Vec<Edge>) -> Vec<Edge> {
    let expected = application::edges();
    let is_inside = |edge: &Edge| expected.contains(&(edge.source.as_str(), edge.destination.as_str()));
    edges.into_iter().filter(is_inside).collect()
}

/// The reason and the policy out of an access line: `T0412 policy_denied by shop/deny-details`.
fn reason_of(line: &str) -> String {
    let value = |key: &str| {
        let (_, rest) = line.split_once(key)?;
        Some(
            rest.trim_start_matches('"')
                .split('"')
                .next()?
                .split(", ")
                .next()?
                .to_owned(),
        )
    };
    match (value(" reason="), value(" policy=")) {
        (Some(reason), Some(policy)) => format!("{reason} by {policy}"),
        _ => line.to_owned(),
    }
}

impl Report {
    /// Every claim of the story that does not hold.
    pub(crate) fn broken_claims(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let mut claim = |holds: bool, text: String| {
            if !holds {
                broken.push(text);
            }
        };
        let expected = application::edges().len();
        let mtls = self.edges.iter().filter(|edge| edge.all_mtls()).count();
        claim(
            self.marked_before > 0,
            "the recorder saw no plain text before enrolment, so it proves nothing".into(),
        );
        claim(
            self.edges.len() == expected,
            format!("{} of {expected} edges were used", self.edges.len()),
        );
        claim(
            mtls == expected,
            format!("{mtls} of {expected} edges are mutual TLS only"),
        );
        claim(
            self.recorded.marked_bytes == 0,
            format!("{} bytes of plain text on the wire", self.recorded.marked_bytes),
        );
        claim(
            self.recorded.bytes >= CHECKED_BYTES_MIN,
            format!("only {} bytes were looked through", self.recorded.bytes),
        );
        claim(self.denied == 1, "no edge was denied".into());
        claim(
            self.denial <= DENIAL_TIME_MAX,
            format!("the denial took {:?}, more than 1 s", self.denial),
        );
        claim(
            self.reason.contains("T0412"),
            "the caller's side does not show the reason".into(),
        );
        let denied = self.edges.iter().filter(|edge| edge.denied > 0);
        let denied: Vec<_> = denied
            .map(|edge| (edge.source.as_str(), edge.destination.as_str()))
            .collect();
        claim(
            denied == [DENIED_EDGE],
            format!("denied edges: {denied:?}, expected {DENIED_EDGE:?}"),
        );
        claim(
            self.resets == 0,
            format!("{} lasting connections were reset", self.resets),
        );
        claim(
            self.restarted == 0,
            format!("{} processes were restarted", self.restarted),
        );
        claim(
            self.outside_pages > 0,
            "the client outside of the mesh got no page".into(),
        );
        claim(
            self.requests > self.faults && self.faults > 0,
            format!(
                "{} of {} requests through the waypoint failed on purpose",
                self.faults, self.requests
            ),
        );
        broken
    }

    /// The one line that scripts read.
    pub(crate) fn line(&self) -> String {
        format!(
            "demo: edges={} mtls={} denied={} resets={} plaintext_bytes={} checked_bytes={} waypoint_requests={} \
             enrol_ms={} ready_s={:.1}",
            self.edges.len(),
            self.edges.iter().filter(|edge| edge.all_mtls()).count(),
            self.denied,
            self.resets,
            self.recorded.marked_bytes,
            self.recorded.bytes,
            self.requests,
            self.enrolment.as_millis(),
            self.ready.as_secs_f64(),
        )
    }
}
