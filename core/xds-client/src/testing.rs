//! A state for tests of those who read it: what a session would have told it, without one.

use std::collections::BTreeMap;

use tulle_model::{NetworkAddress, Str};
use tulle_proto::stub::RefusedAddresses;

use crate::state::MeshState;

impl MeshState {
    /// Asks for addresses one by one from now on; nobody answers but [`Self::apply`].
    pub fn ask_nobody(&self) {
        self.ask_on_demand();
    }

    /// What was asked for and not answered so far.
    #[must_use]
    pub fn asked_for(&self) -> Vec<Str> {
        self.demand().map(|demand| demand.all()).unwrap_or_default()
    }

    /// Refuses traffic to an address, as the rejection of a resource would.
    pub fn reject(&self, resource: &str, address: NetworkAddress) {
        let refused = RefusedAddresses {
            addresses: vec![address],
            ..RefusedAddresses::default()
        };
        self.add_refused(&BTreeMap::from([(resource.into(), refused)]));
    }
}
