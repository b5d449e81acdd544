//! The policies of one place in the form they are evaluated in: lists of conditions, in one fixed order.

use std::sync::Arc;

use super::field::{Field, Reading};
use super::index::Index;
use super::{Action, Attributes, Authz, Rule};
use crate::name::Str;
use crate::policy::{Concern, Policy};

/// The authorization of one place: of a front, a route's rule, or a backend.
///
/// Checks allocate nothing: a rule is a list of conditions, the cheap ones first, and a refusal names its policy by
/// a counted reference.
#[derive(Debug, Default)]
pub struct Authorizer {
    /// Policies that could not be translated: nobody passes.
    pub(super) denying: Vec<Untranslatable>,
    pub(super) custom: Vec<CompiledPolicy>,
    pub(super) deny: Vec<CompiledPolicy>,
    pub(super) allow: Vec<CompiledPolicy>,
    pub(super) audit: Vec<CompiledPolicy>,
    /// Evaluated each for itself, never enforced.
    pub(super) dry: Vec<Dry>,
}

/// A policy that denies everything.
#[derive(Debug)]
pub(super) struct Untranslatable {
    pub(super) policy: Str,
    pub(super) cause: Str,
}

/// A policy that is only evaluated.
#[derive(Debug)]
pub(super) enum Dry {
    Untranslatable(Untranslatable),
    Policy(CompiledPolicy),
}

impl Authorizer {
    /// Compiles the policies of a place, in the order they are given (`applies::security` has it). Policies of other
    /// concerns are left out.
    #[must_use]
    pub fn new<'a>(policies: impl IntoIterator<Item = &'a Arc<Policy>>) -> Self {
        let mut authorizer = Self::default();
        for policy in policies {
            match &policy.concern {
                Concern::Authz(authz) => authorizer.add(policy, authz),
                Concern::DenyAll(cause) => authorizer.add_untranslatable(policy, cause.clone()),
                _ => {}
            }
        }
        authorizer
    }

    /// Whether no policy applies.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self {
            denying,
            custom,
            deny,
            allow,
            audit,
            dry,
        } = self;
        let lists = [custom, deny, allow, audit];
        denying.is_empty() && dry.is_empty() && lists.iter().all(|list| list.is_empty())
    }

    fn add(&mut self, policy: &Policy, authz: &Authz) {
        let compiled = match CompiledPolicy::new(policy, authz) {
            Ok(compiled) => compiled,
            // A key of a newer control plane: what the policy means is not known.
            Err(cause) => return self.add_untranslatable(policy, cause),
        };
        if policy.dry_run {
            return self.dry.push(Dry::Policy(compiled));
        }
        match authz.action {
            Action::Custom => self.custom.push(compiled),
            Action::Deny => self.deny.push(compiled),
            Action::Allow => self.allow.push(compiled),
            Action::Audit => self.audit.push(compiled),
        }
    }

    fn add_untranslatable(&mut self, policy: &Policy, cause: Str) {
        let denying = Untranslatable {
            policy: policy.name(),
            cause,
        };
        if policy.dry_run {
            self.dry.push(Dry::Untranslatable(denying));
        } else {
            self.denying.push(denying);
        }
    }
}

/// The rules of one policy.
#[derive(Debug)]
pub(super) struct CompiledPolicy {
    pub(super) name: Str,
    pub(super) action: Action,
    pub(super) provider: Option<Str>,
    rules: Vec<CompiledRule>,
    /// Finds rules where there are many.
    index: Option<Index>,
}

impl CompiledPolicy {
    /// `Err` says what of it is not known.
    fn new(policy: &Policy, authz: &Authz) -> Result<Self, Str> {
        let (mut rules, mut kept) = (Vec::new(), Vec::new());
        for (index, rule) in authz.rules.iter().enumerate() {
            // What cannot be evaluated allows nothing; of any other rule the rest is evaluated.
            if rule.is_partial && authz.action == Action::Allow {
                continue;
            }
            rules.push(CompiledRule::new(rule, index, &policy.origin.namespace)?);
            kept.push(rule);
        }
        Ok(Self {
            name: policy.name(),
            action: authz.action,
            provider: authz.provider.clone(),
            rules,
            index: Index::new(kept.into_iter()),
        })
    }

    pub(super) fn reading(&self) -> Reading {
        match self.action {
            Action::Allow => Reading::Permits,
            Action::Deny | Action::Audit | Action::Custom => Reading::Refuses,
        }
    }

    /// The index of the first rule that matches.
    pub(super) fn first_match(&self, of: &Attributes<'_>) -> Option<usize> {
        let reading = self.reading();
        let matches = |place: usize| self.rules[place].failing(of, reading).is_none();
        if let Some(found) = self.index.as_ref().and_then(|index| index.first(of, matches)) {
            return found.map(|place| self.rules[place].index);
        }
        let found = self.rules.iter().find(|rule| rule.failing(of, reading).is_none());
        found.map(|rule| rule.index)
    }

    /// For each rule, the attribute that keeps it from matching.
    pub(super) fn failing<'a>(
        &'a self,
        of: &'a Attributes<'_>,
    ) -> impl Iterator<Item = (usize, Option<&'static str>)> + 'a {
        let reading = self.reading();
        self.rules
            .iter()
            .map(move |rule| (rule.index, rule.failing(of, reading)))
    }
}

/// All conditions must hold.
#[derive(Debug)]
struct CompiledRule {
    /// Its place in the policy as it was written.
    index: usize,
    conditions: Box<[Condition]>,
}

/// One part of a rule.
#[derive(Debug)]
enum Condition {
    /// This must hold.
    Field(Field),
    /// One of these must hold, each with all of its fields.
    AnyOf(&'static str, Box<[Box<[Field]>]>),
}

impl CompiledRule {
    fn new(rule: &Rule, index: usize, namespace: &str) -> Result<Self, Str> {
        let mut conditions = Vec::new();
        let operations: Vec<_> = rule.to.iter().map(Field::of_operation).collect();
        let sources: Vec<_> = rule.from.iter().map(Field::of_source).collect();
        conditions.extend(alternatives("operation", operations));
        conditions.extend(alternatives("source", sources));
        for when in &rule.when {
            let field = Field::of_when(when, namespace).map_err(|error| Str::from(error.to_string()))?;
            conditions.extend(field.map(Condition::Field));
        }
        Ok(Self {
            index,
            conditions: conditions.into(),
        })
    }

    /// The name of the first condition that does not hold; `None` if the rule matches.
    fn failing(&self, of: &Attributes<'_>, reading: Reading) -> Option<&'static str> {
        self.conditions.iter().find_map(|condition| match condition {
            Condition::Field(field) => (!field.holds(of, reading)).then(|| field.name()),
            Condition::AnyOf(name, alternatives) => {
                let holds = |fields: &[Field]| fields.iter().all(|field| field.holds(of, reading));
                (!alternatives.iter().any(|fields| holds(fields))).then_some(*name)
            }
        })
    }
}

/// One alternative is as good as its fields themselves. An alternative of no field always holds, and so do all.
fn alternatives(name: &'static str, mut alternatives: Vec<Vec<Field>>) -> Vec<Condition> {
    if alternatives.iter().any(Vec::is_empty) {
        return Vec::new();
    }
    if alternatives.len() == 1 {
        return alternatives.remove(0).into_iter().map(Condition::Field).collect();
    }
    let any_of: Box<[Box<[Field]>]> = alternatives.into_iter().map(Vec::into_boxed_slice).collect();
    let is_none = any_of.is_empty();
    (!is_none)
        .then_some(Condition::AnyOf(name, any_of))
        .into_iter()
        .collect()
}
