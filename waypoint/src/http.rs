//! Requests: from the tunnel's stream to the answer, phase by phase.

pub mod body;
pub mod canonical;
pub mod exchange;
pub mod hygiene;
pub mod outgoing;
pub mod pace;
pub mod respond;
pub mod server;
