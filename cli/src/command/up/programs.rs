//! The programs that run in the pods of a local mesh, one shell command each.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tulle_world::{Folders, Pod, Process};

use super::kept::Kept;

/// A name server that nobody is: questions to it are answered by the node proxy.
const NAME_SERVER: &str = "169.254.20.10";
/// How long a program may take to end.
const GRACE: Duration = Duration::from_secs(3);
/// The program sees resolver settings of its own in the usual place: a mount that only it and its children have.
const RESOLVER: &str = "if [ -e /etc/resolv.conf ]; then mount --bind \"$0\" /etc/resolv.conf; fi";
/// When standard input ends, whoever holds its other end is gone, however that ended, and the program goes, too. What a
/// program leaves behind goes with it: it is started again, and what is left would be in its way.
const WATCHED: &str = "exec 3<&0
/bin/sh -c \"$1\" </dev/null 3<&- & program=$!
{ cat <&3 >/dev/null; kill -TERM 0; } &
wait $program; code=$?
trap '' TERM
kill -TERM 0
exit $code";

/// A program of a pod.
#[derive(Debug)]
pub(super) struct Program {
    command: String,
    kept: Kept,
    /// The process group, which its children are in, too.
    group: Pid,
}

/// Where programs work and what they are told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Desk<'a> {
    pub(super) folders: &'a Folders,
    pub(super) resolvers: &'a Path,
}

impl Program {
    pub(super) fn start(desk: Desk<'_>, pod: &Pod, command: &str) -> anyhow::Result<Self> {
        let (process, group) = spawn(desk, pod, command)?;
        Ok(Self {
            command: command.to_owned(),
            kept: Kept::new(process),
            group,
        })
    }

    /// Whether it runs this command.
    pub(super) fn runs(&self, command: Option<&str>) -> bool {
        command == Some(&self.command)
    }

    /// Starts it again if it has ended; says so.
    pub(super) fn tend(&mut self, desk: Desk<'_>, pod: &Pod) -> anyhow::Result<Option<String>> {
        let ended = self.kept.ended()?;
        if self.kept.is_due() {
            let (process, group) = spawn(desk, pod, &self.command)?;
            self.kept.restarted(process);
            self.group = group;
        }
        let log = desk.folders.log(pod.name());
        Ok(ended.map(|status| {
            format!(
                "the program of {} ended ({status}) and is started again; its log is {}",
                pod.name(),
                log.display()
            )
        }))
    }

    /// Ends it and whatever it has started.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        let Some(mut process) = self.kept.into_process() else {
            return Ok(());
        };
        // A group whose last process has ended is nothing to signal.
        let _ = killpg(self.group, Signal::SIGTERM);
        let deadline = Instant::now() + GRACE;
        while process.ended()?.is_none() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let _ = killpg(self.group, Signal::SIGKILL);
        process.kill()?;
        Ok(())
    }
}

fn spawn(desk: Desk<'_>, pod: &Pod, text: &str) -> anyhow::Result<(Process, Pid)> {
    let log = desk.folders.log(pod.name());
    let log = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--",
            "/bin/sh",
            "-c",
            &format!("{RESOLVER}\n{WATCHED}"),
        ])
        .arg(resolver_file(desk.resolvers, pod.name()))
        .arg(text)
        .current_dir(&desk.folders.config)
        .env("POD_NAME", pod.name())
        .env("POD_IP", pod.ipv4().to_string())
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);
    let process = pod.spawn(pod.name(), command)?;
    let group = Pid::from_raw(i32::try_from(process.id()).context("a process id fits pid_t")?);
    Ok((process, group))
}

fn resolver_file(resolvers: &Path, pod: &str) -> PathBuf {
    resolvers.join(pod).join("resolv.conf")
}

/// Writes the resolver settings of a pod, for its program and for the agent.
pub(super) fn write_resolver(resolvers: &Path, pod: &str, namespace: &str) -> anyhow::Result<()> {
    let file = resolver_file(resolvers, pod);
    let text = format!(
        "nameserver {NAME_SERVER}\nsearch {namespace}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
    );
    let folder = file.parent().context("the file is in a folder")?;
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&file, text))
        .with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::sync::mpsc;

    use super::*;

    /// Longer than a test is waited for: what sleeps for it was left.
    const LEFT: Duration = Duration::from_secs(20);

    #[test]
    fn what_a_program_leaves_behind_ends_with_it() {
        let mut program = Command::new("/bin/sh")
            .args(["-c", WATCHED, "sh", "sleep 600 & exit 7"])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let held = program.stdin.take();
        assert_eq!(program.wait().unwrap().code(), Some(7));
        let mut output = program.stdout.take().unwrap();
        let (tell, told) = mpsc::channel();
        // The output ends once nobody has it any more.
        std::thread::spawn(move || tell.send(output.read_to_end(&mut Vec::new()).is_ok()));
        assert_eq!(told.recv_timeout(LEFT), Ok(true));
        drop(held);
    }
}
