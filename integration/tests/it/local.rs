//! `tulle up FOLDER`: the page about it does what it says.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;
use tulle_integration::binary;
use tulle_integration::mesh::PATIENCE;

use crate::tasks::page::{self, Step};

/// A mesh of a folder; it ends with this.
struct Up {
    desk: Arc<tempfile::TempDir>,
    process: Child,
}

impl Up {
    /// Where the reader works: the folder `shop` is in it.
    fn desk() -> Arc<tempfile::TempDir> {
        let desk = tempfile::tempdir().unwrap();
        fs::create_dir(desk.path().join("shop")).unwrap();
        Arc::new(desk)
    }

    fn start(desk: Arc<tempfile::TempDir>) -> Self {
        let said = File::create(desk.path().join("up.log")).unwrap();
        let process = command(desk.path(), &binary::tulle())
            .args(["up", "shop", "--keep-state", "state"])
            .stdin(Stdio::null())
            .stdout(said.try_clone().unwrap())
            .stderr(said)
            .spawn()
            .unwrap();
        Self { desk, process }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.desk.path().join("up.log")).unwrap_or_default()
    }

    async fn says(&mut self, text: &str) {
        let deadline = Instant::now() + 2 * PATIENCE;
        while !self.said().contains(text) {
            assert_eq!(self.process.try_wait().unwrap(), None, "{}", self.said());
            assert!(Instant::now() < deadline, "no {text:?}: {}", self.said());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Runs a command until it prints what is expected; one that changes something is run once.
    async fn expect(&self, line: &str, expected: &[String]) {
        let deadline = Instant::now() + 2 * PATIENCE;
        loop {
            let bin = binary::tulle().parent().unwrap().display().to_string();
            let output = command(self.desk.path(), Path::new("/bin/sh"))
                .args(["-c", &format!("{{ {line}\n}} 2>&1")])
                .env("PATH", format!("{bin}:/usr/sbin:/usr/bin:/sbin:/bin"))
                .output()
                .unwrap();
            let printed = String::from_utf8_lossy(&output.stdout).into_owned();
            if page::fits(expected, &printed.lines().collect::<Vec<_>>()) {
                return;
            }
            let again = Instant::now() < deadline && !line.starts_with("tulle waypoint apply");
            assert!(again, "{line}\nprinted:\n{printed}\n{}", self.everything());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What it and everybody in it has said.
    fn everything(&self) -> String {
        let logs = fs::read_dir(self.desk.path().join("state/logs"));
        let logs = logs.into_iter().flatten().flatten().map(|entry| entry.path());
        let tail = |path: PathBuf| {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(15)..].join("\n");
            format!("── {}\n{last}\n", path.display())
        };
        self.said() + &logs.map(tail).collect::<String>()
    }

    /// Ctrl-C.
    fn interrupt(&self) {
        let id = Pid::from_raw(i32::try_from(self.process.id()).unwrap());
        kill(id, Signal::SIGINT).unwrap();
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn command(desk: &Path, program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(desk)
        .env("TULLE_RUN_DIR", desk.join("run"))
        .env("TULLE_CONFIG_DIR", desk.join("shop"))
        .env("TULLE_STATE_DIR", desk.join("state/state"));
    command
}

/// Processes that were started in the folder, by the file of a namespace's resolver settings that they were given.
fn programs(desk: &Path) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let told = desk.join("state/resolvers").display().to_string();
    let ours = processes.filter(|process| {
        let environment = fs::read(process.path().join("environ")).unwrap_or_default();
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let in_pod = String::from_utf8_lossy(&environment).contains("POD_NAME=");
        let here = fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == desk.join("shop"));
        String::from_utf8_lossy(&line).contains(&told) || (in_pod && here)
    });
    ours.count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_manifests_is_a_mesh_whose_waypoint_comes_and_goes_by_command() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/local"));
    let desk = Up::desk();
    let (shop, mut up) = (desk.path().join("shop"), None);
    for step in page::read(folder).into_iter().flat_map(|page| page.steps) {
        match step {
            Step::File { name, text } => fs::write(shop.join(name), text).unwrap(),
            Step::Command { line, expected, .. } => {
                if up.is_none() {
                    let mut started = Up::start(Arc::clone(&desk));
                    started.says("2 pods, 2 of them in the mesh").await;
                    up = Some(started);
                }
                up.as_ref().unwrap().expect(&line, &expected).await;
            }
        }
    }
    let mut up = up.unwrap();
    assert!(programs(up.desk.path()) >= 2, "{}", up.everything());
    // A pod that the manifests no longer have goes, with what runs in it.
    let text = fs::read_to_string(shop.join("shop.yaml")).unwrap();
    let (rest, client) = text.rsplit_once("---\n").unwrap();
    assert!(client.contains("name: client"), "{client}");
    fs::write(shop.join("shop.yaml"), rest).unwrap();
    up.says("pod client is gone").await;
    up.interrupt();
    let status = up.process.wait().unwrap();
    assert!(status.success(), "{status} {}", up.everything());
    assert_eq!(programs(up.desk.path()), 0, "{}", up.everything());
    let left = fs::read_dir(&shop)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name());
    let left: Vec<_> = left
        .filter(|name| name.to_string_lossy().starts_with("instance-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    // What was kept does for the next start.
    let mut up = Up::start(desk);
    up.says("1 pods, 1 of them in the mesh").await;
    up.interrupt();
    let status = up.process.wait().unwrap();
    assert!(status.success(), "{status} {}", up.everything());
}

#[test]
fn what_cannot_be_is_refused_with_its_cure() {
    let desk = Up::desk();
    let run = |arguments: &[&str]| {
        let output = command(desk.path(), &binary::tulle())
            .arg("up")
            .args(arguments)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, said) = run(&["nowhere"]);
    assert!(
        code == Some(1) && said.contains("there is no folder nowhere"),
        "{code:?} {said}"
    );
    let (code, said) = run(&["shop", "--keep-state", "shop/state"]);
    assert!(
        code == Some(1) && said.contains("inside of the folder"),
        "{code:?} {said}"
    );
    for arguments in [&[][..], &["shop", "--demo"], &["shop", "--check"]] {
        let (code, said) = run(arguments);
        assert!(
            code == Some(64) || code == Some(2),
            "{arguments:?}: {code:?} {said}"
        );
    }
}
