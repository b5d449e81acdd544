//! Who may do what: tokens, authorizers, authorization, limits, faults.

pub mod ask;
pub mod ext_authz;
pub mod fault;
pub mod jwt;
pub mod limit;
