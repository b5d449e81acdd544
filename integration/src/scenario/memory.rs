//! A node proxy with little memory above what it needs.

use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tulle_world::Component;

use super::attack::Attackers;
use super::stage::Stage;
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::hbone::{certificate, identity};
use crate::traffic::gets_through;

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "F18",
    120,
    "the node proxy may use 1.2 times its steady memory, under load and every attack on a tunnel port",
    f18,
)];

/// Where version 1 of the memory controller is mounted.
const CONTROLLER: &str = "/sys/fs/cgroup/memory";

/// A memory cgroup of the scenario; it goes with the value.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> std::io::Result<Self> {
        let folder = PathBuf::from(CONTROLLER).join(format!("tulle-{}", std::process::id()));
        std::fs::create_dir(&folder)?;
        Ok(Self(folder))
    }

    /// Starts a process inside of the group: what it reads at its start, and what it uses from then on, is the group's.
    fn run<T>(&self, start: impl FnOnce() -> T) -> T {
        let thread = nix::unistd::gettid().to_string();
        let own = own_group();
        self.write("tasks", &thread);
        let started = start();
        std::fs::write(own.join("tasks"), thread)
            .unwrap_or_else(|error| panic!("{}: {error}", own.display()));
        started
    }

    fn write(&self, file: &str, value: &str) {
        std::fs::write(self.0.join(file), value).unwrap_or_else(|error| panic!("{file}: {error}"));
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.0.join(file)).unwrap_or_default()
    }

    fn number(&self, file: &str) -> u64 {
        self.read(file).trim().parse().unwrap_or(0)
    }

    /// Processes of the group that the kernel killed for want of memory.
    fn killed(&self) -> u64 {
        let control = self.read("memory.oom_control");
        let line = control.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }
}

/// A copy of a program of which nothing is in memory: as in a container, whoever runs it is charged for its pages. Those of
/// the program itself are charged to whoever ran it first.
fn of_its_own(program: &Path, folder: &Path) -> PathBuf {
    let copy = folder.join("tulle");
    std::fs::copy(program, &copy).unwrap();
    let file = std::fs::File::open(&copy).unwrap();
    // Only what is on disk can be dropped.
    file.sync_all().unwrap();
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    copy
}

/// The memory group of this process.
fn own_group() -> PathBuf {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = groups.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let memory = controllers.split(',').any(|controller| controller == "memory");
        memory.then(|| path.trim_start_matches('/').to_owned())
    });
    PathBuf::from(CONTROLLER).join(own.unwrap_or_default())
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its process ended with the mesh; an empty group can be removed.
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn f18(scale: Scale) -> Run {
    Box::pin(async move {
        let cgroup = match Cgroup::new() {
            Ok(cgroup) => cgroup,
            Err(error) => {
                return Figure::skipped("F18", format!("no memory cgroup can be made here: {error}"));
            }
        };
        let mut stage = Stage::new(scale).await;
        let component = Component::Ztunnel("n2".into());
        let mesh = &mut stage.mesh;
        let folder = tempfile::tempdir().unwrap();
        mesh.mesh
            .set_binary(of_its_own(&mesh.mesh.folders().binary, folder.path()));
        mesh.mesh.kill(&component).unwrap();
        cgroup.run(|| mesh.mesh.start_ztunnel(&mesh.world, "n2")).unwrap();
        mesh.mesh.wait_ready(&component).await.unwrap();
        stage.restart_load().await;
        let process = stage.process(&component);
        let quiet = stage.quiet().await;
        // Everything that the group is charged for, sockets in the kernel included.
        let steady = cgroup.number("memory.usage_in_bytes");
        let limit = steady + steady / 5;
        cgroup.write("memory.limit_in_bytes", &limit.to_string());
        let from = stage.mesh.world.node("n1").unwrap().namespace().clone();
        let certificate = certificate(&stage.mesh, "n1", &identity("web")).unwrap();
        let attackers = Attackers::start(&from, &certificate, stage.echo.address());
        let under = stage.after().await;
        let (established, lost) = stage.load.established();
        let alive = stage.process(&component) == process && stage.mesh.mesh.ensure_running().is_ok();
        let shed = stage.mesh.metric("n2", &["tulle_denied_total", "T0515"]).await;
        let peak = cgroup
            .read("memory.max_usage_in_bytes")
            .trim()
            .parse()
            .unwrap_or(0);
        let figure = attackers.told(Figure::new("F18"));
        drop(attackers);
        let (from, to) = (stage.web.namespace(), stage.echo.address());
        let served = crate::mesh::eventually(async || gets_through(from, to).await).await;
        let mib = |bytes: u64| format!("{:.1}MiB", bytes as f64 / f64::from(1 << 20));
        figure
            .with("steady", mib(steady))
            .with("limit", mib(limit))
            .with("peak", mib(peak))
            .with(
                "quiet_failed",
                quiet.iter().map(|report| report.connects.failed).sum::<usize>(),
            )
            .none("oom_kills", cgroup.killed())
            .expect("alive", alive, alive, "true")
            .expect(
                "established_lost",
                format!("{lost}/{established}"),
                lost == 0,
                "0",
            )
            .expect("shed", shed, shed > 0.0, "> 0")
            .with("refused_new", under.connects.failed)
            .expect("serves_afterwards", served, served, "true")
            .noting(stage.load.failures())
            .noting(stage.mesh.endings())
    })
}
