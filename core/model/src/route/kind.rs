//! One kind of route per port: where several kinds name the same port of a service, only the highest applies.

use std::collections::BTreeMap;

use super::Kind;
use crate::name::Str;

/// A route that would apply to one port of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate<'a, T> {
    /// Its kind.
    pub kind: Kind,
    /// `None` for a route of the service's own namespace, else the namespace whose callers it is for.
    pub consumer: Option<&'a Str>,
    /// What the caller knows it by.
    pub of: T,
}

/// Whether a route applies to the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It applies.
    Applies,
    /// A higher kind stands on the port for the same callers.
    Outranked {
        /// That kind.
        by: Kind,
    },
}

impl Kind {
    /// The order in which kinds win a port: gRPC, HTTP, TLS, TCP.
    #[must_use]
    pub fn rank(self) -> u8 {
        match self {
            Self::Grpc => 0,
            Self::Http => 1,
            Self::Tls => 2,
            Self::Tcp => 3,
            Self::Policy => u8::MAX,
        }
    }
}

/// Which of the routes of one port apply, each set of callers for itself.
pub fn standing<'a, T>(candidates: &'a [Candidate<'a, T>]) -> impl Iterator<Item = (&'a T, Standing)> {
    let mut best: BTreeMap<Option<&Str>, Kind> = BTreeMap::new();
    for candidate in candidates {
        let kind = best.entry(candidate.consumer).or_insert(candidate.kind);
        if candidate.kind.rank() < kind.rank() {
            *kind = candidate.kind;
        }
    }
    candidates.iter().map(move |candidate| {
        let by = best[&candidate.consumer];
        let standing = if by == candidate.kind {
            Standing::Applies
        } else {
            Standing::Outranked { by }
        };
        (&candidate.of, standing)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_beats_http_beats_tls_beats_tcp_among_the_same_callers() {
        let consumer: Str = "b".into();
        let candidate = |kind, consumer, of| Candidate { kind, consumer, of };
        let candidates = [
            candidate(Kind::Tcp, None, 0),
            candidate(Kind::Http, None, 1),
            candidate(Kind::Http, None, 2),
            candidate(Kind::Tls, Some(&consumer), 3),
            candidate(Kind::Tcp, Some(&consumer), 4),
        ];
        let found: Vec<_> = standing(&candidates).collect();
        let outranked = |by| Standing::Outranked { by };
        assert_eq!(
            found,
            [
                (&0, outranked(Kind::Http)),
                (&1, Standing::Applies),
                (&2, Standing::Applies),
                (&3, Standing::Applies),
                (&4, outranked(Kind::Tls)),
            ]
        );
    }
}
