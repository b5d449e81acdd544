//! Keys that are fetched: when, how often, and for how long old ones are good.
//!
//! ```text
//!            first use, or a key that is not among them (≤ once per 30 s): fetch, and wait for it
//!  none ───────────────────────────► fresh ──20 min──► stale: used, and refreshed aside ──24 h──► none
//! ```
//! Without keys every token is refused; nothing ever passes because keys are missing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dashmap::DashMap;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::{Instant, timeout};
use tulle_model::Str;
use tulle_runtime::tasks;

use super::keys::{JWKS_BYTES_MAX, KeySet, KeysError};
use super::target::{BadTarget, Target};
use crate::policy::ask::BEGINS;

/// How long fetching may take, unless the rule says otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// Age at which keys are fetched again.
pub const REFRESH: Duration = Duration::from_secs(20 * 60);
/// Least pause between two fetches while there are keys.
pub const PAUSE: Duration = Duration::from_secs(30);
/// Least pause between two fetches while there are none.
pub const PAUSE_WITHOUT: Duration = Duration::from_secs(1);
/// Age until which old keys are good when no new ones can be had.
pub const LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// How often it is looked for keys that are due.
pub const LOOK: Duration = Duration::from_secs(60);
/// Most issuers whose keys are held; configuration that names more gets no keys for the rest.
pub const ISSUERS_MAX: usize = 1_000;

/// Why keys could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The address may not be used.
    #[error(transparent)]
    Target(#[from] BadTarget),
    /// What came is no set of keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// It took too long.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// It was answered with something else than 200. Redirects are not followed.
    #[error("answered with status {0}; expected 200, and redirects are not followed")]
    Status(u16),
    /// More came than may come.
    #[error("the answer takes more than {JWKS_BYTES_MAX} bytes")]
    TooLong,
    /// The metadata of the issuer names no keys.
    #[error("the issuer's metadata names no `jwks_uri`")]
    NoUri,
    /// The service that has them stands behind a waypoint, and who needs them has passed as many as it may.
    #[error("the fetch would pass too many waypoints")]
    Loop,
    /// The connection failed.
    #[error("{0}")]
    Connection(String),
}

/// Why a request goes without keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoKeys {
    /// They cannot be had.
    Unavailable,
    /// It has passed too many waypoints for a fetch, and others may have them.
    Loop,
}

/// Performs one GET: to a service of the mesh as any request goes there, else over TLS after [`Target::judge`] of the
/// address. It follows no redirect and reads no more than [`JWKS_BYTES_MAX`].
pub trait Fetch: std::fmt::Debug + Send + Sync {
    /// The body of an answer with status 200, for a request that has passed so many waypoints.
    fn fetch<'a>(&'a self, target: &'a Target, hops: u8) -> BoxFuture<'a, Result<Bytes, FetchError>>;
}

/// Where the keys of a rule come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum From {
    /// An address of keys.
    Uri(Str),
    /// The metadata of this issuer.
    Issuer(Str),
}

/// The keys of all issuers that are fetched.
#[derive(Debug)]
pub struct Jwks {
    fetch: Arc<dyn Fetch>,
    sources: DashMap<From, Arc<Source>>,
}

#[derive(Debug)]
struct Source {
    from: From,
    timeout: Duration,
    state: Mutex<State>,
    /// Held while keys are fetched, so that many requests wait for one answer.
    flight: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct State {
    keys: Option<(Arc<KeySet>, Instant)>,
    asked: Option<Instant>,
    /// They are on their way: who needs them waits, however lately they were asked for.
    fetching: bool,
}

/// What to do for a request.
#[derive(Debug)]
enum Step {
    Use(Arc<KeySet>),
    UseAndRefresh(Arc<KeySet>),
    Fetch,
    /// There are none, and it is too soon to ask again.
    Without,
}

impl State {
    fn step(&self, key_id: Option<&str>, now: Instant) -> Step {
        let passed = |pause| self.asked.is_none_or(|at| now.duration_since(at) >= pause);
        let good = self
            .keys
            .as_ref()
            .filter(|(_, at)| now.duration_since(*at) < LIFE);
        match good {
            Some((keys, _)) if !keys.has(key_id) => match self.fetching || passed(PAUSE) {
                true => Step::Fetch,
                false => Step::Use(keys.clone()),
            },
            Some((keys, at)) if now.duration_since(*at) >= REFRESH && passed(PAUSE) => {
                Step::UseAndRefresh(keys.clone())
            }
            Some((keys, _)) => Step::Use(keys.clone()),
            None if self.fetching || passed(PAUSE_WITHOUT) => Step::Fetch,
            None => Step::Without,
        }
    }
}

impl Jwks {
    /// No keys yet.
    #[must_use]
    pub fn new(fetch: Arc<dyn Fetch>) -> Self {
        Self {
            fetch,
            sources: DashMap::new(),
        }
    }

    /// Fetches the keys of a rule that just arrived, so that the first request need not wait.
    pub fn prepare(self: &Arc<Self>, from: &From, timeout: Option<Duration>) {
        let (this, from) = (self.clone(), from.clone());
        tasks::spawn("jwks_prepare", async move {
            // No request causes it.
            let _ = this.keys(&from, timeout, None, BEGINS).await;
        });
    }

    /// Forgets the keys that no rule asks for any more.
    pub fn keep(&self, wanted: impl Fn(&From) -> bool) {
        self.sources.retain(|from, _| wanted(from));
    }

    /// Fetches the keys of rules that are new, and forgets those of rules that are gone.
    pub fn follow(self: &Arc<Self>, wanted: &HashMap<From, Option<Duration>>) {
        self.keep(|from| wanted.contains_key(from));
        for (from, timeout) in wanted {
            if !self.sources.contains_key(from) {
                self.prepare(from, *timeout);
            }
        }
    }

    /// Fetches again whatever is due, so that no request has to wait for it, and old keys are never older than they
    /// must be.
    pub fn refresh(self: &Arc<Self>) {
        let is_due = |source: &Source| {
            let step = source.state.lock().step(None, Instant::now());
            matches!(step, Step::Fetch | Step::UseAndRefresh(_))
        };
        let due: Vec<_> = self.sources.iter().filter(|source| is_due(source)).collect();
        for source in due {
            let (this, source) = (self.clone(), source.clone());
            tasks::spawn("jwks_refresh", async move {
                // No request causes it.
                let _ = this.renew(&source, None, BEGINS).await;
            });
        }
    }

    /// The keys of a rule, fetched if need be for a request that has passed so many waypoints. If the key of this name is
    /// not among them, they are fetched again, but not too often.
    ///
    /// # Errors
    /// Why there are none.
    pub async fn keys(
        self: &Arc<Self>,
        from: &From,
        timeout: Option<Duration>,
        key_id: Option<&str>,
        hops: u8,
    ) -> Result<Arc<KeySet>, NoKeys> {
        let source = self.source(from, timeout).ok_or(NoKeys::Unavailable)?;
        let step = source.state.lock().step(key_id, Instant::now());
        match step {
            Step::Use(keys) => Ok(keys),
            Step::UseAndRefresh(keys) => {
                let (this, source) = (self.clone(), source.clone());
                tasks::spawn("jwks_refresh", async move {
                    // No request waits for it, so that it is none's.
                    let _ = this.renew(&source, None, BEGINS).await;
                });
                Ok(keys)
            }
            Step::Without => Err(NoKeys::Unavailable),
            Step::Fetch => {
                self.renew(&source, key_id, hops).await?;
                let state = source.state.lock();
                let keys = state.keys.as_ref().map(|(keys, _)| keys.clone());
                keys.ok_or(NoKeys::Unavailable)
            }
        }
    }

    fn source(&self, from: &From, timeout: Option<Duration>) -> Option<Arc<Source>> {
        if let Some(known) = self.sources.get(from) {
            return Some(known.clone());
        }
        if self.sources.len() >= ISSUERS_MAX {
            return None;
        }
        let new = || {
            Arc::new(Source {
                from: from.clone(),
                timeout: timeout.unwrap_or(TIMEOUT),
                state: Mutex::default(),
                flight: Arc::default(),
            })
        };
        Some(self.sources.entry(from.clone()).or_insert_with(new).clone())
    }

    /// Fetches keys, unless somebody else did so while this waited. The fetch goes on when who began it leaves: others
    /// wait for it, and nobody asks again so soon.
    ///
    /// # Errors
    /// [`NoKeys::Loop`], and for no other reason. It says nothing of the keys: who comes next asks for itself.
    async fn renew(
        self: &Arc<Self>,
        source: &Arc<Source>,
        key_id: Option<&str>,
        hops: u8,
    ) -> Result<(), NoKeys> {
        let flight = Arc::clone(&source.flight).lock_owned().await;
        let before = {
            let mut state = source.state.lock();
            let now = Instant::now();
            // Nobody fetches who has not the flight.
            state.fetching = false;
            if matches!(state.step(key_id, now), Step::Use(_) | Step::Without) {
                return Ok(());
            }
            state.fetching = true;
            state.asked.replace(now)
        };
        let (this, source) = (Arc::clone(self), Arc::clone(source));
        let fetching = tasks::spawn_holding("jwks_fetch", flight, async move {
            this.fetch(&source, before, hops).await
        });
        // One that panicked is told of where tasks are watched, and has brought no keys.
        fetching.await.unwrap_or(Ok(()))
    }

    /// Fetches keys that were asked for `before`.
    async fn fetch(&self, source: &Source, before: Option<Instant>, hops: u8) -> Result<(), NoKeys> {
        let fetched = timeout(source.timeout, self.fetched(&source.from, hops)).await;
        let fetched = fetched.unwrap_or(Err(FetchError::Timeout(source.timeout)));
        let mut state = source.state.lock();
        state.fetching = false;
        match fetched {
            Ok(keys) => state.keys = Some((Arc::new(keys), Instant::now())),
            // Who has passed fewer may have them, and at once.
            Err(FetchError::Loop) => {
                state.asked = before;
                return Err(NoKeys::Loop);
            }
            Err(error) => {
                let of = match &source.from {
                    From::Uri(text) | From::Issuer(text) => text,
                };
                tracing::warn!(%of, %error, "keys of tokens could not be fetched; see T0604");
            }
        }
        Ok(())
    }

    async fn fetched(&self, from: &From, hops: u8) -> Result<KeySet, FetchError> {
        let target = match from {
            From::Uri(uri) => Target::parse(uri)?,
            From::Issuer(issuer) => self.discovered(issuer, hops).await?,
        };
        Ok(KeySet::parse(&self.fetch.fetch(&target, hops).await?)?)
    }

    /// OpenID Connect Discovery 1.0, section 4.
    async fn discovered(&self, issuer: &str, hops: u8) -> Result<Target, FetchError> {
        #[derive(Deserialize)]
        struct Metadata {
            jwks_uri: String,
        }
        let issuer = issuer.trim_end_matches('/');
        let target = Target::parse(&format!("{issuer}/.well-known/openid-configuration"))?;
        let text = self.fetch.fetch(&target, hops).await?;
        let metadata: Metadata = serde_json::from_slice(&text).map_err(|_| FetchError::NoUri)?;
        Ok(Target::parse(&metadata.jwks_uri)?)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// An RSA key of RFC 7515, appendix A.2, under this name.
    fn jwks(id: &str) -> String {
        format!(
            r#"{{"keys":[{{"kty":"EC","crv":"P-256","kid":"{id}",
               "x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
               "y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}}]}}"#
        )
    }

    #[derive(Debug, Default)]
    struct Served {
        answers: Mutex<HashMap<String, String>>,
        asked: Mutex<Vec<String>>,
    }

    impl Fetch for Served {
        fn fetch<'a>(&'a self, target: &'a Target, hops: u8) -> BoxFuture<'a, Result<Bytes, FetchError>> {
            if hops > BEGINS {
                return Box::pin(async { Err(FetchError::Loop) });
            }
            let url = format!("{}{}", target.host, target.path);
            self.asked.lock().push(url.clone());
            let answer = self.answers.lock().get(&url).cloned();
            Box::pin(async move { answer.map(Bytes::from).ok_or(FetchError::Status(503)) })
        }
    }

    struct World {
        served: Arc<Served>,
        jwks: Arc<Jwks>,
    }

    impl World {
        fn new() -> Self {
            let served = Arc::new(Served::default());
            let jwks = Arc::new(Jwks::new(served.clone()));
            Self { served, jwks }
        }

        fn serves(&self, url: &str, text: &str) {
            self.served.answers.lock().insert(url.to_owned(), text.to_owned());
        }

        fn fails(&self) {
            self.served.answers.lock().clear();
        }

        fn asked(&self) -> usize {
            self.served.asked.lock().len()
        }

        async fn keys(&self, id: &str) -> Option<Arc<KeySet>> {
            self.after(BEGINS, id).await.ok()
        }

        /// What who has passed so many waypoints gets.
        async fn after(&self, hops: u8, id: &str) -> Result<Arc<KeySet>, NoKeys> {
            let from = From::Uri("https://keys/jwks".into());
            self.jwks.keys(&from, None, Some(id), hops).await
        }

        async fn has(&self, id: &str) -> bool {
            self.keys(id).await.is_some_and(|keys| keys.has(Some(id)))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_fetched_once_and_kept() {
        let world = World::new();
        world.serves("keys/jwks", &jwks("a"));
        assert!(world.has("a").await && world.has("a").await);
        assert_eq!(world.asked(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn without_keys_there_are_none_and_the_server_is_not_flooded() {
        let world = World::new();
        for _ in 0..100 {
            assert!(world.keys("a").await.is_none());
        }
        assert_eq!(world.asked(), 1);
        tokio::time::advance(PAUSE_WITHOUT).await;
        world.serves("keys/jwks", &jwks("a"));
        assert!(world.has("a").await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_key_is_looked_for_at_most_once_in_thirty_seconds() {
        let world = World::new();
        world.serves("keys/jwks", &jwks("a"));
        assert!(world.has("a").await);
        world.serves("keys/jwks", &jwks("b"));
        assert!(!world.has("b").await, "too soon");
        tokio::time::advance(PAUSE).await;
        assert!(world.has("b").await);
        assert_eq!(world.asked(), 2);
        for _ in 0..100 {
            assert!(!world.has("c").await);
        }
        assert_eq!(world.asked(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn stale_keys_are_used_while_new_ones_are_fetched() {
        let world = World::new();
        world.serves("keys/jwks", &jwks("a"));
        let first = world.keys("a").await.unwrap();
        tokio::time::advance(REFRESH).await;
        assert_eq!(world.keys("a").await.unwrap().number(), first.number());
        while world.keys("a").await.unwrap().number() == first.number() {
            tokio::task::yield_now().await;
        }
        assert_eq!(world.asked(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn old_keys_live_a_day_when_no_new_ones_can_be_had() {
        let world = World::new();
        world.serves("keys/jwks", &jwks("a"));
        assert!(world.has("a").await);
        world.fails();
        tokio::time::advance(LIFE - Duration::from_secs(1)).await;
        assert!(world.has("a").await);
        tokio::time::advance(Duration::from_secs(60)).await;
        tokio::task::yield_now().await;
        assert!(!world.has("a").await);
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_fetched_before_anybody_needs_them() {
        let world = World::new();
        world.serves("keys/jwks", &jwks("a"));
        let wanted = HashMap::from([(From::Uri("https://keys/jwks".into()), None)]);
        world.jwks.follow(&wanted);
        while world.asked() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(world.has("a").await);
        assert_eq!(world.asked(), 1, "no request had to wait");
        tokio::time::advance(REFRESH - LOOK).await;
        world.jwks.refresh();
        tokio::task::yield_now().await;
        assert_eq!(world.asked(), 1, "not due yet");
        tokio::time::advance(LOOK).await;
        world.jwks.refresh();
        while world.asked() == 1 {
            tokio::task::yield_now().await;
        }
        world.jwks.follow(&HashMap::new());
        world.fails();
        assert!(
            world.keys("a").await.is_none(),
            "nobody wants them: they were forgotten"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn many_requests_wait_for_one_fetch() {
        let world = World::new();
        world.serves("keys/jwks", &jwks("a"));
        let all = futures_util::future::join_all((0..50).map(|_| world.has("a"))).await;
        assert!(all.into_iter().all(|has| has));
        assert_eq!(world.asked(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_while_keys_are_fetched_waits_for_them_even_when_who_asked_first_leaves() {
        #[derive(Debug, Default)]
        struct Slow(tokio::sync::Notify);
        impl Fetch for Slow {
            fn fetch<'a>(&'a self, _: &'a Target, _: u8) -> BoxFuture<'a, Result<Bytes, FetchError>> {
                Box::pin(async move {
                    self.0.notified().await;
                    Ok(jwks("a").into())
                })
            }
        }
        let slow = Arc::new(Slow::default());
        let jwks = Arc::new(Jwks::new(slow.clone()));
        let from = From::Uri("https://keys/jwks".into());
        let mut leaving = Box::pin(jwks.keys(&from, None, Some("a"), BEGINS));
        let mut staying = Box::pin(jwks.keys(&from, None, Some("a"), BEGINS));
        assert!(leaving.as_mut().now_or_never().is_none());
        assert!(staying.as_mut().now_or_never().is_none());
        tokio::task::yield_now().await;
        drop(leaving);
        slow.0.notify_one();
        assert!(staying.await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_fetch_that_passed_too_many_waypoints_keeps_nobody_else_from_the_keys() {
        let world = World::new();
        world.serves("keys/jwks", &jwks("a"));
        for _ in 0..3 {
            assert_eq!(world.after(2, "a").await.err(), Some(NoKeys::Loop));
        }
        assert!(world.has("a").await, "at once");
        assert!(world.after(2, "a").await.is_ok(), "nothing is fetched for it");
        tokio::time::advance(PAUSE).await;
        world.serves("keys/jwks", &jwks("b"));
        assert_eq!(world.after(2, "b").await.err(), Some(NoKeys::Loop));
        assert!(world.has("b").await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_issuer_s_metadata_leads_to_its_keys() {
        let world = World::new();
        world.serves(
            "issuer/.well-known/openid-configuration",
            r#"{"issuer":"x","jwks_uri":"https://keys/jwks"}"#,
        );
        world.serves("keys/jwks", &jwks("a"));
        let keys = world
            .jwks
            .keys(&From::Issuer("https://issuer/".into()), None, Some("a"), BEGINS)
            .await;
        assert!(keys.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_fetch_that_hangs_is_given_up() {
        #[derive(Debug)]
        struct Hangs;
        impl Fetch for Hangs {
            fn fetch<'a>(&'a self, _: &'a Target, _: u8) -> BoxFuture<'a, Result<Bytes, FetchError>> {
                Box::pin(futures_util::future::pending())
            }
        }
        let jwks = Arc::new(Jwks::new(Arc::new(Hangs)));
        let before = Instant::now();
        assert!(
            jwks.keys(&From::Uri("https://keys/jwks".into()), None, None, BEGINS)
                .await
                .is_err()
        );
        assert_eq!(before.elapsed(), TIMEOUT);
    }
}
