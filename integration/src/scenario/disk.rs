//! The disk is full: for the state of control plane and agents, and for every log.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tulle_world::Component;

use super::operator::{page, within};
use super::stage::Stage;
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::load::Plan;
use crate::mesh::PATIENCE;
use crate::traffic::gets_through;
use crate::{TestMesh, manifest};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "F16",
    150,
    "the disk of control plane, agents and logs is full",
    f16,
)];

/// Size of each of the two disks.
const SIZE: &str = "size=1m";
/// What fills one.
const FILLER: &str = ".filler";
/// Time that a change may take to come into force, or to be refused.
const SEEN_WITHIN: Duration = Duration::from_secs(10);

/// A small disk in the place of a folder; it goes with the value.
struct Disk(PathBuf);

impl Disk {
    fn mount(folder: &Path) -> Result<Self, String> {
        let mut command = Command::new("mount");
        command
            .args(["-t", "tmpfs", "-o", &format!("{SIZE},mode=0700"), "tmpfs"])
            .arg(folder);
        let output = command.output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        Ok(Self(folder.to_owned()))
    }

    /// Leaves no byte of it free; gives how many there were.
    fn fill(&self) -> u64 {
        let mut file = std::fs::File::create(self.0.join(FILLER)).unwrap();
        let mut bytes = 0;
        for size in [4096, 1] {
            while file.write(&vec![0; size]).is_ok_and(|written| written > 0) {
                bytes += size as u64;
            }
        }
        bytes
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join(FILLER)).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Processes may still have files open on it; it goes with the last of them.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Why the folder is not used as it is, in the control plane's words.
async fn alarm(mesh: &TestMesh) -> Option<String> {
    let cluster = page(mesh, "/debug/clusterz").await;
    cluster["degraded"].as_str().map(str::to_owned)
}

/// Files of the state that are neither whole JSON nor whole lines of it.
fn broken_files(state: &Path) -> Vec<String> {
    let is_json = |text: &str| serde_json::from_str::<serde_json::Value>(text).is_ok();
    let mut broken = Vec::new();
    let history = std::fs::read_dir(state.join("history"))
        .into_iter()
        .flatten()
        .flatten();
    let manifests = history
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"));
    for path in manifests {
        if !std::fs::read_to_string(&path).is_ok_and(|text| is_json(&text)) {
            broken.push(path.display().to_string());
        }
    }
    let issued = std::fs::read_to_string(state.join("issued.log")).unwrap_or_default();
    broken.extend(
        issued
            .lines()
            .filter(|line| !is_json(line))
            .map(|line| format!("issued.log: {line}")),
    );
    broken
}

fn f16(scale: Scale) -> Run {
    Box::pin(async move {
        let mesh = TestMesh::new(&["n1", "n2"]).await;
        let folders = mesh.mesh.folders().clone();
        let (state, logs) = match (Disk::mount(&folders.state), Disk::mount(&folders.logs)) {
            (Ok(state), Ok(logs)) => (state, logs),
            (Err(error), _) | (_, Err(error)) => {
                return Figure::skipped("F16", format!("no tmpfs can be mounted here: {error}"));
            }
        };
        let mut stage = Stage::of(mesh, scale, scale.pick(Plan::light(), Plan::l1())).await;
        let quiet = stage.quiet().await;
        let was_free = state.fill();
        logs.fill();
        let (from, to) = (stage.web.namespace().clone(), stage.echo.address());
        let deny = manifest::policy("no-job", "db", "DENY", &manifest::from_account("job"));
        stage.mesh.apply("deny", &deny);
        let told = within(SEEN_WITHIN, async || alarm(&stage.mesh).await.is_some()).await;
        let during = stage.load.observe(scale.window()).await;
        let before = policies(&stage.mesh).await;
        // What a crash finds afterwards, with the disk still full and with room again.
        stage.mesh.mesh.kill(&Component::Control).unwrap();
        let starts = stage.mesh.mesh.start_control(&stage.mesh.world).await;
        let while_full = starts.is_ok();
        let agent = Component::Agent("n2".into());
        stage.mesh.mesh.kill(&agent).unwrap();
        state.free();
        logs.free();
        let broken = broken_files(&folders.state);
        if !while_full {
            stage.mesh.mesh.kill(&Component::Control).unwrap();
            stage.mesh.mesh.start_control(&stage.mesh.world).await.unwrap();
        }
        stage.mesh.mesh.start_agent(&stage.mesh.world, "n2").unwrap();
        stage.mesh.mesh.wait_ready(&agent).await.unwrap();
        let taken = within(PATIENCE * 3, async || policies(&stage.mesh).await > before).await;
        stage.after().await;
        let after = stage.load.report(
            tokio::time::Instant::now() - scale.window(),
            tokio::time::Instant::now(),
        );
        let through = gets_through(&from, to).await;
        Figure::new("F16")
            .with("was_free", format!("{}KiB", was_free / 1024))
            .losses(&stage.load, &[&quiet[0], &quiet[1], &during, &after])
            .latency([&quiet[0], &quiet[1]], &during)
            .expect("change_refused", before == 0, before == 0, "true")
            .expect("alarm", told.is_some(), told.is_some(), "true")
            .with("starts_while_full", while_full)
            .none("broken_files", broken.len() as u64)
            .within("in_force_after", taken.unwrap_or(Duration::MAX), PATIENCE * 2)
            .expect("serves", through, through, "true")
            .noting(broken)
            .noting(starts.err().map(|error| error.to_string()).into_iter().collect())
    })
}

/// Policies that n2's proxy has.
async fn policies(mesh: &TestMesh) -> usize {
    let dump = mesh.ask(&Component::Ztunnel("n2".into()), "/config_dump").await;
    dump["policies"].as_array().map_or(0, Vec::len)
}
