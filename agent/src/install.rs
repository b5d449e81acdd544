//! Putting the CNI plugin in place and keeping it there: the program first, then its name at the end of the primary
//! network's list, which the network's own installer may rewrite at any time.
//!
//! A restart or upgrade of the agent touches neither, as long as program and agent understand each other. On the way
//! out the list comes first, so that no list ever names a program that is not there.

pub mod list;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tulle_model::Str;

use crate::cni::{PLUGIN, protocol};

/// How often the list is looked at: it is put right well within a second.
const LOOK_INTERVAL: Duration = Duration::from_millis(400);
/// How long an installed program may take to say what it speaks.
const VERSION_WAIT: Duration = Duration::from_secs(5);
/// Between two tries to start a program that somebody is still writing.
const BUSY_PAUSE: Duration = Duration::from_millis(10);
/// Bytes of a list; none comes near.
const LIST_BYTES_MAX: u64 = 1 << 20;
/// Endings of files that container runtimes read.
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];

/// Where the plugin goes, and what its entry says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// Folder of programs.
    pub bin_dir: PathBuf,
    /// Folder of lists.
    pub conf_dir: PathBuf,
    /// The entry.
    pub entry: Entry,
}

/// Our entry in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where the agent listens.
    pub socket: PathBuf,
    /// Folder of what must outlast both agent and plugin.
    pub state_dir: PathBuf,
    /// Namespaces whose pods start without the agent.
    pub exclude_namespaces: Vec<Str>,
}

/// Why the plugin cannot be put in place, or taken away.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file cannot be read or written.
    #[error("cannot {step} {}: {source}", path.display())]
    File {
        /// What was tried.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no list to be chained into.
    #[error("{} holds no network configuration yet; install the primary network", .0.display())]
    NoList(PathBuf),
    /// The list is of a form that cannot be chained into.
    #[error("{}: {cause}", path.display())]
    List {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: list::ListError,
    },
}

fn file_step<T>(step: &'static str, path: &Path, outcome: io::Result<T>) -> Result<T, InstallError> {
    outcome.map_err(|source| InstallError::File {
        step,
        path: path.to_owned(),
        source,
    })
}

impl Installation {
    /// Installs, and puts back what others take away, for as long as it is polled.
    pub async fn keep(self) {
        let mut said = None;
        loop {
            let outcome = self.install().await.map_err(|error| error.to_string());
            match &outcome {
                Err(error) if said.as_ref() != Some(&outcome) => {
                    tracing::warn!(error, "the CNI plugin is not installed; trying again");
                }
                _ => {}
            }
            said = Some(outcome);
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Puts program and entry in place where they are not.
    ///
    /// # Errors
    /// When a file cannot be written, or there is no list that can be chained into.
    pub async fn install(&self) -> Result<(), InstallError> {
        let program = self.program();
        let chained = self.chained()?;
        // The program can only be wrong if it is not there, or when it is looked at for the first time.
        if !program.is_file() || (chained.is_none() && !self.suits_once(&program).await) {
            self.place_program(&program)?;
            tracing::info!(program = %program.display(), "the CNI plugin's program is in place");
        }
        if let Some((path, text)) = chained {
            self.write_list(&path, &text)?;
            tracing::info!(list = %path.display(), "the CNI plugin is chained");
        }
        Ok(())
    }

    /// Takes entry and program away again.
    ///
    /// # Errors
    /// When a file cannot be written or removed.
    pub fn uninstall(&self) -> Result<(), InstallError> {
        for path in self.lists()? {
            let text = self.read_list(&path)?;
            if let Ok(Some(text)) = list::without(&text, PLUGIN) {
                self.write_list(&path, &text)?;
                tracing::info!(list = %path.display(), "the CNI plugin is chained no more");
            }
        }
        let program = self.program();
        match fs::remove_file(&program) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => file_step("remove", &program, removed),
        }
    }

    fn program(&self) -> PathBuf {
        self.bin_dir.join(PLUGIN)
    }

    /// The primary list as it must be, if it is not.
    fn chained(&self) -> Result<Option<(PathBuf, String)>, InstallError> {
        let primary = self.lists()?.into_iter().next();
        let path = primary.ok_or_else(|| InstallError::NoList(self.conf_dir.clone()))?;
        let text = self.read_list(&path)?;
        match list::with_last(&text, PLUGIN, &self.entry) {
            Ok(changed) => Ok(changed.map(|text| (path, text))),
            Err(cause) => Err(InstallError::List { path, cause }),
        }
    }

    /// The files that runtimes read, the primary first.
    fn lists(&self) -> Result<Vec<PathBuf>, InstallError> {
        let entries = file_step("list", &self.conf_dir, fs::read_dir(&self.conf_dir))?;
        let paths = entries.flatten().map(|entry| entry.path());
        let is_list = |path: &PathBuf| {
            let ending = path.extension().and_then(|ending| ending.to_str());
            ending.is_some_and(|ending| ENDINGS.contains(&ending)) && path.is_file()
        };
        let mut lists: Vec<_> = paths.filter(is_list).collect();
        lists.sort();
        Ok(lists)
    }

    fn read_list(&self, path: &Path) -> Result<String, InstallError> {
        let read = fs::metadata(path).and_then(|metadata| {
            if metadata.len() > LIST_BYTES_MAX {
                return Err(io::Error::other("the file is too long"));
            }
            fs::read_to_string(path)
        });
        file_step("read", path, read)
    }

    /// Readers see the list as it was or as it will be, and with the rights it had.
    fn write_list(&self, path: &Path, text: &str) -> Result<(), InstallError> {
        let draft = path.with_extension("tulle-draft");
        let write = || {
            fs::write(&draft, text)?;
            fs::set_permissions(&draft, fs::metadata(path)?.permissions())?;
            fs::File::open(&draft)?.sync_all()?;
            fs::rename(&draft, path)
        };
        file_step("write", path, write())
    }

    fn place_program(&self, program: &Path) -> Result<(), InstallError> {
        let draft = self.bin_dir.join(format!(".{PLUGIN}.tulle-draft"));
        let place = || {
            fs::create_dir_all(&self.bin_dir)?;
            fs::copy("/proc/self/exe", &draft)?;
            fs::set_permissions(&draft, fs::Permissions::from_mode(0o755))?;
            fs::File::open(&draft)?.sync_all()?;
            fs::rename(&draft, program)
        };
        file_step("write", program, place())
    }

    /// Whether the program understands this agent. It is asked once per change of the file.
    async fn suits_once(&self, program: &Path) -> bool {
        use std::sync::Mutex;
        use std::time::SystemTime;
        static ASKED: Mutex<Option<(PathBuf, SystemTime)>> = Mutex::new(None);
        let changed = fs::metadata(program)
            .and_then(|metadata| metadata.modified())
            .ok();
        let key = changed.map(|changed| (program.to_owned(), changed));
        let known = ASKED.lock().is_ok_and(|asked| key.is_some() && *asked == key);
        if known {
            return true;
        }
        let suits = speaks_protocol(program).await;
        if suits && let Ok(mut asked) = ASKED.lock() {
            *asked = key;
        }
        suits
    }
}

/// Whether a program is a plugin that speaks the agent's protocol.
async fn speaks_protocol(program: &Path) -> bool {
    let ask = async {
        let mut child = spawn_when_written(program).await?;
        let mut input = child.stdin.take().ok_or_else(|| io::Error::other("no input"))?;
        // A program may answer without reading what it is told, and be gone before it is told.
        match input.write_all(br#"{"cniVersion":"1.0.0"}"#).await {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
        drop(input);
        child.wait_with_output().await
    };
    let Ok(Ok(output)) = tokio::time::timeout(VERSION_WAIT, ask).await else {
        return false;
    };
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    told["tulleProtocol"] == protocol::VERSION
}

/// Starts a program, as soon as nobody has it open for writing any more.
async fn spawn_when_written(program: &Path) -> io::Result<Child> {
    loop {
        let spawned = Command::new(program)
            .env_clear()
            .env("CNI_COMMAND", "VERSION")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        match spawned {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            spawned => return spawned,
        }
    }
}

#[cfg(test)]
mod tests;
