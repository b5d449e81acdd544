//! A check that tells of every policy what it says and why: for people, never on the path of a request.

use super::Attributes;
use super::compile::{Authorizer, CompiledPolicy, Dry};
use super::evaluate::Verdict;
use crate::name::Str;
use crate::policy::authz::Action;

/// Most rules of one policy that are told of.
pub const RULES_MAX: usize = 100;

/// Everything that takes part in a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The verdict of DENY and ALLOW.
    pub verdict: Verdict,
    /// Every policy, in the order of evaluation.
    pub policies: Vec<Judged>,
}

/// What one policy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// Its name.
    pub policy: Str,
    /// What it does where it matches; `None` for one that could not be translated, and denies everything.
    pub action: Option<Action>,
    /// It is only tried.
    pub dry_run: bool,
    /// The rule that matched.
    pub matched: Option<usize>,
    /// The rules before that one, or the first of all, each with the attribute that kept it from matching.
    pub failing: Vec<(usize, &'static str)>,
    /// What is wrong with it, where it could not be translated.
    pub cause: Option<Str>,
}

impl Authorizer {
    /// The verdict, and what led to it.
    #[must_use]
    pub fn explain(&self, of: &Attributes<'_>) -> Explanation {
        let untranslatable = |policy: &Str, cause: &Str, dry_run| Judged {
            policy: policy.clone(),
            action: None,
            dry_run,
            matched: None,
            failing: Vec::new(),
            cause: Some(cause.clone()),
        };
        let denying = self.denying.iter();
        let denying = denying.map(|of| untranslatable(&of.policy, &of.cause, false));
        let lists = [&self.custom, &self.deny, &self.allow, &self.audit];
        let enforced = lists.into_iter().flatten().map(|policy| policy.judged(of, false));
        let dry = self.dry.iter().map(|dry| match dry {
            Dry::Untranslatable(of) => untranslatable(&of.policy, &of.cause, true),
            Dry::Policy(policy) => policy.judged(of, true),
        });
        Explanation {
            verdict: self.check(of),
            policies: denying.chain(enforced).chain(dry).collect(),
        }
    }
}

impl CompiledPolicy {
    fn judged(&self, of: &Attributes<'_>, dry_run: bool) -> Judged {
        let matched = self.first_match(of);
        let before = self.failing(of).take_while(|(index, _)| Some(*index) != matched);
        let failing = before.filter_map(|(index, name)| Some((index, name?)));
        Judged {
            policy: self.name.clone(),
            action: Some(self.action),
            dry_run,
            matched,
            failing: failing.take(RULES_MAX).collect(),
            cause: None,
        }
    }
}
