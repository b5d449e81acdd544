//! May this request, or this stream, pass; and which policy and rule decide.
//!
//! Per request: any CUSTOM refusal denies; any DENY that matches denies; if no ALLOW policy applies, it passes; an
//! ALLOW that matches lets it pass; else it is denied. AUDIT marks and decides nothing. The providers of CUSTOM are
//! asked between the two halves, because that takes time: [`Authorizer::asks`], then [`Authorizer::check`].

use std::fmt;

use super::Attributes;
use super::compile::{Authorizer, CompiledPolicy, Dry};
use crate::name::Str;
use crate::policy::authz::Action;
use crate::reason::Reason;

/// A rule of a policy that matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matched {
    /// Name of the policy, `<kind>/<namespace>/<name>/<concern>`.
    pub policy: Str,
    /// Index of the rule, counted from 0.
    pub rule: usize,
}

impl fmt::Display for Matched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.policy, self.rule)
    }
}

/// The outcome of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Allow(Because),
    /// It must not pass.
    Deny(Denial),
}

/// Why it may pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Because {
    /// No ALLOW policy applies.
    NoAllowPolicy,
    /// A rule of an ALLOW policy matched.
    Matched(Matched),
}

/// Why it must not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denial {
    /// A rule of a DENY policy matched.
    Matched(Matched),
    /// ALLOW policies apply, and none matched.
    NoAllowMatched,
    /// A policy could not be translated.
    Untranslatable {
        /// Its name.
        policy: Str,
        /// What is wrong with it.
        cause: Str,
    },
}

impl Denial {
    /// The stable reason.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Matched(_) => Reason::PolicyDenied,
            Self::NoAllowMatched => Reason::NoAllowMatched,
            Self::Untranslatable { .. } => Reason::PolicyUntranslatable,
        }
    }

    /// The policy that decided, if one did.
    #[must_use]
    pub fn policy(&self) -> Option<&Str> {
        match self {
            Self::Matched(matched) => Some(&matched.policy),
            Self::Untranslatable { policy, .. } => Some(policy),
            Self::NoAllowMatched => None,
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Matched(matched) => write!(f, "{matched}"),
            Self::NoAllowMatched => f.write_str("no rule of an ALLOW policy matches"),
            Self::Untranslatable { policy, cause } => write!(f, "{policy}: {cause}"),
        }
    }
}

/// What a policy that is only tried would do by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DryRun {
    /// The policy.
    pub policy: Str,
    /// What it does where it matches.
    pub action: Action,
    /// The rule that matched.
    pub rule: Option<usize>,
    /// Whether it would refuse if it were alone and enforced.
    pub denies: bool,
}

impl Authorizer {
    /// The CUSTOM policies that match, with the provider each is to be asked of, in the order they are to be asked.
    /// One without a provider cannot be asked, and so refuses.
    pub fn asks<'a>(
        &'a self,
        of: &'a Attributes<'_>,
    ) -> impl Iterator<Item = (Matched, Option<&'a Str>)> + 'a {
        // Where everything is denied there is no use in asking.
        let custom = self.custom.iter().filter(|_| self.denying.is_empty());
        custom.filter_map(|policy| Some((policy.matched(of)?, policy.provider.as_ref())))
    }

    /// The verdict of DENY and ALLOW.
    #[must_use]
    pub fn check(&self, of: &Attributes<'_>) -> Verdict {
        if let Some(first) = self.denying.first() {
            return Verdict::Deny(Denial::Untranslatable {
                policy: first.policy.clone(),
                cause: first.cause.clone(),
            });
        }
        if let Some(matched) = self.deny.iter().find_map(|policy| policy.matched(of)) {
            return Verdict::Deny(Denial::Matched(matched));
        }
        if self.allow.is_empty() {
            return Verdict::Allow(Because::NoAllowPolicy);
        }
        match self.allow.iter().find_map(|policy| policy.matched(of)) {
            Some(matched) => Verdict::Allow(Because::Matched(matched)),
            None => Verdict::Deny(Denial::NoAllowMatched),
        }
    }

    /// The AUDIT policies that match.
    pub fn audits<'a>(&'a self, of: &'a Attributes<'_>) -> impl Iterator<Item = Matched> + 'a {
        self.audit.iter().filter_map(|policy| policy.matched(of))
    }

    /// What each policy that is only tried would do. To be counted and logged; it decides nothing.
    pub fn dry_runs<'a>(&'a self, of: &'a Attributes<'_>) -> impl Iterator<Item = DryRun> + 'a {
        self.dry.iter().map(|dry| match dry {
            Dry::Untranslatable(denying) => DryRun {
                policy: denying.policy.clone(),
                action: Action::Deny,
                rule: None,
                denies: true,
            },
            Dry::Policy(policy) => {
                let rule = policy.first_match(of);
                DryRun {
                    policy: policy.name.clone(),
                    action: policy.action,
                    rule,
                    denies: match policy.action {
                        Action::Allow => rule.is_none(),
                        Action::Deny => rule.is_some(),
                        // What the provider would say is not known, and a mark refuses nothing.
                        Action::Custom | Action::Audit => false,
                    },
                }
            }
        })
    }
}

impl CompiledPolicy {
    pub(super) fn matched(&self, of: &Attributes<'_>) -> Option<Matched> {
        let rule = self.first_match(of)?;
        Some(Matched {
            policy: self.name.clone(),
            rule,
        })
    }
}
