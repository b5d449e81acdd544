//! One endpoint for one try, and what its end says of the endpoint.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use smallvec::SmallVec;

use super::super::balance::{Field, Random, peak_ewma};
use super::super::endpoint::{Endpoint, EndpointState, InFlight};
use super::super::locality::Fill;
use super::super::outcome::{Outcome, Unsent};
use super::super::outlier::{Phase, Settings, Tally, Verdict};
use super::{Cluster, ClusterState, Place, SAMPLE_MAX, USUAL_AGE_MAX};
use crate::clock::Time;

/// What an endpoint is picked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ask<'a> {
    /// Now.
    pub now: Time,
    /// What decides, for algorithms that hash.
    pub hash: Option<u64>,
    /// The endpoint of the client's session, by its fingerprint.
    pub session: Option<u128>,
    /// Endpoints that were tried before.
    pub tried: &'a [Arc<EndpointState>],
    /// Whether who hashes leaves the endpoint of its key, too, once that was tried.
    pub moves_on: bool,
    /// The address the client asked for, for services that want that.
    pub address: Option<IpAddr>,
}

/// An endpoint that was picked. It counts as one more request there until this is dropped.
#[derive(Debug)]
pub struct Pick {
    cluster: Arc<Cluster>,
    index: usize,
    at: Time,
    /// This is the one request that an endpoint on probation gets.
    probe: bool,
    settled: bool,
    _flight: InFlight,
}

impl Cluster {
    /// Picks an endpoint; `None` if there is none. One that was tried before is picked only if there is no other.
    #[must_use]
    pub fn pick(self: &Arc<Self>, ask: &Ask<'_>, random: Random<'_>) -> Option<Pick> {
        if self.passthrough {
            let index = self.at(ask.address?).filter(|index| self.is_in(*index))?;
            return Some(self.picked(index, false, ask.now));
        }
        let session = ask.session.and_then(|print| self.session(print));
        if let Some(index) = session.filter(|index| self.is_in(*index)) {
            return Some(self.picked(index, false, ask.now));
        }
        if let Some(index) = self.probation(ask) {
            return Some(self.picked(index, true, ask.now));
        }
        // Requests that hash want one endpoint for one key, also when they are tried again.
        let stays = ask.hash.is_some() && !ask.moves_on;
        let tried: &[_] = if stays { &[] } else { ask.tried };
        let index = self
            .among_places(ask, tried, random)
            .or_else(|| self.among_places(ask, &[], random).filter(|_| !tried.is_empty()))?;
        Some(self.picked(index, false, ask.now))
    }

    fn picked(self: &Arc<Self>, index: usize, probe: bool, now: Time) -> Pick {
        Pick {
            _flight: InFlight::new(&self.endpoints[index].state),
            cluster: Arc::clone(self),
            index,
            at: now,
            probe,
            settled: false,
        }
    }

    fn among_places(&self, ask: &Ask<'_>, tried: &[Arc<EndpointState>], random: Random<'_>) -> Option<usize> {
        let fills: SmallVec<[Fill; 8]> = self.places.iter().map(|place| self.fill(place)).collect();
        let first = self.spread.choose(&fills, random)?;
        let mut in_place = |place: &Place| {
            let field = InPlace {
                cluster: self,
                place,
                now: ask.now,
                tried,
            };
            let turn = &self.state.turn;
            let picked = place.balance.pick(&field, ask.hash, turn, random);
            picked.map(|index| place.range.start + index)
        };
        // Where all of the place were tried, any other place is better than one of them.
        in_place(&self.places[first]).or_else(|| {
            let others = self
                .places
                .iter()
                .enumerate()
                .filter(|(index, _)| *index != first);
            let mut others = others.map(|(_, place)| place);
            (!tried.is_empty())
                .then(|| others.find_map(&mut in_place))
                .flatten()
        })
    }

    fn fill(&self, place: &Place) -> Fill {
        let all = place.range.len();
        let total = place.total;
        if self.policy.outlier.is_none() || self.state.bench.out() == 0 {
            return Fill { usable: all, total };
        }
        let epoch = self.state.bench.epoch() & u64::from(u32::MAX);
        let known = place.usable.load(Ordering::Relaxed);
        let usable = if known != u64::MAX && known >> 32 == epoch {
            known & u64::from(u32::MAX)
        } else {
            let usable = place.range.clone().filter(|index| self.is_in(*index)).count() as u64;
            place.usable.store(epoch << 32 | usable, Ordering::Relaxed);
            usable
        };
        Fill {
            usable: usize::try_from(usable).unwrap_or(all),
            total,
        }
    }

    /// An endpoint whose time has passed, if this request may be the one that goes to it.
    fn probation(&self, ask: &Ask<'_>) -> Option<usize> {
        let bench = &self.state.bench;
        if self.policy.outlier.is_none() || bench.out() == 0 || !bench.is_due(ask.now) {
            return None;
        }
        let mut found = None;
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let Phase::Ejected(until) = endpoint.state.health.phase() else {
                continue;
            };
            let free = found.is_none() && !was_tried(ask.tried, &endpoint.state);
            if free && endpoint.state.health.probe(ask.now) {
                found = Some(index);
            } else {
                bench.due_at(until);
            }
        }
        found
    }

    /// Looks at what is usual, now and then.
    fn look_at_usual(&self, now: Time) {
        let state = &self.state;
        let unknown = state.usual.load(Ordering::Relaxed) == 0;
        let every = if unknown { Duration::ZERO } else { USUAL_AGE_MAX };
        if !ClusterState::is_turn(&state.usual_at, every, now) && !unknown {
            return;
        }
        let step = self.endpoints.len().div_ceil(SAMPLE_MAX).max(1);
        let sample = self.endpoints.iter().step_by(step);
        let mut known: SmallVec<[f64; SAMPLE_MAX]> =
            sample.filter_map(|one| one.state.latency.nanos(now)).collect();
        let middle = known.len() / 2;
        if known.is_empty() {
            return;
        }
        let (_, median, _) = known.select_nth_unstable_by(middle, f64::total_cmp);
        state.usual.store(median.max(1.0).to_bits(), Ordering::Relaxed);
    }

    /// Compares endpoints by the figures of the interval that has ended, if it has.
    fn compare(&self, settings: &Settings, now: Time) {
        if !settings.compares() || !ClusterState::is_turn(&self.state.compared_at, settings.interval, now) {
            return;
        }
        let tallies: Vec<Tally> = self
            .endpoints
            .iter()
            .map(|one| one.state.health.take_tally())
            .collect();
        let by_rate = settings.success_rate.map(|rule| rule.outliers(&tallies));
        let by_share = settings.failure_percent.map(|rule| rule.outliers(&tallies));
        for index in by_rate.into_iter().chain(by_share).flatten() {
            let health = &self.endpoints[index].state.health;
            health.condemn(&self.state.bench, settings, self.endpoints.len(), now);
        }
    }
}

impl Pick {
    /// The endpoint.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.cluster.endpoints[self.index]
    }

    /// The backend.
    #[must_use]
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// When it was picked.
    #[must_use]
    pub fn at(&self) -> Time {
        self.at
    }

    /// What a session remembers of it.
    #[must_use]
    pub fn fingerprint(&self) -> u128 {
        self.cluster.fingerprint(self.endpoint())
    }

    /// Says how the try ended, or what the head of the answer was. What comes second is not counted.
    pub fn settle(&mut self, outcome: &Outcome, now: Time) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        let state = &self.endpoint().state;
        if let Some(rtt) = time_to_answer(outcome, now.since(self.at)) {
            state.latency.observe(rtt, now);
            self.cluster.look_at_usual(now);
        }
        if let Some(settings) = &self.cluster.policy.outlier {
            self.observe(settings, settings.judge(outcome), now);
            self.cluster.compare(settings, now);
        }
    }

    fn observe(&self, settings: &Settings, verdict: Option<Verdict>, now: Time) {
        let cluster = &self.cluster;
        let (bench, usable) = (&cluster.state.bench, cluster.endpoints.len());
        let health = &self.endpoint().state.health;
        health.observe(bench, settings, verdict, self.probe, usable, now);
    }
}

impl Drop for Pick {
    /// A probe without an end leaves its place to the next.
    fn drop(&mut self) {
        if let Some(settings) = self
            .cluster
            .policy
            .outlier
            .as_ref()
            .filter(|_| self.probe && !self.settled)
        {
            self.observe(settings, None, self.at);
        }
    }
}

/// What the end of a try says of how fast an endpoint is. A failure counts as slow, so that fast ones attract nothing.
fn time_to_answer(outcome: &Outcome, took: Duration) -> Option<Duration> {
    let failure = |hint: Option<Duration>| hint.unwrap_or(peak_ewma::FAILURE).min(peak_ewma::FAILURE_MAX);
    match outcome {
        Outcome::ClientGone
        | Outcome::Refused
        | Outcome::Unsent(Unsent::RefusedStream | Unsent::GoAway | Unsent::Stale | Unsent::Own) => None,
        Outcome::Unsent(_) | Outcome::Reset | Outcome::Malformed | Outcome::TimedOut => {
            Some(failure(None).max(took))
        }
        Outcome::Answered(answer) => {
            let hint = answer.hint.and_then(super::super::outcome::Hint::wait);
            let failed = answer.status >= 500
                || (answer.status == 429 && hint.is_some())
                || matches!(answer.grpc, Some(2 | 4 | 13 | 14 | 15));
            Some(if failed { failure(hint) } else { took })
        }
        Outcome::Connected => Some(took),
    }
}

fn was_tried(tried: &[Arc<EndpointState>], state: &Arc<EndpointState>) -> bool {
    tried.iter().any(|one| Arc::ptr_eq(one, state))
}

/// The endpoints of one place, as an algorithm sees them.
struct InPlace<'a> {
    cluster: &'a Cluster,
    place: &'a Place,
    now: Time,
    tried: &'a [Arc<EndpointState>],
}

impl InPlace<'_> {
    fn endpoint(&self, index: usize) -> &Endpoint {
        &self.cluster.endpoints[self.place.range.start + index]
    }

    /// Requests that would be with the endpoint, by what it can bear.
    fn flight(&self, index: usize) -> f64 {
        let endpoint = self.endpoint(index);
        let bears = endpoint.capacity() * self.warmth(index);
        (f64::from(endpoint.state.in_flight()) + 1.0) / bears
    }
}

impl Field for InPlace<'_> {
    fn len(&self) -> usize {
        self.place.range.len()
    }

    fn usable(&self, index: usize) -> bool {
        self.cluster.is_in(self.place.range.start + index)
            && !was_tried(self.tried, &self.endpoint(index).state)
    }

    fn peak_cost(&self, index: usize) -> f64 {
        let known = self.endpoint(index).state.latency.nanos(self.now);
        known.unwrap_or_else(|| self.cluster.state.usual()) * self.flight(index)
    }

    fn flight_cost(&self, index: usize) -> f64 {
        self.flight(index)
    }

    fn warmth(&self, index: usize) -> f64 {
        self.cluster.warmth(self.place.range.start + index, self.now)
    }
}
