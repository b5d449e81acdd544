//! Processes of the world: started inside of a namespace, ended with their handle.

use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tulle_linux::NetNs;

/// A process that is killed when the handle is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
}

/// A process of the world failed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It could not be started.
    #[error("cannot start {name} ({program}): {source}")]
    Start {
        /// What it is called.
        name: String,
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It could not be signalled or waited for.
    #[error("cannot end {name}: {source}")]
    End {
        /// What it is called.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Process {
    /// Starts a command inside of a network namespace.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(name: &str, namespace: &NetNs, command: Command) -> Result<Self, ProcessError> {
        let program = PathBuf::from(command.get_program());
        let child = namespace.spawn(command).map_err(|source| ProcessError::Start {
            name: name.to_owned(),
            program,
            source,
        })?;
        Ok(Self {
            name: name.to_owned(),
            child,
        })
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its status, if it has ended.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, ProcessError> {
        let outcome = self.child.try_wait();
        outcome.map_err(|source| ProcessError::End {
            name: self.name.clone(),
            source,
        })
    }

    /// The child's streams, for those who piped them.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends a signal, if it still runs.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub fn signal(&mut self, signal: Signal) -> Result<(), ProcessError> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id fits pid_t"));
        kill(pid, signal).map_err(|error| ProcessError::End {
            name: self.name.clone(),
            source: error.into(),
        })
    }

    /// Kills it and waits for its end.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(&mut self) -> Result<ExitStatus, ProcessError> {
        let outcome = self.child.kill().and_then(|()| self.child.wait());
        outcome.map_err(|source| ProcessError::End {
            name: self.name.clone(),
            source,
        })
    }

    /// Asks it to end, waits for at most `grace`, then kills it.
    ///
    /// # Errors
    /// When it cannot be signalled or waited for.
    pub async fn stop(&mut self, grace: Duration) -> Result<ExitStatus, ProcessError> {
        self.signal(Signal::SIGTERM)?;
        let deadline = tokio::time::Instant::now() + grace;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if tokio::time::Instant::now() >= deadline {
                return self.kill();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Best effort at the end of a world; a process that is gone already is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
