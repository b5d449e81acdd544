//! Says which match a request takes, and of every other one why it does not. For people, so it looks at all of them.

use super::Unmet;
use super::precedence::Criterion;
use super::router::{Router, call};
use crate::request::RequestHead;

/// One match of one rule, in the order of precedence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained<'a, T> {
    /// What the rule was compiled to.
    pub rule: &'a T,
    /// Which match of it, counted from 0.
    pub matched: usize,
    /// What became of it.
    pub fate: Fate,
}

/// What became of a match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The request takes it.
    Wins,
    /// It matches too, and loses because of this.
    Loses(Criterion),
    /// It does not match because of this.
    Misses(Unmet),
}

impl<T> Router<T> {
    /// What becomes of every match for a request, in the order of precedence.
    #[must_use]
    pub fn explain<'a>(&'a self, head: &RequestHead) -> Vec<Explained<'a, T>> {
        let mut winner = None;
        let callable = !self.grpc || (head.is_grpc() && call(&head.path).is_some());
        self.matches
            .iter()
            .map(|one| {
                let fate = if !callable || !one.path.fits(&head.path) {
                    Fate::Misses(Unmet::Path)
                } else if let Some(miss) = self.unmet(one, head, &head.method) {
                    Fate::Misses(miss.into())
                } else if let Some(winner) = winner {
                    Fate::Loses(one.rank.loses_to(winner))
                } else {
                    winner = Some(&one.rank);
                    Fate::Wins
                };
                Explained {
                    rule: &self.rules[one.rule],
                    matched: one.index,
                    fate,
                }
            })
            .collect()
    }
}
