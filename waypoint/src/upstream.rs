//! Endpoints of backends: which one, whether again, and when no more.

pub mod balance;
pub mod breaker;
pub mod budget;
pub mod cluster;
pub mod endpoint;
pub mod locality;
pub mod outcome;
pub mod outlier;
pub mod retry;
pub mod session;
pub mod timeout;
