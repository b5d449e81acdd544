//! Keeps the keys of tokens at hand: fetched when a rule arrives, again before they are old, and forgotten with the rule.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::{MissedTickBehavior, interval};
use tulle_runtime::drain::DrainWatcher;

use super::Jwks;
use super::jwks::LOOK;
use crate::snapshot::View;

/// Follows snapshots and time, until the process ends.
pub async fn follow(view: View, jwks: Arc<Jwks>, drain: DrainWatcher) {
    let mut moved = view.subscribe();
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let snapshot = view.load();
        let ports = snapshot.fronts().flat_map(|front| front.port_states());
        let rules = ports.flat_map(|port| port.all_policies());
        let wanted: HashMap<_, _> = rules
            .flat_map(|rules| rules.authentication.fetched())
            .map(|(from, timeout)| (from.clone(), timeout))
            .collect();
        drop(snapshot);
        jwks.follow(&wanted);
        tokio::select! {
            changed = moved.changed() => if changed.is_err() { return },
            _ = tick.tick() => jwks.refresh(),
            () = drain.over() => return,
        }
    }
}
