//! Which connection the next stream goes to, and when another is opened. Pure: counts in, choice out.

use std::time::Duration;

/// Most connections and dials of one key. With all of them full, callers are refused.
const CONNECTIONS_MAX: usize = 256;

/// A connection is busy when more than this share of its places is taken.
const BUSY_NUMERATOR: u32 = 3;
const BUSY_DENOMINATOR: u32 = 4;

/// A connection whose writes were blocked for longer than this, of late, has more to carry than it can.
const BLOCKED_MAX: Duration = Duration::from_millis(20);

/// What a key has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Load {
    /// The connections that take streams.
    pub connections: Vec<ConnectionLoad>,
    /// Waiters, per dial under way.
    pub dials: Vec<u32>,
}

/// What one connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ConnectionLoad {
    /// Streams open.
    pub streams: u32,
    /// The most that may be open, by what the peer says.
    pub limit: u32,
    /// Bytes that wait to be sent.
    pub unsent: usize,
    /// Whether one of the streams moves much; others would wait behind it.
    pub bulk: bool,
    /// For how much of the last tenth of a second nothing could be written.
    pub blocked: Duration,
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
    let candidates = candidates(load, limits);
    if let Some(connection) = better_of_two(&candidates, load, random) {
        return Choice::Use {
            connection,
            grow: grows(&candidates, load, limits),
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

/// Connections with a free place; those with a bulk stream only if there are no others.
fn candidates(load: &Load, limits: Limits) -> Vec<usize> {
    let with_place = |bulk: bool| {
        let fits = |at: &usize| {
            let connection = &load.connections[*at];
            connection.streams < limits.cap(connection) && connection.bulk == bulk
        };
        (0..load.connections.len()).filter(fits).collect::<Vec<_>>()
    };
    let quiet = with_place(false);
    if quiet.is_empty() { with_place(true) } else { quiet }
}

/// Of two random candidates the one with fewer bytes to send: nearly as even as the best of all, without herding.
fn better_of_two(candidates: &[usize], load: &Load, random: &mut dyn FnMut(usize) -> usize) -> Option<usize> {
    let first = match candidates.len() {
        0 => return None,
        1 => return Some(candidates[0]),
        many => random(many),
    };
    let second = (first + 1 + random(candidates.len() - 1)) % candidates.len();
    [candidates[first], candidates[second]]
        .into_iter()
        .min_by_key(|at| (load.connections[*at].unsent, load.connections[*at].streams))
}

/// Whether another connection is worth it. What carries bulk and is avoided anyway is no reason: it would be one
/// for as long as the transfer lasts.
fn grows(candidates: &[usize], load: &Load, limits: Limits) -> bool {
    let may = load.dials.is_empty() && load.connections.len() < limits.connections;
    let busy = |at: &usize| {
        let connection = &load.connections[*at];
        connection.streams * BUSY_DENOMINATOR > limits.cap(connection) * BUSY_NUMERATOR
    };
    let blocked = |at: &usize| load.connections[*at].blocked > BLOCKED_MAX;
    may && (candidates.iter().all(busy) || candidates.iter().any(blocked))
}

impl Limits {
    fn cap(self, connection: &ConnectionLoad) -> u32 {
        self.streams.min(connection.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        streams: 100,
        connections: 2,
    };

    fn streams(streams: u32) -> ConnectionLoad {
        ConnectionLoad {
            streams,
            limit: 200,
            ..ConnectionLoad::default()
        }
    }

    fn uses(connection: usize) -> Choice {
        Choice::Use {
            connection,
            grow: false,
        }
    }

    fn uses_and_grows(connection: usize) -> Choice {
        Choice::Use {
            connection,
            grow: true,
        }
    }

    fn check(active: &[u32], dials: &[u32], expect: Choice) {
        check_load(
            active.iter().map(|active| streams(*active)).collect(),
            dials,
            expect,
        );
    }

    fn check_load(connections: Vec<ConnectionLoad>, dials: &[u32], expect: Choice) {
        let load = Load {
            connections,
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
        check(&[0], &[], uses(0));
        check(&[75], &[], uses(0));
    }

    #[test]
    fn another_is_opened_in_the_background_when_all_are_busy() {
        check(&[76], &[], uses_and_grows(0));
        check(&[76], &[0], uses(0));
        check(&[76, 10], &[], uses(1));
        check(&[76, 80], &[], uses(0));
    }

    #[test]
    fn another_is_opened_when_one_was_blocked_too_long() {
        let blocked = |ms| ConnectionLoad {
            blocked: Duration::from_millis(ms),
            ..streams(1)
        };
        check_load(vec![blocked(20)], &[], uses(0));
        check_load(vec![blocked(21)], &[], uses_and_grows(0));
        check_load(vec![blocked(21)], &[1], uses(0));
        check_load(vec![blocked(21), streams(1)], &[], uses(0));
    }

    #[test]
    fn a_connection_with_bulk_is_avoided_and_no_reason_to_grow_again() {
        let bulk = ConnectionLoad {
            bulk: true,
            blocked: Duration::from_millis(90),
            ..streams(1)
        };
        check_load(vec![bulk], &[], uses_and_grows(0));
        let three = Limits {
            connections: 3,
            ..LIMITS
        };
        let load = Load {
            connections: vec![bulk, streams(40)],
            dials: vec![],
        };
        assert_eq!(choose(&load, three, &mut |_| 0), uses(1));
        check_load(vec![bulk, streams(100)], &[], uses(0));
    }

    #[test]
    fn fewer_unsent_bytes_win_and_then_fewer_streams() {
        let waiting = |unsent, active| ConnectionLoad {
            unsent,
            ..streams(active)
        };
        check_load(vec![waiting(9, 1), waiting(8, 70)], &[], uses(1));
        check_load(vec![waiting(8, 70), waiting(9, 1)], &[], uses(0));
        check_load(vec![waiting(8, 7), waiting(8, 6)], &[], uses(1));
    }

    #[test]
    fn full_connections_are_passed_over_and_then_another_is_dialled() {
        check(&[100, 99], &[], uses(1));
        check(&[100, 100], &[], Choice::Dial);
        check(&[100, 100], &[0], Choice::Join { dial: 0 });
    }

    #[test]
    fn the_number_of_connections_is_bounded() {
        check(&[100; CONNECTIONS_MAX], &[], Choice::Overload);
    }

    #[test]
    fn a_lower_limit_of_the_peer_is_kept() {
        let full = ConnectionLoad {
            limit: 10,
            ..streams(10)
        };
        check_load(vec![full], &[], Choice::Dial);
    }

    prop_compose! {
        fn any_connection()(
            streams in 0u32..150, limit in 1u32..150, unsent in 0usize..4, bulk: bool, blocked in 0u64..100,
        ) -> ConnectionLoad {
            ConnectionLoad { streams, limit, unsent, bulk, blocked: Duration::from_millis(blocked) }
        }
    }

    proptest! {
        #[test]
        fn no_connection_passes_its_cap_and_bulk_is_avoided(
            connections in proptest::collection::vec(any_connection(), 0..20),
            dials in proptest::collection::vec(0u32..150, 0..4),
            seed: usize,
        ) {
            let load = Load { connections, dials };
            let has_place = |c: &ConnectionLoad| c.streams < c.limit.min(LIMITS.streams);
            match choose(&load, LIMITS, &mut |n| seed % n) {
                Choice::Use { connection, grow } => {
                    let chosen = load.connections[connection];
                    prop_assert!(has_place(&chosen));
                    prop_assert!(!chosen.bulk || load.connections.iter().all(|c| c.bulk || !has_place(c)));
                    prop_assert!(!grow || load.connections.len() < LIMITS.connections && load.dials.is_empty());
                }
                Choice::Join { dial } => prop_assert!(load.dials[dial] < LIMITS.streams),
                Choice::Dial | Choice::Overload => prop_assert!(!load.connections.iter().any(has_place)),
            }
        }
    }
}
