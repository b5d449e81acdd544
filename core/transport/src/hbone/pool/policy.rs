//! Which connection the next stream goes to, and when another is opened. Pure: counts in, choice out.

/// Most connections and dials of one key. With all of them full, callers are refused.
const CONNECTIONS_MAX: usize = 256;

/// A connection is busy when more than this share of its places is taken.
const BUSY_NUMERATOR: u32 = 3;
const BUSY_DENOMINATOR: u32 = 4;

/// What a key has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Load {
    /// Streams open, and the most the peer allows, per connection.
    pub connections: Vec<(u32, u32)>,
    /// Waiters, per dial under way.
    pub dials: Vec<u32>,
}

/// What a key may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Streams per connection.
    pub streams: u32,
    /// Connections opened by load alone.
    pub connections: usize,
}

/// What to do with the next stream. Indices are into [`Load`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// Open it here; `grow` asks for another connection in the background.
    Use { connection: usize, grow: bool },
    /// Wait for a dial that has room.
    Join { dial: usize },
    /// Start a dial and wait for it.
    Dial,
    /// Refuse.
    Overload,
}

/// Decides. `random(n)` is uniform in `0..n`.
pub(super) fn choose(load: &Load, limits: Limits, random: &mut dyn FnMut(usize) -> usize) -> Choice {
    let cap = |limit: u32| limits.streams.min(limit);
    let open: Vec<usize> = (0..load.connections.len())
        .filter(|at| {
            let (active, limit) = load.connections[*at];
            active < cap(limit)
        })
        .collect();
    if let Some(connection) = less_loaded_of_two(&open, load, random) {
        let busy = |(active, limit): &(u32, u32)| active * BUSY_DENOMINATOR > cap(*limit) * BUSY_NUMERATOR;
        let may_grow = load.dials.is_empty() && load.connections.len() < limits.connections;
        return Choice::Use {
            connection,
            grow: may_grow && load.connections.iter().all(busy),
        };
    }
    if let Some(dial) = load.dials.iter().position(|waiting| *waiting < limits.streams) {
        return Choice::Join { dial };
    }
    if load.connections.len() + load.dials.len() < CONNECTIONS_MAX {
        Choice::Dial
    } else {
        Choice::Overload
    }
}

/// Of two random candidates the one with fewer streams: nearly as even as the best of all, without herding.
fn less_loaded_of_two(open: &[usize], load: &Load, random: &mut dyn FnMut(usize) -> usize) -> Option<usize> {
    let first = match open.len() {
        0 => return None,
        1 => return Some(open[0]),
        many => random(many),
    };
    let second = (first + 1 + random(open.len() - 1)) % open.len();
    [open[first], open[second]]
        .into_iter()
        .min_by_key(|at| load.connections[*at].0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        streams: 100,
        connections: 2,
    };

    fn check(connections: &[u32], dials: &[u32], expect: Choice) {
        let load = Load {
            connections: connections.iter().map(|active| (*active, 200)).collect(),
            dials: dials.to_vec(),
        };
        assert_eq!(choose(&load, LIMITS, &mut |_| 0), expect, "{load:?}");
    }

    #[test]
    fn the_first_stream_dials_and_the_next_ones_join() {
        check(&[], &[], Choice::Dial);
        check(&[], &[1], Choice::Join { dial: 0 });
        check(&[], &[100], Choice::Dial);
        check(&[], &[100, 3], Choice::Join { dial: 1 });
    }

    #[test]
    fn a_quiet_key_keeps_one_connection() {
        check(
            &[0],
            &[],
            Choice::Use {
                connection: 0,
                grow: false,
            },
        );
        check(
            &[75],
            &[],
            Choice::Use {
                connection: 0,
                grow: false,
            },
        );
    }

    #[test]
    fn another_is_opened_in_the_background_when_all_are_busy() {
        check(
            &[76],
            &[],
            Choice::Use {
                connection: 0,
                grow: true,
            },
        );
        check(
            &[76],
            &[0],
            Choice::Use {
                connection: 0,
                grow: false,
            },
        );
        check(
            &[76, 10],
            &[],
            Choice::Use {
                connection: 1,
                grow: false,
            },
        );
        check(
            &[76, 80],
            &[],
            Choice::Use {
                connection: 0,
                grow: false,
            },
        );
    }

    #[test]
    fn full_connections_are_passed_over_and_then_another_is_dialled() {
        check(
            &[100, 99],
            &[],
            Choice::Use {
                connection: 1,
                grow: false,
            },
        );
        check(&[100, 100], &[], Choice::Dial);
        check(&[100, 100], &[0], Choice::Join { dial: 0 });
    }

    #[test]
    fn the_number_of_connections_is_bounded() {
        check(&[100; CONNECTIONS_MAX], &[], Choice::Overload);
    }

    #[test]
    fn a_lower_limit_of_the_peer_is_kept() {
        let load = Load {
            connections: vec![(10, 10)],
            dials: vec![],
        };
        assert_eq!(choose(&load, LIMITS, &mut |_| 0), Choice::Dial);
    }

    proptest! {
        #[test]
        fn no_connection_passes_its_cap(
            connections in proptest::collection::vec((0u32..150, 1u32..150), 0..20),
            dials in proptest::collection::vec(0u32..150, 0..4),
            seed: usize,
        ) {
            let load = Load { connections, dials };
            match choose(&load, LIMITS, &mut |n| seed % n) {
                Choice::Use { connection, grow } => {
                    let (active, limit) = load.connections[connection];
                    prop_assert!(active < limit.min(LIMITS.streams));
                    prop_assert!(!grow || load.connections.len() < LIMITS.connections);
                }
                Choice::Join { dial } => prop_assert!(load.dials[dial] < LIMITS.streams),
                Choice::Dial | Choice::Overload => {
                    prop_assert!(load.connections.iter().all(|(active, limit)| active >= limit.min(&LIMITS.streams)));
                }
            }
        }
    }
}
