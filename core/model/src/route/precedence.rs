//! Which of two matches wins when both hold. The order is total: it ends with the object's name and place in it.

use std::cmp::{Ordering, Reverse};

use super::{Created, Kind, Match, Origin, PathMatch};
use crate::name::Str;

/// The place of one match of one rule among the others; smaller wins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    path: PathRank,
    method: Reverse<bool>,
    headers: Reverse<usize>,
    query: Reverse<usize>,
    age: Age,
    name: Str,
    rule: u32,
    index: usize,
}

/// What the path, or the call of gRPC, contributes. Fields are compared in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct PathRank {
    /// HTTP: exact, prefix, regular expression. gRPC: exact service and method, all else.
    form: u8,
    /// HTTP: length of prefix or pattern. gRPC: length of the service.
    length: Reverse<usize>,
    /// gRPC: length of the method.
    second_length: Reverse<usize>,
    /// gRPC: a regular expression comes after what is exact.
    regex: bool,
}

/// The older object wins; one without a time is younger than all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Age(pub(super) Option<Created>);

impl Ord for Age {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |age: &Self| (age.0.is_none(), age.0);
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Age {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What made one match win over another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Criterion {
    /// Exact before prefix before regular expression; gRPC: exact service and method first.
    PathForm,
    /// The longer prefix or pattern; gRPC: the longer service, then the longer method.
    PathLength,
    /// Exact before regular expression.
    Exact,
    /// A condition on the method.
    Method,
    /// More conditions on headers.
    Headers,
    /// More conditions on the query.
    Query,
    /// The older object.
    Age,
    /// The name that comes first.
    Name,
    /// The rule that comes first in its object.
    Rule,
    /// The match that comes first in its rule.
    Index,
}

impl Criterion {
    /// Why the winner wins, as the end of "it loses because the winner …".
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PathForm => "has the more exact kind of path match",
            Self::PathLength => "has the longer path",
            Self::Exact => "has no regular expression",
            Self::Method => "asks for a method",
            Self::Headers => "has more header matches",
            Self::Query => "has more query matches",
            Self::Age => "is older",
            Self::Name => "has the name that comes first",
            Self::Rule => "comes first in its object",
            Self::Index => "comes first in its rule",
        }
    }
}

impl Rank {
    /// The rank of the match at `index` of the rule that `origin` names. Conditions count once per name.
    #[must_use]
    pub fn of(origin: &Origin, of: &Match, index: usize, headers: usize, query: usize) -> Self {
        Self {
            path: if origin.kind == Kind::Grpc {
                PathRank::grpc(of)
            } else {
                PathRank::http(of)
            },
            method: Reverse(of.method.is_some()),
            headers: Reverse(headers),
            query: Reverse(query),
            age: Age(origin.created),
            name: full_name(origin),
            rule: origin.rule_index,
            index,
        }
    }

    /// What makes a smaller `other` win.
    #[must_use]
    pub fn loses_to(&self, other: &Self) -> Criterion {
        let lengths = |rank: &PathRank| (rank.length, rank.second_length);
        if self.path.form != other.path.form {
            Criterion::PathForm
        } else if lengths(&self.path) != lengths(&other.path) {
            Criterion::PathLength
        } else if self.path.regex != other.path.regex {
            Criterion::Exact
        } else if self.method != other.method {
            Criterion::Method
        } else if self.headers != other.headers {
            Criterion::Headers
        } else if self.query != other.query {
            Criterion::Query
        } else if self.age != other.age {
            Criterion::Age
        } else if self.name != other.name {
            Criterion::Name
        } else if self.rule != other.rule {
            Criterion::Rule
        } else {
            Criterion::Index
        }
    }
}

/// `<namespace>/<name>`: ties end in the order of this text.
pub(super) fn full_name(origin: &Origin) -> Str {
    format!("{}/{}", origin.namespace, origin.name).into()
}

impl PathRank {
    fn http(of: &Match) -> Self {
        let (form, length) = match &of.path {
            Some(PathMatch::Exact(_)) => (0, 0),
            Some(PathMatch::Prefix(prefix)) => (1, trimmed(prefix).len()),
            None => (1, 0),
            Some(PathMatch::Regex(pattern)) => (2, pattern.len()),
        };
        Self {
            form,
            length: Reverse(length),
            second_length: Reverse(0),
            regex: false,
        }
    }

    fn grpc(of: &Match) -> Self {
        let length = |text: Option<&Str>| text.map_or(0, |text| text.len());
        let call = of.grpc.as_ref();
        let service = call.and_then(|call| call.service.as_ref());
        let method = call.and_then(|call| call.method.as_ref());
        let regex = call.is_some_and(|call| call.regex);
        let exact = service.is_some() && method.is_some() && !regex;
        Self {
            form: u8::from(!exact),
            length: Reverse(length(service)),
            second_length: Reverse(length(method)),
            regex,
        }
    }
}

/// A prefix without the one `/` at its end that means nothing.
pub(super) fn trimmed(prefix: &str) -> &str {
    prefix.strip_suffix('/').unwrap_or(prefix)
}
