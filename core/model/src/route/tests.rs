//! What a request takes, as facts, and the router against a plain reading of the same rules.

mod equivalence;
mod facts;
mod parents;
