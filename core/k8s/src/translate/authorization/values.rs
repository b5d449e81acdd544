//! The values of a policy: strings with wildcards, principals, addresses, ports.

use std::net::IpAddr;

use ipnet::IpNet;
use tulle_model::Str;
use tulle_model::authz::ServiceAccountMatch;
use tulle_model::authz::policy::StringMatch;

use super::super::MeshConfig;

/// A value that means nothing, shown safely.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::translate) struct Unusable(pub(in crate::translate) String);

/// A user's text for a message: bounded, without control characters.
pub(in crate::translate) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

fn unusable(text: &str) -> Unusable {
    Unusable(shown(text))
}

/// What values are read against.
pub(in crate::translate) struct Context<'a> {
    pub(in crate::translate) mesh: &'a MeshConfig,
    /// Namespace of the policy.
    pub(in crate::translate) namespace: &'a Str,
}

impl Context<'_> {
    /// `*` is presence, `*x` a suffix, `x*` a prefix, anything else is literal.
    pub(in crate::translate) fn string(text: &str) -> Result<Vec<StringMatch>, Unusable> {
        if text.is_empty() {
            return Err(unusable(text));
        }
        let one = match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(""), _) => StringMatch::Presence,
            (Some(end), _) => StringMatch::Suffix(end.into()),
            (_, Some(start)) => StringMatch::Prefix(start.into()),
            _ => StringMatch::Exact(text.into()),
        };
        Ok(vec![one])
    }

    /// As [`Self::string`]; a principal of our trust domain stands for that principal in each of its aliases.
    pub(in crate::translate) fn principal(&self, text: &str) -> Result<Vec<StringMatch>, Unusable> {
        let text = text.strip_prefix("spiffe://").unwrap_or(text);
        let ours = match text.split_once('/') {
            Some((domain, rest)) if self.is_ours(domain) => rest,
            _ => return Self::string(text),
        };
        let mut all: Vec<StringMatch> = Vec::new();
        for domain in std::iter::once(&self.mesh.trust_domain).chain(&self.mesh.trust_domain_aliases) {
            for one in Self::string(&format!("{domain}/{ours}"))? {
                if !all.contains(&one) {
                    all.push(one);
                }
            }
        }
        Ok(all)
    }

    fn is_ours(&self, domain: &str) -> bool {
        domain == &*self.mesh.trust_domain
            || domain == tulle_model::identity::DEFAULT_TRUST_DOMAIN
            || self
                .mesh
                .trust_domain_aliases
                .iter()
                .any(|alias| domain == &**alias)
    }

    /// `namespace/name`, or a name in the policy's namespace.
    pub(in crate::translate) fn service_account(
        &self,
        text: &str,
    ) -> Result<Vec<ServiceAccountMatch>, Unusable> {
        let (namespace, service_account) = text.split_once('/').unwrap_or((self.namespace, text));
        let is_name = |part: &str| !part.is_empty() && !part.contains(['*', '/']);
        if !is_name(namespace) || !is_name(service_account) {
            return Err(unusable(text));
        }
        Ok(vec![ServiceAccountMatch {
            namespace: namespace.into(),
            service_account: service_account.into(),
        }])
    }

    /// An address or a range.
    pub(in crate::translate) fn cidr(text: &str) -> Result<Vec<IpNet>, Unusable> {
        let address = text
            .parse::<IpAddr>()
            .map(|address| IpNet::from(address.to_canonical()));
        let range = address.or_else(|_| text.parse::<IpNet>().map(|range| range.trunc()));
        range.map(|range| vec![range]).map_err(|_| unusable(text))
    }

    /// A port, written as text.
    pub(in crate::translate) fn port(text: &str) -> Result<Vec<u16>, Unusable> {
        match text.parse() {
            Ok(0) | Err(_) => Err(unusable(text)),
            Ok(port) => Ok(vec![port]),
        }
    }
}
