//! A server session meets clients without any network: the conformance cases one by one, then random traffic with
//! loss, reordering and reconnects, after which every client must hold what it wants and nothing else.

#[path = "pair/conformance.rs"]
mod conformance;
#[path = "pair/peer.rs"]
mod peer;
#[path = "pair/random.rs"]
mod random;
#[path = "pair/store.rs"]
mod store;
