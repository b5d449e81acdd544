//! Whom this process believes beyond what certificates say: more roots, other names of the trust domain, and what
//! is revoked or denied although it is signed.
//!
//! ```text
//! CRL_PATH ──────┐
//!                ├─▶ TrustStore ──▶ Trust view ──▶ every handshake, both directions
//! pushed Trust ──┘        └───────▶ every open connection, whenever it changes
//! ```

pub mod crl;
mod file;

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::pki_types::TrustAnchor;
use tokio::sync::watch;
use tulle_model::identity::Identity;
use tulle_model::name::Str;
use tulle_model::reason::Reason;
use tulle_model::trust::{Denied, Presented, Trust};
use webpki::{ExpirationPolicy, RevocationOptions, RevocationOptionsBuilder, UnknownStatusPolicy};

use crate::certificate::anchors;
use crate::clock::Clock;
use crate::proof::PeerProof;
use crate::tls::pem_certificates;
use crl::Lists;

/// What a status that is not known means (`TULLE_CRL_STALE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StalePolicy {
    /// Refuse: once a list is configured, one that is missing or past its time proves nothing.
    #[default]
    Deny,
    /// Believe, as ztunnel does.
    Allow,
}

/// A handle on what is believed; clones share it.
#[derive(Debug, Clone)]
pub struct TrustStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    stale: StalePolicy,
    clock: Clock,
    parts: Mutex<Parts>,
    view: ArcSwap<View>,
    moved: watch::Sender<u64>,
}

/// Where a view comes from.
#[derive(Debug, Default)]
struct Parts {
    /// A file of lists is configured; what it held when it was last readable.
    file: Option<Option<Lists>>,
    pushed: Vec<Arc<Trust>>,
}

/// What is believed at one moment. Immutable.
#[derive(Default)]
pub struct View {
    version: u64,
    roots: Vec<TrustAnchor<'static>>,
    aliases: Vec<Str>,
    pushed: Vec<Arc<Trust>>,
    lists: Lists,
    /// Somebody keeps lists, so that a status that is not known means something.
    listed: bool,
    /// The control plane says that its lists are too old.
    pushed_stale: bool,
    /// Lists should be there and are not.
    missing: bool,
    stale: StalePolicy,
}

/// Why a certificate that is good is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// A revocation list names it.
    #[error("the certificate with serial number {serial} is revoked")]
    Revoked {
        /// Of the leaf.
        serial: Str,
    },
    /// An operator denies it.
    #[error("{subject} is denied{}", reason_of(.reason))]
    Denied {
        /// What the entry names.
        subject: String,
        /// Why, in the operator's words.
        reason: Str,
    },
    /// Whether it is revoked cannot be told.
    #[error("whether the certificate is revoked cannot be told: {0}")]
    Unknown(&'static str),
}

fn reason_of(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    }
}

impl Distrust {
    /// The stable code.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Revoked { .. } | Self::Denied { .. } => Reason::CertRevoked,
            Self::Unknown(_) => Reason::CrlStale,
        }
    }
}

impl Default for TrustStore {
    fn default() -> Self {
        Self::new(StalePolicy::Deny, Clock::system())
    }
}

impl TrustStore {
    /// Believes nothing more than certificates say, until told otherwise.
    #[must_use]
    pub fn new(stale: StalePolicy, clock: Clock) -> Self {
        let view = View {
            stale,
            ..View::default()
        };
        Self {
            shared: Arc::new(Shared {
                stale,
                clock,
                parts: Mutex::default(),
                view: ArcSwap::from_pointee(view),
                moved: watch::Sender::new(0),
            }),
        }
    }

    /// What is believed now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.shared.view.load_full()
    }

    /// Takes what the control plane says, of every trust domain it speaks for. Roots or lists in it that cannot be
    /// read leave those of before in force.
    pub fn set_pushed(&self, pushed: Vec<Arc<Trust>>) {
        let mut parts = self.shared.parts.lock();
        if parts.pushed != pushed {
            parts.pushed = pushed;
            self.publish(&parts);
        }
    }

    /// Takes what the configured file holds; `None` if it cannot be read, which leaves its last content in force.
    pub fn set_file(&self, lists: Option<Lists>) {
        let mut parts = self.shared.parts.lock();
        let before = parts.file.take().flatten();
        parts.file = Some(lists.or(before));
        self.publish(&parts);
    }

    /// Under the lock of the parts, so that versions and contents go together.
    fn publish(&self, parts: &Parts) {
        let old = self.shared.view.load();
        let view = View::of(parts, &old, self.shared.stale);
        let version = view.version;
        self.shared.view.store(Arc::new(view));
        self.shared.moved.send_replace(version);
    }

    /// Whether the proof of a connection is still good. What became unknown since does not count: that is for new
    /// connections.
    ///
    /// # Errors
    /// Why it is not.
    pub fn judge(&self, proof: &PeerProof, node: Option<&str>) -> Result<(), Distrust> {
        self.view().judge(proof, node, self.shared.clock.now())
    }

    /// The entry of the deny-list that names this identity, whatever its certificate.
    #[must_use]
    pub fn denies(&self, identity: &Identity) -> Option<Denied> {
        let presented = Presented {
            identity,
            serial: None,
            node: None,
        };
        self.view().denied(&presented, self.shared.clock.now()).cloned()
    }

    /// Sees a new value after every change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.moved.subscribe()
    }

    /// Waits until the proof is no longer good, and says why.
    pub async fn distrusted(&self, proof: &PeerProof, node: Option<&str>) -> Distrust {
        let mut moved = self.shared.moved.subscribe();
        loop {
            moved.mark_unchanged();
            if let Err(why) = self.judge(proof, node) {
                return why;
            }
            if moved.changed().await.is_err() {
                // Never: this handle keeps the sender.
                std::future::pending::<()>().await;
            }
        }
    }

    pub(crate) fn now(&self) -> SystemTime {
        self.shared.clock.now()
    }
}

impl View {
    fn of(parts: &Parts, old: &Self, stale: StalePolicy) -> Self {
        let mut view = Self {
            version: old.version + 1,
            stale,
            pushed: parts.pushed.clone(),
            listed: parts.file.is_some(),
            missing: matches!(parts.file, Some(None)),
            lists: parts.file.clone().flatten().unwrap_or_default(),
            ..Self::default()
        };
        for trust in &parts.pushed {
            view.take(trust, old);
        }
        view
    }

    fn take(&mut self, trust: &Trust, old: &Self) {
        self.aliases.extend(trust.aliases.iter().cloned());
        let roots = pem_certificates(trust.roots.as_bytes()).ok();
        match roots.and_then(|roots| anchors(&roots).ok()) {
            Some(roots) => self.roots.extend(roots.iter().cloned()),
            None => {
                tracing::warn!(domain = %trust.trust_domain, "pushed roots cannot be read; those of before stay");
                self.roots.extend(old.roots.iter().cloned());
            }
        }
        self.pushed_stale |= trust.crl_stale;
        let Some(text) = &trust.crl else { return };
        self.listed = true;
        match Lists::parse(text) {
            Ok(lists) => self.lists = std::mem::take(&mut self.lists).with(&lists),
            Err(error) => {
                tracing::warn!(domain = %trust.trust_domain, %error, "pushed revocation lists cannot be used");
                self.missing |= old.lists.is_empty();
                self.lists = std::mem::take(&mut self.lists).with(&old.lists);
            }
        }
    }

    /// Counts the changes.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Roots beside those that came with a certificate.
    pub(crate) fn roots(&self) -> &[TrustAnchor<'static>] {
        &self.roots
    }

    /// Whether this is another name of our trust domain.
    #[must_use]
    pub fn is_alias(&self, trust_domain: &str) -> bool {
        self.aliases.iter().any(|alias| &**alias == trust_domain)
    }

    /// For dumps.
    #[must_use]
    pub fn summary(&self) -> TrustSummary {
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        TrustSummary {
            version: self.version,
            generation: self.pushed.iter().map(|trust| trust.generation).max(),
            roots: self.roots.len(),
            aliases: self.aliases.clone(),
            denied: self
                .pushed
                .iter()
                .flat_map(|trust| trust.denied.iter().cloned())
                .collect(),
            revocation_lists: self.lists.len(),
            next_update: self.lists.next_update().map(seconds),
            revocation_unknown: self.listed && (self.missing || self.pushed_stale),
        }
    }

    /// Whether a chain that verified is not believed. The node is where the peer runs, if that is known.
    ///
    /// # Errors
    /// Why it is not.
    pub(crate) fn judge(
        &self,
        proof: &PeerProof,
        node: Option<&str>,
        now: SystemTime,
    ) -> Result<(), Distrust> {
        if proof.links().iter().any(|link| self.lists.revokes(link)) {
            return Err(Distrust::Revoked {
                serial: proof.serial().as_str().into(),
            });
        }
        match self.denies(proof, node, now) {
            Some(entry) => Err(Distrust::Denied {
                subject: entry.subject.to_string(),
                reason: Str::clone(&entry.reason),
            }),
            None => Ok(()),
        }
    }

    fn denies(&self, proof: &PeerProof, node: Option<&str>, now: SystemTime) -> Option<&Denied> {
        let presented = Presented {
            identity: proof.identity(),
            serial: Some(proof.serial()),
            node,
        };
        self.denied(&presented, now)
    }

    fn denied(&self, presented: &Presented<'_>, now: SystemTime) -> Option<&Denied> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.pushed.iter().find_map(|trust| trust.denies(presented, now))
    }

    /// Asks the lists during path building, with the signature of each list checked.
    pub(crate) fn with_options<T>(&self, verify: impl FnOnce(Option<RevocationOptions<'_>>) -> T) -> T {
        let lists = self.lists.borrowed();
        let expired = match self.stale {
            StalePolicy::Deny => ExpirationPolicy::Enforce,
            StalePolicy::Allow => ExpirationPolicy::Ignore,
        };
        // Which issuers publish a list differs; that somebody in the chain does is asked by `unknown`.
        let options = RevocationOptionsBuilder::new(&lists).ok().map(|builder| {
            builder
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(expired)
                .build()
        });
        verify(options)
    }

    /// Why the status of a chain with these issuers cannot be told, where that refuses.
    pub(crate) fn unknown<'a>(&self, mut issuers: impl Iterator<Item = &'a [u8]>) -> Result<(), Distrust> {
        if !self.listed || self.stale == StalePolicy::Allow {
            return Ok(());
        }
        let why = if self.missing {
            "no revocation list could be read"
        } else if self.pushed_stale {
            "the control plane's revocation lists are past their next update"
        } else if !issuers.any(|issuer| self.lists.covers(issuer)) {
            "no issuer in its chain publishes a revocation list"
        } else {
            return Ok(());
        };
        Err(Distrust::Unknown(why))
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("summary", &self.summary()).finish()
    }
}

/// What is believed, for dumps. All of it is public.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TrustSummary {
    version: u64,
    generation: Option<u64>,
    roots: usize,
    aliases: Vec<Str>,
    denied: Vec<Denied>,
    revocation_lists: usize,
    next_update: Option<u64>,
    revocation_unknown: bool,
}

#[cfg(test)]
mod tests;
