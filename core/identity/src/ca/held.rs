//! An authority whose answers outlive the process: what it issued is written down for the next one, and what an earlier
//! one wrote down is handed out once, so that a restart needs no authority. A key is written down for as long as somebody
//! here needs it and its certificate is valid, and no longer.
//!
//! The bytes hold private keys. They belong into a sealed memory file, never on a disk.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;
use tulle_model::Identity;
use zeroize::Zeroizing;

use super::{CaClient, CaFuture, Issued};
use crate::certificate::facts;
use crate::clock::Clock;
use crate::csr::PrivateKey;

/// Identities that are written down; beyond that, those that sort last are left out.
pub const HELD_IDENTITIES_MAX: usize = 4096;
/// First bytes of the format.
const MAGIC: &[u8] = b"tulle-keys-1\n";

/// Why bytes are not what an earlier process wrote down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the held keys cannot be read; they are fetched anew")]
pub struct Unreadable;

/// What was issued for one identity.
struct Entry {
    key: Zeroizing<Vec<u8>>,
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    /// Nobody accepts it later; what cannot be read was never accepted.
    not_after: SystemTime,
}

/// Hands out what was held, once per identity; asks `inner` for everything else.
pub struct HeldCa {
    inner: Arc<dyn CaClient>,
    clock: Clock,
    /// Left by an earlier process, and not asked for yet.
    found: Mutex<HashMap<Identity, Entry>>,
    issued: Mutex<BTreeMap<Identity, Entry>>,
    changed: watch::Sender<()>,
}

impl fmt::Debug for HeldCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldCa")
            .field("inner", &self.inner)
            .field("found", &self.found.lock().len())
            .field("issued", &self.issued.lock().len())
            .finish_non_exhaustive()
    }
}

impl HeldCa {
    /// Nothing is held yet. `clock` tells what has expired.
    #[must_use]
    pub fn new(inner: Arc<dyn CaClient>, clock: Clock) -> Self {
        Self {
            inner,
            clock,
            found: Mutex::default(),
            issued: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }

    /// Takes over what an earlier process wrote down and has not expired; returns for how many identities.
    ///
    /// # Errors
    /// When the bytes are none of ours; nothing is taken over then.
    pub fn restore(&self, bytes: &[u8]) -> Result<usize, Unreadable> {
        let mut found = parse(bytes).ok_or(Unreadable)?;
        let now = self.clock.now();
        found.retain(|_, entry| entry.is_valid(now));
        let count = found.len();
        *self.found.lock() = found;
        Ok(count)
    }

    /// Wakes whenever [`Self::encode`] would give something else.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Everything that was issued or held and is of use, to be written down. It contains the keys.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let now = self.clock.now();
        let found = self.found.lock();
        let issued = self.issued.lock();
        let all = issued.iter().chain(found.iter());
        let valid = all.filter(|(_, entry)| entry.is_valid(now));
        written(valid.take(HELD_IDENTITIES_MAX))
    }

    /// Everybody who needs a certificate here has asked by now: what an earlier process left for others is forgotten.
    /// Returns how many identities that were.
    pub fn settle(&self) -> usize {
        let unclaimed = std::mem::take(&mut *self.found.lock()).len();
        if unclaimed > 0 {
            self.changed.send_replace(());
        }
        unclaimed
    }

    fn note(&self, identity: &Identity, entry: Entry) {
        self.issued.lock().insert(identity.clone(), entry);
        self.changed.send_replace(());
    }
}

impl CaClient for HeldCa {
    fn fetch<'a>(&'a self, identity: &'a Identity) -> CaFuture<'a> {
        Box::pin(async move {
            let found = self.found.lock().remove(identity);
            if let Some(entry) = found {
                let issued = entry.issued();
                self.note(identity, entry);
                return Ok(issued);
            }
            let issued = self.inner.fetch(identity).await?;
            self.note(identity, Entry::of(&issued));
            Ok(issued)
        })
    }

    fn forget(&self, identity: &Identity) {
        let found = self.found.lock().remove(identity);
        let issued = self.issued.lock().remove(identity);
        if found.is_some() || issued.is_some() {
            self.changed.send_replace(());
        }
        self.inner.forget(identity);
    }
}

impl Entry {
    fn new(
        key: Zeroizing<Vec<u8>>,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Self {
        let leaf = chain.first().and_then(|leaf| facts(leaf).ok());
        let not_after = leaf.map_or(UNIX_EPOCH, |leaf| leaf.not_after);
        Self {
            key,
            chain,
            roots,
            not_after,
        }
    }

    fn of(issued: &Issued) -> Self {
        let key = Zeroizing::new(issued.key.der().secret_der().to_vec());
        Self::new(key, issued.chain.clone(), issued.roots.clone())
    }

    fn is_valid(&self, now: SystemTime) -> bool {
        now <= self.not_after
    }

    fn issued(&self) -> Issued {
        let key = PrivatePkcs8KeyDer::from(self.key.to_vec());
        Issued {
            key: PrivateKey::from(PrivateKeyDer::Pkcs8(key)),
            chain: self.chain.clone(),
            roots: self.roots.clone(),
        }
    }
}

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

fn field(bytes: &mut Vec<u8>, field: &[u8]) {
    bytes.extend(length(field.len()));
    bytes.extend(field);
}

fn written<'a>(entries: impl Iterator<Item = (&'a Identity, &'a Entry)>) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(MAGIC.to_vec());
    for (identity, entry) in entries {
        field(&mut bytes, identity.to_string().as_bytes());
        field(&mut bytes, &entry.key);
        for list in [&entry.chain, &entry.roots] {
            bytes.extend(length(list.len()));
            list.iter().for_each(|der| field(&mut bytes, der));
        }
    }
    bytes
}

/// Whatever is read is bounded, and written down is read as the same again.
///
/// # Panics
/// When that does not hold.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let Some(found) = parse(bytes) else { return };
    assert!(found.len() <= HELD_IDENTITIES_MAX);
    let held: usize = found.values().map(|entry| entry.key.len()).sum();
    assert!(held <= bytes.len(), "nothing is made up");
    let sorted: BTreeMap<_, _> = found.iter().collect();
    let first = written(sorted.into_iter());
    let again = parse(&first).expect("what we write down can be read");
    let sorted: BTreeMap<_, _> = again.iter().collect();
    assert_eq!(written(sorted.into_iter()), first);
}

fn parse(bytes: &[u8]) -> Option<HashMap<Identity, Entry>> {
    let mut rest = bytes.strip_prefix(MAGIC)?;
    let mut all = HashMap::new();
    while !rest.is_empty() {
        let identity = std::str::from_utf8(take(&mut rest)?).ok()?.parse().ok()?;
        let key = Zeroizing::new(take(&mut rest)?.to_vec());
        let chain = list(&mut rest)?;
        let roots = list(&mut rest)?;
        all.insert(identity, Entry::new(key, chain, roots));
    }
    (all.len() <= HELD_IDENTITIES_MAX).then_some(all)
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = number(rest)?;
    let (field, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(field)
}

fn number(rest: &mut &[u8]) -> Option<usize> {
    let (number, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    usize::try_from(u32::from_be_bytes(*number)).ok()
}

fn list(rest: &mut &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let count = number(rest)?;
    // Each takes four bytes at least, so a count that is too large ends here and reserves nothing.
    (0..count)
        .map(|_| take(rest).map(|der| CertificateDer::from(der.to_vec())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeCa, LIFETIME, TestCa};
    use crate::{KeyExchange, WorkloadCertificate};
    use std::time::Duration;

    fn web() -> Identity {
        Identity::new("cluster.local", "shop", "web")
    }

    fn reviews() -> Identity {
        Identity::new("cluster.local", "shop", "reviews")
    }

    fn authority() -> HeldCa {
        authority_at(Clock::system())
    }

    fn authority_at(clock: Clock) -> HeldCa {
        let inner = FakeCa::new(Arc::new(TestCa::new()), clock.clone());
        HeldCa::new(Arc::new(inner), clock)
    }

    fn is_held(authority: &HeldCa, identity: &Identity) -> bool {
        let held = parse(&authority.encode()).expect("what we write down can be read");
        held.contains_key(identity)
    }

    #[tokio::test]
    async fn what_was_issued_is_handed_out_by_the_next_process_without_an_authority() {
        let before = authority();
        let issued = before.fetch(&web()).await.unwrap();
        let after = authority();
        assert_eq!(after.restore(&before.encode()), Ok(1));
        let held = after.fetch(&web()).await.unwrap();
        assert_eq!(held.chain, issued.chain);
        let now = SystemTime::now();
        WorkloadCertificate::new(&web(), &held, KeyExchange::default(), now).expect("key and chain fit");
        assert_eq!(after.encode(), before.encode(), "it is held on");
        let renewed = after.fetch(&web()).await.unwrap();
        assert_ne!(
            renewed.chain, issued.chain,
            "handed out once, then the authority is asked"
        );
    }

    #[tokio::test]
    async fn what_is_not_asked_for_is_still_held() {
        let before = authority();
        before.fetch(&web()).await.unwrap();
        let after = authority();
        after.restore(&before.encode()).unwrap();
        assert_eq!(after.encode(), before.encode());
    }

    #[tokio::test]
    async fn what_is_forgotten_is_not_written_down_whoever_issued_it() {
        let before = authority();
        before.fetch(&web()).await.unwrap();
        before.fetch(&reviews()).await.unwrap();
        let after = authority();
        after.restore(&before.encode()).unwrap();
        after.fetch(&web()).await.unwrap();
        let mut changes = after.changes();
        changes.mark_unchanged();
        after.forget(&reviews());
        assert!(changes.has_changed().unwrap(), "it is written down anew");
        assert!(is_held(&after, &web()) && !is_held(&after, &reviews()));
        after.forget(&web());
        assert_eq!(&**after.encode(), MAGIC);
        changes.mark_unchanged();
        after.forget(&web());
        assert!(!changes.has_changed().unwrap(), "there was nothing to forget");
    }

    #[tokio::test]
    async fn what_nobody_asked_for_is_forgotten_once_all_have_asked() {
        let before = authority();
        before.fetch(&web()).await.unwrap();
        before.fetch(&reviews()).await.unwrap();
        let after = authority();
        after.restore(&before.encode()).unwrap();
        after.fetch(&web()).await.unwrap();
        assert_eq!(after.settle(), 1);
        assert!(is_held(&after, &web()) && !is_held(&after, &reviews()));
        assert_eq!(after.settle(), 0);
    }

    #[tokio::test]
    async fn what_has_expired_is_neither_written_down_nor_taken_over() {
        let start = SystemTime::now();
        let passed = Arc::new(Mutex::new(Duration::ZERO));
        let clock = {
            let passed = Arc::clone(&passed);
            Clock::from_fn(move || start + *passed.lock())
        };
        let before = authority_at(clock.clone());
        before.fetch(&web()).await.unwrap();
        let bytes = before.encode();
        *passed.lock() = LIFETIME - Duration::from_secs(60);
        before.fetch(&reviews()).await.unwrap();
        assert!(is_held(&before, &web()), "valid for another minute");
        *passed.lock() = LIFETIME + Duration::from_secs(60);
        assert!(is_held(&before, &reviews()) && !is_held(&before, &web()));
        let after = authority_at(clock);
        assert_eq!(after.restore(&bytes), Ok(0));
        assert_eq!(&**after.encode(), MAGIC);
    }

    #[tokio::test]
    async fn bytes_that_are_cut_or_changed_are_not_taken_over() {
        let before = authority();
        before.fetch(&web()).await.unwrap();
        let bytes = before.encode();
        for cut in [0, 5, MAGIC.len() + 3, bytes.len() - 1] {
            assert_eq!(
                authority().restore(&bytes[..cut]),
                Err(Unreadable),
                "cut at {cut}"
            );
        }
        let mut long = MAGIC.to_vec();
        long.extend([0xff; 8]);
        assert_eq!(authority().restore(&long), Err(Unreadable));
    }

    #[tokio::test]
    async fn no_key_is_shown() {
        let held = authority();
        held.fetch(&web()).await.unwrap();
        assert!(!format!("{held:?}").contains("key"));
    }
}
