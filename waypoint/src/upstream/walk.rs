//! Endpoints one after the other, until one is reached: each once, and those that are known by name once at each of their
//! addresses.

use std::net::SocketAddr;
use std::sync::Arc;

use smallvec::SmallVec;
use tulle_model::Reason;

use super::cluster::Pick;
use super::endpoint::EndpointState;
use super::outside::{self, Wanted};
use crate::context::Waypoint;
use crate::snapshot::Snapshot;

/// Tries that are made: one, and two more if no connection is had.
pub const TRIES_MAX: usize = 3;

/// What was tried so far.
#[derive(Debug, Default)]
pub struct Walk {
    tried: SmallVec<[Arc<EndpointState>; TRIES_MAX]>,
}

impl Walk {
    /// Whether no further try is made.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.tried.len() >= TRIES_MAX
    }

    /// Whose turn has been, for the next pick.
    #[must_use]
    pub fn tried(&self) -> &[Arc<EndpointState>] {
        &self.tried
    }

    /// Where the endpoint that was picked is tried, or why it is nowhere; `None` once it was tried wherever it is.
    pub async fn turn_to(
        &mut self,
        (waypoint, snapshot): (&Waypoint, &Snapshot),
        pick: &Pick,
        host: Option<&str>,
        asked: SocketAddr,
    ) -> Option<Result<SocketAddr, Reason>> {
        let endpoint = pick.endpoint();
        let before = self.tried.iter().filter(|one| Arc::ptr_eq(one, &endpoint.state));
        let tried = before.count();
        if self.is_over() || (tried > 0 && !endpoint.is_named()) {
            return None;
        }
        self.tried.push(Arc::clone(&endpoint.state));
        let wanted = Wanted {
            host,
            address: asked,
            tried,
        };
        match outside::address(waypoint, snapshot, endpoint, wanted).await {
            Ok(place) => (tried < place.of).then_some(Ok(place.address)),
            Err(reason) => Some(Err(reason)),
        }
    }
}
