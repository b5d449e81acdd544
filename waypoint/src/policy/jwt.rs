//! Tokens of requests: where they stand, whether they are valid, who they speak for.
//!
//! A request without a token passes without a principal. Any token that stands in a place some rule reads must be
//! valid for a rule that names its issuer and reads that place; else the request is refused.

pub mod ahead;
pub mod authenticate;
pub mod cache;
pub mod https;
pub mod jwks;
pub mod keys;
pub mod places;
pub mod target;
pub mod token;

pub use authenticate::{Authenticated, Authentication, Effects, Failure};
pub use jwks::{Fetch, Jwks};
pub use keys::KeySet;
