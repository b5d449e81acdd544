//! What is counted, written and traced of every request.

pub mod access;
pub mod grpc;
pub mod histogram;
pub mod labels;
pub mod party;
pub mod provider;
pub mod request_id;
pub mod requests;
pub mod series;
pub mod spans;
pub mod target;
pub mod trace;
