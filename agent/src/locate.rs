//! Finding the network namespace of a pod: by name, by its record, by asking the container runtime, by looking
//! through the processes of the node. Whatever is found is proven before it is used.

pub mod cri;
pub mod scan;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tulle_linux::NetNs;
use tulle_model::Str;

use crate::error::CaptureError;
use crate::netns::{self, Located, NetnsName};
use crate::pods::{Pod, Process};
use crate::records::{PodId, ProcessId, Record, Records};
use crate::resolver::Resolver;
use cri::Cri;

/// Finds pods on this node.
#[derive(Debug, Clone)]
pub struct Locator {
    netns_dir: Arc<Path>,
    proc_dir: Arc<Path>,
    host_inode: u64,
    records: Records,
    cri: Option<Cri>,
}

/// A place where a pod's namespace may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Whose it is.
    pub pod: PodId,
    /// The runtime's id of the sandbox; empty when it was found without.
    pub container_id: Str,
    /// Where the namespace is.
    pub netns: PathBuf,
    /// The addresses the runtime knows.
    pub addresses: Vec<IpAddr>,
    /// The process by which it was found, if it was found so.
    pub process: Option<ProcessId>,
    /// What its resolv.conf says, if the runtime told.
    pub resolver: Option<Resolver>,
}

impl Locator {
    /// Looks for named namespaces in `netns_dir`; `cri` is where the container runtime listens, if there is one.
    #[must_use]
    pub fn new(netns_dir: &Path, host_inode: u64, records: Records, cri: Option<&Path>) -> Self {
        Self {
            netns_dir: netns_dir.into(),
            proc_dir: Path::new("/proc").into(),
            host_inode,
            records,
            cri: cri.map(Cri::new),
        }
    }

    /// What is known of sandboxes.
    #[must_use]
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Inode of the node's own namespace.
    #[must_use]
    pub fn host_inode(&self) -> u64 {
        self.host_inode
    }

    /// Whether anything runs in a namespace beside what holds a sandbox open.
    pub async fn is_running_in(&self, inode: u64) -> bool {
        let proc_dir = Arc::clone(&self.proc_dir);
        let looked = tokio::task::spawn_blocking(move || scan::is_running_in(&proc_dir, inode)).await;
        looked.unwrap_or(true)
    }

    /// Finds and proves a pod's namespace.
    ///
    /// # Errors
    /// When it is nowhere, or what is there is not the pod's.
    pub async fn locate(&self, pod: &Pod) -> Result<Located, CaptureError> {
        match &pod.process {
            Some(Process::Netns(name)) => self.named(name, pod).await,
            Some(Process::Pod(_)) | None => self.sandbox(pod).await,
        }
    }

    async fn named(&self, name: &NetnsName, pod: &Pod) -> Result<Located, CaptureError> {
        netns::locate(name.within(&self.netns_dir), &pod.addresses, self.host_inode).await
    }

    /// The first way that works. While the pod is being started only its record counts.
    async fn sandbox(&self, pod: &Pod) -> Result<Located, CaptureError> {
        let mut failure = None;
        if let Some(record) = self.record(pod) {
            match self.by_record(&record, pod).await {
                Ok(located) => return Ok(located),
                Err(error) if self.records.is_starting(&pod.namespace, &pod.name) => return Err(error),
                Err(error) => failure = Some(error),
            }
        }
        for candidate in self.candidates(pod).await {
            match self.prove(&candidate, pod).await {
                Ok(located) => {
                    self.remember(candidate, &located);
                    return Ok(located);
                }
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or(CaptureError::NetnsUnknown))
    }

    fn record(&self, pod: &Pod) -> Option<Record> {
        let record = self.records.of(&pod.namespace, &pod.name)?;
        pod.is(&record.pod).then_some(record)
    }

    async fn by_record(&self, record: &Record, pod: &Pod) -> Result<Located, CaptureError> {
        let candidate = Candidate {
            pod: record.pod.clone(),
            container_id: record.container_id.clone(),
            netns: record.netns.clone(),
            addresses: record.addresses.clone(),
            process: record.process,
            resolver: record.resolver.clone(),
        };
        let located = self.prove(&candidate, pod).await?;
        if located.netns.inode() == record.inode {
            return Ok(located);
        }
        Err(CaptureError::NetnsReplaced {
            path: record.netns.clone(),
        })
    }

    /// What the runtime knows of the pod and, if it knows nothing, the processes that carry the pod's uid.
    async fn candidates(&self, pod: &Pod) -> Vec<Candidate> {
        let mut found = Vec::new();
        if let Some(cri) = &self.cri {
            match cri.sandboxes(&pod.namespace, &pod.name).await {
                Ok(sandboxes) => {
                    let lives = |found: &Candidate| !self.records.has_ended(&found.container_id);
                    found.extend(
                        sandboxes
                            .into_iter()
                            .filter(|found| pod.is(&found.pod) && lives(found)),
                    );
                }
                Err(error) => {
                    tracing::debug!(uid = %pod.uid, %error, "the container runtime cannot be asked")
                }
            }
        }
        if let Some(Process::Pod(Some(uid))) = &pod.process {
            found.extend(self.scan(pod, uid).await);
        }
        found
    }

    async fn scan(&self, pod: &Pod, uid: &Str) -> Option<Candidate> {
        let (proc_dir, host_inode, wanted) = (Arc::clone(&self.proc_dir), self.host_inode, uid.clone());
        let scanned = tokio::task::spawn_blocking(move || scan::find(&proc_dir, &wanted, host_inode)).await;
        let (process, netns) = scanned.ok()??;
        Some(Candidate {
            pod: PodId {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: uid.clone(),
            },
            container_id: "".into(),
            netns,
            addresses: Vec::new(),
            process: Some(process),
            resolver: None,
        })
    }

    /// Proves a candidate: by the addresses of the description or, while it has none, by those of the runtime.
    async fn prove(&self, candidate: &Candidate, pod: &Pod) -> Result<Located, CaptureError> {
        let described = if pod.addresses.is_empty() {
            &candidate.addresses
        } else {
            &pod.addresses
        };
        let located = netns::locate(candidate.netns.clone(), described, self.host_inode).await?;
        // Opened first, asked then: a process that is still the same had this namespace all along.
        let same = |process| scan::start_time(&self.proc_dir, process) == Some(process);
        if candidate.process.is_some_and(|process| !same(process)) {
            return Err(CaptureError::NetnsReplaced {
                path: candidate.netns.clone(),
            });
        }
        Ok(located)
    }

    /// The next look finds it at once.
    fn remember(&self, candidate: Candidate, located: &Located) {
        tracing::info!(pod = %candidate.pod, netns = %candidate.netns.display(), "found the sandbox of a running pod");
        let record = Record {
            pod: candidate.pod,
            container_id: candidate.container_id,
            netns: candidate.netns,
            inode: located.netns.inode(),
            addresses: candidate.addresses,
            process: candidate.process,
            resolver: candidate.resolver,
        };
        if let Err(error) = self.records.put(record, false) {
            tracing::warn!(%error, "a pod's record cannot be written");
        }
    }

    /// Opens the namespace of a pod that is being started, by the path its runtime gave.
    ///
    /// # Errors
    /// When it cannot be opened, or is the node's own.
    pub fn open(&self, path: &Path) -> Result<NetNs, CaptureError> {
        let netns = NetNs::open(path).map_err(|source| CaptureError::NetnsNotFound {
            path: path.to_owned(),
            source,
        })?;
        if netns.inode() == self.host_inode {
            return Err(CaptureError::NetnsIsHost {
                path: path.to_owned(),
            });
        }
        Ok(netns)
    }
}
