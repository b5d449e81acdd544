//! Who a caller is, from its connection and its request headers alone.
//!
//! In this order: a client certificate of our own root, a node's token, a service account's token judged offline. One
//! that is bound to a pod counts while that pod is there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tonic::metadata::MetadataMap;
use tulle_identity::acceptor::PeerCertificate;
use tulle_identity::{Clock, PeerInfo};
use tulle_model::identity::DEFAULT_TRUST_DOMAIN;
use tulle_model::trust::{Denied, Serial, Subject};
use tulle_model::{Identity, Str};

use crate::ca::deny::DenyList;
use crate::snapshot::Bearer;
use crate::token::jwt::{Account, JwtVerifier};
use crate::token::{Token, TokenStore, is_node_id};

mod pods;

pub use pods::{POD_WAIT_MAX, Pods};

/// A caller whose credential was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Who it is.
    pub principal: Principal,
    /// Serial number of its certificate, if it showed one.
    pub serial: Option<Serial>,
    /// The end of its certificate, if it showed one.
    pub until: Option<SystemTime>,
    /// The node of the pod that its token is bound to, of a workload.
    pub pod_node: Option<Str>,
}

/// What a credential says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// The proxy or agent of a node, which may ask for what is placed there.
    Node(Str),
    /// A workload, which is only itself.
    Workload(Identity),
}

impl Caller {
    /// The proxy or agent of a node.
    pub fn of_node(node: impl Into<Str>) -> Self {
        Self {
            principal: Principal::Node(node.into()),
            serial: None,
            until: None,
            pod_node: None,
        }
    }

    /// What it is called in logs and limits.
    #[must_use]
    pub fn name(&self) -> Str {
        match &self.principal {
            Principal::Node(node) => node.clone(),
            Principal::Workload(identity) => identity.to_string().into(),
        }
    }

    /// What an entry of the deny-list would call it.
    fn subjects(&self) -> Vec<Subject> {
        let serial = self.serial.clone().map(Subject::Serial);
        let own = match &self.principal {
            Principal::Node(node) => Subject::Node(node.clone()),
            Principal::Workload(identity) => Subject::Identity(identity.clone()),
        };
        serial.into_iter().chain([own]).collect()
    }

    /// Whether an entry of the deny-list means it.
    #[must_use]
    pub fn is_meant_by(&self, subject: &Subject) -> bool {
        match (subject, &self.principal) {
            (Subject::Serial(serial), _) => self.serial.as_ref() == Some(serial),
            (Subject::Node(denied), Principal::Node(node)) => denied == node,
            (Subject::Identity(denied), Principal::Workload(identity)) => denied == identity,
            _ => false,
        }
    }
}

/// The caller showed no credential that is known. Which of the reasons it was stays here, in the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unauthenticated {
    /// No `authorization` header, or several.
    #[error("the request carries no bearer token")]
    NoToken,
    /// Not of the form of a node token.
    #[error("the bearer token is no node token")]
    NotANodeToken,
    /// Not a valid token of the node it names.
    #[error("the node token is not valid")]
    Unknown,
    /// A certificate of our root that names neither a workload nor a node of this trust domain, or has no serial number.
    #[error("the client certificate names {0}")]
    Certificate(Str),
    /// A certificate of our root that has ended since the connection was opened.
    #[error("the client certificate of {0} has ended")]
    Ended(Str),
    /// A service account's token that proves nothing.
    #[error("the bearer token is refused: {0}")]
    Jwt(#[from] crate::token::jwt::InvalidJwt),
    /// A trusted account's token that is not bound to a pod, or to one that has no node.
    #[error("the token of a node proxy is not bound to a pod that has a node")]
    NotBound,
    /// A trusted account's token that names another node than its pod is on.
    #[error("the token of a node proxy names node {claimed}, and its pod is on node {node}")]
    OtherNode {
        /// What the token says.
        claimed: Str,
        /// Where the pod is.
        node: Str,
    },
    /// A good token of a pod that is not there: it has gone, or it is told too late.
    #[error(
        "the token is bound to pod {}/{} with UID {} and service account {}, which is not there",
        .0.namespace, .0.pod, .0.uid, .0.account
    )]
    NoSuchPod(Bearer),
    /// A good token of a pod, before it is known which pods there are.
    #[error("the control plane is still reading its sources")]
    NotSynced,
    /// On the deny-list.
    #[error("{0} is on the deny-list")]
    Denied(Str),
}

/// Checks credentials. Clones share everything.
#[derive(Debug, Clone)]
pub struct Authenticator {
    tokens: TokenStore,
    trust_domain: Str,
    accounts: Option<Accounts>,
    denied: DenyList,
    clock: Clock,
}

/// Service accounts, and who they are by their tokens.
#[derive(Debug, Clone)]
struct Accounts {
    jwt: JwtVerifier,
    /// Those that run node proxies.
    trusted: Arc<BTreeSet<(Str, Str)>>,
    pods: Pods,
}

/// Longest pause between two looks at the clock while a certificate is waited for to end: the clock may be set.
const CLOCK_LOOK: Duration = Duration::from_secs(60);
/// The account that runs node proxies, unless configured otherwise.
pub const TRUSTED_ACCOUNT_DEFAULT: (&str, &str) = ("istio-system", "ztunnel");

impl Authenticator {
    /// An authenticator that knows these tokens, and denies nobody.
    #[must_use]
    pub fn new(tokens: TokenStore) -> Self {
        Self {
            tokens,
            trust_domain: DEFAULT_TRUST_DOMAIN.into(),
            accounts: None,
            denied: DenyList::memory(),
            clock: Clock::system(),
        }
    }

    /// For this trust domain, with this deny-list.
    #[must_use]
    pub fn of(self, trust_domain: Str, denied: DenyList) -> Self {
        Self {
            trust_domain,
            denied,
            ..self
        }
    }

    /// Also believes tokens of service accounts, those that are bound to a pod while it is there; the accounts named run
    /// node proxies.
    #[must_use]
    pub fn with_jwt(self, jwt: JwtVerifier, trusted: BTreeSet<(Str, Str)>, pods: Pods) -> Self {
        let trusted = Arc::new(trusted);
        Self {
            accounts: Some(Accounts { jwt, trusted, pods }),
            ..self
        }
    }

    /// The same by another clock.
    #[must_use]
    pub fn with_clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// Who sent a request over this connection with these headers.
    ///
    /// # Errors
    /// The credential is missing or not known, or the caller is denied.
    pub async fn authenticate(
        &self,
        peer: Option<&PeerInfo>,
        headers: &MetadataMap,
    ) -> Result<Caller, Unauthenticated> {
        let certificate = peer.and_then(|peer| peer.certificate.as_ref());
        let caller = match certificate {
            Some(certificate) => self.by_certificate(certificate)?,
            None => self.by_token(headers).await?,
        };
        match self.denial(&caller) {
            Some(_) => Err(Unauthenticated::Denied(caller.name())),
            None => Ok(caller),
        }
    }

    /// The entry of the deny-list that means this caller.
    #[must_use]
    pub fn denial(&self, caller: &Caller) -> Option<Denied> {
        let now = self.now();
        let now = u64::try_from(now).unwrap_or_default();
        let entries = self.denied.entries();
        entries
            .iter()
            .find(|entry| entry.counts(now) && caller.is_meant_by(&entry.subject))
            .cloned()
            .or_else(|| self.denied.unlisted_of(&caller.subjects(), now))
    }

    /// Whether what the caller showed has ended.
    #[must_use]
    pub fn has_ended(&self, caller: &Caller) -> bool {
        caller.until.is_some_and(|until| until <= self.clock.now())
    }

    /// Waits until a certificate that ends then has ended; for ever where there is none.
    pub async fn ended(&self, until: Option<SystemTime>) {
        let Some(until) = until else {
            return std::future::pending().await;
        };
        while let Ok(left) = until.duration_since(self.clock.now()) {
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(CLOCK_LOOK)).await;
        }
    }

    /// The deny-list.
    #[must_use]
    pub fn deny_list(&self) -> &DenyList {
        &self.denied
    }

    fn now(&self) -> i64 {
        let since = self.clock.now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
    }

    /// The handshake has verified the chain; what is left is the name, and the time since.
    fn by_certificate(&self, certificate: &PeerCertificate) -> Result<Caller, Unauthenticated> {
        let other = || Unauthenticated::Certificate(certificate.uri.clone());
        if certificate.not_after <= self.clock.now() {
            return Err(Unauthenticated::Ended(certificate.uri.clone()));
        }
        // What the deny-list could not name would be good for ever.
        let serial = certificate.serial.parse().map_err(|_| other())?;
        let principal = match &certificate.identity {
            Some(identity) if identity.trust_domain == self.trust_domain => {
                Principal::Workload(identity.clone())
            }
            Some(_) => return Err(other()),
            None => {
                let rest = certificate.uri.strip_prefix("spiffe://").ok_or_else(other)?;
                let (domain, node) = rest.split_once("/node/").ok_or_else(other)?;
                if *domain != *self.trust_domain || !is_node_id(node) {
                    return Err(other());
                }
                Principal::Node(node.into())
            }
        };
        Ok(Caller {
            principal,
            serial: Some(serial),
            until: Some(certificate.not_after),
            pod_node: None,
        })
    }

    async fn by_token(&self, headers: &MetadataMap) -> Result<Caller, Unauthenticated> {
        let text = bearer(headers).ok_or(Unauthenticated::NoToken)?;
        if let Some(token) = Token::parse(text) {
            return self.by_node_token(token).await;
        }
        match &self.accounts {
            Some(accounts) => self.by_account(accounts, text).await,
            None => Err(Unauthenticated::NotANodeToken),
        }
    }

    /// A trusted account is the proxy of the node that its pod is on; any other is its own workload. What the token says of
    /// the node, which it does since Kubernetes 1.29, must be that.
    async fn by_account(&self, accounts: &Accounts, token: &str) -> Result<Caller, Unauthenticated> {
        let Account {
            namespace,
            name,
            node,
            pod,
        } = accounts.verified(token, self.now()).await?;
        if accounts.trusted.contains(&(namespace.clone(), name.clone())) {
            let pod = pod.ok_or(Unauthenticated::NotBound)?;
            let of_pod = accounts.pods.node_of(&pod).await?;
            return match node.filter(|claimed| *claimed != of_pod) {
                Some(claimed) => Err(Unauthenticated::OtherNode {
                    claimed,
                    node: of_pod,
                }),
                None => Ok(Caller::of_node(of_pod)),
            };
        }
        let identity = Identity::new(self.trust_domain.clone(), namespace, name);
        let pod_node = match pod {
            Some(pod) => accounts.pods.find(&pod).await?,
            None => None,
        };
        Ok(Caller {
            principal: Principal::Workload(identity),
            serial: None,
            until: None,
            pod_node,
        })
    }

    async fn by_node_token(&self, token: Token) -> Result<Caller, Unauthenticated> {
        let (tokens, node) = (self.tokens.clone(), token.node().clone());
        let valid = tokio::task::spawn_blocking(move || tokens.check(&token)).await;
        match valid {
            Ok(true) => Ok(Caller::of_node(node)),
            _ => Err(Unauthenticated::Unknown),
        }
    }
}

impl Accounts {
    /// What a token says, once it is proven.
    async fn verified(&self, token: &str, now: i64) -> Result<Account, Unauthenticated> {
        let (jwt, token) = (self.jwt.clone(), token.to_owned());
        let verified = tokio::task::spawn_blocking(move || jwt.verify(&token, now)).await;
        Ok(verified.map_err(|_| Unauthenticated::Unknown)??)
    }
}

fn bearer(headers: &MetadataMap) -> Option<&str> {
    let mut values = headers.get_all("authorization").iter();
    let value = values.next()?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let single = values.next().is_none();
    (single && scheme.eq_ignore_ascii_case("bearer")).then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> MetadataMap {
        let mut headers = MetadataMap::new();
        for value in values {
            headers.append("authorization", value.parse().unwrap());
        }
        headers
    }

    #[tokio::test]
    async fn a_valid_token_names_its_node() {
        let tokens = TokenStore::memory();
        let token = tokens.create("n1").unwrap();
        let authenticator = Authenticator::new(tokens);
        let caller = authenticator
            .authenticate(None, &headers(&[&format!("Bearer {token}")]))
            .await;
        assert_eq!(caller, Ok(Caller::of_node("n1")));
    }

    #[tokio::test]
    async fn anything_else_is_refused() {
        let tokens = TokenStore::memory();
        let token = tokens.create("n1").unwrap();
        let authenticator = Authenticator::new(tokens);
        let bearer = format!("Bearer {token}");
        let forged = format!("Bearer tulle1.n1.{}", "0".repeat(64));
        for (values, expected) in [
            (&[][..], Unauthenticated::NoToken),
            (&["Basic abc"][..], Unauthenticated::NoToken),
            (&[&*bearer, &*bearer][..], Unauthenticated::NoToken),
            (&["Bearer eyJhbGciOi.J9.x"][..], Unauthenticated::NotANodeToken),
            (&[&*forged][..], Unauthenticated::Unknown),
        ] {
            let refused = authenticator.authenticate(None, &headers(values)).await;
            assert_eq!(refused, Err(expected), "{values:?}");
        }
    }

    fn end() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000)
    }

    fn certificate(uri: &str) -> PeerInfo {
        PeerInfo {
            remote: None,
            local: None,
            certificate: Some(PeerCertificate {
                uri: uri.into(),
                identity: uri.parse().ok(),
                serial: "0a".into(),
                not_after: end(),
            }),
        }
    }

    async fn by(authenticator: &Authenticator, uri: &str) -> Result<Principal, Unauthenticated> {
        let caller = authenticator
            .authenticate(Some(&certificate(uri)), &headers(&[]))
            .await;
        caller.map(|caller| caller.principal)
    }

    #[tokio::test]
    async fn a_certificate_of_ours_is_a_node_or_a_workload_and_nothing_else() {
        let authenticator = Authenticator::new(TokenStore::memory());
        let node = by(&authenticator, "spiffe://cluster.local/node/n1").await;
        assert_eq!(node, Ok(Principal::Node("n1".into())));
        let web = "spiffe://cluster.local/ns/shop/sa/web";
        let workload = by(&authenticator, web).await;
        assert_eq!(workload, Ok(Principal::Workload(web.parse().unwrap())));
        for uri in [
            "spiffe://other/node/n1",
            "spiffe://cluster.local/node/../n1",
            "spiffe://cluster.local/node/n1/x",
            "spiffe://other/ns/shop/sa/web",
            "https://cluster.local/node/n1",
        ] {
            let refused = by(&authenticator, uri).await;
            assert!(matches!(refused, Err(Unauthenticated::Certificate(_))), "{uri}");
        }
    }

    #[tokio::test]
    async fn a_certificate_proves_nothing_from_its_end_on() {
        let node = "spiffe://cluster.local/node/n1";
        for (now, ended) in [(end() - Duration::from_secs(1), false), (end(), true)] {
            let clock = Clock::from_fn(move || now);
            let authenticator = Authenticator::new(TokenStore::memory()).with_clock(clock);
            let refused = by(&authenticator, node).await == Err(Unauthenticated::Ended(node.into()));
            assert_eq!(refused, ended);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_certificate_is_noticed_also_when_the_clock_is_set() {
        let begin = tokio::time::Instant::now();
        let ahead = Arc::new(parking_lot::Mutex::new(Duration::ZERO));
        let set = ahead.clone();
        let clock = Clock::from_fn(move || end() - Duration::from_secs(1000) + begin.elapsed() + *set.lock());
        let authenticator = Authenticator::new(TokenStore::memory()).with_clock(clock);
        authenticator.ended(Some(end())).await;
        assert_eq!(begin.elapsed().as_secs(), 1000);
        // Another one ends an hour later, and the clock is set ahead by that while it is waited for.
        let later = Some(end() + Duration::from_secs(3600));
        let setting = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            *ahead.lock() = Duration::from_secs(3600);
        };
        tokio::join!(authenticator.ended(later), setting);
        assert!(begin.elapsed() <= Duration::from_secs(1000) + CLOCK_LOOK);
    }

    #[tokio::test]
    async fn who_is_denied_is_refused_whatever_credential_it_shows() {
        let tokens = TokenStore::memory();
        let token = format!("Bearer {}", tokens.create("n1").unwrap());
        for subject in ["node:n1", "serial:0a"] {
            let authenticator = Authenticator::new(tokens.clone());
            let entry = Denied {
                subject: crate::ca::deny::subject(subject).unwrap(),
                reason: "lost".into(),
                until: None,
                by: "uid 0".into(),
            };
            authenticator.denied.deny(entry).unwrap();
            let refused = by(&authenticator, "spiffe://cluster.local/node/n1").await;
            assert!(matches!(refused, Err(Unauthenticated::Denied(_))), "{subject}");
            let by_token = authenticator.authenticate(None, &headers(&[&token])).await;
            assert_eq!(by_token.is_err(), subject == "node:n1", "{subject}");
        }
    }

    #[tokio::test]
    async fn a_token_of_a_trusted_account_is_its_node_and_of_another_its_workload() {
        use crate::snapshot::Snapshot;
        use crate::snapshot::bearers::Moves;
        use crate::token::jwt::tests::{TestIssuer, claims, pod};
        let issuer = TestIssuer::new();
        let (namespace, name) = TRUSTED_ACCOUNT_DEFAULT;
        let trusted = [(namespace.into(), name.into())].into();
        let (mut snapshot, mut moves) = (Snapshot::default(), Moves::default());
        moves.came(&pod(), "n1".into());
        snapshot.bearers.change(moves);
        let (_publish, snapshots) = tokio::sync::watch::channel(Arc::new(snapshot));
        let authenticator = Authenticator::new(TokenStore::memory()).with_jwt(
            issuer.verifier(),
            trusted,
            Pods::new(snapshots, POD_WAIT_MAX),
        );
        let now = authenticator.now();
        let check = async |claims: serde_json::Value| {
            let bearer = format!("Bearer {}", issuer.token(&claims));
            let caller = authenticator.authenticate(None, &headers(&[&bearer])).await;
            caller.map(|caller| caller.principal)
        };
        assert_eq!(check(claims(now)).await, Ok(Principal::Node("n1".into())));
        let bound = |node: serde_json::Value, pod: serde_json::Value| {
            let mut bound = claims(now);
            bound["kubernetes.io"] = serde_json::json!({"node": node, "pod": pod});
            bound
        };
        let (null, its_pod) = (
            serde_json::Value::Null,
            claims(now)["kubernetes.io"]["pod"].clone(),
        );
        let named = |name: &str| serde_json::json!({"name": name});
        // A token of an older Kubernetes says nothing of the node.
        let silent = check(bound(null.clone(), its_pod.clone())).await;
        assert_eq!(silent, Ok(Principal::Node("n1".into())));
        let other = Unauthenticated::OtherNode {
            claimed: "n2".into(),
            node: "n1".into(),
        };
        assert_eq!(check(bound(named("n2"), its_pod)).await, Err(other));
        for node in [null.clone(), named("n1")] {
            let loose = check(bound(node, null.clone())).await;
            assert_eq!(loose, Err(Unauthenticated::NotBound));
        }
        let mut other = claims(now);
        other["sub"] = serde_json::json!("system:serviceaccount:shop:web");
        other["kubernetes.io"] = serde_json::json!({});
        let web = Identity::new("cluster.local", "shop", "web");
        assert_eq!(check(other).await, Ok(Principal::Workload(web)));
    }
}
