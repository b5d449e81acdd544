//! Configuration from a YAML file or text instead of a control plane: `LOCAL_XDS_PATH`, `LOCAL_XDS`.
//!
//! The layout is the one node proxies of Istio read: lists of workloads, services and policies. The file is
//! looked at once a second; one that cannot be used changes nothing.

mod layout;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tulle_model::authz::policy::Authorization;
use tulle_model::{MeshUpdate, NamespacedHostname, NamespacedName, Service, Workload, WorkloadUid};
use tulle_runtime::drain::DrainWatcher;

use crate::state::MeshState;

/// How often the file is looked at.
const POLL: Duration = Duration::from_secs(1);
/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Where local configuration comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalSource {
    /// A file.
    File(PathBuf),
    /// The text itself.
    Text(String),
}

/// Why local configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The file cannot be read.
    #[error("{}: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// The file is beyond the bound.
    #[error("{}: {bytes} bytes are more than {FILE_BYTES_MAX}", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The text is no such configuration.
    #[error("{name}:{line}:{column}: {cause}")]
    Parse {
        /// File name, or `LOCAL_XDS`.
        name: String,
        /// Line, from 1; 0 if unknown.
        line: u64,
        /// Column, from 1; 0 if unknown.
        column: u64,
        /// What is wrong.
        cause: String,
    },
}

/// One state of local configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalConfig {
    workloads: BTreeMap<WorkloadUid, Arc<Workload>>,
    services: BTreeMap<NamespacedHostname, Arc<Service>>,
    policies: BTreeMap<NamespacedName, Arc<Authorization>>,
}

impl LocalConfig {
    /// Reads a text; `name` stands in errors.
    ///
    /// # Errors
    /// Names the line and the cause.
    pub fn parse(name: &str, text: &str) -> Result<Self, LocalError> {
        let document: layout::Document = serde_saphyr::from_str(text).map_err(|error| {
            let location = error.location();
            LocalError::Parse {
                name: name.to_owned(),
                line: location.as_ref().map_or(0, serde_saphyr::Location::line),
                column: location.as_ref().map_or(0, serde_saphyr::Location::column),
                cause: cause(&error.to_string()),
            }
        })?;
        let keyed = |workload: Workload| (workload.uid.clone(), Arc::new(workload));
        Ok(Self {
            workloads: document
                .workloads
                .into_iter()
                .map(Into::into)
                .map(keyed)
                .collect(),
            services: document
                .services
                .into_iter()
                .map(Service::from)
                .map(|s| (s.key(), Arc::new(s)))
                .collect(),
            policies: document
                .policies
                .into_iter()
                .map(Authorization::from)
                .map(|p| (p.key(), Arc::new(p)))
                .collect(),
        })
    }

    /// Everything in it, for an empty mesh.
    #[must_use]
    pub fn updates(&self) -> Vec<MeshUpdate> {
        self.updates_from(&Self::default())
    }

    /// What leads from an earlier configuration to this one.
    #[must_use]
    pub fn updates_from(&self, earlier: &Self) -> Vec<MeshUpdate> {
        let mut updates = Vec::new();
        differences(
            &earlier.policies,
            &self.policies,
            MeshUpdate::Policy,
            MeshUpdate::RemovePolicy,
            &mut updates,
        );
        differences(
            &earlier.workloads,
            &self.workloads,
            MeshUpdate::Workload,
            MeshUpdate::RemoveWorkload,
            &mut updates,
        );
        differences(
            &earlier.services,
            &self.services,
            MeshUpdate::Service,
            MeshUpdate::RemoveService,
            &mut updates,
        );
        updates
    }
}

fn differences<K: Ord + Clone, V: PartialEq>(
    earlier: &BTreeMap<K, Arc<V>>,
    now: &BTreeMap<K, Arc<V>>,
    set: fn(Arc<V>) -> MeshUpdate,
    remove: fn(K) -> MeshUpdate,
    updates: &mut Vec<MeshUpdate>,
) {
    updates.extend(
        now.iter()
            .filter(|(key, value)| earlier.get(key) != Some(value))
            .map(|(_, value)| set(Arc::clone(value))),
    );
    updates.extend(
        earlier
            .keys()
            .filter(|key| !now.contains_key(key))
            .cloned()
            .map(remove),
    );
}

/// Keeps a [`MeshState`] at what a local source says.
#[derive(Debug)]
pub struct Local {
    source: LocalSource,
    state: MeshState,
    applied: LocalConfig,
    modified: Option<SystemTime>,
}

impl Local {
    /// Reads the source and applies it.
    ///
    /// # Errors
    /// If the source cannot be used; then nothing is applied.
    pub fn load(source: LocalSource, state: MeshState) -> Result<Self, LocalError> {
        let mut local = Self {
            source,
            state,
            applied: LocalConfig::default(),
            modified: None,
        };
        local.reload()?;
        local.state.set_synced();
        Ok(local)
    }

    /// Reads the source again and applies the difference as one batch. What cannot be used changes nothing.
    ///
    /// # Errors
    /// If the source cannot be used.
    pub fn reload(&mut self) -> Result<(), LocalError> {
        let next = match &self.source {
            LocalSource::Text(text) => LocalConfig::parse("LOCAL_XDS", text)?,
            LocalSource::File(path) => {
                // Before reading: a change in between is then seen at the next look.
                self.modified = modified(path);
                LocalConfig::parse(&path.display().to_string(), &read(path)?)?
            }
        };
        self.state.apply(next.updates_from(&self.applied));
        self.applied = next;
        self.state.update_status(crate::Status::heard);
        Ok(())
    }

    /// Looks at the file until the drain is over.
    pub async fn run(mut self, drain: DrainWatcher) {
        loop {
            tokio::select! {
                () = drain.over() => return,
                () = tokio::time::sleep(POLL) => self.look(),
            }
        }
    }

    /// Reloads a file that was modified.
    fn look(&mut self) {
        let LocalSource::File(path) = &self.source else {
            return;
        };
        if modified(path) == self.modified {
            return;
        }
        match self.reload() {
            Ok(()) => tracing::info!("local configuration reloaded"),
            Err(error) => {
                tracing::warn!(%error, "local configuration cannot be used; the last good one stays");
                self.state
                    .update_status(|status| status.last_error = Some(error.to_string()));
            }
        }
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .ok()
}

fn read(path: &Path) -> Result<String, LocalError> {
    let unreadable = |cause| LocalError::Read {
        path: path.to_owned(),
        cause,
    };
    let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(LocalError::TooLong {
            path: path.to_owned(),
            bytes,
        });
    }
    std::fs::read_to_string(path).map_err(unreadable)
}

/// What the parser says, without the place it repeats and the excerpt that follows.
fn cause(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let said = line
        .strip_prefix("error: line ")
        .and_then(|rest| rest.split_once(": "));
    said.map_or(line, |(_, cause)| cause).to_owned()
}

#[cfg(test)]
mod tests;
