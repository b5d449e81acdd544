//! Keeps the authority and what is believed up to date: rotation, an issuer from outside, deny-list, revocation
//! lists, the clock. Each round reads everything once and publishes what changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use time::OffsetDateTime;
use tokio::sync::watch;
use tulle_model::{Str, Trust};
use tulle_proto::Resource;
use tulle_runtime::drain::DrainWatcher;

use crate::ca::Authority;
use crate::ca::crl;
use crate::ca::deny::DenyList;
use crate::ca::issued::Issued;
use crate::ca::outside;
use crate::ca::roots::{Roots, RotationError};
use crate::ca::rotation::{Facts, Phase, State, Waiting, Waits};
use crate::serve::admit::Kind;
use crate::snapshot::{ResourceType, Snapshot};
use crate::status::Clients;
use crate::token::TokenError;
use crate::token::join::JoinTokens;

mod clock;
mod described;
mod ending;

use clock::ClockWatch;
use described::described;
pub(crate) use described::pin_of;

/// Pause between two rounds; a change of the deny-list file takes at most this long to be seen.
const ROUND: Duration = Duration::from_millis(500);
/// Pause between hearing of a change in the folder of an issuer from outside and looking at it: files come in turn.
const OUTSIDE_QUIET: Duration = Duration::from_millis(50);
/// Time between two looks at it when nothing is heard.
const OUTSIDE_POLL: Duration = Duration::from_secs(30);
/// Time between two warnings that a certificate ends soon, in seconds: a day.
const WARNED_EVERY: i64 = 24 * 3600;
/// A root of our own is rotated when less than this part of its life is left.
const LIFE_LEFT_MIN: f64 = 0.2;

/// What is kept, and what it is kept by.
#[derive(Debug)]
pub struct Keeper {
    /// Signs.
    pub authority: Arc<Authority>,
    /// What is refused.
    pub denied: DenyList,
    /// What was issued.
    pub issued: Arc<Issued>,
    /// Folder of an issuer from outside.
    pub outside: Option<PathBuf>,
    /// What a rotation waits for.
    pub waits: Waits,
    /// Tokens that nodes join with.
    pub join_tokens: Arc<JoinTokens>,
    /// Who is connected, and what they accepted.
    pub clients: Clients,
    /// State folder of another process that keeps the roots; then they are only read.
    pub followed: Option<PathBuf>,
    /// How the roots of that folder looked when they were read.
    mark: Mutex<Vec<u8>>,
    roots: Mutex<Roots>,
    trust: watch::Sender<Option<Arc<Trust>>>,
    crl: Mutex<Option<Arc<[u8]>>>,
    problem: Mutex<Option<String>>,
    /// Why what is issued cannot be written down, so that nothing is.
    unwritten: Mutex<Option<String>>,
    /// When it was said last that a certificate ends soon, in seconds since 1970.
    warned: Mutex<Option<i64>>,
    /// The rotation has waited past its deadline.
    is_overdue: AtomicBool,
    clock_jumps: AtomicU64,
}

/// How the authority stands; what `tulle ca status` prints.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CaStatus {
    /// Phase of the rotation.
    pub phase: Phase,
    /// When it began, RFC 3339.
    pub since: String,
    /// What it waits for.
    pub waiting: Vec<String>,
    /// It has waited past its deadline, and somebody has to decide.
    pub overdue: bool,
    /// Counts the changes of the roots.
    pub generation: u64,
    /// Connected clients that accepted the roots.
    pub holding: usize,
    /// Connected clients that have not.
    pub lacking: usize,
    /// Where the issuer comes from.
    pub source: &'static str,
    /// Every certificate in use.
    pub certificates: Vec<CertificateStatus>,
    /// Entries of the deny-list.
    pub denied: usize,
    /// Denied certificates that there is no room for in it: refused here, and told to no proxy.
    pub unlisted: usize,
    /// Nodes whose join token somebody tried to use a second time.
    pub suspects: Vec<Str>,
    /// Whether the revocation lists are past their time.
    pub crl_stale: bool,
    /// Why the newest material is not in use.
    pub problem: Option<String>,
    /// The certificate that ends first, if it ends soon, and what to do.
    pub expires_soon: Option<String>,
    /// Times the clock jumped.
    pub clock_jumps: u64,
}

/// One certificate in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateStatus {
    /// `issuer`, `intermediate` or `root`.
    pub role: &'static str,
    /// Serial number, hex.
    pub serial: String,
    /// Beginning, in seconds since 1970.
    pub not_before: i64,
    /// End, in seconds since 1970.
    pub not_after: i64,
}

impl Keeper {
    /// A keeper of these roots. The authority must sign with what they say.
    #[must_use]
    pub fn new(roots: Roots, authority: Arc<Authority>, denied: DenyList, issued: Arc<Issued>) -> Self {
        let keeper = Self {
            authority,
            denied,
            issued,
            outside: None,
            waits: Waits::default(),
            join_tokens: Arc::default(),
            clients: Clients::default(),
            followed: None,
            mark: Mutex::default(),
            roots: Mutex::new(roots),
            trust: watch::Sender::new(None),
            crl: Mutex::new(None),
            problem: Mutex::new(None),
            unwritten: Mutex::new(None),
            warned: Mutex::new(None),
            is_overdue: AtomicBool::new(false),
            clock_jumps: AtomicU64::new(0),
        };
        keeper.publish();
        keeper
    }

    /// What clients are to believe, now and whenever it changes.
    #[must_use]
    pub fn trust(&self) -> watch::Receiver<Option<Arc<Trust>>> {
        self.trust.subscribe()
    }

    /// Replaces the revocation lists.
    pub fn set_crl(&self, lists: Option<Arc<[u8]>>) {
        *self.crl.lock() = lists;
        self.publish();
    }

    /// Runs rounds until the drain starts.
    pub async fn run(self: Arc<Self>, snapshots: watch::Receiver<Arc<Snapshot>>, drain: DrainWatcher) {
        let mut denied = self.denied.subscribe();
        let mut clock = ClockWatch::new(self.authority.now(), Instant::now());
        let mut outside_read = Instant::now();
        let mut watcher = self.outside.as_deref().map(outside::watcher);
        let mut stopped = std::pin::pin!(drain.signaled());
        loop {
            let mut replaced = false;
            tokio::select! {
                () = tokio::time::sleep(ROUND) => {}
                () = outside::heard(&mut watcher) => {
                    tokio::time::sleep(OUTSIDE_QUIET).await;
                    replaced = true;
                }
                Ok(()) = denied.changed() => {
                    self.publish();
                    continue;
                }
                _ = &mut stopped => return,
            }
            self.watch_clock(&mut clock);
            let outside_due = replaced || outside_read.elapsed() >= OUTSIDE_POLL;
            if outside_due {
                outside_read = Instant::now();
            }
            let (keeper, snapshot) = (self.clone(), snapshots.borrow().clone());
            // Files are read and keys are made: not on a thread that serves.
            let round = tokio::task::spawn_blocking(move || {
                if outside_due {
                    keeper.read_outside();
                }
                keeper.round(&snapshot);
            });
            if let Err(error) = round.await {
                tracing::error!(%error, "a round of the certificate authority failed");
            }
        }
    }

    /// One round, except for what is outside.
    pub fn round(&self, snapshot: &Snapshot) {
        let now = self.authority.now();
        if let Err(error) = self.denied.reload() {
            self.report(&error.to_string());
        }
        *self.unwritten.lock() = self.issued.try_again();
        if let Err(error) = self.issued.read_on(now.unix_timestamp()) {
            self.report(&format!("what was issued cannot be read: {error}"));
        }
        if snapshot.synced() {
            let (placement, room) = (snapshot.placement(), self.denied.room());
            let placed = self.issued.misplaced(placement, now.unix_timestamp(), room);
            self.denied.set_placed(placed);
        }
        if let Some(state_dir) = &self.followed {
            if let Err(error) = self.follow(state_dir, now) {
                self.report(&format!("the roots stay as they are: {error}"));
            }
        } else if let Err(error) = self.advance(snapshot, now) {
            tracing::error!(%error, "the rotation of the root does not go on");
        }
        self.warn_of_end(now);
        self.publish();
    }

    /// Takes over what the process that keeps the roots has done with them.
    fn follow(&self, state_dir: &Path, now: OffsetDateTime) -> Result<(), RotationError> {
        let mark = Roots::mark(&state_dir.join("ca"));
        if *self.mark.lock() == mark {
            return Ok(());
        }
        let material = match &self.outside {
            Some(folder) => {
                let read = outside::read(folder, now)?;
                *self.crl.lock() = read.crl;
                Some(read.material)
            }
            None => None,
        };
        let domain = self.authority.trust_domain();
        let roots = Roots::follow(&state_dir.join("ca"), domain, now, material)?;
        self.change(|own| {
            *own = roots;
            Ok(())
        })?;
        *self.mark.lock() = mark;
        *self.problem.lock() = None;
        Ok(())
    }

    /// Reads the folder of an issuer from outside. What cannot be used leaves the last good one in use.
    pub fn read_outside(&self) {
        let Some(folder) = &self.outside else {
            return;
        };
        if self.followed.is_some() {
            // The next round looks at it.
            self.mark.lock().clear();
            return;
        }
        let now = self.authority.now();
        let read = outside::read(folder, now).map_err(RotationError::from);
        let replaced = read.and_then(|read| {
            *self.crl.lock() = read.crl;
            self.change(|roots| roots.replace(read.material, now))
        });
        match replaced {
            Ok(()) => *self.problem.lock() = None,
            Err(error) => self.report(&error.to_string()),
        }
    }

    /// Begins a rotation; with one under way, `force` makes it go on without those that are absent.
    ///
    /// # Errors
    /// It cannot begin.
    pub fn rotate(&self, force: bool) -> Result<(), RotationError> {
        let now = self.authority.now();
        self.change(|roots| {
            if force && roots.state().phase != Phase::Stable {
                let mut forced = roots.state().clone();
                forced.forced = true;
                return roots.set(forced);
            }
            roots.rotate(now)
        })?;
        tracing::warn!(force, "the rotation of the root was asked for");
        Ok(())
    }

    /// Goes back to the root before.
    ///
    /// # Errors
    /// There is no way back.
    pub fn roll_back(&self) -> Result<(), RotationError> {
        let now = self.authority.now();
        self.change(|roots| roots.roll_back(now))?;
        tracing::warn!("the rotation of the root was rolled back");
        Ok(())
    }

    /// How everything stands.
    #[must_use]
    pub fn status(&self, snapshot: &Snapshot) -> CaStatus {
        let now = self.authority.now();
        let (state, outside) = {
            let roots = self.roots.lock();
            (roots.state().clone(), roots.is_outside())
        };
        let facts = self.facts(snapshot, state.generation, now);
        let waiting = state.waiting(&facts, &self.waits);
        let since = jiff::Timestamp::from_second(state.since);
        CaStatus {
            phase: state.phase,
            since: since.map_or_else(|_| state.since.to_string(), |since| since.to_string()),
            waiting: waiting.iter().map(ToString::to_string).collect(),
            overdue: waiting.iter().any(Waiting::is_overdue),
            generation: state.generation,
            holding: facts.holding,
            lacking: facts.lacking.len(),
            source: if outside { "folder" } else { "own root" },
            certificates: self.certificates(),
            denied: self.denied.entries().len(),
            unlisted: self.denied.unlisted(),
            suspects: self.join_tokens.suspects(),
            crl_stale: self.crl_is_stale(now),
            problem: self
                .unwritten
                .lock()
                .clone()
                .or_else(|| self.denied.problem())
                .or_else(|| self.problem.lock().clone()),
            expires_soon: ending::expires_soon(&self.certificates(), now.unix_timestamp(), outside),
            clock_jumps: self.clock_jumps.load(Ordering::Relaxed),
        }
    }

    /// Makes a token that a node joins with, pinned to the root that signs now.
    ///
    /// # Errors
    /// The node id cannot be used, or the token cannot be kept.
    pub fn join_token(&self, node: &str, seconds: u64) -> Result<String, TokenError> {
        let pin = pin_of(&self.authority.issuing().bundle).ok_or(TokenError::NoRoot)?;
        let now = self.authority.now().unix_timestamp();
        self.join_tokens.create(node, seconds, &pin, now)
    }

    /// Whether nothing is handed out because what is issued cannot be written down.
    #[must_use]
    pub fn is_unwritten(&self) -> bool {
        self.unwritten.lock().is_some()
    }

    /// Every certificate in use.
    #[must_use]
    pub fn certificates(&self) -> Vec<CertificateStatus> {
        let issuing = self.authority.issuing();
        let mut certificates = vec![CertificateStatus {
            role: "issuer",
            serial: issuing.signer.serial().to_string(),
            not_before: issuing.signer.not_before().unix_timestamp(),
            not_after: issuing.signer.not_after().unix_timestamp(),
        }];
        let above = issuing.intermediates.iter().map(|pem| ("intermediate", pem));
        for (role, pem) in above.chain([("root", &issuing.bundle)]) {
            certificates.extend(described(role, pem));
        }
        certificates
    }

    /// Phase of the rotation.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.roots.lock().state().phase
    }

    /// Whether the rotation has waited past its deadline.
    #[must_use]
    pub fn is_overdue(&self) -> bool {
        self.is_overdue.load(Ordering::Relaxed)
    }

    /// Times the clock jumped.
    #[must_use]
    pub fn clock_jumps(&self) -> u64 {
        self.clock_jumps.load(Ordering::Relaxed)
    }

    /// Edits the roots, and makes the authority sign with what they say then.
    fn change(
        &self,
        edit: impl FnOnce(&mut Roots) -> Result<(), RotationError>,
    ) -> Result<(), RotationError> {
        let mut roots = self.roots.lock();
        edit(&mut roots)?;
        let issuing = roots.issuing()?;
        drop(roots);
        let before = self.authority.issuing();
        let same = before.bundle == issuing.bundle
            && before.generation == issuing.generation
            && before.signer.serial() == issuing.signer.serial();
        if !same {
            self.authority.set_issuing(issuing);
        }
        self.publish();
        Ok(())
    }

    fn advance(&self, snapshot: &Snapshot, now: OffsetDateTime) -> Result<(), RotationError> {
        self.roots.lock().note_ttl(self.authority.longest_ttl())?;
        let (state, outside) = {
            let roots = self.roots.lock();
            (roots.state().clone(), roots.is_outside())
        };
        if state.phase == Phase::Stable {
            self.note_overdue(&state, &[]);
            if !outside && self.is_old(now) {
                tracing::warn!("the root has less than a fifth of its life left: a rotation begins");
                self.change(|roots| roots.rotate(now))?;
            }
            return Ok(());
        }
        let facts = self.facts(snapshot, state.generation, now);
        match state.next(&facts, &self.waits) {
            Ok(next) => {
                tracing::warn!(from = %state.phase, to = %next.phase, "the rotation of the root goes on");
                self.note_overdue(&state, &[]);
                self.change(|roots| roots.set(next))
            }
            Err(waiting) => {
                self.note_overdue(&state, &waiting);
                Ok(())
            }
        }
    }

    /// Says once per phase that it has waited past its deadline.
    fn note_overdue(&self, state: &State, waiting: &[Waiting]) {
        let late = waiting.iter().find(|one| one.is_overdue());
        let is_known = self.is_overdue.swap(late.is_some(), Ordering::Relaxed);
        if let (Some(late), false) = (late, is_known) {
            tracing::error!(phase = %state.phase, waits = %late, "the rotation of the root is past its deadline");
        }
    }

    fn is_old(&self, now: OffsetDateTime) -> bool {
        let root = self.authority.root();
        let life = (root.not_after() - root.not_before()).as_seconds_f64();
        (root.not_after() - now).as_seconds_f64() < life * LIFE_LEFT_MIN
    }

    /// Who has accepted what is believed now, by the acknowledgements of the resource that says it.
    fn facts(&self, snapshot: &Snapshot, generation: u64, now: OffsetDateTime) -> Facts {
        let mut facts = Facts {
            now: now.unix_timestamp(),
            ..Facts::default()
        };
        let domain = self.authority.trust_domain();
        let slot = snapshot.resource(ResourceType::Trust, domain);
        let served = slot.filter(|slot| {
            let trust = tulle_proto::decode_trust(&slot.name, &slot.body);
            matches!(trust, Ok(Resource::Trust(trust)) if trust.generation == generation)
        });
        let url = ResourceType::Trust.type_url();
        let mut connected = std::collections::BTreeSet::new();
        for client in self.clients.list(Instant::now()) {
            match client.kind {
                Kind::Ztunnel => {
                    connected.insert(client.node.clone());
                }
                Kind::Waypoint => {}
                // Verifies nobody's workloads, and never asks whom to believe.
                Kind::Agent => continue,
            }
            if !client.features.trust {
                facts.untold = true;
                continue;
            }
            let acked = client.types.get(url).and_then(|ty| ty.acked);
            let has_it = served.is_some_and(|slot| acked.is_some_and(|acked| acked >= slot.sequence));
            if has_it {
                facts.holding += 1;
            } else {
                facts.lacking.push(client.node);
            }
        }
        let known = snapshot.placement().nodes();
        facts.absent = known.filter(|node| !connected.contains(*node)).cloned().collect();
        facts
    }

    fn crl_is_stale(&self, now: OffsetDateTime) -> bool {
        let lists = self.crl.lock().clone();
        lists.is_some_and(|lists| {
            // What cannot be read was never taken; should it be here, it proves nothing.
            crl::parse(&lists).map_or(true, |ends| crl::is_stale(ends, now.unix_timestamp()))
        })
    }

    /// Tells what is to be believed, if that changed.
    fn publish(&self) {
        let now = self.authority.now();
        let seconds = u64::try_from(now.unix_timestamp()).unwrap_or_default();
        let issuing = self.authority.issuing();
        let entries = self.denied.entries();
        let crl = self.crl.lock().clone();
        let trust = Trust {
            generation: issuing.generation,
            denied: entries
                .iter()
                .filter(|entry| entry.counts(seconds))
                .cloned()
                .collect(),
            crl,
            crl_stale: self.crl_is_stale(now),
            ..Trust::new(self.authority.trust_domain().clone(), issuing.bundle.clone())
        };
        self.trust.send_if_modified(|current| {
            let changed = current.as_deref() != Some(&trust);
            if changed {
                *current = Some(Arc::new(trust));
            }
            changed
        });
    }

    /// Says once what keeps the newest material out of use.
    fn report(&self, problem: &str) {
        let mut current = self.problem.lock();
        if current.as_deref() != Some(problem) {
            tracing::error!(problem, "the certificate authority keeps what it has");
            *current = Some(problem.to_owned());
        }
    }

    /// Says once a day that a certificate of the authority ends soon.
    fn warn_of_end(&self, now: OffsetDateTime) {
        let (now, outside) = (now.unix_timestamp(), self.roots.lock().is_outside());
        let mut warned = self.warned.lock();
        let Some(soon) = ending::expires_soon(&self.certificates(), now, outside) else {
            *warned = None;
            return;
        };
        if warned.is_none_or(|last| now.saturating_sub(last) >= WARNED_EVERY) {
            tracing::warn!("{soon}");
            *warned = Some(now);
        }
    }

    fn watch_clock(&self, clock: &mut ClockWatch) {
        let wall = self.authority.now();
        if let Some(jump) = clock.look(wall, Instant::now()) {
            self.clock_jumps.fetch_add(1, Ordering::Relaxed);
            let root = self.authority.root();
            let valid = wall >= root.not_before() && wall < root.not_after();
            tracing::error!(
                seconds = jump.as_secs(),
                issuer_valid = valid,
                "the system's clock jumped; certificates are issued by it"
            );
        }
    }
}

#[cfg(test)]
mod tests;
