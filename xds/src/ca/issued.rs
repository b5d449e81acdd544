//! What was issued to which node and still lives: `<state-dir>/issued.log`, one line each.
//!
//! Once an identity leaves a node, the certificates that node got for it are denied until they end.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, BufRead, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tulle_model::trust::{Denied, Serial, Subject};
use tulle_model::{Identity, Str};

use crate::snapshot::Placement;
use crate::state_dir::replace;

mod commit;

/// The file in the state folder.
pub const FILE: &str = "issued.log";
/// Living certificates remembered; beyond it those that end first are forgotten first.
pub const LIVING_MAX: usize = 500_000;
/// Lines appended before the file is written anew without those that ended.
const APPENDED_MAX: usize = 100_000;
/// Who denies what has left its node.
const BY_PLACEMENT: &str = "placement";
/// Longest line read.
const LINE_BYTES_MAX: usize = 4096;

/// One issued certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Its serial number, hex.
    pub serial: String,
    /// Whom it names.
    pub identity: Identity,
    /// The node it was issued to.
    pub node: Str,
    /// Its end, in seconds since 1970.
    pub not_after: i64,
}

/// The living certificates.
#[derive(Debug)]
pub struct Issued {
    path: Option<PathBuf>,
    /// Held while the disk is waited for; taken before the other.
    log: Mutex<Log>,
    inner: Mutex<Inner>,
    queue: commit::Queue,
    /// The log of another process, and how far it was read.
    followed: Option<Mutex<Followed>>,
}

/// Place in a file that another process writes.
#[derive(Debug)]
struct Followed {
    path: PathBuf,
    inode: u64,
    offset: u64,
}

/// The file that is appended to.
#[derive(Debug, Default)]
struct Log {
    file: Option<fs::File>,
    /// The last line may be cut off: the next one begins on a line of its own.
    is_torn: bool,
    appended: usize,
}

#[derive(Debug, Default)]
struct Inner {
    count: usize,
    /// By identity and the node that it was issued to.
    living: BTreeMap<(Identity, Str), Vec<(String, i64)>>,
}

impl Issued {
    /// The log of a state folder, without what has ended by `now`. One that cannot be written, as on a full disk, is no
    /// reason not to serve: nothing is handed out until it can.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn open(state_dir: &Path, now: i64) -> io::Result<Self> {
        let path = state_dir.join(FILE);
        let mut inner = Inner::default();
        match fs::File::open(&path) {
            Ok(file) => {
                read(file, now, &mut inner)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let issued = Self {
            path: Some(path),
            inner: Mutex::new(inner),
            ..Self::memory()
        };
        if let Some(problem) = issued.try_again() {
            tracing::error!(problem, "no certificate is handed out");
        }
        Ok(issued)
    }

    /// Opens the log again if it could not be written; says why it still cannot.
    pub fn try_again(&self) -> Option<String> {
        let path = self.path.as_ref()?;
        let mut log = self.log.lock();
        let log = &mut *log;
        let tried = match (&mut log.file, log.is_torn) {
            (Some(_), false) => return None,
            // Ends the line that was cut off.
            (Some(file), true) => file.write_all(b"\n"),
            (None, _) => log.rewrite(path, &self.inner),
        };
        log.is_torn &= tried.is_err();
        let error = tried.err()?;
        Some(format!(
            "{} cannot be written: {error}; certificates are not signed until it can",
            path.display()
        ))
    }

    /// The log that another process writes in this state folder; [`Self::read_on`] takes over what it holds.
    #[must_use]
    pub fn follow(state_dir: &Path) -> Self {
        let followed = Followed {
            path: state_dir.join(FILE),
            inode: 0,
            offset: 0,
        };
        Self {
            followed: Some(Mutex::new(followed)),
            ..Self::memory()
        }
    }

    /// Takes over what the other process has written since this was last asked.
    ///
    /// # Errors
    /// The log cannot be read; what is known stays.
    pub fn read_on(&self, now: i64) -> io::Result<()> {
        let Some(followed) = &self.followed else {
            return Ok(());
        };
        let mut followed = followed.lock();
        let mut file = match fs::File::open(&followed.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        let mut inner = self.inner.lock();
        if metadata.ino() != followed.inode || metadata.len() < followed.offset {
            // It was written anew, with all that lives.
            *inner = Inner::default();
            (followed.inode, followed.offset) = (metadata.ino(), 0);
        }
        file.seek(io::SeekFrom::Start(followed.offset))?;
        followed.offset += read(file, now, &mut inner)?;
        Ok(())
    }

    /// A log that is forgotten with the process.
    #[must_use]
    pub fn memory() -> Self {
        Self {
            path: None,
            log: Mutex::default(),
            inner: Mutex::default(),
            queue: commit::Queue::default(),
            followed: None,
        }
    }

    /// Notes certificates, before they are handed out. Waits for the disk; [`Self::commit`] does so for many at once.
    ///
    /// # Errors
    /// They could not be written down; then none of them must be handed out.
    pub fn note(&self, entries: &[Entry], now: i64) -> io::Result<()> {
        if let Some(path) = &self.path {
            let mut log = self.log.lock();
            if log.appended >= APPENDED_MAX {
                self.inner.lock().forget_ended(now);
                log.rewrite(path, &self.inner)?;
            } else if log.file.is_none() {
                log.rewrite(path, &self.inner)?;
            }
            log.append(entries)?;
        }
        let mut inner = self.inner.lock();
        entries.iter().for_each(|entry| inner.keep(entry.clone()));
        if inner.count > LIVING_MAX {
            inner.forget_ended(now);
            inner.forget_soonest();
        }
        Ok(())
    }

    /// Whether a node holds a living certificate of an identity: then a request for another one is a renewal.
    #[must_use]
    pub fn holds(&self, node: &Str, identity: &Identity, now: i64) -> bool {
        let inner = self.inner.lock();
        let issued = inner.living.get(&(identity.clone(), node.clone()));
        issued.is_some_and(|issued| issued.iter().any(|(_, end)| *end > now))
    }

    /// The node that a living certificate of an identity was issued to. None where it is not known here, or where a workload
    /// got it for itself.
    #[must_use]
    pub fn node_of(&self, identity: &Identity, serial: &Serial, now: i64) -> Option<Str> {
        let inner = self.inner.lock();
        let own = inner.living.range((identity.clone(), Str::from(""))..);
        let mut own = own.take_while(|((of, _), _)| of == identity);
        let is_it = |(known, end): &(String, i64)| {
            *end > now && known.parse::<Serial>().is_ok_and(|known| known == *serial)
        };
        let ((_, node), _) = own.find(|(_, issued)| issued.iter().any(is_it))?;
        (**node != identity.to_string()).then(|| node.clone())
    }

    /// The living certificates of nodes that no longer hold their identity, as entries of the deny-list. What a workload
    /// that is no pod got for itself belongs to no node.
    ///
    /// Where they are more than `most`, one entry stands for all of an identity that nobody holds any more; those that are
    /// good for longest come first.
    #[must_use]
    pub fn misplaced(&self, placement: &Placement, now: i64, most: usize) -> Vec<Denied> {
        let inner = self.inner.lock();
        let mut gone: Vec<Gone<'_>> = Vec::new();
        for ((identity, node), issued) in &inner.living {
            let living = issued.iter().filter(|(_, end)| *end > now);
            let is_good = **node == identity.to_string() || placement.holds(node, identity);
            let of = match gone.last_mut() {
                Some(last) if last.identity == identity => last,
                _ => {
                    gone.push(Gone::new(identity));
                    gone.last_mut().expect("pushed above")
                }
            };
            match is_good {
                true => of.is_held |= living.count() > 0,
                false => of.deny(node, living),
            }
        }
        let count: usize = gone.iter().map(|of| of.serials.len()).sum();
        if count > most {
            let placed: BTreeSet<&Identity> = placement
                .nodes()
                .flat_map(|node| placement.identities(node))
                .collect();
            gone.iter_mut()
                .filter(|of| !of.is_held && !placed.contains(of.identity))
                .for_each(Gone::unite);
        }
        let mut denied: Vec<Denied> = gone.into_iter().flat_map(|of| of.serials).collect();
        if denied.len() > most {
            denied.sort_by_key(|entry| {
                let is_one = matches!(entry.subject, Subject::Serial(_));
                (is_one, Reverse(entry.until))
            });
        }
        denied
    }
}

/// What is left of an identity on nodes that do not hold it any more.
struct Gone<'a> {
    identity: &'a Identity,
    serials: Vec<Denied>,
    /// Somebody has a certificate of it that is as good as ever.
    is_held: bool,
}

impl<'a> Gone<'a> {
    fn new(identity: &'a Identity) -> Self {
        Self {
            identity,
            serials: Vec::new(),
            is_held: false,
        }
    }

    fn deny<'b>(&mut self, node: &str, living: impl Iterator<Item = &'b (String, i64)>) {
        let (mut reason, by) = (None, Str::from(BY_PLACEMENT));
        let denied = living.filter_map(|(serial, end)| {
            let reason = reason.get_or_insert_with(|| format!("its workload left node {node}").into());
            Some(Denied {
                subject: Subject::Serial(serial.parse().ok()?),
                reason: Str::clone(reason),
                until: u64::try_from(*end).ok(),
                by: by.clone(),
            })
        });
        self.serials.extend(denied);
    }

    /// Makes one entry of all: nobody may have the identity.
    fn unite(&mut self) {
        let Some(until) = self.serials.iter().map(|entry| entry.until).max() else {
            return;
        };
        self.serials = vec![Denied {
            subject: Subject::Identity(self.identity.clone()),
            reason: "its workloads left all nodes".into(),
            until,
            by: BY_PLACEMENT.into(),
        }];
    }
}

impl Inner {
    fn keep(&mut self, entry: Entry) {
        let issued = self.living.entry((entry.identity, entry.node)).or_default();
        issued.push((entry.serial, entry.not_after));
        self.count += 1;
    }

    fn forget_ended(&mut self, now: i64) {
        self.retain(|end| end > now);
    }

    /// Makes room for a tenth of the bound.
    fn forget_soonest(&mut self) {
        if self.count <= LIVING_MAX {
            return;
        }
        let mut ends: Vec<i64> = self.living.values().flatten().map(|(_, end)| *end).collect();
        ends.sort_unstable();
        if let Some(first_kept) = ends.get(LIVING_MAX / 10).copied() {
            self.retain(|end| end > first_kept);
        }
    }

    fn retain(&mut self, living: impl Fn(i64) -> bool) {
        self.living.retain(|_, issued| {
            issued.retain(|(_, end)| living(*end));
            !issued.is_empty()
        });
        self.count = self.living.values().map(Vec::len).sum();
    }
}

impl Log {
    /// Writes entries down for good: after a crash of the machine, too, they are there.
    fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        let mut lines = Vec::new();
        if self.is_torn {
            lines.push(b'\n');
        }
        for entry in entries {
            serde_json::to_writer(&mut lines, entry)?;
            lines.push(b'\n');
        }
        if let Some(file) = &mut self.file {
            let written = file.write_all(&lines);
            self.is_torn = written.is_err();
            written?;
            if let Err(error) = file.sync_data() {
                // What of it is on the disk is not known: the next time all is written anew.
                self.file = None;
                return Err(error);
            }
        }
        self.appended += entries.len();
        Ok(())
    }

    /// Writes the living ones to a new file in the place of the old one. If that fails, the old one stays.
    fn rewrite(&mut self, path: &Path, inner: &Mutex<Inner>) -> io::Result<()> {
        let new = path.with_extension("log.new");
        let written = self.rewrite_as(&new, path, inner);
        if written.is_err() {
            // Half a file takes room that is wanted.
            let _ = fs::remove_file(&new);
        }
        written
    }

    fn rewrite_as(&mut self, new: &Path, path: &Path, inner: &Mutex<Inner>) -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = io::BufWriter::new(options.open(new)?);
        for ((identity, node), issued) in &inner.lock().living {
            for (serial, not_after) in issued {
                let entry = Entry {
                    serial: serial.clone(),
                    identity: identity.clone(),
                    node: node.clone(),
                    not_after: *not_after,
                };
                serde_json::to_writer(&mut file, &entry)?;
                file.write_all(b"\n")?;
            }
        }
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        replace(new, path)?;
        (self.file, self.appended, self.is_torn) = (Some(file), 0, false);
        Ok(())
    }
}

/// Reads the whole lines from here on and says how many bytes they have. A line cut off by a crash is of a certificate
/// that was never handed out.
fn read(file: fs::File, now: i64, inner: &mut Inner) -> io::Result<u64> {
    let mut reader = io::BufReader::new(file);
    let mut line = Vec::new();
    let mut bytes = 0;
    loop {
        line.clear();
        let mut limited = io::Read::take(&mut reader, LINE_BYTES_MAX as u64);
        let length = limited.read_until(b'\n', &mut line)?;
        if length == 0 || length < LINE_BYTES_MAX && line.last() != Some(&b'\n') {
            return Ok(bytes);
        }
        bytes += length as u64;
        if line == b"\n" {
            continue;
        }
        match serde_json::from_slice::<Entry>(&line) {
            Ok(entry) if entry.not_after > now => inner.keep(entry),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "a line of issued.log cannot be read"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tulle_model::trust::DENIED_MAX;

    use super::*;

    fn entry(node: &str, account: &str, serial: &str, not_after: i64) -> Entry {
        Entry {
            serial: serial.into(),
            identity: Identity::new("cluster.local", "shop", account),
            node: node.into(),
            not_after,
        }
    }

    fn placement(node: &str, account: &str) -> Placement {
        let mut placement = Placement::default();
        let identity = Identity::new("cluster.local", "shop", account);
        placement.place(node.into(), [identity].into());
        placement
    }

    fn denied(issued: &Issued, placement: &Placement, now: i64) -> Vec<String> {
        let denied = issued.misplaced(placement, now, DENIED_MAX);
        denied.iter().map(|entry| entry.subject.to_string()).collect()
    }

    #[test]
    fn a_certificate_is_denied_from_when_its_workload_leaves_until_it_ends() {
        let issued = Issued::memory();
        issued.note(&[entry("n1", "web", "0a", 100)], 0).unwrap();
        issued.note(&[entry("n1", "db", "0b", 100)], 0).unwrap();
        assert_eq!(denied(&issued, &placement("n1", "db"), 50), ["serial:a"]);
        assert!(denied(&issued, &placement("n1", "db"), 100).is_empty());
        assert_eq!(
            denied(&issued, &placement("n2", "web"), 50),
            ["serial:b", "serial:a"]
        );
    }

    #[test]
    fn more_than_the_list_holds_is_denied_by_identity_where_nobody_holds_that_any_more() {
        let issued = Issued::memory();
        for (node, account, serial, end) in [
            ("n1", "gone", "01", 100),
            ("n2", "gone", "02", 300),
            ("n1", "moved", "03", 100),
            ("n2", "moved", "04", 200),
            ("n3", "moved", "05", 300),
            ("n1", "coming", "06", 400),
            ("n1", "own", "07", 150),
        ] {
            issued.note(&[entry(node, account, serial, end)], 0).unwrap();
        }
        let own = entry("n1", "own", "08", 100);
        let node = own.identity.to_string().into();
        issued.note(&[Entry { node, ..own }], 0).unwrap();
        let mut placement = placement("n3", "moved");
        let coming = Identity::new("cluster.local", "shop", "coming");
        placement.place("n4".into(), [coming].into());
        let denied = |most| {
            let denied = issued.misplaced(&placement, 0, most);
            let entry = |entry: &Denied| (entry.subject.to_string(), entry.until);
            denied.iter().map(entry).collect::<Vec<_>>()
        };
        assert_eq!(denied(6).len(), 6);
        let serial = |serial: &str, until| (format!("serial:{serial}"), Some(until));
        let united = [
            ("spiffe://cluster.local/ns/shop/sa/gone".to_owned(), Some(300)),
            serial("6", 400),
            serial("4", 200),
            serial("7", 150),
            serial("3", 100),
        ];
        assert_eq!(denied(4), united);
    }

    #[test]
    fn what_a_workload_got_for_itself_is_on_no_node_and_stays_good() {
        let issued = Issued::memory();
        let own = Entry {
            node: entry("n1", "web", "0a", 100).identity.to_string().into(),
            ..entry("n1", "web", "0a", 100)
        };
        issued.note(&[own], 0).unwrap();
        issued.note(&[entry("n1", "web", "0b", 100)], 0).unwrap();
        assert_eq!(denied(&issued, &Placement::default(), 50), ["serial:b"]);
    }

    #[test]
    fn a_second_process_reads_on_where_it_stopped_and_anew_what_was_written_anew() {
        let state = tempfile::tempdir().unwrap();
        let follower = Issued::follow(state.path());
        follower.read_on(0).unwrap();
        let owner = Issued::open(state.path(), 0).unwrap();
        owner.note(&[entry("n1", "web", "0a", 100)], 0).unwrap();
        follower.read_on(0).unwrap();
        owner.note(&[entry("n1", "web", "0b", 300)], 0).unwrap();
        follower.read_on(0).unwrap();
        follower.read_on(0).unwrap();
        let nowhere = Placement::default();
        assert_eq!(denied(&follower, &nowhere, 0), denied(&owner, &nowhere, 0));
        drop(owner);
        let owner = Issued::open(state.path(), 200).unwrap();
        owner.note(&[entry("n1", "db", "0c", 300)], 200).unwrap();
        follower.read_on(200).unwrap();
        assert_eq!(denied(&follower, &nowhere, 200), ["serial:c", "serial:b"]);
    }

    #[test]
    fn the_log_survives_a_restart_and_a_torn_line() {
        let state = tempfile::tempdir().unwrap();
        let issued = Issued::open(state.path(), 0).unwrap();
        issued.note(&[entry("n1", "web", "0a", 100)], 0).unwrap();
        issued.note(&[entry("n1", "web", "0b", 300)], 0).unwrap();
        drop(issued);
        let path = state.path().join(FILE);
        let mut text = fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"serial\":\"0c");
        fs::write(&path, text).unwrap();
        let issued = Issued::open(state.path(), 200).unwrap();
        assert_eq!(denied(&issued, &Placement::default(), 200), ["serial:b"]);
        assert_eq!(
            fs::read_to_string(&path).unwrap().lines().count(),
            1,
            "the ended are gone"
        );
        assert!(issued.holds(&"n1".into(), &Identity::new("cluster.local", "shop", "web"), 299));
        assert!(!issued.holds(&"n1".into(), &Identity::new("cluster.local", "shop", "web"), 300));
    }

    #[test]
    fn the_node_of_a_certificate_is_known_until_it_ends_also_after_a_restart() {
        let state = tempfile::tempdir().unwrap();
        let issued = Issued::open(state.path(), 0).unwrap();
        let web = entry("n1", "web", "0A", 100);
        let own = Entry {
            serial: "0b".into(),
            node: web.identity.to_string().into(),
            ..web.clone()
        };
        issued
            .note(&[web.clone(), own, entry("n2", "web", "0c", 300)], 0)
            .unwrap();
        drop(issued);
        let issued = Issued::open(state.path(), 50).unwrap();
        let of =
            |identity: &Identity, serial: &str, now| issued.node_of(identity, &serial.parse().unwrap(), now);
        assert_eq!(of(&web.identity, "0a", 99), Some("n1".into()));
        assert_eq!(of(&web.identity, "c", 299), Some("n2".into()));
        assert_eq!(of(&web.identity, "0a", 100), None, "it has ended");
        assert_eq!(of(&web.identity, "0b", 99), None, "it was issued to no node");
        assert_eq!(of(&web.identity, "0d", 99), None);
        let db = Identity::new("cluster.local", "shop", "db");
        assert_eq!(of(&db, "0a", 99), None, "it names another");
    }
}
