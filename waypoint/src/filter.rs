//! What is done to requests and answers on their way, each filter for itself.

pub mod cors;
pub mod headers;
pub mod mirror;
pub mod plan;
pub mod redirect;
pub mod rewrite;

pub use plan::{FilterError, Filters};
