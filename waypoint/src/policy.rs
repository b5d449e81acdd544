//! Who may do what: tokens, authorizers, authorization, limits, faults.

pub mod fault;
pub mod limit;
