//! One condition on one attribute, compiled.

use http::HeaderName;

use super::path::{PathSet, is_readable};
use super::{Attributes, Claim, From, To, Values, When};
use crate::authz::ServiceAccountMatch;
use crate::authz::cidr::IpSet;
use crate::authz::policy::StringMatch;
use crate::authz::text::{PrincipalSet, TextSet};
use crate::identity::Identity;
use crate::name::Str;

/// How a rule is read where an attribute has several values or none can be told: always so that less is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// For ALLOW: every value must pass, and what cannot be told does not.
    Permits,
    /// For DENY, and for whatever else holds a request back: one value is enough, and so is what cannot be told.
    Refuses,
}

/// What is asked for and what is excluded; `None` is not set.
#[derive(Debug)]
pub(super) struct Sets<S> {
    any: Option<S>,
    none: Option<S>,
}

impl<S> Sets<S> {
    /// `None` if nothing is asked.
    fn new<T>(values: &Values<T>, compile: impl Fn(&[T]) -> S) -> Option<Box<Self>> {
        let set = |values: &[T]| (!values.is_empty()).then(|| compile(values));
        (!values.is_empty()).then(|| {
            Box::new(Self {
                any: set(&values.any),
                none: set(&values.none),
            })
        })
    }

    /// Whether the condition holds for an attribute of these values.
    fn hold<V: Copy, I: Iterator<Item = V>>(
        &self,
        reading: Reading,
        values: impl Fn() -> I,
        contains: impl Fn(&S, V) -> bool,
    ) -> bool {
        let is_absent = values().next().is_none();
        let asked = match (&self.any, reading) {
            (None, _) => true,
            (Some(set), Reading::Permits) => !is_absent && values().all(|value| contains(set, value)),
            (Some(set), Reading::Refuses) => values().any(|value| contains(set, value)),
        };
        asked
            && match (&self.none, reading) {
                (None, _) => true,
                (Some(set), Reading::Permits) => !values().any(|value| contains(set, value)),
                (Some(set), Reading::Refuses) => is_absent || values().any(|value| !contains(set, value)),
            }
    }

    /// [`Self::hold`] for an attribute of one value, or of none.
    fn holds<V: Copy>(&self, reading: Reading, value: Option<V>, contains: impl Fn(&S, V) -> bool) -> bool {
        self.hold(reading, || value.into_iter(), contains)
    }
}

/// One condition on one attribute. Those that are cheap to test stand first.
#[derive(Debug)]
pub(super) enum Field {
    Ports(Box<Sets<Vec<u16>>>),
    Methods(Box<Sets<TextSet>>),
    Namespaces(Box<Sets<TextSet>>),
    Accounts(Box<Sets<Vec<ServiceAccountMatch>>>),
    AccountTexts(Box<Sets<Accounts>>),
    Principals(Box<Sets<PrincipalSet>>),
    SourceIps(Box<Sets<IpSet>>),
    RemoteIps(Box<Sets<IpSet>>),
    DestinationIps(Box<Sets<IpSet>>),
    PortTexts(Box<Sets<TextSet>>),
    Paths(Box<Sets<PathSet>>),
    Hosts(Box<Sets<TextSet>>),
    RequestPrincipals(Box<Sets<TextSet>>),
    Audiences(Box<Sets<TextSet>>),
    Presenter(Box<Sets<TextSet>>),
    Sni(Box<Sets<TextSet>>),
    Header(HeaderName, Box<Sets<TextSet>>),
    Claim(Box<[Str]>, Box<Sets<TextSet>>),
    /// It cannot be evaluated, whatever the request.
    Unknown,
}

impl Field {
    /// The conditions on a source.
    pub(super) fn of_source(from: &From) -> Vec<Self> {
        let From {
            principals,
            namespaces,
            request_principals,
            ips,
            remote_ips,
            service_accounts,
        } = from;
        let fields = [
            Sets::new(namespaces, TextSet::new).map(Self::Namespaces),
            Sets::new(service_accounts, sorted).map(Self::Accounts),
            Sets::new(principals, PrincipalSet::new).map(Self::Principals),
            Sets::new(ips, IpSet::new).map(Self::SourceIps),
            Sets::new(remote_ips, IpSet::new).map(Self::RemoteIps),
            Sets::new(request_principals, TextSet::new).map(Self::RequestPrincipals),
        ];
        fields.into_iter().flatten().collect()
    }

    /// The conditions on an operation.
    pub(super) fn of_operation(to: &To) -> Vec<Self> {
        let To {
            hosts,
            ports,
            methods,
            paths,
        } = to;
        let sorted = |ports: &[u16]| {
            let mut ports = ports.to_vec();
            ports.sort_unstable();
            ports
        };
        let unknown = (!is_readable(paths)).then_some(Self::Unknown);
        let fields = [
            Sets::new(ports, sorted).map(Self::Ports),
            Sets::new(methods, TextSet::new).map(Self::Methods),
            Sets::new(paths, PathSet::new)
                .map(Self::Paths)
                .filter(|_| unknown.is_none()),
            unknown,
            Sets::new(hosts, lower).map(Self::Hosts),
        ];
        fields.into_iter().flatten().collect()
    }

    /// A further condition. `Err` for a key that does not exist.
    pub(super) fn of_when(when: &When, namespace: &str) -> Result<Option<Self>, UnknownKey> {
        let When { key, values, ips } = when;
        let unknown = || UnknownKey(key.clone());
        let texts = || Sets::new(values, TextSet::new);
        let ranges = || Sets::new(ips, IpSet::new);
        Ok(match &**key {
            "source.ip" => ranges().map(Self::SourceIps),
            "remote.ip" => ranges().map(Self::RemoteIps),
            "destination.ip" => ranges().map(Self::DestinationIps),
            "destination.port" => texts().map(Self::PortTexts),
            "source.namespace" => texts().map(Self::Namespaces),
            "source.principal" => Sets::new(values, PrincipalSet::new).map(Self::Principals),
            "source.serviceAccount" => {
                let compile = |texts: &[StringMatch]| Accounts::new(texts, namespace);
                Sets::new(values, compile).map(Self::AccountTexts)
            }
            "connection.sni" => Sets::new(values, lower).map(Self::Sni),
            "request.auth.principal" => texts().map(Self::RequestPrincipals),
            "request.auth.audiences" => texts().map(Self::Audiences),
            "request.auth.presenter" => texts().map(Self::Presenter),
            key => match bracketed(key) {
                Some(("request.headers", names)) if names.len() == 1 => {
                    match HeaderName::from_bytes(names[0].as_bytes()) {
                        Ok(name) => texts().map(|sets| Self::Header(name, sets)),
                        Err(_) => (!values.is_empty()).then_some(Self::Unknown),
                    }
                }
                Some(("request.auth.claims", names)) => {
                    texts().map(|sets| Self::Claim(names.into_boxed_slice(), sets))
                }
                _ => return Err(unknown()),
            },
        })
    }

    /// The attribute's name, as policies write it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Ports(_) | Self::PortTexts(_) => "destination port",
            Self::Methods(_) => "method",
            Self::Namespaces(_) => "source namespace",
            Self::Accounts(_) | Self::AccountTexts(_) => "source service account",
            Self::Principals(_) => "source principal",
            Self::SourceIps(_) => "source address",
            Self::RemoteIps(_) => "remote address",
            Self::DestinationIps(_) => "destination address",
            Self::Paths(_) => "path",
            Self::Hosts(_) => "host",
            Self::RequestPrincipals(_) => "request principal",
            Self::Audiences(_) => "token audience",
            Self::Presenter(_) => "token presenter",
            Self::Sni(_) => "server name",
            Self::Header(..) => "header",
            Self::Claim(..) => "token claim",
            Self::Unknown => "what cannot be evaluated",
        }
    }

    /// Whether the condition holds.
    pub(super) fn holds(&self, of: &Attributes<'_>, reading: Reading) -> bool {
        let identity = of.source.identity.as_ref();
        let untold = reading == Reading::Refuses;
        let text = |set: &TextSet, text: &str| set.contains(text);
        match self {
            Self::Ports(sets) => {
                let port = of.destination.address.port();
                sets.holds(reading, Some(port), |ports, port| {
                    ports.binary_search(&port).is_ok()
                })
            }
            Self::PortTexts(sets) => {
                let mut digits = [0; 5];
                let port = decimal(of.destination.address.port(), &mut digits);
                sets.holds(reading, Some(port), TextSet::contains_bytes)
            }
            Self::Namespaces(sets) => {
                sets.holds(reading, identity.map(|identity| &*identity.namespace), text)
            }
            Self::Accounts(sets) => {
                sets.holds(reading, identity, |accounts, identity| holds(accounts, identity))
            }
            Self::AccountTexts(sets) => sets.holds(reading, identity, Accounts::contains),
            Self::Principals(sets) => sets.holds(reading, identity, PrincipalSet::contains),
            Self::SourceIps(sets) => sets.holds(reading, Some(of.source.ip), |nets, ip| nets.contains(ip)),
            Self::RemoteIps(sets) => {
                sets.holds(reading, Some(of.source.remote_ip), |nets, ip| nets.contains(ip))
            }
            Self::DestinationIps(sets) => {
                let ip = of.destination.address.ip();
                sets.holds(reading, Some(ip), |nets, ip| nets.contains(ip))
            }
            Self::Sni(sets) => of.sni.map_or(untold, |sni| {
                sets.holds(reading, Some(sni), |set, sni| {
                    in_lower(sni, |sni| set.contains(sni))
                })
            }),
            Self::Unknown => untold,
            _ => self.holds_for_request(of, reading),
        }
    }

    /// Whether it is asked of a token.
    fn is_of_token(&self) -> bool {
        let of_rules = matches!(self, Self::RequestPrincipals(_));
        of_rules || matches!(self, Self::Audiences(_) | Self::Presenter(_) | Self::Claim(..))
    }

    fn holds_for_request(&self, of: &Attributes<'_>, reading: Reading) -> bool {
        let untold = reading == Reading::Refuses;
        let Some(request) = of.request else { return untold };
        if of.is_token_pending && self.is_of_token() {
            return !untold;
        }
        let text = |set: &TextSet, text: &str| set.contains(text);
        let each = |set: &TextSet, text: &Str| set.contains(text);
        match self {
            Self::Methods(sets) => sets.holds(reading, Some(request.method.as_str()), text),
            Self::Paths(sets) => {
                let holds = |path: &str| sets.holds(reading, Some(path), PathSet::contains);
                // What a lenient application would take for a refused path is refused.
                holds(&request.path) || (untold && of.decoded.as_deref().is_some_and(holds))
            }
            Self::Hosts(sets) => sets.holds(reading, Some(&*request.authority), |set, authority| {
                in_lower(authority, |authority| {
                    let host = request.host().len().min(authority.len());
                    let host = &authority[..host];
                    let bare = host.strip_suffix('.').unwrap_or(host);
                    set.contains(authority) || set.contains(host) || set.contains(bare)
                })
            }),
            Self::RequestPrincipals(sets) => {
                sets.holds(reading, of.token.map(|token| &*token.principal), text)
            }
            Self::Audiences(sets) => {
                let audiences = of.token.map(|token| &*token.audiences).unwrap_or_default();
                sets.hold(reading, || audiences.iter(), each)
            }
            Self::Presenter(sets) => {
                let presenter = of.token.and_then(|token| token.presenter.as_deref());
                sets.holds(reading, presenter, text)
            }
            Self::Header(name, sets) => {
                let values = || request.headers.get_all(name).iter();
                sets.hold(reading, values, |set, value| set.contains_bytes(value.as_bytes()))
            }
            Self::Claim(path, sets) => match of.token.and_then(|token| token.claim(path)) {
                None => sets.hold(reading, || [].iter(), each),
                Some(Claim::Texts(texts)) => sets.hold(reading, || texts.iter(), each),
                Some(Claim::Nested(_) | Claim::Odd) => untold,
            },
            _ => untold,
        }
    }
}

/// A key that no attribute has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no attribute that a policy can ask for")]
pub(super) struct UnknownKey(Str);

/// Service accounts by text, `<namespace>/<service account>`.
#[derive(Debug)]
pub(super) struct Accounts(Vec<StringMatch>);

impl Accounts {
    /// A name without a namespace is one of the policy's own.
    fn new(texts: &[StringMatch], namespace: &str) -> Self {
        let whole = |text: &Str| -> Str {
            if text.contains('/') {
                text.clone()
            } else {
                format!("{namespace}/{text}").into()
            }
        };
        let whole = |text: &StringMatch| match text {
            StringMatch::Exact(text) => StringMatch::Exact(whole(text)),
            StringMatch::Prefix(text) => StringMatch::Prefix(whole(text)),
            other => other.clone(),
        };
        Self(texts.iter().map(whole).collect())
    }

    fn contains(&self, identity: &Identity) -> bool {
        let Identity {
            namespace,
            service_account,
            ..
        } = identity;
        let holds = |text: &StringMatch| match text {
            StringMatch::Presence => true,
            StringMatch::Exact(text) => text.split_once('/') == Some((&**namespace, &**service_account)),
            StringMatch::Prefix(text) => match text.split_once('/') {
                Some((start, name)) => *start == **namespace && service_account.starts_with(name),
                None => namespace.starts_with(&**text),
            },
            StringMatch::Suffix(text) => match text.split_once('/') {
                Some((end, name)) => namespace.ends_with(end) && *name == **service_account,
                None => service_account.ends_with(&**text),
            },
        };
        self.0.iter().any(holds)
    }
}

fn sorted(accounts: &[ServiceAccountMatch]) -> Vec<ServiceAccountMatch> {
    let mut accounts = accounts.to_vec();
    accounts.sort_unstable_by(|a, b| parts(a).cmp(&parts(b)));
    accounts
}

fn holds(accounts: &[ServiceAccountMatch], identity: &Identity) -> bool {
    let wanted = (&*identity.namespace, &*identity.service_account);
    accounts.binary_search_by(|one| parts(one).cmp(&wanted)).is_ok()
}

fn parts(one: &ServiceAccountMatch) -> (&str, &str) {
    (&one.namespace, &one.service_account)
}

/// Patterns of what is compared without regard to case.
fn lower(texts: &[StringMatch]) -> TextSet {
    let lower = |text: &StringMatch| match text {
        StringMatch::Exact(text) => StringMatch::Exact(text.to_ascii_lowercase().into()),
        StringMatch::Prefix(text) => StringMatch::Prefix(text.to_ascii_lowercase().into()),
        StringMatch::Suffix(text) => StringMatch::Suffix(text.to_ascii_lowercase().into()),
        StringMatch::Presence => StringMatch::Presence,
    };
    TextSet::new(&texts.iter().map(lower).collect::<Vec<_>>())
}

/// Longest name that is brought into lower case without an allocation; DNS allows 253 bytes, and a port is short.
const NAME_MAX: usize = 272;

/// Gives the text in lower case to `then`. Canonical heads hold it so already; nothing depends on that.
fn in_lower<T>(text: &str, then: impl FnOnce(&str) -> T) -> T {
    if !text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return then(text);
    }
    let mut buffer = [0; NAME_MAX];
    let Some(lower) = buffer.get_mut(..text.len()) else {
        return then(&text.to_ascii_lowercase());
    };
    lower.copy_from_slice(text.as_bytes());
    lower.make_ascii_lowercase();
    then(std::str::from_utf8(lower).unwrap_or_default())
}

/// The digits of a port.
fn decimal(port: u16, digits: &mut [u8; 5]) -> &[u8] {
    let mut rest = port;
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + u8::try_from(rest % 10).expect("a digit");
        rest /= 10;
        if rest == 0 {
            return &digits[start..];
        }
    }
}

/// `request.auth.claims[a][b]` in its parts.
fn bracketed(key: &str) -> Option<(&str, Vec<Str>)> {
    let (start, rest) = key.split_once('[')?;
    let inner = rest.strip_suffix(']')?;
    let names: Vec<Str> = inner.split("][").map(Into::into).collect();
    let is_name = |name: &Str| !name.is_empty() && !name.contains(['[', ']']);
    names.iter().all(is_name).then_some((start, names))
}
