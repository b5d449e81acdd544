//! What a draw among endpoints is made from, kept until the service or one of its endpoints changes.
//!
//! All callers that a service treats alike share one table, so a connection pays for one draw and not for a walk
//! over the endpoints.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::alias::Alias;
use super::balance::Purpose;
use super::locality;
use crate::name::Str;
use crate::service::{LoadBalancingMode, Scope, Service};
use crate::workload::Workload;

/// How many tables a service keeps; callers beyond that get theirs made anew each time.
const TABLES_MAX: usize = 32;

/// An endpoint that may be drawn.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) workload: Arc<Workload>,
    pub(super) target_port: u16,
}

/// What decides which endpoints a caller may draw.
#[derive(Debug)]
pub(super) struct Class<'a> {
    pub(super) service: &'a Service,
    pub(super) source: &'a Workload,
    pub(super) port: u16,
    pub(super) purpose: Purpose,
}

impl<'a> Class<'a> {
    /// The scopes that tell callers of this service apart.
    fn scopes(&self) -> &'a [Scope] {
        match &self.service.load_balancing {
            Some(balancing)
                if matches!(
                    balancing.mode,
                    LoadBalancingMode::Strict | LoadBalancingMode::Failover
                ) =>
            {
                &balancing.routing_preference
            }
            _ => &[],
        }
    }
}

/// The endpoints of the best preference for one class of callers.
#[derive(Debug)]
pub(super) struct Table {
    port: u16,
    purpose: Purpose,
    network: Str,
    /// The caller's place, scope by scope.
    place: Vec<Str>,
    candidates: Vec<Candidate>,
    alias: Alias,
}

impl Table {
    pub(super) fn new(class: &Class<'_>, candidates: Vec<Candidate>) -> Self {
        let place = class
            .scopes()
            .iter()
            .map(|scope| locality::place(*scope, class.source).clone());
        let weights: Vec<u32> = candidates.iter().map(|one| one.workload.capacity).collect();
        Self {
            port: class.port,
            purpose: class.purpose,
            network: class.source.network.clone(),
            place: place.collect(),
            alias: Alias::new(&weights),
            candidates,
        }
    }

    /// Draws a candidate by its capacity; `None` if there is none.
    pub(super) fn draw(&self, random: &mut dyn FnMut(u64) -> u64) -> Option<&Candidate> {
        if self.alias.is_empty() {
            return None;
        }
        self.candidates.get(self.alias.draw(random))
    }

    fn serves(&self, class: &Class<'_>) -> bool {
        let here = class
            .scopes()
            .iter()
            .map(|scope| locality::place(*scope, class.source));
        self.port == class.port
            && self.purpose == class.purpose
            && self.network == class.source.network
            && self.place.iter().eq(here)
    }
}

/// The tables of one service in one state of its endpoints.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    known: ArcSwap<Vec<Arc<Table>>>,
}

impl Tables {
    /// The table for a class, made at its first use.
    pub(super) fn get_or_make(&self, class: &Class<'_>, make: impl Fn() -> Table) -> Arc<Table> {
        let known = self.known.load();
        if let Some(table) = known.iter().find(|table| table.serves(class)) {
            return Arc::clone(table);
        }
        let table = Arc::new(make());
        if known.len() < TABLES_MAX {
            // Two callers may make the same table; both are right, and the bound is asked again for each.
            self.known.rcu(|known| {
                let mut known = Vec::clone(known);
                if known.len() < TABLES_MAX && !known.iter().any(|other| other.serves(class)) {
                    known.push(Arc::clone(&table));
                }
                known
            });
        }
        table
    }
}
